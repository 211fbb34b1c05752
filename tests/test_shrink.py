"""Make any network smaller: what is left equals the zeroed network, targets are met as counted, options are obeyed."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparsemask
from hinge import SmallUNet, enliven, lasting, lively, one_thread  # noqa: F401
from sparsemask import UseError, costs
from sparsemask.spaces.group_sparsity.groups import GroupSet, axis

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGE = torch.zeros(1, 3, 32, 32)


class Pooled(nn.Module):
    """Average pools that count their padding: what a removed positive constant leaves varies from place to place."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU())
        self.pool = nn.AvgPool2d(3, 1, 1)
        self.branch = nn.Sequential(nn.Conv2d(24, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.beside = nn.Conv2d(24, 16, 1)
        self.last = nn.Conv2d(32, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.last(torch.cat([self.branch(x), self.beside(self.pool(x))], 1))


def unet() -> nn.Module:
    torch.manual_seed(0)
    return enliven(SmallUNet(), (4, 3, 32, 32))


def pooled() -> nn.Module:
    torch.manual_seed(0)
    return enliven(Pooled(), (4, 3, 32, 32))


NETWORKS = {
    "resnet": lambda: lively("resnet20"),
    "resnext": lambda: lively("resnext20"),
    "densenet": lambda: lively("densenet40"),
    "unet": unet,
    "pooled": pooled,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_half_is_left_and_equals_the_zeroed_network(name):
    network = NETWORKS[name]().double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    before = copy.deepcopy(network.state_dict())
    plan = sparsemask.plan(network, x)
    small = plan.shrink(target=0.5, timed=False)
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), before.values(), strict=True))
    assert type(small) is type(network)
    with torch.no_grad():
        wanted, whole, found = plan.zeroed(small)(x), network(x), small(x)
        elsewhere = torch.randn(1, 3, 40, 24, dtype=torch.float64)
        assert torch.allclose(small(elsewhere), plan.zeroed(small)(elsewhere), rtol=0, atol=1e-9)
    assert (found - wanted).abs().max() < 1e-9 * (1 + wanted.abs().max())
    assert (found - whole).abs().max() > 1e-3  # something did go
    for c in plan.channels:  # and it is the weights of what went that are zero there
        maker = c.makers[0].module
        kept = small.get_submodule(maker).weight.shape[axis(small.get_submodule(maker), 0)]
        weight = plan.zeroed(small).get_submodule(maker).weight.transpose(0, axis(small.get_submodule(maker), 0))
        assert int((weight.flatten(1).abs().sum(1) > 0).sum()) == kept
    report = small.report
    share = costs.multiply_adds(small, x) / costs.multiply_adds(network, x)
    assert abs(share - 0.5) < 0.04  # with the convolutions of ones, of which the report does not speak
    assert report.after.multiply_adds / report.before.multiply_adds == pytest.approx(0.5, abs=0.03)
    assert report.after.parameters == sum(p.numel() for p in small.parameters())
    assert report.before.milliseconds is None and report.notes == ()


def test_small_networks_are_plain_where_nothing_is_left_of_zero():
    """With the norms' shifts zero, too, nothing is to be added: the same modules, only narrower."""
    network = lively("resnet20").double()
    plan = sparsemask.plan(network, IMAGE.double())
    small = plan.shrink(0.5, timed=False)
    assert {*small.state_dict()} == {*network.state_dict()} and small.report.recipe.added == ()
    for name, norm in plan.zeroed(small).named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            kept = small.get_submodule(name).num_features
            assert int(((norm.weight != 0) & (norm.bias != 0)).sum()) == kept


def test_shifts_of_layers_that_pass_channels_on_are_zero_too():
    """A depth-wise layer's bias would leave a constant of a channel whose maker has no weights any more."""
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 16, 1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.ReLU(),
        nn.Conv2d(16, 4, 3, 1, 1),
    )
    network = nn.Sequential(*layers).double()
    plan = sparsemask.plan(network, IMAGE.double())
    small = plan.shrink(0.5, timed=False)
    assert small[2].groups < 16 and {*small.state_dict()} == {*network.state_dict()}
    assert int((plan.zeroed(small)[2].bias != 0).sum()) == small[2].groups
    x = torch.randn(1, 3, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(small(x), plan.zeroed(small)(x), rtol=0, atol=1e-12)


def test_channels_that_cannot_be_folded_stay_and_are_named():
    network = lasting(pooled())
    small = sparsemask.shrink(network, IMAGE, target=0.5, timed=False)
    assert small.stem[0].out_channels == 24  # all are read by a pool that counts its padding
    assert any(one.layer == "stem.0" and "folded" in one.reason for one in small.report.locked)
    assert abs(small.report.after.multiply_adds / small.report.before.multiply_adds - 0.5) < 0.03
    loose = sparsemask.shrink(network, IMAGE, target=0.5, fold="none", timed=False)
    assert loose.stem[0].out_channels < 24 and "fold none" in str(loose.report)


def test_parameters_are_a_target_too_and_frozen_ones_count():
    network = lively("resnet20").requires_grad_(False)
    small = sparsemask.shrink(network, IMAGE, target="60%", by="parameters", timed=False)
    share = costs.count_parameters(small) / costs.count_parameters(network)
    assert share == pytest.approx(0.6, abs=0.01)
    assert not any(p.requires_grad for name, p in small.named_parameters() if name in dict(network.named_parameters()))


def test_modes_and_types_are_the_networks():
    network = lively("resnet20").to(torch.float64).train()
    small = sparsemask.shrink(network, IMAGE.double(), target=0.6, timed=False)
    assert small.training and network.training and next(small.parameters()).dtype == torch.float64
    loss = F.cross_entropy(small(torch.randn(4, 3, 32, 32, dtype=torch.float64)), torch.arange(4))
    loss.backward()
    assert all(p.grad is not None for p in small.parameters())


def test_outputs_that_are_no_numbers():
    class Labelling(SmallUNet):
        def forward(self, x):
            scores = super().forward(x)
            return scores, scores.argmax(1), scores > 0

    torch.manual_seed(0)
    network = Labelling()
    enliven(network, (4, 3, 32, 32))
    small = sparsemask.shrink(network, IMAGE, 0.5, timed=False)
    with torch.no_grad():
        assert small(torch.randn(2, 3, 32, 32))[1].shape == (2, 32, 32)


def test_half_precision():
    network = lively("resnet20").to(torch.bfloat16)
    x = torch.randn(2, 3, 32, 32, dtype=torch.bfloat16)
    plan = sparsemask.plan(network, x)
    small = plan.shrink(0.5, timed=False)
    with torch.no_grad():
        wanted = plan.zeroed(small)(x)
        assert (small(x) - wanted).abs().max() < 0.05 * (1 + wanted.abs().max())
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}


