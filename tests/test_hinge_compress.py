"""Compression keeps the function: below every norm, zero rows and columns, constants at borders, in any network."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hinge import SmallUNet, enliven, lively, one_thread  # noqa: F401
from sparsemask.errors import UseError
from sparsemask.spaces.connectivity import PrunedNetwork, named_mask
from sparsemask.spaces.group_sparsity.compression.border import fit_additions, fix_borders
from sparsemask.spaces.group_sparsity.compression.compress import compress, remove_groups
from sparsemask.spaces.group_sparsity.compression.removal import Removal
from sparsemask.spaces.group_sparsity.fast import fold_norms
from sparsemask.spaces.group_sparsity.groups import GroupSet, Member
from sparsemask.spaces.group_sparsity.pairs import groups_of, hinge, merge
from sparsemask.spaces.group_sparsity.rules import general_plan, plan_for
from sparsemask.spaces.group_sparsity.tracing.graph import trace

pytestmark = pytest.mark.usefixtures("one_thread")

# Every network with every rule that it has.
EIGHT = [
    *(("resnet20", v) for v in ("svd", "columns", "graph")),
    ("resnet56", "svd"),
    pytest.param("resnet164", "svd", marks=pytest.mark.slow),
    *(("resnext20", v) for v in ("svd", "graph")),
    pytest.param("resnext164", "svd", marks=pytest.mark.slow),
    *(("vgg16", v) for v in ("svd", "graph")),
    *(("densenet40", v) for v in ("svd", "columns", "graph")),
    pytest.param("wrn16_10", "columns", marks=pytest.mark.slow),
]


def hinged(arch, variant, **options):
    network = lively(arch, **options)
    plan = plan_for(arch, variant, network)
    # the identity has the shapes of svd2 in these networks and takes no time
    network = enliven(hinge(network, plan, "p-identity")) if plan.splits else hinge(network, plan)
    return network, groups_of(network, plan)


def choice(sets, share=0.5, seed=0):
    random = np.random.default_rng(seed)
    return {s.name: random.random(s.count) >= share for s in sets}


def close(one, other, tolerance=1e-5):
    scale = max(1.0, other.abs().max().item())
    return one.shape == other.shape and (one - other).abs().max().item() <= tolerance * scale


def masked(network, removal, kept):
    return removal.zero_(copy.deepcopy(network), kept)


@pytest.mark.parametrize(("arch", "variant"), EIGHT)
def test_compress_save_load_run(arch, variant, tmp_path):
    network, sets = hinged(arch, variant)
    # a VGG's linear layers fix the size; the others are run at one that was not traced
    size, other = ((32, 32), (32, 32)) if arch == "vgg16" else ((16, 16), (12, 20))
    graph = trace(network, torch.zeros(1, 3, *size))
    removal = Removal(graph, sets)
    x = torch.randn(2, 3, *other)

    with torch.no_grad():
        whole = compress(network, graph, removal, {s.name: np.ones(s.count, bool) for s in sets})
        assert all(
            torch.equal(a, b) for a, b in zip(whole.state_dict().values(), network.state_dict().values(), strict=True)
        )

        kept = choice(sets)
        result = remove_groups(network, removal, kept)
        small = result.network
        wanted = masked(network, removal, kept)(x)
        assert close(small(x), wanted)
        assert len(result.removed) == removal.gone(kept).sum()  # these networks have a place for every constant
        assert parameters(small) < 0.75 * parameters(network)

        torch.save(small.state_dict(), tmp_path / "small.pt")
        state = torch.load(tmp_path / "small.pt", weights_only=True)
        again = graph.remove(copy.deepcopy(network), removal.gone(kept))
        fit_additions(again, state).load_state_dict(state)
        assert torch.equal(again(x), small(x))
        merge(again)
        assert close(again(x), wanted)


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def user_networks():
    torch.manual_seed(0)
    yield enliven(SmallUNet(), (4, 3, 32, 32)), (32, 48)
    # a round number of samples, so that the 1x1 global feature has statistics
    yield enliven(PrunedNetwork(named_mask("unet", 9), depth=8), (4, 3, 64, 64)), (65, 80)


@pytest.mark.parametrize("place", [0, 1])
def test_two_networks_not_in_the_list(place):
    network, size = list(user_networks())[place]
    example = torch.zeros(1, 3, 64, 64)
    plan = general_plan(network, trace(network, example))
    network = hinge(network, plan, "svd2")
    graph = trace(network, example)
    removal = Removal(graph, groups_of(network, plan))
    kept = choice(removal.sets)
    result = remove_groups(network, removal, kept)
    small = result.network
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert close(small(x), masked(network, removal, kept)(x))
        # every free channel that was asked for went, those behind depth-wise convolutions included
        assert len(result.removed) == removal.gone(kept).sum() > 20
        again = graph.remove(copy.deepcopy(network), result.removed)
        state = small.state_dict()
        fit_additions(again, state).load_state_dict(state)
        assert torch.equal(again(x), small(x))


class Chain(nn.Module):
    """conv - norm - activation - consumer, then a layer that the output needs."""

    def __init__(self, act=torch.sigmoid, channels=6, norm=True, join=None, **consumer):
        super().__init__()
        self.a = nn.Conv2d(3, channels, 3, padding=1, bias=not norm)
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.act, self.join = act, join
        wide = channels * 2 if join == "cat" else channels
        self.b = nn.Conv2d(3, channels, 1) if join else None
        self.take = consumer.pop("kind", nn.Conv2d)(wide, 5, **consumer)
        self.last = nn.Conv2d(5, 2, 1)

    def forward(self, x):
        y = self.act(self.norm(self.a(x)))
        if self.join:
            y = y + self.b(x) if self.join == "add" else torch.cat([y, self.b(x)], 1)
        return self.last(torch.tanh(self.take(y)))


A = GroupSet("a", "P1", (Member("a", 0),), 6)
B = GroupSet("b", "P1", (Member("b", 0),), 6)
# Network and sets; every activation leaves a constant, or every bias does.
CONSTANTS = {
    "padded": (lambda: Chain(kernel_size=3, padding=1), [A]),
    "padded, strided, dilated": (lambda: Chain(kernel_size=3, padding=3, stride=2, dilation=2), [A]),
    "without bias": (lambda: Chain(kernel_size=3, padding=1, bias=False), [A]),
    "same": (lambda: Chain(kernel_size=3, padding="same", dilation=2), [A]),
    "inside": (lambda: Chain(kernel_size=3), [A]),
    "one by one": (lambda: Chain(kernel_size=1, bias=False), [A]),
    "reflected": (lambda: Chain(kernel_size=3, padding=1, padding_mode="reflect"), [A]),
    "transposed": (lambda: Chain(kind=nn.ConvTranspose2d, kernel_size=3, stride=2, padding=1), [A]),
    "a rectifier": (lambda: Chain(torch.relu, kernel_size=3, padding=1), [A]),
    "pooled": (lambda: Chain(lambda y: F.max_pool2d(F.elu(y) + 1, 3, 2, 1), kernel_size=3, padding=1), [A]),
    "upsampled": (lambda: Chain(lambda y: F.interpolate(y, scale_factor=2, mode="bilinear"), kernel_size=3), [A]),
    "bias of the layer itself": (lambda: Chain(norm=False, kernel_size=3, padding=1), [A]),
    "a sum": (
        lambda: Chain(join="add", kernel_size=3, padding=1),
        [GroupSet("both", "P1", (Member("a", 0), Member("b", 0)), 6)],
    ),
    "a concatenation": (lambda: Chain(join="cat", kernel_size=3, padding=1), [A, B]),
    "columns of the consumer": (
        lambda: Chain(kernel_size=3, padding=1),
        [GroupSet("columns", "P1", (Member("take", 1),), 6)],
    ),
}


@pytest.mark.parametrize("name", CONSTANTS)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 1000), height=st.integers(6, 13), width=st.integers(6, 13))
def test_constants_are_folded(name, seed, height, width):
    make, sets = CONSTANTS[name]
    torch.manual_seed(seed)
    network = enliven(make())
    graph = trace(network, torch.zeros(1, 3, 11, 8))
    removal = Removal(graph, sets)
    kept = choice(sets, seed=seed)
    x = torch.randn(2, 3, height, width)
    with torch.no_grad():
        result = remove_groups(network, removal, kept)
        small = result.network
        wanted = masked(network, removal, kept)(x)
        assert close(small(x), wanted)
        if all(k.all() for k in kept.values()):
            return
        assert len(result.removed) > 0 and small.take.in_channels < network.take.in_channels
        # the published way forgets the constants: it has to differ, unless all of them are zero behind the activation
        plain = compress(network, graph, removal, kept, fold="none")
        left, folded = plain.state_dict(), small.state_dict()
        forgets = left.keys() != folded.keys() or any(not torch.equal(left[key], folded[key]) for key in left)
        assert not forgets or name == "a rectifier" or not close(plain(x), wanted, 1e-4)
        inner = compress(network, graph, removal, kept, fold="interior")
        assert not hasattr(inner.take, "border")
        if name in ("padded", "without bias", "a sum"):  # right wherever no padding is seen
            assert close(inner(x)[:, :, 1:-1, 1:-1], wanted[:, :, 1:-1, 1:-1])


def test_a_norm_after_the_consumer_takes_the_constant():
    torch.manual_seed(0)
    network = enliven(nn.Sequential(nn.Conv2d(3, 6, 1), nn.Sigmoid(), nn.Conv2d(6, 4, 3, bias=False),
                                    nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)))  # fmt: skip
    graph = trace(network, torch.zeros(1, 3, 8, 8))
    kept = {"a": np.arange(6) < 4}
    sets = [GroupSet("a", "P1", (Member("0", 0),), 6)]
    small = compress(network, graph, sets, kept)
    # keys and sizes are those of a smaller network of the same kind: nothing was added
    assert small.state_dict().keys() == network.state_dict().keys() and small[2].bias is None
    x = torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        assert close(small(x), masked(network, Removal(graph, sets), kept)(x))


class Deep(nn.Module):
    """An inverted residual whose depth-wise convolution sees padding."""

    def __init__(self):
        super().__init__()
        self.a, self.n1 = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
        self.deep, self.n2 = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        return self.b(F.relu6(self.n2(self.deep(F.relu6(self.n1(self.a(x)) + 0.5))) + 0.5))


def test_depth_wise():
    torch.manual_seed(0)
    network = enliven(Deep())
    graph = trace(network, torch.zeros(1, 3, 8, 8))
    kept = {"s": np.arange(6) % 2 == 0}
    x = torch.randn(2, 3, 7, 10)
    for members, goes in (((Member("a", 0), Member("deep", 0)), True), ((Member("a", 0),), False)):
        sets = [GroupSet("s", "P1", members, 6)]
        result = remove_groups(network, Removal(graph, sets), kept)
        small = result.network
        # where the depth-wise filter stays, what it makes of a constant differs at the border: such channels stay
        assert (len(result.removed) == 3) == goes and small.deep.groups == 6 - len(result.removed)
        with torch.no_grad():
            assert close(small(x), masked(network, Removal(graph, sets), kept)(x))
    # not exactly, then
    assert compress(network, graph, sets, kept, fold="interior").deep.groups == 3


def test_grouped():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1, groups=4),
                            nn.Sigmoid(), nn.Conv2d(8, 2, 1))  # fmt: skip
    network = enliven(network)
    graph = trace(network, torch.zeros(1, 3, 8, 8))
    sets = [GroupSet("g", "P1", (Member("0", 0), Member("4", 1)), 4, 2)]
    kept = {"g": np.array([True, False, True, False])}
    small = compress(network, graph, sets, kept)
    assert (small[2].groups, small[2].in_channels, small[0].out_channels) == (2, 4, 4)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert close(small(x), masked(network, Removal(graph, sets), kept)(x))


def test_what_depends_on_the_input_stays():
    # a gate moves the constant of a channel with the picture: the channel has to stay, and the function holds
    torch.manual_seed(0)
    network = enliven(Chain(lambda y: torch.sigmoid(y) * y.mean((1, 2, 3), keepdim=True), kernel_size=1))
    graph = trace(network, torch.zeros(1, 3, 8, 8))
    kept = {"a": np.arange(6) > 1}
    removal = Removal(graph, [A])
    result = remove_groups(network, removal, kept)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert len(result.removed) == 0 and close(result.network(x), masked(network, removal, kept)(x))


class OwnConv2d(nn.Conv2d):
    """A class of a user's own, which gets no border."""


