"""The sparse loss: recorded values and gradients, and what it pushes towards."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sparsemask.search.losses import sparse_loss


@pytest.mark.parametrize("number", [0, 1, 2])
def test_golden_value_and_gradient(golden, number):
    recorded = np.load(golden / "connectivity_nets.npz")
    w = torch.from_numpy(recorded[f"sparse_loss_{number}_w"]).double().requires_grad_()
    loss = sparse_loss(w)
    loss.backward()
    assert loss.item() == pytest.approx(recorded[f"sparse_loss_{number}_value"].item(), abs=1e-6)
    np.testing.assert_allclose(w.grad.numpy(), recorded[f"sparse_loss_{number}_grad"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("values", [(0.0, 0.0), (2.0, 2.0), (0.0, 2.0)])
def test_gradients_are_finite_at_the_ends(values):
    # Clamped weights sit exactly there; an infinite gradient would end the search.
    w = torch.tensor([values], requires_grad=True)
    sparse_loss(w).backward()
    assert torch.isfinite(w.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("w", "expected"),
    [
        # No entropy at the ends: what is left is the cross-entropy of the mean with the ratio 1/2.
        ([0.0, 0.0, 0.0, 0.0], -0.5 * math.log(1e-10)),
        ([2.0, 2.0, 2.0, 2.0], -0.5 * math.log(1e-10)),
        ([0.0, 2.0, 2.0, 0.0], math.log(2)),
    ],
)
def test_values_at_the_ends(w, expected, dtype):
    assert sparse_loss(torch.tensor(w, dtype=dtype)).item() == pytest.approx(expected, rel=1e-5)


def test_gradcheck():
    w = torch.rand(4, 2, dtype=torch.float64) * 1.8 + 0.1
    assert torch.autograd.gradcheck(sparse_loss, w.requires_grad_())


def test_two_inputs_of_many_are_the_cheapest_binary_choice():
    losses = []
    for kept in range(1, 18):
        w = torch.zeros(18, dtype=torch.float64)
        w[:kept] = 2
        losses.append(sparse_loss(w).item())
    # The default ratio is 2 / 18: two connections at 2 have exactly that mean.
    assert int(np.argmin(losses)) + 1 == 2


def test_the_wanted_ratio_can_be_given():
    w = torch.zeros(10, dtype=torch.float64)
    w[:1] = 2
    # A tenth is kept: cheaper where a tenth is wanted than where half is.
    assert sparse_loss(w, ratio=0.1) < sparse_loss(w, ratio=0.5)
