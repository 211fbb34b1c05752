"""From weights to a mask: bit for bit the public rules, and a report that says what happened."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsemask import UseError
from sparsemask.masks import UP, why_unusable
from sparsemask.prune.connectivity import prune_connectivity
from sparsemask.spaces.connectivity.prune_rules import _merge_duplicates, prune_report


def test_all_golden_prunings_bit_for_bit(golden):
    cases = np.load(golden / "prune_cases.npz")
    numbers = sorted({name[:3] for name in cases.files})
    assert len(numbers) == 300
    for n in numbers:
        weights, thres = cases[f"{n}_weights"], float(cases[f"{n}_thres"])
        duplicate, subset = map(bool, cases[f"{n}_flags"])
        stages = [torch.from_numpy(weights[i, : i + 1]) for i in range(len(weights))]
        for form in (weights, stages):
            mask = prune_connectivity(form, thres, duplicate, subset)
            assert mask.dtype == bool and (mask == cases[f"{n}_mask"]).all(), n


def matrices(length: int, **stages: list[tuple[int, int]]) -> list[np.ndarray]:
    """Weights 1 at the (feature, kind) pairs of the stages named s0, s1, ..., 0 elsewhere."""
    weights = [np.zeros((i + 1, 2), np.float32) for i in range(length)]
    for name, pairs in stages.items():
        for pair in pairs:
            weights[int(name[1:])][pair] = 1
    return weights


def test_a_stage_the_output_does_not_reach_is_removed_and_named():
    weights = matrices(3, s0=[(0, 0)], s2=[(2, 0)])
    report = prune_report(weights, 0.1)
    assert report.removed == [(0, "unreachable"), (1, "no inputs")]
    assert (report.above_thres, report.connections) == (2, 1)


def test_duplicates_become_one_stage_that_takes_all_uses():
    weights = matrices(4, s1=[(0, 0)], s2=[(0, 0)], s3=[(2, 1), (3, 1)])
    report = prune_report(weights, 0.1, rm_subset=False)
    assert (2, "same inputs as stage 1: duplicate") in report.removed
    # The use of stage 2 by the output is gone, stage 1's stays.
    assert report.mask[3, 2, UP] and not report.mask[3, 3, UP]


def test_a_covered_stage_is_removed_with_its_uses():
    weights = matrices(4, s0=[(0, 0)], s2=[(0, 0), (2, 0)], s3=[(1, 1), (3, 1)])
    report = prune_report(weights, 0.1)
    assert (0, "subset of stage 2") in report.removed and not report.mask[3, 1, UP]
    kept = prune_report(weights, 0.1, rm_subset=False)
    assert kept.mask[0].any() and kept.connections == 5


def test_margin_is_on_the_halved_scale():
    weights = matrices(2, s1=[(0, 0), (1, 0)])
    weights[1][:] = [[1.6, 0.002], [-5, 0]]
    report = prune_report(weights, 0.01)
    # Weights are clipped to [0, 2] by magnitude, then halved.
    assert report.smallest_kept == pytest.approx(0.8) and report.largest_dropped == pytest.approx(0.001)
    assert report.margin == pytest.approx(800, rel=1e-4)
    assert "margin 800 times" in report.lines()[-1]


def test_a_weight_at_the_threshold_is_dropped():
    weights = matrices(2, s1=[(0, 0), (1, 0)])
    weights[1][0, 0] = 0.5  # halved: 0.25 exactly
    report = prune_report(weights, 0.25)
    assert (report.above_thres, report.connections, report.largest_dropped) == (1, 1, 0.25)
    assert not report.mask[1, 0, 0] and report.mask[1, 1, 0]


def test_merging_never_takes_the_output_stage():
    # Reachability rules such a mask out before merging; were it to come, the output must stay.
    mask = np.zeros((3, 3, 2), bool)
    mask[1, 0, 0] = mask[2, 0, 0] = True
    before, why = mask.copy(), {}
    _merge_duplicates(mask, why)
    assert (mask == before).all() and not why


def test_an_empty_output_stage_is_said_and_not_raised():
    report = prune_report(matrices(3, s0=[(0, 0)]), 0.1)
    assert not report.mask.any() and "output stage 2 has no inputs" in report.problem
    assert report.lines()[-1].startswith("unusable mask")


def test_without_merging_an_empty_stage_may_be_used():
    report = prune_report(matrices(3, s2=[(1, 1), (0, 0)]), 0.1, rm_duplicate=False, rm_subset=False)
    assert report.problem == "stage 0 has no inputs but feeds stage 2"


@settings(max_examples=150, deadline=None)
@given(st.integers(2, 7), st.integers(0, 2**32 - 1), st.floats(0.2, 0.9))
def test_cleaned_masks_are_usable_or_say_why_and_repeat_is_a_fixed_point(length, seed, thres):
    weights = np.random.default_rng(seed).random((length, length, 2)).astype(np.float32) * 2
    mask = prune_connectivity(weights, thres)
    assert not mask[~np.tri(length, dtype=bool)].any()
    # With duplicates on, only an empty output stage is left to go wrong.
    assert mask[-1].any() == (why_unusable(mask) == "")
    settled = prune_connectivity(weights, thres, repeat=True)
    assert (prune_connectivity(settled * 2.0, 0.5, repeat=True) == settled).all() or not settled[-1].any()


def test_by_default_each_cleaning_is_done_once():
    # Stage 1 has no inputs: without its use stage 2 is a duplicate of stage 0, which one pass does not come back to.
    weights = matrices(5, s0=[(0, 1)], s2=[(0, 1), (2, 1)], s3=[(3, 1)], s4=[(0, 1), (1, 1), (3, 0), (4, 1)])
    once, again = prune_report(weights, 0.1), prune_report(weights, 0.1, repeat=True)
    assert once.connections == 7 and once.removed == [(1, "no inputs")]
    assert again.connections == 6 and (2, "same inputs as stage 0: duplicate") in again.removed
    for form, expected in (({}, once), ({"repeat": True}, again)):
        assert (prune_connectivity(weights, 0.1, **form) == expected.mask).all()


def test_subsets_are_removed_by_default():
    weights = matrices(4, s0=[(0, 0)], s2=[(0, 0), (2, 0)], s3=[(1, 1), (3, 1)])
    assert not prune_connectivity(weights, 0.1)[0].any()
    assert prune_connectivity(weights, 0.1, rm_subset=False)[0].any()


def test_thresholds_from_0_to_below_1():
    weights = matrices(2, s1=[(0, 0)])
    weights[1][1, 1] = 1e-6
    assert prune_report(weights, 0).connections == 1  # stage 0 has no inputs: what uses it goes
    assert prune_report(weights, 0).above_thres == 2
    for thres in (-1e-6, -0.5):
        with pytest.raises(UseError, match=r"must be in \[0, 1\)"):
            prune_report(weights, thres)


def test_the_report_where_all_or_nothing_is_kept():
    every = prune_report([np.full((1, 2), 5.0)], 0.5)
    # Clipped to 2 and halved: nothing is above 1.
    assert (every.smallest_kept, every.largest_dropped, every.margin) == (1.0, None, None)
    assert every.lines() == [
        "2 of 2 connections above the threshold 0.5, 2 left after cleaning",
        "smallest kept weight 1, largest dropped weight none",
    ]
    nothing = prune_report([np.full((1, 2), 0.5)], 0.5)
    assert (nothing.smallest_kept, nothing.largest_dropped, nothing.margin) == (None, 0.25, None)
    assert "smallest kept weight none, largest dropped weight 0.25" in nothing.lines()


BAD = {
    "no weights": ([], 0.1, "no connection weights"),
    "threshold 1": (matrices(2), 1.0, r"must be in \[0, 1\)"),
    "threshold nan": (matrices(2), float("nan"), r"must be in \[0, 1\)"),
    "wrong shape": ([np.ones((2, 2))], 0.1, r"stage 0 have shape \(2, 2\), expected \(1, 2\)"),
    "not finite": ([np.full((1, 2), np.nan)], 0.1, "not finite"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_weights_are_refused_in_one_line(name):
    weights, thres, words = BAD[name]
    with pytest.raises(UseError, match=words):
        prune_connectivity(weights, thres)