class TwoReaders(nn.Module):
    """Of two layers that read the same channels, one takes a constant into its bias and the other cannot."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1), OwnConv2d(6, 2, 3, padding=1)

    def forward(self, x):
        y = torch.sigmoid(self.a(x))
        return self.b(y) + self.c(y)


def test_what_one_of_two_layers_cannot_take_stays_for_both():
    torch.manual_seed(0)
    network = TwoReaders().eval()
    graph = trace(network, torch.zeros(1, 3, 8, 8))
    removal, kept = Removal(graph, [A]), {"a": np.arange(6) > 1}
    result = remove_groups(network, removal, kept)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert len(result.removed) == 0 and close(result.network(x), masked(network, removal, kept)(x))


def test_a_set_never_loses_everything():
    torch.manual_seed(0)
    network = enliven(Chain(kernel_size=3, padding=1))
    graph = trace(network, torch.zeros(1, 3, 8, 8))
    removal = Removal(graph, [A])
    none = {"a": np.zeros(6, bool)}
    small = compress(network, graph, removal, none)
    assert small.a.out_channels == 1
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert close(small(x), masked(network, removal, none)(x))
    # so it is where several sets empty a layer together
    network = enliven(Chain(join="cat", kernel_size=1))
    graph = trace(network, torch.zeros(1, 3, 8, 8))
    small = compress(network, graph, [A, B], {"a": np.zeros(6, bool), "b": np.zeros(6, bool)})
    assert small.a.out_channels >= 1 and small.b.out_channels >= 1


def test_shared_ends_need_all_producers_or_all_consumers():
    torch.manual_seed(0)
    network = enliven(Chain(join="add", kernel_size=1))
    graph = trace(network, torch.zeros(1, 3, 8, 8))
    removal = Removal(graph, [A, B])
    assert not removal.gone({"a": np.zeros(6, bool)}).any()  # the other term of the sum still speaks
    half = np.arange(6) < 3
    assert removal.gone({"a": half, "b": ~half}).sum() == 0
    assert removal.gone({"a": half, "b": half}).sum() == 3


def test_the_given_network_is_left_alone_and_modes_are_kept():
    torch.manual_seed(0)
    network = enliven(Chain(kernel_size=3, padding=1)).train()
    network.norm.eval()
    before = copy.deepcopy(network.state_dict())
    graph = trace(network, torch.zeros(1, 3, 8, 8))
    small = compress(network, graph, [A], {"a": np.arange(6) > 1})
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert small.training and not small.norm.training
    small(torch.randn(2, 3, 8, 8)).sum().backward()  # the border learns too
    assert small.take.border.grad.abs().sum() > 0


def test_masks_of_another_network_are_refused():
    network = Chain(kernel_size=1)
    removal = Removal(trace(network, torch.zeros(1, 3, 8, 8)), [A])
    with pytest.raises(UseError, match="'b'"):
        removal.gone({"b": np.ones(6, bool)})
    with pytest.raises(UseError, match="6 groups"):
        removal.gone({"a": np.ones(5, bool)})
    with pytest.raises(UseError, match="fold"):
        compress(network, removal.graph, removal, {}, fold="some")
    with pytest.raises(UseError, match="6 channels"):
        Removal(removal.graph, [GroupSet("a", "P1", (Member("a", 0),), 5)])


def test_borders_can_be_fixed_and_norms_folded():
    network, sets = hinged("resnet20", "columns")
    graph = trace(network, torch.zeros(1, 3, 32, 32))
    small = compress(network, graph, sets, choice(sets))
    x, other = torch.randn(2, 3, 32, 32), torch.randn(1, 3, 20, 24)
    with torch.no_grad():
        wanted, elsewhere = small(x), small(other)
        fixed = fix_borders(copy.deepcopy(small), x)
        assert any(getattr(m, "border_map", None) is not None for m in fixed.modules())
        folded = fold_norms(copy.deepcopy(fixed), x)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
        for form in (fixed, folded, fold_norms(copy.deepcopy(small), x)):
            assert close(form(x), wanted) and close(form(other), elsewhere)  # at another size, too
        # training forgets the maps, for their weights move
        assert all(getattr(m, "border_map", None) is None for m in fixed.train().modules())
    traced = trace(small, torch.zeros(1, 3, 32, 32))  # a compressed network can be traced, and pruned, again
    place = "features.1.0.body.0"
    gone = traced.elements(f"{place}.1", 0)[:1]
    with torch.no_grad():
        assert traced.remove(small, gone)(x).shape == (2, 10)
