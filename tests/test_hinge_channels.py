"""Which channels hang together: ties, locks, removal and refusals, on small networks and the toolkit's own."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hinge import SmallUNet, lively, one_thread  # noqa: F401
from sparsemask.errors import UseError
from sparsemask.spaces.connectivity import PrunedNetwork, named_mask
from sparsemask.spaces.group_sparsity import networks
from sparsemask.spaces.group_sparsity.tracing.graph import trace
from sparsemask.spaces.group_sparsity.tracing.record import Elements

pytestmark = pytest.mark.usefixtures("one_thread")
PICTURE = torch.zeros(1, 3, 16, 16)


class Net(nn.Module):
    """Layers by keyword, a function for forward."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.body = forward

    def forward(self, x):
        return self.body(self, x)


def conv(a, b, k=3, **more):
    return nn.Conv2d(a, b, k, padding=k // 2, **more)


def test_elements_resolve_ties_and_locks():
    made = Elements()
    a, b, c = made.fresh(3), made.fresh(3), made.fresh(2, "because")
    made.tie(a, b)
    made.tie(b[:1], c[:1])
    classes, reasons, _ = made.resolve()
    assert (classes[a] == classes[b]).all() and classes[a[0]] == classes[c[0]] != classes[a[1]]
    assert [reasons[k] for k in classes[a]] == ["because", None, None]  # a lock reaches all that is tied


# Network, then (module, dim) pairs that carry the same elements, then pairs that share none.
TIES = {
    "a sum ties its terms": (
        Net(lambda n, x: n.last(n.a(x) + n.b(x)), a=conv(3, 4), b=conv(3, 4), last=conv(4, 2)),
        [(("a", 0), ("b", 0)), (("a", 0), ("last", 1))],
        [(("a", 0), ("last", 0))],
    ),
    "in place, too": (
        Net(lambda n, x: n.last(F.relu_(n.a(x)).add_(n.b(x))), a=conv(3, 4), b=conv(3, 4), last=conv(4, 2)),
        [(("a", 0), ("b", 0))],
        [],
    ),
    "the larger of two": (
        Net(
            lambda n, x: n.last(torch.max(n.a(x), n.b(x)) - n.c(x)),
            a=conv(3, 4),
            b=conv(3, 4),
            c=conv(3, 4, 1),
            last=conv(4, 2),
        ),
        [(("a", 0), ("b", 0)), (("a", 0), ("c", 0))],
        [],
    ),
    "norms and depth-wise convolutions pass on": (
        Net(
            lambda n, x: n.last(n.deep(F.hardswish(n.norm(n.a(x))))),
            a=conv(3, 4),
            norm=nn.BatchNorm2d(4),
            deep=conv(4, 4, groups=4),
            last=conv(4, 2),
        ),
        [(("a", 0), ("norm", 0)), (("a", 0), ("deep", 0)), (("deep", 1), ("last", 1))],
        [(("a", 0), ("a", 1))],
    ),
    "gates tie": (
        Net(
            lambda n, x: n.last((y := n.a(x)) * torch.sigmoid(n.up(F.relu(n.down(y.mean((2, 3), keepdim=True)))))),
            a=conv(3, 4),
            down=conv(4, 2, 1),
            up=conv(2, 4, 1),
            last=conv(4, 2),
        ),
        [(("a", 0), ("up", 0)), (("down", 0), ("up", 1))],
        [(("down", 0), ("up", 0))],
    ),
    "transposed convolutions": (
        Net(lambda n, x: n.last(n.up(n.a(x))), a=conv(3, 4), up=nn.ConvTranspose2d(4, 5, 2, 2), last=conv(5, 2)),
        [(("a", 0), ("up", 1)), (("up", 0), ("last", 1))],
        [(("up", 0), ("up", 1))],
    ),
    "scales and slopes": (
        Net(lambda n, x: n.last(n.slope(n.a(x))), a=conv(3, 4), slope=nn.PReLU(4), last=conv(4, 2)),
        [(("a", 0), ("slope", 0))],
        [],
    ),
    "one dimension": (
        Net(lambda n, x: n.b(F.relu(n.a(x.flatten(2)))), a=nn.Conv1d(3, 4, 3), b=nn.Conv1d(4, 2, 3)),
        [(("a", 0), ("b", 1))],
        [],
    ),
}


def same_elements(graph, one, other):
    return np.array_equal(graph.elements(*one), graph.elements(*other))


@pytest.mark.parametrize("name", TIES)
def test_ties(name):
    network, tied, apart = TIES[name]
    graph = trace(network, PICTURE)
    for one, other in tied:
        assert same_elements(graph, one, other), (one, other)
    for one, other in apart:
        assert not set(graph.elements(*one)) & set(graph.elements(*other)), (one, other)
    assert not graph.locked(graph.elements("a", 0)).any()  # free: they reach neither end
    assert graph.locked(graph.elements("a", 1)).all()  # the picture's channels


def test_concatenation_joins_and_flatten_repeats():
    network = Net(
        lambda n, x: n.out(F.adaptive_avg_pool2d(torch.cat([n.a(x), n.b(x)], 1), 2).flatten(1)),
        a=conv(3, 4),
        b=conv(3, 3),
        out=nn.Linear(28, 5),
    )
    graph = trace(network, PICTURE)
    joined = np.concatenate([graph.elements("a", 0), graph.elements("b", 0)])
    assert (graph.elements("out", 1) == joined.repeat(4)).all()
    assert graph.locked(graph.elements("out", 0)).all()
    assert "output" in graph.reason(graph.elements("out", 0)[0])


def test_grouped_convolutions_tie_whole_groups():
    network = Net(lambda n, x: n.last(n.mid(n.a(x))), a=conv(3, 6), mid=conv(6, 4, groups=2), last=conv(4, 2))
    graph = trace(network, PICTURE)
    a, mid = graph.elements("a", 0), graph.elements("mid", 0)
    assert len(set(a)) == 2 and (a == a[[0, 0, 0, 3, 3, 3]]).all() and (mid == a[[0, 0, 3, 3]]).all()
    smaller = graph.remove(network, a[:1])
    assert (smaller.mid.groups, smaller.mid.in_channels, smaller.mid.out_channels) == (1, 3, 2)
    assert smaller(PICTURE).shape[1] == 2


# A forward, and a word of the reason for which convolution a's outputs are locked (None: they are free).
LOCKS = [
    (lambda n, x: n.b(n.a(x)[:, :4].repeat(1, 2, 1, 1)), "channel numbers"),
    (lambda n, x: n.b(torch.cat(n.a(x).split(4, 1), 1)), "split"),
    (lambda n, x: n.b(torch.cat(n.a(x).chunk(2, 1), 1)), None),  # equal parts lose equally many
    (lambda n, x: n.b(F.pixel_shuffle(n.a(x), 2).repeat(1, 4, 1, 1)), None),
    (lambda n, x: n.b(F.softmax(n.a(x), 1)), "softmax"),
    (lambda n, x: n.b(n.a(x) * n.a.weight.new_ones(8, 1, 1)), "fixed size"),
    (lambda n, x: n.b(n.a(x).flip(1)), None),
    (lambda n, x: n.b(n.a(x).roll(1, 1)), "roll"),
    (lambda n, x: n.b(F.pad(n.a(x), (1, 1, 1, 1, 2, -2))), "padded by numbers"),
    (lambda n, x: n.b(n.a(x).max(1, keepdim=True)[0].expand(-1, 8, -1, -1)), "over channels"),
    (
        lambda n, x: n.b(torch.stack([n.a(x), n.a.bias.view(1, 8, 1, 1).expand(1, 8, 16, 16)]).sum(0)),
        "numbers of its own",
    ),
    (lambda n, x: n.b(filled(x.new_zeros(1, 8, 16, 16), n.a(x))), "fixed size"),
    (lambda n, x: n.b(F.pad(n.a(x)[:, :, 1:, ::2], (0, 8, 1, 0))), None),  # positions may be cut and padded
    (lambda n, x: n.b(n.a(x).unsqueeze(0).squeeze(0)[:, :, None].squeeze(2)), None),
    (lambda n, x: n.b(F.group_norm(n.a(x), 2)), "group_norm"),
    (lambda n, x: n.b(n.a(x).cumsum(2)), "not understood"),
    (lambda n, x: n.b(n.a(x).view(1, 8, 256)[..., None]), "numbers of its own"),
    (lambda n, x: n.b((y := n.a(x)).view(1, y.shape[1], 256)[..., None]), None),  # a size that follows
    (lambda n, x: n.b((y := n.a(x)).reshape(*y.shape[:2], -1, 1)), None),
    (lambda n, x: n.b(n.a(x).transpose(1, 3).contiguous().transpose(3, 1)), None),
    (lambda n, x: n.b(F.interpolate(n.a(x), x.shape[-2:], mode="bilinear")), None),
    (lambda n, x: n.b(F.layer_norm(n.a(x), (16, 16))), None),  # channel by channel
    (lambda n, x: n.b(F.layer_norm(n.a(x), (8, 16, 16))), "layer_norm over channels"),
    (lambda n, x: n.b(n.a(x)) + n.a(x).sum(1, keepdim=True), None),  # the same channels in both calls
]


def filled(buffer, x):
    buffer[:] = x
    return buffer


@pytest.mark.parametrize("place", range(len(LOCKS)))
def test_locks_say_why(place):
    forward, word = LOCKS[place]
    network = Net(forward, a=conv(3, 8), b=conv(8, 2))
    graph = trace(network, PICTURE)
    elements = graph.elements("a", 0)
    if word is None:
        assert not graph.locked(elements).any(), graph.reason(elements[0])
    else:
        assert graph.locked(elements).all() and word in graph.reason(elements[0])
        with pytest.raises(UseError, match="cannot be removed"):
            graph.remove(copy.deepcopy(network), elements[:1])


def test_flattened_by_numbers_is_locked_and_by_minus_one_is_free():
    for shape, locked in (((-1, 32), True), ((1, -1), False)):
        network = Net(
            lambda n, x, shape=shape: n.b(F.adaptive_avg_pool2d(n.a(x), 2).view(*shape)),
            a=conv(3, 8),
            b=nn.Linear(32, 2),
        )
        graph = trace(network, PICTURE)
        assert graph.locked(graph.elements("a", 0)).all() == locked


class Branching(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.conv, self.how = conv(3, 4), how

    def forward(self, x):
        return self.how(self.conv(x))


REFUSED = [
    (lambda: nn.Sequential(Branching(lambda y: y if y.sum() > 0 else -y)), "module '0'"),
    (lambda: nn.Sequential(Branching(lambda y: y * y.mean().item())), "item"),
    (lambda: nn.Sequential(Branching(lambda y: y[:, :, : len(y.flatten().tolist())])), "tolist"),
    (lambda: nn.Sequential(Branching(lambda y: y[y > 0][None])), "index"),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 2)), "no convolution"),
    (lambda: Net(lambda n, x: n.b(x.flatten(1)), a=conv(3, 3), b=nn.Linear(768, 2)), None),
    (lambda: nn.Sequential(conv(4, 3)), "does not run on an input of 1x3x16x16"),
]


