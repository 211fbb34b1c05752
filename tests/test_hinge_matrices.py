"""The sparsity-inducing matrix: initialisations, pairs, double ReLUs, and the norms and shrinking of groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsemask.errors import UseError
from sparsemask.spaces.group_sparsity import groups
from sparsemask.spaces.group_sparsity.groups import GroupSet, Member
from sparsemask.spaces.group_sparsity.pairs import EXACT, INITS, DoubleReLU, Pair, factorise

# Filters, inputs, kernel: fewer filters than weights in one, as many, more.
SHAPES = [(8, 5, 3), (18, 2, 3), (64, 3, 3), (12, 12, 1), (1, 4, 3), (6, 1, 1)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("init", EXACT)
@pytest.mark.parametrize(("n", "c", "k"), SHAPES)
def test_exact_initialisations_keep_the_function(init, n, c, k):
    torch.manual_seed(n)
    conv = nn.Conv2d(c, n, k, stride=2, padding=k - 1, dilation=2)
    pair = Pair.of(conv, init)
    x = torch.randn(2, c, 9, 11)
    assert torch.allclose(pair(x), conv(x), atol=1e-5)
    assert torch.allclose(pair.single_layer()(x), conv(x), atol=1e-5)
    assert pair[0].bias is None and torch.equal(pair[1].bias, conv.bias)
    rank = min(n, c * k * k) if init == "svd2" else n  # 64 filters of 3×3×3 give 27
    assert pair[0].weight.shape == (rank, c, k, k) and pair[1].weight.shape == (n, rank, 1, 1)


@pytest.mark.parametrize(("n", "c", "k"), SHAPES)
def test_svd2_rows_are_as_long_as_the_singular_values(n, c, k):
    torch.manual_seed(n)
    weight = torch.randn(n, c, k, k, dtype=torch.double)
    first, second = factorise(weight)
    values = torch.linalg.svdvals(weight.flatten(1))
    pair = Pair.shaped(nn.Conv2d(c, n, k, bias=False, dtype=torch.double), len(first))
    pair[1].weight.data.copy_(second)
    rows = GroupSet("rows", "P1", (Member("1", 1),), len(first))
    assert torch.allclose(groups.norms(pair, rows), values)
    assert torch.isclose(groups.norms(pair, rows).sum(), values.sum())  # the l2,1 penalty is the nuclear norm
    orthonormal = first.flatten(1) @ first.flatten(1).T
    assert torch.allclose(orthonormal, torch.eye(len(first), dtype=torch.double))


def test_svd_has_orthonormal_columns_in_the_matrix():
    _, second = factorise(torch.randn(64, 3, 3, 3, generator=generator()), "svd")
    assert torch.allclose(second[:, :, 0, 0] @ second[:, :, 0, 0].T, torch.eye(64), atol=1e-5)


@pytest.mark.parametrize("init", sorted(set(INITS) - set(EXACT)))
def test_drawn_initialisations_repeat_by_seed(init):
    weight = torch.randn(20, 4, 3, 3, generator=generator())
    one, same, other = (factorise(weight, init, generator(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[1], other[1])
    assert torch.equal(one[0], weight) == (init != "t-random")


@pytest.mark.parametrize("init", ["p-disturbance-u", "p-disturbance-n"])
@pytest.mark.parametrize("dim", [0, 1])
def test_disturbed_identities_have_unit_columns_or_rows(init, dim):
    second = factorise(torch.randn(20, 4, 3, 3), init, generator(), dim=dim)[1][:, :, 0, 0]
    # A = secondᵀ: A's columns are the second's rows
    assert torch.allclose(second.norm(dim=1 - dim), torch.ones(20))
    assert (second - torch.eye(20)).abs().max() < 0.5  # near the identity


def test_the_pair_keeps_type_padding_and_mode():
    conv = nn.Conv2d(3, 4, (3, 1), padding="same", padding_mode="reflect", dtype=torch.double).eval()
    pair = Pair.of(conv)
    x = torch.randn(1, 3, 6, 6, dtype=torch.double)
    assert torch.allclose(pair(x), conv(x)) and not pair[0].training
    assert pair.single_layer().padding_mode == "reflect"


def test_what_cannot_be_factorised_is_said():
    with pytest.raises(UseError, match="unknown initialisation 'svd3'; did you mean 'svd'\\? known: p-disturbance-n"):
        factorise(torch.zeros(2, 2, 1, 1), "svd3")
    with pytest.raises(ValueError, match="grouped"):
        Pair.of(nn.Conv2d(4, 4, 3, groups=2))


def test_double_relu():
    act, x = DoubleReLU(), torch.tensor([-2.0, -0.5, 0.0, 3.0])
    assert torch.equal(act(x), torch.relu(x))  # at first
    with torch.no_grad():
        act.slope_p.fill_(0.7)
        act.slope_n.fill_(-0.2)
    assert torch.allclose(act(x), 0.7 * torch.relu(x) - 0.2 * torch.relu(-x))
    act(x).sum().backward()
    assert torch.isclose(act.slope_p.grad, torch.tensor(3.0)) and torch.isclose(act.slope_n.grad, torch.tensor(2.5))


class Two(nn.Module):
    """Layers of 6 and 4 outputs, one of them transposed."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3)
        self.b = nn.ConvTranspose2d(5, 4, 2)
        self.c = nn.Linear(6, 2)