def test_only_and_skip_leave_other_layers_alone():
    network = lively("resnet20")
    small = sparsemask.shrink(network, IMAGE, target=0.8, only="features.3.*", timed=False)
    changed = {change.layer for change in small.report.layers if change.before[1] != change.after[1]}
    assert changed and all(layer.startswith("features.3.") for layer in changed)
    plan = sparsemask.plan(network, IMAGE, skip=["features.1.*", "features.0.0"])
    assert all(not m.module.startswith("features.1.") for c in plan.channels for m in c.makers)
    assert "left out by name" in str(plan)
    with pytest.raises(UseError, match="layer9"):
        sparsemask.plan(network, IMAGE, only="layer9.*")


@pytest.mark.parametrize("policy", ["time", "uniform", "global", "isomorphic"])
def test_multiples_and_minimum_hold_of_every_layer(policy):
    network = lively("resnet20")
    small = sparsemask.shrink(network, IMAGE, target=0.4, policy=policy, multiple=8, minimum=8, timed=False)
    # zero-padded shortcuts bring the first stage's channels into the other stages: sums of multiples
    outputs = [change.after[1] for change in small.report.layers if change.before[1] != change.after[1]]
    assert outputs and all(count % 8 == 0 and count >= 8 for count in outputs)
    with torch.no_grad():
        assert small(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_wide_layers_keep_multiples_of_sixteen_and_narrow_ones_smaller_ones():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 192, 3, padding=1), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Conv2d(192, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 8, 1)).eval()
    small = sparsemask.shrink(network, IMAGE, target=0.5, timed=False)
    first, *wide = (small[i].out_channels for i in (0, 2, 4))
    assert first < 32 and first % 4 == 0 and first % 16  # of 32 channels, steps of 16 would be half
    assert all(width % 16 == 0 for width in wide)
    assert abs(small.report.after.multiply_adds / small.report.before.multiply_adds - 0.5) < 0.01