@pytest.mark.parametrize("place", range(len(REFUSED)))
def test_refusals_name_the_module(place):
    make, words = REFUSED[place]
    network = make()
    if words is None:  # a convolution that never runs beside a linear layer that does: nothing of it is met
        assert "a.weight" not in trace(network, PICTURE).axes
        return
    with pytest.raises(UseError, match=words) as caught:
        trace(network, PICTURE)
    assert "\n" not in str(caught.value)


def test_tracing_leaves_the_network_as_it_was():
    network = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.Dropout(), conv(4, 2)).train()
    network[1].eval()
    before = copy.deepcopy(network.state_dict())
    trace(network, torch.randn(2, 3, 8, 8))
    assert [m.training for m in network] == [True, False, True, True]
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert not network[0]._forward_hooks and not network[0]._forward_pre_hooks


def test_choices_that_do_not_depend_on_the_input_are_fine():
    # a size, a constant's content and a python number decide here
    network = Net(
        lambda n, x: n.b(n.a(x)) * (2 if x.shape[-1] > 4 else 1) * n.table[0].item(), a=conv(3, 4), b=conv(4, 2)
    )
    network.register_buffer("table", torch.tensor([2.0]))
    assert not trace(network, PICTURE).locked(trace(network, PICTURE).elements("a", 0)).any()


