"""Importances against literal formulas, and what a user's own must return."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparsemask
from hinge import enliven, one_thread  # noqa: F401
from sparsemask import UseError
from sparsemask.spaces.group_sparsity.shrinking import IMPORTANCES, Subject
from sparsemask.spaces.group_sparsity.shrinking.importance import scores

pytestmark = pytest.mark.usefixtures("one_thread")


class Small(nn.Module):
    """Two convolutions, a depth-wise one between, and a classifier that reads a flattened map."""

    def __init__(self):
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.deep = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.b = nn.Conv2d(6, 4, 1)
        self.last = nn.Linear(4 * 4, 5)

    def forward(self, x):
        x = F.relu(self.na(self.a(x)))
        return self.last(F.relu(self.b(F.relu(self.deep(x)))).flatten(1))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return enliven(Small(), (8, 3, 2, 2))


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 3, 2, 2, generator=generator), torch.randint(0, 5, (n,), generator=generator)) for n in (6, 3)
    ]


def subject(network, **more):
    return Subject(network, sparsemask.plan(network, torch.zeros(1, 3, 2, 2)).channels, **more)


def relative(values):
    return values / values.mean()


def test_the_layers_of_a_channel(network):
    first, second = subject(network).channels
    names = lambda members: [member.module for member in members]
    assert (names(first.makers), names(first.readers), names(first.norms)) == (["a", "deep"], ["b"], ["na"])
    assert (names(second.makers), names(second.readers), second.norms) == (["b"], ["last"], ())
    assert (first.count, second.count) == (6, 4)


def test_magnitudes_are_means_over_layers(network):
    w = {name: module.weight.detach() for name, module in network.named_modules() if name in ("a", "deep", "b", "last")}
    flat = w["last"].view(5, 4, 4)  # a channel is four of the flattened features
    for order, name in ((1, "l1"), (2, "l2")):
        norm = lambda t, dims, order=order: relative(torch.linalg.vector_norm(t, ord=order, dim=dims))
        found = scores(name, subject(network))
        wanted = torch.stack([norm(w["a"], (1, 2, 3)), norm(w["deep"], (1, 2, 3)), norm(w["b"], (0, 2, 3))]).mean(0)
        assert np.allclose(found["a.channels"], wanted, rtol=1e-5)
        wanted = (norm(w["b"], (1, 2, 3)) + norm(flat, (0, 2))) / 2
        assert np.allclose(found["b.channels"], wanted, rtol=1e-5)


def test_scales_distances_and_the_searchs_norms(network):
    found = scores("batch_norm", subject(network))
    assert np.allclose(found["a.channels"], relative(network.na.weight.detach().abs()))
    assert np.allclose(found["b.channels"], scores("l2", subject(network))["b.channels"])  # it has no norm
    made = network.b.weight.detach().flatten(1)
    read = network.last.weight.detach().view(5, 4, 4).transpose(0, 1).reshape(4, -1)  # four features are a channel
    distances = [torch.stack([(filters - one).norm(dim=1).sum() for one in filters]) for filters in (made, read)]
    wanted = (relative(distances[0]) + relative(distances[1])) / 2
    assert np.allclose(scores("fpgm", subject(network))["b.channels"], wanted, rtol=1e-4)
    wanted = (network.a.weight.flatten(1).square().sum(1) + network.deep.weight.flatten(1).square().sum(1)).sqrt()
    assert np.allclose(scores("hinge", subject(network))["a.channels"], wanted.detach(), rtol=1e-5)


def test_taylor_is_the_squared_change_of_the_loss(network, batches):
    found = scores("taylor", subject(network, data=batches, loss=F.cross_entropy))
    wanted = torch.zeros(4)
    for x, y in batches:
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(x), y), network.b.weight)
        wanted += (gradient * network.b.weight).detach().sum((1, 2, 3)) ** 2
    assert np.allclose(found["b.channels"], wanted / 2, rtol=1e-4)
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_fisher_is_the_mean_squared_gradient_of_a_mask(network, batches):
    loss = lambda out, y: F.cross_entropy(out, y, reduction="sum")
    found = scores("fisher", subject(network, data=batches, loss=loss))
    total = torch.zeros(6)
    for x, y in batches:
        for one, label in zip(x, y, strict=True):  # sample by sample, one factor on both layers that make the channel
            mask = torch.ones(6, requires_grad=True)
            hooks = [
                m.register_forward_hook(lambda m, i, out, mask=mask: out * mask[:, None, None])
                for m in (network.a, network.deep)
            ]
            (gradient,) = torch.autograd.grad(loss(network(one[None]), label[None]), mask)
            total += gradient**2
            for hook in hooks:
                hook.remove()
    assert np.allclose(found["a.channels"], total / 9, rtol=1e-3, atol=1e-7)


def test_activations_are_those_that_layers_read(network, batches):
    found = scores("activation", subject(network, data=batches))
    with torch.no_grad():
        read = torch.cat([F.relu(network.deep(F.relu(network.na(network.a(x))))) for x, _ in batches])
    assert np.allclose(found["a.channels"], relative(read.abs().mean((0, 2, 3))), rtol=1e-4)
    assert np.allclose(
        scores("activation", subject(network, data=[x for x, _ in batches]))["a.channels"], found["a.channels"]
    )


def test_random_scores_are_the_seeds(network):
    one, same, other = (scores("random", subject(network, seed=seed)) for seed in (0, 0, 1))
    assert all(np.array_equal(one[name], same[name]) and not np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", IMPORTANCES)
def test_every_importance_shrinks(network, batches, name):
    given = {"data": batches, "loss": F.cross_entropy} if name in ("taylor", "fisher", "activation") else {}
    small = sparsemask.shrink(network, batches[0][0], 0.6, importance=name, timed=False, **given)
    assert small.a.out_channels < 6 and name in str(small.report)


def test_an_importance_of_ones_own(network):
    keep = {"a.channels": torch.tensor([1.0, 0, 1, 0, 1, 0]), "b.channels": torch.arange(4)}
    small = sparsemask.shrink(
        network, torch.zeros(1, 3, 2, 2), policy={"a": 0.5, "b": 0.5}, importance=lambda _: keep, timed=False
    )
    assert torch.equal(small.a.weight, network.a.weight[::2]) and torch.equal(small.b.bias, network.b.bias[2:])


WRONG = {
    "no scores": lambda subject: {},
    "expected \\(6,\\)": lambda subject: {c.name: torch.ones(3) for c in subject.channels},
    "finite": lambda subject: {c.name: torch.full((c.count,), float("nan")) for c in subject.channels},
}


@pytest.mark.parametrize("message", WRONG)
def test_scores_are_checked(network, message):
    with pytest.raises(UseError, match=message):
        sparsemask.shrink(network, torch.zeros(1, 3, 2, 2), 0.5, importance=WRONG[message])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "needs loss="),
        ({"loss": F.cross_entropy}, "needs data="),
        ({"loss": F.cross_entropy, "data": []}, "no batch"),
        ({"loss": F.cross_entropy, "data": [torch.zeros(1, 3, 2, 2)]}, "expected a pair"),
        ({"loss": lambda out, y: out, "data": [(torch.zeros(2, 3, 2, 2), None)]}, "scalar"),
    ],
)
def test_data_and_loss_are_checked(network, given, message):
    with pytest.raises(UseError, match=message):
        sparsemask.shrink(network, torch.zeros(1, 3, 2, 2), 0.5, importance="taylor", **given)
