"""Networks of every kind lose channels: what is left equals the network whose channels are zero, in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hinge import one_thread  # noqa: F401
from sparsemask.spaces.group_sparsity.compression.accounting import Accounting
from sparsemask.spaces.group_sparsity.compression.compress import remove_groups
from sparsemask.spaces.group_sparsity.compression.removal import Removal
from sparsemask.spaces.group_sparsity.inputs import Inputs
from sparsemask.spaces.group_sparsity.rules import channel_sets
from sparsemask.spaces.group_sparsity.tracing.graph import trace
from sparsemask.spaces.group_sparsity.tracing.record import tensors_in
from test_hinge_channels import Net, conv

pytestmark = pytest.mark.usefixtures("one_thread")


def picture(*shape):
    return torch.randn(*(shape or (2, 3, 12, 12)), dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def outputs(network, example):
    with torch.no_grad():
        return tensors_in(Inputs.of(example).run(network))


def halved(network, example, statistics="exact", fold="exact", seed=0):
    """(graph, small network, masked network, removed elements): half of every group of channels is dropped."""
    network = network.double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, 0, 0.3)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    graph = trace(network, example, statistics)
    removal = Removal(graph, channel_sets(network, graph))
    generator = np.random.default_rng(seed)
    kept = {s.name: generator.permutation(s.count) >= s.count // 2 for s in removal.sets}
    compressed = remove_groups(network, removal, kept, fold)
    masked = removal.zero_(copy.deepcopy(network), kept)
    return graph, compressed.network, masked, compressed.removed


def assert_equal(network, example, *thinner, seed=0):
    """The halved network equals the masked one, and the named modules lost output channels."""
    before = {name: network.get_submodule(name).weight.shape[0] for name in thinner}
    graph, small, masked, removed = halved(network, example, seed=seed)
    for a, b in zip(outputs(small, example), outputs(masked, example), strict=True):
        assert a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-9), (a - b).abs().max()
    for name in thinner:
        free = graph.elements(name, 0)
        assert small.get_submodule(name).weight.shape[0] < before[name], (name, graph.reason(int(free[0])))
    for name, (into, out) in Accounting(network, graph).layers(removed).items():
        module = small.get_submodule(name)
        if isinstance(module, nn.Conv2d | nn.Linear):  # counted as planned
            groups = module.groups if isinstance(module, nn.Conv2d) else 1
            assert (into, out) == (module.weight.shape[1] * groups, module.weight.shape[0])
    return small


class Block(nn.Module):
    """A forward with numbers of its own."""

    def __init__(self, forward, numbers, **layers):
        super().__init__()
        for name, value in {**numbers, **layers}.items():
            setattr(self, name, value)
        self.body = forward

    def forward(self, *args, **named):
        return self.body(self, *args, **named)


def normed(a, b, k=3, **more):
    return nn.Sequential(conv(a, b, k, bias=False, **more), nn.BatchNorm2d(b), nn.ReLU())


# Network, names of modules that must lose output channels.
EXACT = {
    "halves of a chunk (C2f)": (
        Net(
            lambda n, x: n.last(torch.cat([*(y := n.a(x).chunk(2, 1)), n.b(y[1])], 1)),
            a=normed(3, 8),
            b=normed(4, 6),
            last=conv(14, 2, 1),
        ),
        ["a.0", "b.0"],
    ),
    "parts of a width that the module keeps (Res2Net)": (
        Block(
            lambda n, x: n.last(torch.cat([n.b(p) if i else p for i, p in enumerate(n.a(x).split(n.width, 1))], 1)),
            {"width": 4},
            a=normed(3, 8),
            b=conv(4, 4),
            last=conv(8, 2, 1),
        ),
        ["a.0", "b"],
    ),
    "half of a number that the module keeps (CSPNet)": (
        Block(
            lambda n, x: n.last(torch.cat([(y := n.a(x).split(n.both // 2, 1))[0], n.b(y[1])], 1)),
            {"both": 8},
            a=normed(3, 8),
            b=normed(4, 6),
            last=conv(10, 2, 1),
        ),
        ["a.0", "b.0"],
    ),
    "parts of two sizes (IMDN)": (
        Block(
            lambda n, x: n.last(torch.cat([(y := n.a(x).split((n.distilled, n.rest), 1))[0], n.b(y[1])], 1)),
            {"distilled": 2, "rest": 6},
            a=normed(3, 8),
            b=normed(6, 6),
            last=conv(8, 2, 1),
        ),
        ["a.0", "b.0"],
    ),
    "a sum with the first channels (ReXNet)": (
        Block(
            lambda n, x: n.last(torch.cat([(z := n.b(y := n.a(x)))[:, : n.wide] + y, z[:, n.wide :]], 1)),
            {"wide": 4},
            a=normed(3, 4),
            b=normed(4, 10),
            last=conv(10, 2, 1),
        ),
        ["a.0", "b.0"],
    ),
    "two layers that run as one": (
        Net(
            lambda n, x: n.last(sum(F.conv2d(n.a(x), torch.cat([n.b.weight, n.c.weight])).split([4, 4], 1))),
            a=normed(3, 8),
            b=conv(8, 4),
            c=conv(8, 4),
            last=conv(4, 2, 1),
        ),
        ["a.0"],
    ),
    "slices of nothing": (
        Net(
            lambda n, x: n.last(torch.cat([(y := n.a(x))[:, :0], y[:, 8:], y + y[:0].flatten(2).sum()], 1)[:9]),
            a=normed(3, 8),
            last=conv(8, 2, 1),
        ),
        ["a.0"],
    ),
    "no pictures": (
        Net(lambda n, x: n.last(torch.cat([(y := n.a(x))[:0].relu(), y])), a=normed(3, 8), last=conv(8, 2, 1)),
        ["a.0"],
    ),
    "in place on a slice": (
        Net(lambda n, x: n.last(added(n.b(y := n.a(x)), y)), a=normed(3, 4), b=normed(4, 10), last=conv(10, 2, 1)),
        ["a.0", "b.0"],
    ),
    "a gate of half of the channels": (
        Net(lambda n, x: n.last(F.glu(n.a(x), 1)), a=conv(3, 8), last=conv(4, 2)),
        ["a"],
    ),
    "every second channel": (
        Net(lambda n, x: n.last((y := n.a(x))[:, ::2] * y[:, 1::2]), a=conv(3, 8), last=conv(4, 2)),
        ["a"],
    ),
    "shuffled halves (ShuffleNet)": (
        Net(lambda n, x: n.last(shuffled(n, n.a(x))), a=normed(3, 8), b=normed(4, 4), last=conv(8, 2, 1)),
        ["a.0", "b.0"],
    ),
    "torch's own shuffle before a grouped convolution": (
        Net(
            lambda n, x: n.last(n.mid(F.channel_shuffle(n.a(x), 2))),
            a=normed(3, 8),
            mid=conv(8, 8, groups=2),
            last=conv(8, 2, 1),
        ),
        ["a.0"],
    ),
    "a shuffle by views before a grouped convolution": (
        Net(
            lambda n, x: n.last(n.mid(shuffle(n.a(x), 4))),
            a=normed(3, 16),
            mid=conv(16, 16, groups=4),
            last=conv(16, 2, 1),
        ),
        ["a.0"],
    ),
    "branches weighed by a softmax (SKNet)": (
        Net(
            lambda n, x: n.last(selected(n, torch.stack([n.a(x), n.b(x)], 1))),
            a=normed(3, 6),
            b=normed(3, 6),
            down=conv(6, 4, 1),
            up=conv(4, 12, 1),
            last=conv(6, 2, 1),
        ),
        ["a.0", "b.0", "up", "down"],
    ),
    "split attention (ResNeSt)": (
        Net(
            lambda n, x: n.last(split_attention(n, n.a(n.first(x)))),
            first=normed(3, 8),
            a=normed(8, 12, groups=2),
            down=conv(6, 4, 1),
            up=conv(4, 12, 1),
            last=conv(6, 2, 1),
        ),
        ["first.0", "a.0", "down", "up"],
    ),
    "pixel shuffle": (
        Net(lambda n, x: n.last(F.pixel_shuffle(n.up(n.a(x)), 2)), a=normed(3, 8), up=conv(8, 24), last=conv(6, 2)),
        ["a.0", "up"],
    ),
    "pixel unshuffle": (
        Net(lambda n, x: n.last(F.pixel_unshuffle(n.a(x), 2)), a=normed(3, 6), last=conv(24, 2)),
        ["a.0"],
    ),
    "whole groups of a group norm": (
        Net(lambda n, x: n.last(n.norm(n.a(x))), a=conv(3, 12), norm=nn.GroupNorm(4, 12), last=conv(12, 2, 1)),
        ["a"],
    ),
    "instance norm": (
        Net(lambda n, x: n.last(n.norm(n.a(x))), a=conv(3, 8), norm=nn.InstanceNorm2d(8, affine=True), last=conv(8, 2)),
        ["a"],
    ),
    "a norm over channels": (
        Net(lambda n, x: n.last(F.normalize(n.a(x), dim=1)), a=conv(3, 8), last=conv(8, 2)),
        ["a"],
    ),
    "a layer that runs twice": (
        Net(lambda n, x: n.last(n.b(F.relu(n.b(n.a(x))))), a=conv(3, 8), b=conv(8, 8), last=conv(8, 2)),
        ["a", "b"],
    ),
    "a head for several scales": (
        Net(
            lambda n, x: [n.head(n.a(x)), n.head(n.b(x))],
            a=nn.Sequential(conv(3, 8), nn.ReLU()),
            b=nn.Sequential(conv(3, 8, stride=2), nn.ReLU()),
            head=nn.Sequential(normed(8, 8), conv(8, 2)),
        ),
        ["a.0", "b.0", "head.0.0"],
    ),
    "a shared layer with norms of its own": (
        Net(
            lambda n, x: n.last(n.norm2(n.b(F.relu(n.norm1(n.b(n.a(x))))))),
            a=normed(3, 8),
            b=conv(8, 8),
            norm1=nn.BatchNorm2d(8),
            norm2=nn.BatchNorm2d(8),
            last=conv(8, 2),
        ),
        [],  # what the norms leave differs from call to call, and the layer has one bias
    ),
    "two layers that share their weight": (
        Net(lambda n, x: n.last(n.b(F.relu(n.c(n.a(x))))), a=conv(3, 8), b=conv(8, 8), c=conv(8, 8), last=conv(8, 2)),
        ["a", "b"],
    ),
    "three dimensions": (
        Net(
            lambda n, x: n.last(F.relu(n.a(x[:, :, None].expand(-1, -1, 4, -1, -1)))),
            a=nn.Conv3d(3, 8, 3, padding=1),
            last=nn.Conv3d(8, 2, 3, padding=1),
        ),
        ["a"],
    ),
    "transposed, with groups": (
        Net(
            lambda n, x: n.last(n.up(n.a(x))),
            a=conv(3, 8),
            up=nn.ConvTranspose2d(8, 8, 2, 2, groups=4),
            last=conv(8, 2),
        ),
        ["a"],
    ),
    "widths of tokens": (
        Net(
            lambda n, x: n.out(n.down(F.gelu(n.up(n.a(x).flatten(2).transpose(1, 2)))).mean(1)),
            a=nn.Conv2d(3, 8, 4, 4),
            up=nn.Linear(8, 12),
            down=nn.Linear(12, 6),
            out=nn.Linear(6, 2),
        ),
        ["a", "up", "down"],
    ),
}


def added(wide, narrow):
    wide[:, : narrow.shape[1]] += narrow
    return wide


def shuffle(x, groups):
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)


def shuffled(n, x):
    left, right = x.chunk(2, 1)
    return shuffle(torch.cat([left, n.b(right)], 1), 2)


def selected(n, parts):
    weights = n.up(F.relu(n.down(parts.sum(1).mean((2, 3), keepdim=True))))
    b, c = weights.shape[:2]
    weights = weights.view(b, 2, c // 2, 1, 1).softmax(1)
    return (parts * weights).sum(1)


def split_attention(n, x):
    b, c, h, w = x.shape
    parts = x.reshape(b, 2, c // 2, h, w)
    weights = n.up(F.relu(n.down(parts.sum(1).mean((2, 3), keepdim=True))))
    weights = weights.view(b, 1, 2, -1).transpose(1, 2).softmax(1).reshape(b, -1)
    return (parts * weights.reshape(b, 2, c // 2, 1, 1)).sum(1)


@pytest.mark.parametrize("name", EXACT)
def test_equal_to_the_network_whose_channels_are_zero(name):
    network, thinner = EXACT[name]
    torch.manual_seed(0)
    network = copy.deepcopy(network)
    if name == "two layers that share their weight":
        network.c.weight, network.c.bias = network.b.weight, network.b.bias
    assert_equal(network, picture(), *thinner)
