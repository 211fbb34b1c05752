"""Pairs made one convolution and put back; when that costs fewer multiply-adds."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from hinge import enliven, one_thread  # noqa: F401
from sparsemask import inference
from sparsemask.costs import multiply_adds
from sparsemask.errors import UseError
from sparsemask.spaces.group_sparsity.compression.border import Bordered, add_border, fix_borders
from sparsemask.spaces.group_sparsity.compression.compress import compress
from sparsemask.spaces.group_sparsity.export import exportable
from sparsemask.spaces.group_sparsity.fast import folded
from sparsemask.spaces.group_sparsity.groups import GroupSet, Member
from sparsemask.spaces.group_sparsity.pairs import (
    DoubleReLU,
    Pair,
    TwoSlopes,
    merge,
    merged_is_cheaper,
    pairs_of,
    split,
)
from sparsemask.spaces.group_sparsity.tracing.graph import trace

pytestmark = pytest.mark.usefixtures("one_thread")


def network(bias=True, **conv):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Sigmoid(), nn.Conv2d(6, 8, 3, bias=bias, **conv)]
    made = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(8, 4, 5, padding=2), nn.ReLU(), nn.Conv2d(4, 2, 1))
    made[3], made[5] = Pair.of(made[3]), Pair.of(made[5])
    return enliven(made, (4, 3, 12, 12))


SHAPES = [{}, {"padding": 1}, {"padding": 2, "stride": 2, "dilation": 2}, {"padding": "same"}, {"bias": False}]


@pytest.mark.parametrize("options", SHAPES)
def test_merged_is_the_same_function_and_split_restores_every_bit(options):
    net = network(**options)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    objects = [id(p) for p in net.parameters()]
    x = torch.randn(2, 3, 11, 13)
    with torch.no_grad():
        wanted = net(x)
        taken = merge(net)
        assert not pairs_of(net) and type(net[3]) is nn.Conv2d
        torch.testing.assert_close(net(x), wanted, rtol=1e-5, atol=1e-5)
        net[3].weight.mul_(2)  # what happens to the merged form does not matter
        split(net, taken)
        assert torch.equal(net(x), wanted)
    assert [id(p) for p in net.parameters()] == objects  # an optimizer's parameters are still the network's
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


@pytest.mark.parametrize("fold", ["exact", "interior"])
@pytest.mark.parametrize("options", [{"padding": 1}, {"bias": False}, {"padding": 1, "bias": False}])
def test_what_compression_gave_a_pair_is_merged_with_it(options, fold):
    net = network(**options)
    graph = trace(net, torch.zeros(1, 3, 12, 12))
    sets = [GroupSet("a", "P1", (Member("0", 0),), 6), GroupSet("rows", "P2", (Member("3.1", 1),), 8)]
    kept = {"a": np.arange(6) > 2, "rows": np.arange(8) > 1}
    small = compress(net, graph, sets, kept, fold)
    x = torch.randn(2, 3, 10, 15)
    with torch.no_grad():
        wanted = small(x)
        assert (getattr(small[3][0], "border", None) is not None) == (fold == "exact" and "padding" in options)
        merge(small, ["3"])
        torch.testing.assert_close(small(x), wanted, rtol=1e-5, atol=1e-5)
        assert small[3].in_channels == 3 and isinstance(small[5], Pair)


def test_wrong_names_change_nothing():
    net = network()
    with pytest.raises(UseError, match="'0' is no pair.*3, 5"):
        merge(net, ["3", "0"])
    assert isinstance(net[3], Pair)


@pytest.mark.parametrize("c_in", [3, 16, 64])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_which_form_is_cheaper_is_what_is_counted(kernel, c_in):
    c_out = 16
    bound = kernel**2 * c_in * c_out / (kernel**2 * c_in + c_out)  # the rank at which both cost the same
    for rank in {1, max(1, int(bound)), int(np.ceil(bound)), int(bound) + 1, c_out}:
        conv = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2)
        net = nn.Sequential(Pair.shaped(conv, rank))
        pair = multiply_adds(net, (1, c_in, 8, 8))
        one = multiply_adds(conv, (1, c_in, 8, 8))
        assert bool(merged_is_cheaper(kernel**2, c_in, rank, c_out)) == (one <= pair) == (rank >= bound)


def test_a_trained_pair_is_merged_as_it_is():
    net = network()
    with torch.no_grad():
        for p in copy.deepcopy(net).parameters():
            assert p.requires_grad
        net[3][1].bias.add_(1)
        x = torch.randn(1, 3, 12, 12)
        wanted = net(x)
        merge(net)
        torch.testing.assert_close(net(x), wanted, rtol=1e-5, atol=1e-5)
    assert all(p.requires_grad for p in net.parameters())


@pytest.fixture
def all_merged(monkeypatch):
    """Single layers are always the faster ones."""
    faster = lambda names: {name: float(name in ("two", "as it is")) for name in names}  # 0: fastest
    monkeypatch.setattr(inference, "timer", lambda *_, **__: lambda functions, rounds: (faster(functions), 1.0))
    monkeypatch.setattr(inference, "compare", lambda functions, **_: faster(functions))


def small_network():
    """A compressed network whose first pair has a border, and an input."""
    net = network(padding=1)
    sets = [GroupSet("a", "P1", (Member("0", 0),), 6), GroupSet("rows", "P2", (Member("3.1", 1),), 8)]
    kept = {"a": np.arange(6) > 2, "rows": np.arange(8) > 1}
    return compress(net, trace(net, torch.zeros(1, 3, 12, 12)), sets, kept).eval(), torch.randn(2, 3, 10, 15)


@pytest.mark.usefixtures("all_merged")
@pytest.mark.parametrize("last", [False, True])
def test_a_fast_form_has_single_layers_where_they_are_faster(last):
    small, x = small_network()
    form = inference.optimize_for_inference(small, x, compiled=False, channels_last=last)
    assert form.merged == ("3", "5") and form.form.endswith("merged") and not pairs_of(form.network)
    assert set(pairs_of(small)) == {"3", "5"}  # the network stays as it is
    with torch.no_grad():
        torch.testing.assert_close(form(x), small(x), rtol=1e-5, atol=1e-5)


def test_a_fast_form_keeps_pairs_that_are_faster(monkeypatch):
    small, x = small_network()
    slower = lambda functions: {name: float(name not in ("two", "as it is")) for name in functions}
    monkeypatch.setattr(inference, "timer", lambda *_, **__: lambda functions, rounds: (slower(functions), 1.0))
    monkeypatch.setattr(inference, "compare", lambda functions, **_: slower(functions))
    form = inference.optimize_for_inference(small, x, compiled=False, channels_last=False)
    assert not form.merged and set(pairs_of(form.network)) == {"3", "5"}


def test_a_border_that_was_fixed_is_merged_with_its_map():
    small, x = small_network()
    fixed = fix_borders(copy.deepcopy(small), x)
    one = fixed[3].single_layer()
    torch.testing.assert_close(one.border_map, one.border_of(torch.zeros(1, one.in_channels, 10, 15)))


def test_single_layers_are_tried_together_too(monkeypatch):
    """Where each seems to be slower by itself, but the network is faster with all of them."""
    small, x = small_network()
    monkeypatch.setattr(inference, "timer", lambda *_, **__: lambda functions, rounds: ({"two": 0, "one": 1}, 1.0))
    monkeypatch.setattr(inference, "compare", lambda functions, **_: {name: name != "all" for name in functions})
    assert inference.optimize_for_inference(small, x, compiled=False, channels_last=False).merged == ("3", "5")


@pytest.mark.usefixtures("all_merged")
def test_exports_have_the_single_layers_of_the_fast_form():
    small, x = small_network()
    made = exportable(small, x)
    assert made.fast.merged == ("3", "5") and not pairs_of(made.plain)
    with torch.no_grad():
        for form in (made.plain, made.program):
            torch.testing.assert_close(form(x), small(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bordered", [False, True])
def test_slopes_of_double_relus_are_in_the_layers_before_them(bordered):
    small, x = small_network()
    layers = [*small.children()]
    if not bordered:
        layers[3] = layers[3].single_layer()
    layers[4] = DoubleReLU()
    net = nn.Sequential(*layers, nn.BatchNorm2d(2), DoubleReLU(), nn.Conv2d(2, 3, 1), DoubleReLU()).eval()
    slopes = [(1.5, -0.25), (0.5, 2.0), (-1.0, 0.5)]
    norm, relus = net[-4], [one for one in net if isinstance(one, DoubleReLU)]
    with torch.no_grad():
        for (above, q), relu in zip(slopes, relus, strict=True):
            relu.slope_p.fill_(above), relu.slope_n.fill_(q)
        norm.running_mean.uniform_(-1, 1), norm.running_var.uniform_(0.5, 2)
        fast = folded(net, x)
        torch.testing.assert_close(fast(x), net(x), rtol=1e-5, atol=1e-5)
    # A slope below zero cannot be moved ahead of what asks for the sign.
    assert [one.above for one in fast if isinstance(one, TwoSlopes)] == [1, 1, -1]


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("between", [nn.ReLU, DoubleReLU, nn.SiLU])
def test_a_border_is_read_from_the_layer_before(between, pairs):
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.Conv2d(6, 5, 3, stride=2, padding=1)
    first, second = (Pair.of(first), Pair.of(second)) if pairs else (first, second)
    reader = second[0] if pairs else second
    add_border(reader, torch.randn(len(reader.weight), 1, 3, 3))
    net = nn.Sequential(first, nn.BatchNorm2d(6), between(), second).eval()
    x, larger = torch.randn(2, 3, 9, 8), torch.randn(1, 3, 14, 11)
    fast = folded(net, x)
    absorbed = between is not nn.SiLU  # which makes another number of a one
    assert any(isinstance(one, Bordered) for one in fast.modules()) is not absorbed
    with torch.no_grad():
        for picture in (x, larger):
            torch.testing.assert_close(fast(picture), net(picture), rtol=1e-5, atol=1e-5)
    wide = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 4, 3, padding=1)).eval()
    add_border(wide[2], torch.randn(4, 1, 3, 3))
    assert isinstance(folded(wide, x)[2], Bordered)  # one channel more would be one vector more


@pytest.mark.parametrize("tap", [0, 2])
def test_what_is_read_between_the_layers_of_a_sequence_stays_as_it_is(tap):
    class Tapped(nn.Module):
        def __init__(self):
            super().__init__()
            first, reader = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
            add_border(reader, torch.randn(6, 1, 3, 3))
            self.body = nn.Sequential(first, nn.BatchNorm2d(6), DoubleReLU(), reader)
            with torch.no_grad():
                self.body[2].slope_p.fill_(0.5)

        def forward(self, x):
            taken = []
            for layer in self.body:
                taken.append(x := layer(x))
            return taken[tap] + x

    torch.manual_seed(0)
    net, x = Tapped().eval(), torch.randn(2, 3, 9, 8)
    with torch.no_grad():
        torch.testing.assert_close(folded(net, x)(x), net(x), rtol=1e-5, atol=1e-5)
