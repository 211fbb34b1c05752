"""The rule for any network: ties over shortcuts, every free channel in one set, networks of a user's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hinge import SmallUNet, enliven, lively, one_thread  # noqa: F401
from sparsemask.errors import UseError
from sparsemask.spaces.group_sparsity import groups, networks
from sparsemask.spaces.group_sparsity.pairs import groups_of, hinge
from sparsemask.spaces.group_sparsity.rules import plan_for
from sparsemask.spaces.group_sparsity.tracing.graph import trace

pytestmark = pytest.mark.usefixtures("one_thread")


def test_shortcuts_tie_channels_over_all_layers_that_make_them():
    network = networks.create("resnet20")
    plan = plan_for("resnet20", "graph", network)
    assert len(plan.splits) == 18 and "features.0.0" not in plan.splits  # all 3×3 but the first
    by_name = {s.name: s for s in plan.sets}
    # zero-padded shortcuts carry the first stage's 16 channels to the end: into the middle of 32, then of 64
    stem = by_name["features.0.0.channels"]
    assert stem.count == 16 and len(stem.members) == 1 + 3 + 3 + 3
    first, last = stem.members[0], stem.members[-1]
    assert first.module == "features.0.0" and first.index == tuple(range(16))
    assert last.module == "features.3.2.body.3.1"  # the pair's 1×1 makes the channels
    assert last.index == (-1,) * 24 + tuple(range(16)) + (-1,) * 24
    second, third = by_name["features.2.0.body.3.channels"], by_name["features.3.0.body.3.channels"]
    assert (second.count, len(second.members), third.count, len(third.members)) == (16, 6, 32, 3)
    assert sum(s.count for s in plan.sets if s.projection == "P2") == 16 + 16 + 32 + 3 * (16 + 32 + 64)


def test_a_callable_that_needs_more_than_a_number_of_classes_is_refused():
    def create_model(model_name, pretrained=False, **more):
        raise AssertionError("called")

    with pytest.raises(UseError, match="create_model.*'model_name'") as refused:
        networks.create(create_model)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("arch", ["resnext20", "vgg16", "densenet40"])
def test_general_sets_are_free_elements_and_each_is_in_one(arch):
    network = networks.create(arch)
    graph = trace(network, torch.zeros(1, 3, 32, 32))
    plan = plan_for(arch, "graph", network, graph)
    seen = set()
    for s in (s for s in plan.sets if s.projection == "P2"):
        for member in s.members:
            name = (
                member.module.removesuffix(".1") if member.module.removesuffix(".1") in plan.splits else member.module
            )
            channels = s.channels(member, torch.ones(s.count, dtype=torch.bool)).numpy()
            elements = graph.elements(name, 0)[channels]
            assert not graph.locked(elements).any()
        seen |= set(elements.tolist())
        assert len(set(elements.tolist())) == s.count  # a group is one element
    makers = [graph.elements(name, 0) for name, m in network.named_modules() if type(m) in (nn.Conv2d, nn.Linear)]
    free = {int(e) for each in makers for e in each if not graph.locked(e)}
    assert seen == free  # nothing that could go is left out, nothing is in two sets
    assert sum(s.count for s in plan.sets if s.projection == "P2") == len(free)


def test_channels_alone_are_the_general_rule_without_pairs():
    network = networks.create("resnet20")
    whole, alone = plan_for("resnet20", "graph", network), plan_for("resnet20", "channels", network)
    assert alone.splits == () and all(s.projection == "P2" for s in alone.sets)
    assert [(s.name, s.count) for s in alone.sets] == [(s.name, s.count) for s in whole.sets if s.projection == "P2"]
    plain = {member.module for s in alone.sets for member in s.members}
    assert plain == {
        member.module.removesuffix(".1") for s in whole.sets if s.projection == "P2" for member in s.members
    }


def test_a_network_of_the_users_own_is_hinged():
    torch.manual_seed(0)
    network = enliven(SmallUNet(), (2, 3, 16, 16))
    x = torch.randn(1, 3, 16, 16)
    before = network(x)
    plan = plan_for("hinge:small_unet", None, network, trace(network, x))
    hinge(network, plan)
    assert torch.allclose(network(x), before, atol=1e-5)
    assert plan.splits == ("down.0", "deep.0", "join.0")
    channels = {s.name: s.count for s in plan.sets if s.projection == "P2"}
    counts = {"first.0": 8, "down.0": 12, "deep.0": 16, "up": 10, "join.0": 9}
    assert channels == {f"{name}.channels": count for name, count in counts.items()}
    for s in groups_of(network, plan):  # the transposed convolution's outputs lie along its weight's second dimension
        gone = torch.arange(s.count) == 1
        groups.zero_(network, s, gone)
        assert (groups.norms(network, s) == 0).equal(gone)


def test_zero_channels_of_the_general_rule_are_zero_features():
    plan = plan_for("resnet20", "graph", lively("resnet20"))
    network = hinge(lively("resnet20"), plan)
    s = next(s for s in groups_of(network, plan) if s.name == "features.0.0.channels")
    groups.zero_(network, s, torch.arange(16) == 5)
    found = {}
    for member in s.members:
        module = network.get_submodule(member.module)
        module.register_forward_hook(lambda m, given, out, name=member.module: found.update({name: out}))
    with torch.no_grad():
        network(torch.randn(1, 3, 32, 32))
    for member in s.members:
        channels = s.channels(member, torch.arange(16) == 5)
        assert found[member.module][:, channels].abs().max() == 0 and int(channels.sum()) == 1


class Shared(nn.Module):
    """One convolution used twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.again, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.last(F.relu(self.again(F.relu(self.again(self.stem(x))))))


def test_a_layer_that_runs_twice_is_one_layer():
    network = Shared()
    plan = plan_for("my:own", "channels", network)
    assert [[m.module for m in s.members] for s in plan.sets] == [["stem", "again"]]
