"""Networks of every kind of layer are made smaller, and come back from their files as they were."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparsemask
from hinge import SmallUNet, enliven, lasting, one_thread  # noqa: F401
from sparsemask import UseError
from sparsemask.spaces.group_sparsity.shrinking import IMPORTANCES
from test_hinge_channels import Net, conv
from test_hinge_kinds import Attention, Standardised, transformer

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGE = torch.randn(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def heads(fused):
    """A transformer whose number or width of heads follows the channels."""
    return transformer(Attention(16, 4, fused))


def grouped():
    """A grouped convolution that loses the same channels of every group."""
    return Net(
        lambda n, x: n.last(sum(F.relu(n.mid(F.relu(n.a(x)))).chunk(4, 1))),
        a=conv(3, 16),
        mid=conv(16, 16, groups=4),
        last=conv(4, 2),
    )


def computed(compute):
    """A network whose weights are computed from others."""

    def make():
        layers = compute(conv(3, 16)), compute(conv(16, 16))
        return Net(lambda n, x: n.last(F.relu(n.b(F.relu(n.a(x))))), a=layers[0], b=layers[1], last=conv(16, 2))

    return make


KINDS = {
    "whole heads": lambda: heads(True),
    "narrow heads": lambda: heads(False),
    "grouped": grouped,
    "old weight norm": computed(nn.utils.weight_norm),
    "weight norm": computed(nn.utils.parametrizations.weight_norm),
    "spectral norm": computed(nn.utils.parametrizations.spectral_norm),
    "standardised": computed(lambda layer: Standardised(layer.in_channels, layer.out_channels, 3, padding=1)),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", KINDS)
def test_small_networks_equal_the_zeroed_ones_and_come_back_from_files(name, tmp_path):
    torch.manual_seed(0)
    network = KINDS[name]().double().eval()
    with torch.no_grad():
        whole = network(IMAGE)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    plan = sparsemask.plan(network, IMAGE)
    small = plan.shrink(0.6, timed=False)
    with torch.no_grad():
        assert torch.allclose(small(IMAGE), plan.zeroed(small)(IMAGE), rtol=0, atol=1e-9)
        assert torch.equal(network(IMAGE), whole) and torch.allclose(plan.network(IMAGE), whole, atol=1e-9)
    after = network.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert small.report.after.multiply_adds < 0.75 * small.report.before.multiply_adds
    assert ("plain" in "".join(small.report.notes)) == ("norm" in name or name == "standardised")
    sparsemask.save(small, tmp_path / "small.safetensors")
    again = sparsemask.load(tmp_path / "small.safetensors", KINDS[name]().double())
    less = sparsemask.shrink(again.eval(), IMAGE, 0.4, timed=False)
    sparsemask.save(less, tmp_path / "less.safetensors")
    last = sparsemask.load(tmp_path / "less.safetensors", KINDS[name]().double())
    with torch.no_grad():
        assert torch.equal(again(IMAGE), small(IMAGE)) and again.report == small.report
        assert torch.equal(last.eval()(IMAGE), less(IMAGE))


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_every_importance_takes_channels_inside_groups(importance):
    torch.manual_seed(0)
    network = grouped().double().eval()
    data, loss = [(IMAGE, torch.zeros(2, 2, 12, 12, dtype=torch.float64))], F.mse_loss
    small = sparsemask.shrink(network, IMAGE, 0.6, importance=importance, data=data, loss=loss, timed=False)
    assert small.mid.groups == 4 and small.mid.out_channels < 16 and small.a.out_channels < 16


def test_channels_under_statistics_go_where_the_function_may_change(tmp_path):
    torch.manual_seed(0)
    forward = lambda n, x: n.last(n.norm(n.a(x).movedim(1, 3)).movedim(3, 1))
    make = lambda: Net(forward, a=conv(3, 16), norm=nn.LayerNorm(16), last=conv(16, 2)).double()
    network = make().eval()
    with pytest.raises(UseError, match="nothing can be removed.*over channels"):
        sparsemask.shrink(network, IMAGE, 0.5)
    small = sparsemask.shrink(network, IMAGE, 0.5, fold="none", only="a", timed=False)
    assert small.a.out_channels == small.norm.normalized_shape[0] == 8
    (layer,) = small.report.approximate
    assert (layer.layer, layer.channels, layer.of) == ("a", 8, 16) and "over channels" in layer.reason
    assert "changes the function: a (8 of 16): " in str(small.report)
    sparsemask.save(small, tmp_path / "small.safetensors")
    again = sparsemask.load(tmp_path / "small.safetensors", make()).eval()
    with torch.no_grad():
        assert torch.equal(again(IMAGE), small(IMAGE)) and again.report == small.report
    plan = sparsemask.plan(network, IMAGE, fold="none")
    assert plan.channels and plan.shrink(0.5, timed=False).a.out_channels == 8
    steps = list(plan.steps(2, 0.25, timed=False))
    assert [step.a.out_channels for step in steps] == [8, 4]
    assert [layer.channels for layer in steps[-1].report.approximate] == [8, 4]
    with pytest.raises(UseError, match="nothing can be removed"):
        plan.shrink(0.5, fold="exact")


def test_a_report_of_two_steps_tells_layers_with_borders_as_they_are():
    torch.manual_seed(0)
    network = enliven(lasting(SmallUNet()), (4, 3, 32, 32))
    x = torch.zeros(1, 3, 32, 32)
    *_, small = sparsemask.plan(network, x).steps(2, 0.4, timed=False)
    assert any("border" in name for name in small.state_dict())
    for change in small.report.layers:
        before, after = network.get_submodule(change.layer).weight, small.get_submodule(change.layer).weight
        assert {*change.before} == {*before.shape[:2]} and {*change.after} == {*after.shape[:2]}


def test_inputs_that_a_network_does_not_take_are_refused_in_one_line():
    torch.manual_seed(0)
    for compute in (lambda layer: layer, nn.utils.parametrizations.weight_norm):
        network = computed(compute)().double()
        for example in ((IMAGE, IMAGE), {"picture": IMAGE}, IMAGE[:, :2]):
            with pytest.raises(UseError, match="does not run on an input of 2x") as refused:
                sparsemask.shrink(network, example, 0.5)
            assert "\n" not in str(refused.value)


def test_operators_whose_names_end_in_underscores_are_run_again_as_they_were_traced():
    """The run that reads constants took the `__lshift__` of the trace for another operator's in-place form."""
    net = Net(lambda n, x: n.last(F.relu(n.a(x)) * (torch.arange(x.shape[3]) << 1)), a=conv(3, 8), last=conv(8, 2))
    net = net.double().eval()
    plan = sparsemask.plan(net, IMAGE)
    small = plan.shrink(0.5, timed=False)
    assert small.report.layers
    torch.testing.assert_close(small(IMAGE), plan.zeroed(small)(IMAGE), rtol=1e-12, atol=1e-12)
