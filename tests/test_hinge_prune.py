"""Which groups stay, and the threshold for a target."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsemask.prune.group_sparsity import _why
from sparsemask.prune.group_sparsity.budget import Choice
from sparsemask.spaces.group_sparsity.threshold import ThresholdResult, find_threshold, kept_groups, kept_sets, largest


@pytest.mark.parametrize(
    ("norms", "threshold", "share", "kept"),
    [
        ([0.0] * 10, 0.1, 0.2, {0, 1}),  # nothing is left: the first ones stay
        ([0.0] * 7 + [1, 0, 0], 0.1, 0.2, {0, 1, 7}),
        ([0.0] * 7 + [1, 0, 0], 0.1, 0.1, {7}),
        ([3, 1, 2, 5, 4], 2.5, 0.2, {0, 3, 4}),
        ([3, 1, 2, 5, 4], 100, 0.4, {3, 4}),  # the largest share stays whatever the threshold
        ([3, 1, 2, 5, 4], 2, 0.2, {0, 2, 3, 4}),  # at the threshold is kept
        ([3, 0, 2], 0, 0.4, {0, 2}),  # of threshold 0 what is above it
        ([1, 2, 3], 100, 0.2, {2}),  # fewer than five groups still keep one
        ([5.0], 100, 0.2, {0}),
        ([0.3, 0.4, 0.7, 0.9], 0.5, 0.2, {2, 3}),
    ],
)
def test_kept_groups(norms, threshold, share, kept):
    assert set(np.flatnonzero(kept_groups(np.array(norms, float), threshold, share))) == kept


def test_partners_keep_as_many():
    norms = {"a": np.array([1.0, 5, 6, 7]), "b": np.array([9.0, 8, 8, 8.5])}
    kept = kept_sets(norms, 5.5, 0.2, [("a", "b")])
    assert kept["a"].tolist() == [False, False, True, True]
    assert kept["b"].tolist() == [True, False, False, True]
    assert largest(norms["b"], 3).all()  # of equal ones all stay


def test_a_fifth_stays_unless_said_otherwise():
    norms = np.zeros(10)
    assert kept_groups(norms, 1.0).sum() == 2
    assert kept_sets({"a": norms}, 1.0)["a"].sum() == 2


@pytest.mark.parametrize("count", [0, 1, 2, 10, 999, 1000, 1001])
def test_the_largest_of_many(count):
    norms = np.random.default_rng(0).random(1000)
    kept = largest(norms, count)
    assert kept.sum() == min(max(count, 1), 1000)
    assert norms[kept].min() > norms[~kept].max(initial=0)


groups = st.lists(st.lists(st.floats(0, 3), min_size=1, max_size=12), min_size=1, max_size=5)


@settings(max_examples=150, deadline=None)
@given(groups=groups, target=st.floats(0, 1.1), share=st.sampled_from([0.0, 0.2, 0.5]))
def test_no_threshold_is_nearer(groups, target, share):
    norms = {str(k): np.array(v) for k, v in enumerate(groups)}
    total = sum(map(len, groups))

    def ratio(threshold):
        return sum(kept.sum() for kept in kept_sets(norms, threshold, share).values()) / total

    found = find_threshold(ratio, target, norms.values())
    assert ratio(found.threshold) == found.ratio
    tried = [0.0, *(np.nextafter(v, np.inf) for v in np.concatenate(list(norms.values()))), 10.0]
    best = min(abs(ratio(t) - target) for t in tried)
    # Below the target with nothing dropped is as near as a budget needs to be.
    assert abs(found.ratio - target) <= best + 1e-12 or (found.threshold == 0 and found.ratio <= target)
    # The share that always stays bounds what is left.
    assert found.ratio >= sum(max(1, int(share * len(v))) for v in groups) / total - 1e-12
    budget = find_threshold(ratio, target, norms.values(), below=True)
    if any(ratio(t) <= target for t in tried):
        assert budget.ratio <= target


def test_a_smooth_ratio_is_met():
    norms = np.random.default_rng(0).gamma(2, size=20000)
    found = find_threshold(lambda t: float((norms >= t).mean()), 0.37, [norms])
    assert found.met and abs(found.ratio - 0.37) <= 1e-3


def test_ends_and_ties_of_the_search_for_a_threshold():
    share = lambda t: float((np.arange(1.0, 5) >= t).mean())
    # What nothing pruned meets is left alone, at threshold 0; everything may go.
    assert (find_threshold(share, 1.0, [np.arange(1.0, 5)]).threshold, share(0)) == (0, 1)
    assert find_threshold(lambda t: 0.5, 0.5, [np.arange(1.0, 5)]).threshold == 0
    assert find_threshold(share, 0.0, [np.arange(1.0, 5)]).ratio == 0
    # 3/4 and 1/2 are as near to 5/8: the smaller network.
    assert find_threshold(share, 0.625, [np.arange(1.0, 5)]).ratio == 0.5


def test_of_equal_ratios_the_lowest_threshold():
    stepped = lambda t: 1.0 if t <= 1 else 0.5 if t <= 4 else 0.25 if t <= 7 else 0.0
    for target, low in ((0.5, 1), (0.25, 4), (0.0, 7), (0.3, 4)):
        assert low < find_threshold(stepped, target, [np.arange(1.0, 10)]).threshold < low + 1


def test_a_target_is_met_to_a_thousandth():
    assert ThresholdResult(0.1, 1e-3, 0.0).met and not ThresholdResult(0.1, 1.1e-3, 0.0).met
    assert ThresholdResult(0.1, 0.0, 1e-3).met and not ThresholdResult(0.1, 0.0, 1.1e-3).met


@pytest.mark.parametrize("floor", [0.05, 0.3, 0.55, 0.9])
def test_the_lowest_threshold_that_reaches_the_floor(floor):
    norms = np.arange(1.0, 101)
    found = find_threshold(lambda t: float(kept_groups(norms, t, floor).mean()), 0.01, [norms])
    below = 100 - int(floor * 100)
    assert below < found.threshold < below + 1


def test_the_floor_of_a_target_out_of_reach_is_the_lowest_threshold_that_gets_there():
    norms = np.arange(1.0, 11)
    ratio = lambda t: float(kept_groups(norms, t, 0.2).mean())
    found = find_threshold(ratio, 0.05, [norms])
    assert found.ratio == 0.2 and not found.met
    assert 8 < found.threshold < 9  # above the third largest, no further


@pytest.mark.parametrize(
    ("by", "ratio", "compiled", "word"),
    [
        ("multiply-adds", 0.4, False, "no nearer step"),
        ("multiply-adds", 1.0, False, "--remain"),  # counted: nothing is said of time
        ("milliseconds", 0.9, False, "--remain"),  # faster, though not as much as asked for
        ("milliseconds", 1.1, False, "the plain network is kept; try --compiled"),
        ("milliseconds", 0.99, True, "try a larger --batch"),  # as fast as the plain network: nothing gained
    ],
)
def test_a_missed_target_says_why(by, ratio, compiled, word):
    choice = Choice(kept={}, merged=(), threshold=0.1, ratio=ratio, met=False)
    assert word in _why(choice, SimpleNamespace(by=by, target=0.5, compiled=compiled))