def test_policies_differ_as_they_say():
    network = lively("resnet20")
    with torch.no_grad():  # the first layers' weights are worth nothing beside the last ones'
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(0.01 if name.startswith("features.1") else 1.0)

    def shares(policy):
        small = sparsemask.shrink(network, IMAGE, 0.6, importance="hinge", policy=policy, timed=False)
        ends = {change.layer: change.after[1] / change.before[1] for change in small.report.layers}
        return {name: ends.get(name, 1.0) for name in ("features.1.0.body.0", "features.3.0.body.0")}

    uniform, everywhere = shares("uniform"), shares("global")
    assert abs(uniform["features.1.0.body.0"] - uniform["features.3.0.body.0"]) < 0.1
    assert everywhere["features.1.0.body.0"] < 0.2 < everywhere["features.3.0.body.0"]
    by_hand = {"features.1.*.body.0": 0.5, "features.3.*.body.0": 0.25}
    small = sparsemask.shrink(network, IMAGE, policy=by_hand, timed=False)
    assert small.get_submodule("features.1.0.body.0").out_channels == 8
    assert small.get_submodule("features.3.2.body.0").out_channels == 16
    assert small.get_submodule("features.2.0.body.0").out_channels == 32
    fitted = sparsemask.shrink(network, IMAGE, 0.8, policy=by_hand, timed=False)
    assert abs(fitted.report.after.multiply_adds / fitted.report.before.multiply_adds - 0.8) < 0.03


def test_a_target_out_of_reach_is_said_with_the_reason():
    network = lively("resnet20")
    small = sparsemask.shrink(network, IMAGE, target=0.02, minimum=0.5, timed=False)
    share = small.report.after.multiply_adds / small.report.before.multiply_adds
    (note,) = small.report.notes
    assert share > 0.05 and f"reached {share:.1%}" in note and "minimum" in note and "output" in note
    assert note in str(small.report)
    assert sparsemask.shrink(network, IMAGE, target=1.0, timed=False).report.layers == ()


def test_steps_reach_the_target_from_what_was_trained_in_between():
    network = lively("resnet20")
    plan = sparsemask.plan(network, IMAGE)
    shares, last = [], None
    for small in plan.steps(3, target=0.4, timed=False):
        shares.append(small.report.after.multiply_adds / plan.costs.multiply_adds)
        with torch.no_grad():
            small.features[0][0].weight += 0.01
        assert last is None or small.features[0][0].weight.abs().sum() > 0
        last = small
    assert shares == pytest.approx([0.4 ** (n / 3) for n in (1, 2, 3)], abs=0.02)
    assert last.report.before.multiply_adds == plan.costs.multiply_adds  # of the whole network
    again = last.report.recipe.rebuild(lively("resnet20", seed=1))
    again.load_state_dict(last.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), last.eval()(x))


def test_a_plan_is_printed_with_what_stays_and_why():
    text = str(sparsemask.plan(unet(), IMAGE))
    assert "SmallUNet, 1x3x32x32" in text and "join.0" in text
    assert "stays: last (3 of 3): it reaches the network's output" in text


def test_reports_say_what_went():
    small = sparsemask.shrink(lively("resnet20"), IMAGE, target=0.5)
    text = str(small.report)
    assert "multiply-adds" in text and "milliseconds" in text and "1 thread" in text
    assert "0.500 of" not in text and "0.5 of the multiply-adds" in text and "->" in text
    assert small.report.after.milliseconds > 0


WRONG = {
    "target": [dict(), dict(target=0), dict(target=1.5), dict(target="fast"), dict(target="0 ms"), dict(target="140%")],
    "by": [dict(target=0.5, by="size")],
    "importance": [dict(target=0.5, importance="size"), dict(target=0.5, importance="taylor")],
    "policy": [dict(target=0.5, policy="even"), dict(policy={"nothing.*": 0.5}), dict(policy={"features.1.*": 0})],
    "minimum": [dict(target=0.5, minimum=0), dict(target=0.5, minimum=2.5)],
    "multiple": [dict(target=0.5, multiple=0)],
    "fold": [dict(target=0.5, fold="some")],
}


@pytest.mark.parametrize("word", WRONG)
def test_wrong_arguments_are_refused_in_one_line(word):
    network = lively("resnet20")
    for arguments in WRONG[word]:
        with pytest.raises(UseError, match=word) as refused:
            sparsemask.shrink(network, IMAGE, **arguments)
        assert "\n" not in str(refused.value)


def test_networks_and_inputs_that_will_not_do():
    with pytest.raises(UseError, match="example"):
        sparsemask.shrink(lively("resnet20"), [IMAGE], 0.5)
    with pytest.raises(UseError, match="tensor"):
        sparsemask.plan(lively("resnet20"), (1, 2))

    class Reporting(SmallUNet):
        def report(self):
            return "mine"

    with pytest.raises(UseError, match="report"):
        sparsemask.plan(Reporting(), IMAGE)
    fixed = nn.Sequential(nn.Conv2d(3, 4, 1))
    with pytest.raises(UseError, match="nothing can be removed.*output"):
        sparsemask.shrink(fixed, IMAGE, 0.5)


def test_names_are_lazy():
    assert {"shrink", "plan", "save", "load"} <= set(sparsemask.__all__)
    assert isinstance(sparsemask.plan(unet(), IMAGE).channels[0].groups, GroupSet)
