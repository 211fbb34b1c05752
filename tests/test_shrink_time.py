"""Targets in milliseconds, on a machine whose times are known, and once on this one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsemask
from hinge import lively, one_thread  # noqa: F401
from sparsemask import UseError, costs
from sparsemask.spaces.group_sparsity.shrinking import planning
from sparsemask.timing import timer

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGE = torch.zeros(1, 3, 32, 32)


@pytest.fixture
def machine(monkeypatch):
    """A machine on which a network takes a fixed time and one for its multiply-adds; returns what was timed."""
    state = {"busy": 1.0, "drift": 1.0, "calls": []}

    def clock(functions, rounds):
        state["calls"].append(list(functions))
        state["drift"] *= state.get("faster", 1.0)
        times = {k: (1 + costs.multiply_adds(f, ()) / 1e7) * state["drift"] for k, f in functions.items()}
        return times, state["busy"]

    monkeypatch.setattr(planning, "timer", lambda *_, **__: clock)
    return state


def milliseconds(network) -> float:
    with torch.no_grad():
        return 1 + costs.multiply_adds(lambda: network.eval()(IMAGE), ()) / 1e7


@pytest.mark.parametrize(("target", "wanted"), [("2.4 ms", 2.4), ("1.8ms", 1.8), (" 3.1 ms ", 3.1)])
def test_milliseconds_are_met_as_measured(machine, target, wanted):
    small = sparsemask.shrink(lively("resnet14"), IMAGE, target)
    assert small.report.after.milliseconds == pytest.approx(wanted, rel=0.03)
    assert small.report.notes == ()
    assert len(machine["calls"]) <= 20  # two roundings of widths, and the report


def test_a_share_of_the_milliseconds(machine):
    network = lively("resnet14")
    small = sparsemask.shrink(network, IMAGE, "50%", by="milliseconds")
    assert small.report.after.milliseconds == pytest.approx(milliseconds(network) / 2, rel=0.03)


def test_floors_are_said(machine):
    network = lively("resnet14")
    small = sparsemask.shrink(network, IMAGE, "1.01 ms", minimum=0.5)
    (note,) = small.report.notes
    floor = f"{small.report.after.milliseconds:.3g} ms"
    assert "wanted 1.01 ms" in note and f"(the smallest network takes {floor})" in note and "minimum" in note
    quick = sparsemask.shrink(network, IMAGE, "50 ms")
    assert quick.report.layers == () and "wanted 50 ms" in quick.report.notes[0]


def test_a_busy_machine_is_said(machine):
    machine["busy"] = 1.6
    small = sparsemask.shrink(lively("resnet14"), IMAGE, "2.4 ms")
    assert len(small.report.notes) == 1 and "busy (1.6 times" in small.report.notes[0]


def test_steps_by_time(machine):
    network = lively("resnet14")
    start = milliseconds(network)
    reports = [small.report for small in sparsemask.plan(network, IMAGE).steps(2, target="2 ms")]
    assert [report.before.milliseconds for report in reports] == pytest.approx([start, start])
    times = [report.after.milliseconds for report in reports]
    assert times == pytest.approx([(start * 2) ** 0.5, 2.0], rel=0.04)


def test_on_this_machine():
    """The time of the finished network, measured again by itself; widely, since others use this machine as well."""
    network = lively("resnet14")
    clock = timer(torch.device("cpu"), 1, 0.5)
    with torch.no_grad():
        whole = clock({0: lambda: network(IMAGE)}, 5)[0][0]
        small = sparsemask.shrink(network, IMAGE, f"{0.75 * whole:.4f} ms").eval()
        times = clock({0: lambda: network(IMAGE), 1: lambda: small(IMAGE)}, 5)[0]
    assert times[1] / times[0] == pytest.approx(0.75, abs=0.12)


def test_what_is_no_time():
    for target in ("8 s", "-8 ms", "ms"):
        with pytest.raises(UseError, match="target"):
            sparsemask.shrink(lively("resnet14"), IMAGE, target)


class Residual(nn.Module):
    """Blocks on channels that all of them share: one step of these channels is a large part of the time."""

    def __init__(self, width: int = 64, blocks: int = 8):
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        convs = lambda: (nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
        self.blocks = nn.ModuleList(nn.Sequential(*convs()) for _ in range(blocks))
        self.tail = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.head(x)
        for block in self.blocks:
            x = x + block(x)
        return self.tail(x)


def test_where_one_step_leads_past_the_target_the_other_layers_make_up_for_it(machine):
    torch.manual_seed(0)
    network = Residual()
    whole = milliseconds(network)
    for share in (0.75, 0.6, 0.5, 0.4, 0.35):
        small = sparsemask.shrink(network, IMAGE, f"{share * whole:.4f} ms", multiple=16)
        assert small.report.after.milliseconds == pytest.approx(share * whole, rel=0.03), share
        assert small.report.notes == ()
        widths = [m.out_channels for m in small.modules() if isinstance(m, nn.Conv2d)]
        assert all(width % 16 == 0 or width == 3 for width in widths)
        half = sparsemask.shrink(network, IMAGE, share, multiple=16)
        left = half.report.after.multiply_adds / half.report.before.multiply_adds
        assert left == pytest.approx(share, abs=0.03), share


@pytest.mark.parametrize(("share", "width"), [(0.7, 48), (0.55, 32)])
def test_where_there_is_no_other_layer_the_nearest_step_is_taken(share, width):
    network = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 8, 3, padding=1))
    small = sparsemask.shrink(network, IMAGE, share, multiple=16, timed=False)
    assert small[0].out_channels == width


def test_a_timer_that_is_warm_calls_each_function_before_it_measures_it():
    calls = []
    functions = {name: (lambda name=name: calls.append(name) or sum(range(20_000))) for name in "ab"}
    timer(torch.device("cpu"), 1, 0.0, warm=True)(functions, 3)
    changes = [a != b for a, b in zip(calls, calls[1:], strict=False)]
    runs = "".join("x" if change else "-" for change in changes).split("x")[2:]  # behind those that warm up
    assert len(runs) >= 6 and all(runs)  # each function at least twice in turn
