"""Shares of channels by a roofline model: what layers compute and move, counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsemask
from hinge import lively, one_thread  # noqa: F401
from sparsemask.spaces.group_sparsity.shrinking import roofline

pytestmark = pytest.mark.usefixtures("one_thread")

WEIGHT, FEATURE, SHARE = 32, 6, 0.7


class Two(nn.Module):
    """Two layers whose channels can go, of 8 and of 16, and what reads the second one's after a pool."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.second = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(8)
        self.last = nn.Linear(16, 5, bias=False)

    def forward(self, x):
        return self.last(self.pool(self.second(self.first(x))).flatten(1))


def test_shares_follow_from_what_is_computed_and_moved():
    network = Two().double()
    plan = sparsemask.plan(network, torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    image, first, second, pooled, out = 3 * 64, 8 * 64, 16 * 64, 16, 5
    weights = [8 * 3 * 9, 16 * 8 * 9, 5 * 16]
    products = [weights[0] * 64, weights[1] * 64, weights[2]]
    # Moved are the inputs and outputs of every operator that touches a set: convolution, pool, flatten, product.
    conv = [WEIGHT * weights[0] + FEATURE * (image + first), WEIGHT * weights[1] + FEATURE * (first + second)]
    rest = FEATURE * (second + pooled) + FEATURE * (pooled + pooled) + WEIGHT * weights[2] + FEATURE * (pooled + out)
    computed = [products[0] + products[1], products[1] + products[2]]
    moved = [conv[0] + conv[1], conv[1] + rest]
    density = [1 + m / c for m, c in zip(moved, computed, strict=True)]
    middling = sum(d * c for d, c in zip(density, computed, strict=True)) / sum(computed)
    assert [c.makers[0].module for c in plan.channels] == ["first", "second"]
    found = roofline.shares(plan.graph, plan.channels)
    # The pool may make indices, and views are operators too: a little more is moved than by hand.
    for name, wanted in zip(("first", "second"), (SHARE ** (d / middling) for d in density), strict=True):
        assert found[name] == pytest.approx(wanted, abs=0.01), name


def test_layers_that_read_many_weights_for_few_positions_lose_more():
    network, late_less_early = lively("resnet20"), []
    for side in (64, 8):  # at 8x8 the last stage has four positions
        x = torch.zeros(1, 3, side, side)
        plan = sparsemask.plan(network, x)
        shares = roofline.shares(plan.graph, plan.channels)
        early, late = shares["features.1.0.body.0"], shares["features.3.1.body.0"]
        assert 0.45 < min(early, late) and max(early, late) < 0.9
        late_less_early.append(late - early)
        small = plan.shrink(0.5, policy="time", timed=False)
        assert abs(small.report.after.multiply_adds / small.report.before.multiply_adds - 0.5) < 0.03
        assert "time" in small.report.how and roofline.shares(plan.graph, plan.channels) == shares
        y = torch.randn(1, 3, side, side)
        with torch.no_grad():
            torch.testing.assert_close(small(y), plan.zeroed(small)(y), rtol=1e-4, atol=1e-5)
    assert late_less_early[0] > late_less_early[1] + 0.1 and late_less_early[1] < -0.1


def test_steps_share_out_by_time_again():
    network = lively("resnet20")
    *_, small = sparsemask.plan(network, torch.zeros(1, 3, 16, 16)).steps(2, 0.4, policy="time", timed=False)
    assert abs(small.report.after.multiply_adds / small.report.before.multiply_adds - 0.4) < 0.03