# A set over these layers, and for every group the (layer, dimension of the weight, channels) it consists of.
SETS = [
    (GroupSet("s", "P1", (Member("a", 0),), 6), [[("a", 0, [g])] for g in range(6)]),
    (GroupSet("s", "P1", (Member("a", 0),), 3, 2), [[("a", 0, [2 * g, 2 * g + 1])] for g in range(3)]),
    (GroupSet("s", "P1", (Member("a", 0), Member("c", 1)), 6), [[("a", 0, [g]), ("c", 1, [g])] for g in range(6)]),
    (GroupSet("s", "P1", (Member("b", 0),), 4), [[("b", 1, [g])] for g in range(4)]),
    (
        GroupSet("s", "P1", (Member("a", 0, (-1, 1, 0, 1, -1, 2)), Member("b", 0, (2, 0, -1, 1))), 3),
        [[("a", 0, [2]), ("b", 1, [1])], [("a", 0, [1, 3]), ("b", 1, [3])], [("a", 0, [5]), ("b", 1, [0])]],
    ),
]


def slices(network: nn.Module, group: list) -> list[torch.Tensor]:
    return [network.get_submodule(name).weight.transpose(0, dim)[channels] for name, dim, channels in group]


@pytest.mark.parametrize(("s", "parts"), SETS)
def test_norms_gradients_and_scaling_of_groups(s, parts):
    network = Two()
    before = dict(network.named_parameters())
    values = [{name: p.detach().clone() for name, p in before.items()}]
    expected = torch.stack([torch.cat([x.flatten() for x in slices(network, part)]).norm() for part in parts])
    found = groups.norms(network, s)
    assert torch.allclose(found, expected)
    assert groups.gradient_norms(network, s).abs().max() == 0  # no gradients yet
    found.square().sum().backward()
    assert torch.allclose(groups.gradient_norms(network, s), 2 * expected, atol=1e-5)
    factors = torch.rand(s.count)
    groups.scale_(network, s, factors)
    assert torch.allclose(groups.norms(network, s), expected * factors)
    assert all(p is before[name] for name, p in network.named_parameters())  # the optimizer's objects
    touched = torch.cat([x.flatten() for part in parts for x in slices(network, part)]).numel()
    assert sum(int((p != values[0][name]).sum()) for name, p in before.items()) == touched  # nothing else moved


@pytest.mark.parametrize(("s", "parts"), SETS)
def test_zero_groups_have_no_bias_and_a_gradient(s, parts):
    network = Two()
    gone = torch.zeros(s.count, dtype=torch.bool)
    gone[1] = True
    groups.zero_(network, s, gone)
    norms = groups.norms(network, s)
    assert (norms == 0).tolist() == gone.tolist()
    for name, dim, channels in parts[1]:
        module = network.get_submodule(name)
        outputs = dim == (1 if name == "b" else 0)
        assert not outputs or module.bias[channels].abs().max() == 0
    norms.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())  # zero where a norm is zero


@pytest.mark.parametrize(("above", "q"), [(1.0, 0.0), (1.0, 0.25), (0.7, -0.3), (-0.5, 0.2), (0.0, 0.4), (0.0, 0.0)])
def test_a_double_relu_whose_slopes_are_fixed_is_the_same_function(above, q):
    made, x = DoubleReLU(), torch.randn(3, 4, 5, 6)
    with torch.no_grad():
        made.slope_p.fill_(above), made.slope_n.fill_(q)
        torch.testing.assert_close(made.fixed()(x), made(x))
