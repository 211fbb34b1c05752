"""Costs counted from the graph are those of the network that really remains."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import nn

from hinge import SmallUNet, lively, one_thread, published_count  # noqa: F401
from sparsemask.costs import count_parameters, multiply_adds
from sparsemask.errors import UseError
from sparsemask.spaces.connectivity import PrunedNetwork, named_mask
from sparsemask.spaces.group_sparsity import networks
from sparsemask.spaces.group_sparsity.compression.accounting import Accounting, Products
from sparsemask.spaces.group_sparsity.compression.compress import compress
from sparsemask.spaces.group_sparsity.compression.removal import Removal
from sparsemask.spaces.group_sparsity.pairs import groups_of, hinge, merge, pairs_of
from sparsemask.spaces.group_sparsity.rules import general_plan, plan_for
from sparsemask.spaces.group_sparsity.tracing.graph import trace

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = (1, 3, 32, 32)
# Published figures of the eight (giga multiply-adds by the papers' convention, parameters), and their classes.
BASELINES = {
    ("resnet20", 10): (0.041116, 269_738),
    ("resnet20", 100): (None, 275_588),
    ("resnet56", 10): (0.127083, 853_034),
    ("resnet164", 10): (0.257326, 1_704_154),
    ("resnet164", 100): (None, 1_727_284),
    ("resnext20", 10): (0.036817, 211_850),
    ("resnext20", 100): (None, 234_980),
    ("resnext164", 10): (0.259640, 1_713_546),
    ("vgg16", 10): (0.314555, 15_253_578),
    ("densenet40", 10): (0.290106, 1_059_298),
    ("wrn16_10", 100): (3.123084, 17_179_940),
}


@pytest.mark.parametrize(("arch", "n_class"), BASELINES)
def test_baselines_as_published(arch, n_class):
    network = networks.create(arch, n_class)
    cost = Accounting(network, trace(network, torch.zeros(SHAPE)), SHAPE).count()
    giga, parameters = BASELINES[arch, n_class]
    assert cost.parameters == parameters
    assert giga is None or round(cost.published / 1e9, 6) == giga
    assert cost.multiply_adds < cost.published


def pruned(arch, variant, seed=0):
    network = networks.create(arch)
    plan = plan_for(arch, variant, network)
    network = hinge(network, plan, "p-identity").eval()
    graph = trace(network, torch.zeros(SHAPE))
    random = np.random.default_rng(seed)
    removal = Removal(graph, groups_of(network, plan))
    return network, graph, removal, {s.name: random.random(s.count) < 0.6 for s in removal.sets}


CASES = [
    ("resnet20", "svd"),
    ("resnet20", "columns"),
    ("resnet20", "graph"),
    ("resnet164", None),
    ("resnext20", None),
    ("vgg16", None),
    ("densenet40", "svd"),
    ("densenet40", "columns"),
    ("wrn16_10", None),
]


def cheaper_merged(network):
    """Names of the pairs that have at least as many weights as the one convolution that they are equal to."""
    weights = lambda module: sum(p.numel() for name, p in module.named_parameters() if name.endswith("weight"))
    return [name for name, pair in pairs_of(network).items() if weights(pair.single_layer()) <= weights(pair)]


@pytest.mark.parametrize(("arch", "variant"), CASES)
def test_counts_are_those_of_the_compressed_network(arch, variant):
    network, graph, removal, kept = pruned(arch, variant)
    accounting = Accounting(network, graph)
    gone = removal.gone(kept)
    cost = accounting.count(gone)
    small = compress(network, graph, removal, kept, fold="none")
    assert cost.multiply_adds == multiply_adds(small, SHAPE)
    assert (cost.published, cost.parameters) == published_count(small)

    names = accounting.chosen(gone)
    assert names == cheaper_merged(small)  # the analytic choice is the one that the smaller network makes
    merge(small, names)
    merged = accounting.count(gone, names)
    assert merged.multiply_adds == multiply_adds(small, SHAPE) <= cost.multiply_adds
    assert (merged.published, merged.parameters) == published_count(small)

    merge(small)  # any pairs may be named
    everything = accounting.count(gone, accounting.pair_names)
    assert (everything.published, everything.parameters) == published_count(small)


def test_counting_moves_nothing_and_is_fast():
    network, graph, removal, kept = pruned("resnet164", None)
    accounting = Accounting(network, graph)
    before = [(id(p), p._version) for p in network.parameters()]
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        accounting.count(removal.gone(kept))
        times.append(time.perf_counter() - start)
    assert min(times) < 5e-3
    # every parameter is still the optimizer's object, and a step changes it
    assert [(id(p), p._version) for p in network.parameters()] == before
    assert [id(p) for g in optimizer.param_groups for p in g["params"]] == [key for key, _ in before]
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    assert all(p._version > version for p, (_, version) in zip(network.parameters(), before, strict=True))


def test_more_gone_is_never_dearer():
    network, graph, removal, kept = pruned("resnet20", "graph")
    accounting = Accounting(network, graph)
    last = accounting.count()
    random = np.random.default_rng(0)
    for share in (0.9, 0.6, 0.3, 0.1):
        kept = {name: mask & (random.random(len(mask)) < share) if share < 0.9 else mask for name, mask in kept.items()}
        cost = accounting.count(removal.gone(kept))
        assert cost.published <= last.published and cost.parameters <= last.parameters
        last = cost


@pytest.mark.parametrize("make", [SmallUNet, lambda: PrunedNetwork(named_mask("unet", 9), depth=8)])
def test_users_networks(make):
    network = make().eval()
    shape = (1, 3, 64, 64)
    plain = trace(network, torch.zeros(shape))
    cost = Accounting(network, plain).count()
    assert cost.multiply_adds == multiply_adds(network, shape) and cost.parameters == trainable(network)
    plan = general_plan(network, plain)
    network = hinge(network, plan, "p-identity")
    graph = trace(network, torch.zeros(shape))
    removal = Removal(graph, groups_of(network, plan))
    kept = {s.name: np.arange(s.count) % 2 == 0 for s in removal.sets}
    small = compress(network, graph, removal, kept, fold="none")
    cost = Accounting(network, graph).count(removal.gone(kept))
    assert cost.multiply_adds == multiply_adds(small, shape) and cost.parameters == trainable(small)


def trainable(network):
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def test_frozen_parameters_do_not_count():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))
    network[0].requires_grad_(False)
    accounting = Accounting(network, trace(network, torch.zeros(1, 3, 8, 8)))
    assert accounting.count().parameters == 10 and count_parameters(network) == 122


def test_a_batch_counts_one_sample():
    network = lively("resnet20")
    one, many = (Accounting(network, trace(network, torch.zeros(b, 3, 32, 32))).count() for b in (1, 4))
    assert one == many


def test_layers_say_what_remains():
    network, graph, removal, kept = pruned("vgg16", None)
    layers = Accounting(network, graph).layers(removal.gone(kept))
    small = compress(network, graph, removal, kept, fold="none")
    for name, (into, out) in layers.items():
        assert small.get_submodule(name).weight.shape[:2] == (out, into)


@pytest.mark.parametrize("arch", ["resnet20", "resnext20"])
def test_counts_by_layer_are_those_of_the_network_that_remains(arch):
    """By hooks on it; grouped layers too. Together they are what is counted for the whole."""
    network, graph, removal, kept = pruned(arch, None)
    gone = removal.gone(kept)
    counts = Products(graph).count(gone)
    small, seen = compress(network, graph, removal, kept, fold="none"), {}
    for name, module in small.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda m, _, out, name=name: seen.update({name: (m.weight, out[0])}))
    with torch.no_grad():
        small(torch.zeros(2, *SHAPE[1:]))
    for node, weights, products in zip(graph.nodes, counts.weights, counts.multiply_adds, strict=True):
        weight, out = seen[graph.module_of(node)]
        assert weights == weight.numel() and products == weight[0].numel() * out.numel()
    assert counts.multiply_adds.sum() == Accounting(network, graph).count(gone).multiply_adds


def test_wrong_questions_are_refused():
    network, graph, *_ = pruned("resnet20", "svd")
    with pytest.raises(UseError, match="trace it again"):
        Accounting(network, graph, (3, 64, 64))
    accounting = Accounting(network, graph)
    with pytest.raises(UseError, match="'stem' is no pair"):
        accounting.count(None, ["stem"])
