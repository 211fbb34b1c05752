"""Proximal operators against brute force, and the schedules around them against the published numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsemask.errors import UseError
from sparsemask.search.proximal import (
    adjusted_rates,
    annealed,
    factors,
    group_loss,
    operator_name,
    operators,
    running_ratio,
)

# Each operator's objective in one variable; log-sum's is only stationary.
OBJECTIVES = {
    "l1": lambda x, n, rho: 0.5 * (x - n) ** 2 + rho * x,
    "l1/2": lambda x, n, rho: (x - n) ** 2 + rho * np.sqrt(x),
    "l0": lambda x, n, rho: 0.5 * (x - n) ** 2 + rho * (x > 0),
}
norm = st.floats(0, 10)
strength = st.floats(0, 8)


def result(name: str, norms, rho: float, sets=None) -> np.ndarray:
    n = torch.tensor(norms, dtype=torch.float64)
    return (n * factors(name, n, rho, sets)).numpy()


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=150, deadline=None)
@given(n=norm, rho=strength)
def test_operators_minimise_their_objective(name, n, rho):
    objective, x = OBJECTIVES[name], float(result(name, [n], rho)[0])
    tried = np.concatenate([[0.0, n], np.linspace(0, n, 4001), np.geomspace(1e-9, 1, 500) * max(n, 1e-9)])
    best = objective(tried, n, rho).min()
    # A finer search could only be better than what was tried, so nothing tried may beat it by more than rounding.
    assert objective(np.array(x), n, rho) <= best + 1e-9 * (1 + best)
    assert 0 <= x <= n + 1e-12


@settings(max_examples=60, deadline=None)
@given(norms=st.lists(norm, min_size=1, max_size=3), rho=strength)
def test_l1_2_minimises_over_the_vector(norms, rho):
    n, x = np.array(norms), result("l1-2", norms, rho)

    def objective(v):
        return 0.5 * ((v - n) ** 2).sum(-1) + rho * (v.sum(-1) - np.sqrt((v**2).sum(-1)))

    assert np.isfinite(x).all()
    # The penalty's second part pulls outwards, so that a norm may grow up to n + ρ.
    axes = [np.concatenate([np.linspace(0, m + rho, 25), [m, max(m - rho, 0)]]) for m in norms]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(norms))
    assert objective(x) <= objective(grid).min() + 1e-8 * (1 + objective(grid).min())


def test_l1_2_keeps_the_largest_group_where_all_are_small():
    assert result("l1-2", [0.1, 0.3, 0.3, 0.2], 0.5).tolist() == [0, 0.3, 0, 0]


def test_l1_2_treats_each_matrix_by_itself():
    sets = torch.tensor([0, 1, 0, 1, 1])
    both = result("l1-2", [3.0, 0.1, 1.0, 0.4, 0.2], 0.5, sets)
    assert both[[0, 2]] == pytest.approx(result("l1-2", [3.0, 1.0], 0.5))
    assert both[[1, 3, 4]] == pytest.approx(result("l1-2", [0.1, 0.4, 0.2], 0.5))


@settings(max_examples=200, deadline=None)
@given(n=st.floats(1e-3, 10), rho=st.floats(1e-6, 8))
def test_logsum_is_the_larger_stationary_point(n, rho):
    x = float(result("logsum", [n], rho)[0])
    if x == 0:
        # No stationary point: the derivative's sign never changes.
        tried = np.geomspace(1e-7, n, 2000)
        assert (tried - n + rho / (tried + 1e-8) > -1e-6).all()
    else:
        assert x - n + rho / (x + 1e-8) == pytest.approx(0, abs=1e-6 * (1 + rho))
        assert 1 - rho / (x + 1e-8) ** 2 >= -1e-6  # the larger of two is where the objective turns upwards


@pytest.mark.parametrize("name", operators())
def test_edges(name):
    zero = factors(name, torch.zeros(4), 0.1)
    assert torch.isfinite(zero).all()
    n = torch.tensor([0.5, 1.0, 2.0])
    assert torch.allclose(factors(name, n, 0.0), torch.ones(3), atol=1e-6)  # no strength, no change
    assert len(factors(name, torch.zeros(0), 0.1)) == 0
    # Strength may differ from group to group; a stronger one leaves less (l1-2 couples them: only the order holds).
    two = n[1:2].expand(2) * factors(name, n[1:2].expand(2), torch.tensor([0.01, 0.1]), torch.arange(2))
    assert two[0] >= two[1] - 1e-6
    assert factors(name, n, 1e4).count_nonzero() == (1 if name == "l1-2" else 0)


def test_group_shrinkage_is_soft_thresholding_of_the_norm():
    rows = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    n = rows.norm(dim=1)
    shrunk = rows * factors("l1", n, 2.0)[:, None]
    assert torch.allclose(shrunk.norm(dim=1), (n - 2).clamp_min(0))
    assert torch.allclose(shrunk / shrunk.norm(dim=1, keepdim=True).clamp_min(1e-300), rows / n[:, None], atol=1e-12)


def test_l0_drops_what_is_at_its_threshold():
    # Of n²/2 = ρ keeping and dropping cost the same: the smaller network.
    assert result("l0", [2.0, 2.0 + 1e-9, 1.0], 2.0).tolist() == [0, 2.0 + 1e-9, 0]


def test_names():
    assert operator_name("l1d2") == "l1/2" and operator_name("log-sum") == "logsum"
    with pytest.raises(UseError, match="unknown regularizer 'l3'; known: l0, l1"):
        operator_name("l3")


def test_annealing_table():
    # a, monitored value -> λ_eff / λ at t1, t2 = 10, 5
    table = [(2, 11, 1), (2, 10, 1 / 2), (2, 5.1, 1 / 2), (2, 5, 1 / 4), (2, 0, 1 / 4), (0, 1, 1), (4, 7, 1 / 4)]
    for factor, monitored, share in table:
        assert annealed(3e-4, factor, (10, 5), monitored) == pytest.approx(3e-4 * share)


def test_group_loss_reduces_as_said():
    norms = [torch.tensor([1.0, 4.0]), torch.tensor([9.0])]
    assert group_loss(norms, "mean") == 7 and group_loss(norms, "sum") == 14
    assert group_loss(norms, "sum", 0.5) == pytest.approx(18)  # (1 + 2)² + 3²


def test_l2_1_of_nothing_is_0_and_has_a_gradient():
    n = torch.zeros(3, requires_grad=True)
    loss = group_loss([n], "sum")
    loss.backward()
    assert loss == 0 and n.grad.tolist() == [1, 1, 1]


def test_rates_follow_the_ratio_of_gradients():
    # The specification's example: r = 1.5, lr 0.1, lr_ratio 0.01.
    assert adjusted_rates([1e-3, 0.1, 0.1], 1.5) == pytest.approx([5.785e-4, 5.785e-2, 0.1], rel=1e-3)
    assert adjusted_rates([1.0, 2.0, 3.0], 1.5)[-1] == 3.0 and adjusted_rates([1.0, 2.0, 3.0], 1.5, "p2")[:2] == [1, 2]
    assert adjusted_rates([1e-3, 0.1, 0.1], 1.5, "p2") == pytest.approx([1e-3, 0.1, 0.1 * 1.5**1.35])
    assert adjusted_rates([1e-3, 0.1, 0.1], 1.5, "none") == [1e-3, 0.1, 0.1]


def test_the_running_ratio_weighs_the_newest_and_is_clamped_after_the_first():
    assert running_ratio(None, 7.0) == 7.0
    assert running_ratio(1.0, 1.1) == pytest.approx(0.1 + 0.99)
    assert running_ratio(7.0, 7.0) == 9 / 5 and running_ratio(0.1, 0.1) == 5 / 9