@pytest.mark.parametrize("arch", ["resnet20", "resnet164", "resnext20", "vgg16", "densenet40", "wrn16_10"])
def test_every_free_channel_of_the_networks_can_go(arch):
    network = networks.create(arch).eval()
    graph = trace(network, torch.zeros(1, 3, 32, 32))
    free = np.flatnonzero(~graph.locked(np.arange(graph.count)))
    gone = np.random.default_rng(0).choice(free, len(free) // 3, replace=False)
    objects = {name: id(p) for name, p in network.named_parameters()}
    shapes = {name: p.shape for name, p in network.named_parameters()}
    graph.remove(network, gone)
    assert {name: id(p) for name, p in network.named_parameters()} == objects  # no new Parameter objects
    assert sum(p.shape != shapes[name] for name, p in network.named_parameters()) > len(shapes) / 2
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    again = trace(network, torch.zeros(1, 3, 32, 32))  # its numbers fit each other: it is a network like another
    assert len(again.nodes) == len(graph.nodes)


def test_two_more_networks():
    graph = trace(SmallUNet(), torch.zeros(1, 3, 16, 16))
    joined = np.concatenate([graph.elements("up", 0), graph.elements("down.0", 0)])
    assert (graph.elements("join.0", 1) == joined).all()

    network = PrunedNetwork(named_mask("unet", 9), depth=8)
    graph, before = trace(network, torch.zeros(1, 3, 65, 65)), list(network.stage_widths)
    block = "backbone.bottlenecks.Bottlenecks_2.LinearBottleneck2_{}"
    # a shortcut ties block outputs; the decoder's functional convolution reads them
    assert same_elements(graph, (block.format(0) + ".conv3", 0), (block.format(2) + ".conv3", 0))
    assert same_elements(graph, (block.format(2) + ".conv3", 0), ("decoders.Decoders_5.down_convs.5", 1))
    assert not graph.locked(graph.elements(block.format(1) + ".conv1", 0)).any()
    # products of several stages are split by numbers that the network keeps: they follow
    deep = graph.elements("decoders.Decoders_3.down_convs.3", 0)
    graph.remove(network, deep[:3])
    assert network.stage_widths != before and network(torch.zeros(1, 3, 65, 65)).shape[:2] == (1, 21)


def test_remove_refuses_to_empty_a_layer_and_unknown_names():
    network = nn.Sequential(conv(3, 4), conv(4, 2))
    graph = trace(network, PICTURE)
    with pytest.raises(UseError, match="lose all"):
        graph.remove(network, graph.elements("0", 0))
    assert network[0].weight.shape[0] == 4  # nothing happened
    with pytest.raises(UseError, match="'nothing'"):
        graph.elements("nothing", 0)
    with pytest.raises(UseError, match="'nothing'"):
        graph.node("nothing")


def test_a_graph_serves_other_networks_of_the_same_structure():
    graph = trace(lively("resnet20"), torch.zeros(1, 3, 32, 32))
    gone = graph.elements("features.1.0.body.0", 0)[:5]
    for seed in (1, 2):
        network = graph.remove(lively("resnet20", seed), gone)
        assert network.features[1][0].body[3].in_channels == 11
