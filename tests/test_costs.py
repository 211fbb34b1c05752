"""Costs: parameters, executed multiply-adds against formulas, timings, and the tables that show them."""

from __future__ import annotations

import itertools
import time
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import register_flop_formula

import sparsemask
from sparsemask.costs import (
    compare,
    count_parameters,
    format_count,
    measure,
    milliseconds,
    multiply_adds,
    parameters_by_part,
)
from sparsemask.tables import markdown_table, table


@torch.library.custom_op("sparsemask_test::half_matmul", mutates_args=())
def half_matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a[::2] @ b


@register_flop_formula(torch.ops.sparsemask_test.half_matmul)
def _half_matmul_flops(a, b, *, out_shape=None) -> int:
    return 2 * out_shape[0] * a[1] * b[1]


@torch.library.custom_op("sparsemask_test::silent", mutates_args=())
def silent(a: torch.Tensor) -> torch.Tensor:
    return a @ a


def touched(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Places of a kernel's window along one axis, by walking: padded places are multiplied too."""
    reach = dilation * (kernel - 1) + 1
    return sum(kernel for start in range(0, size + 2 * padding - reach + 1, stride))


# channels in, out, kernel, stride, padding, dilation, groups
CONVS = [
    (3, 8, 3, 1, 1, 1, 1),
    (3, 8, 3, 2, 1, 1, 1),
    (8, 6, 1, 1, 0, 1, 1),
    (8, 8, 3, 1, 1, 1, 8),
    (8, 4, 3, 2, 2, 2, 2),
    (4, 8, 5, 3, 0, 1, 4),
]


@pytest.mark.parametrize("spec", CONVS)
def test_convolutions_count_every_window(spec):
    cin, cout, kernel, stride, padding, dilation, groups = spec
    net = nn.Conv2d(cin, cout, kernel, stride, padding, dilation, groups)
    windows = touched(17, kernel, stride, padding, dilation) * touched(13, kernel, stride, padding, dilation)
    assert multiply_adds(net, (2, cin, 17, 13)) == 2 * cout * (cin // groups) * windows


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_transposed_convolution_counts_inputs_times_kernel(groups):
    net = nn.ConvTranspose2d(4, 8, 3, stride=2, padding=1, groups=groups)
    # Each input value is spread over kernel × kernel places of every output channel of its group.
    assert multiply_adds(net, (2, 4, 7, 5)) == 2 * 4 * 7 * 5 * 9 * 8 // groups


PRODUCTS = [
    (nn.Linear(5, 7), (3, 5), 3 * 5 * 7),
    (nn.Linear(5, 7, bias=False), (2, 3, 5), 2 * 3 * 5 * 7),
    (torch.matmul, [(3, 4), (4, 6)], 3 * 4 * 6),
    (torch.matmul, [(3, 4), (4,)], 3 * 4),
    (torch.matmul, [(4,), (4,)], 4),
    (torch.bmm, [(2, 3, 4), (2, 4, 6)], 2 * 3 * 4 * 6),
    (lambda a, b: torch.einsum("bij,bkj->bik", a, b), [(2, 3, 4), (2, 6, 4)], 2 * 3 * 4 * 6),
    (lambda c, a, b: torch.addmv(c, a, b), [(3,), (3, 5), (5,)], 3 * 5),
    (F.scaled_dot_product_attention, [(2, 4, 10, 8)] * 3, 2 * 2 * 4 * 10 * 10 * 8),
    (lambda a: F.interpolate(a, scale_factor=2, mode="bilinear"), (1, 3, 4, 4), 0),
    (lambda a: torch.relu(a) + a * 2, (10, 10), 0),
]


@pytest.mark.parametrize("net, inputs, expected", PRODUCTS)
def test_products(net, inputs, expected):
    assert multiply_adds(net, inputs) == expected


def test_skipped_branch_is_not_counted():
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.used(x)

    # Executed, not declared: the second layer has parameters but no multiply-adds.
    assert multiply_adds(Skips(), (1, 4)) == 16
    assert count_parameters(Skips()) == 40


def test_registered_operator_counts_by_its_formula():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = lambda a, b: torch.ops.sparsemask_test.half_matmul(a, b) @ b.T
        assert multiply_adds(net, [(6, 4), (4, 5)]) == 3 * 4 * 5 + 3 * 5 * 4


def test_unregistered_operator_is_named_once():
    call = lambda a: torch.ops.sparsemask_test.silent(a)
    with pytest.warns(UserWarning, match="sparsemask_test.silent has no formula"):
        assert multiply_adds(call, (3, 3)) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        multiply_adds(call, (3, 3))


def test_torch_s_own_operators_are_not_named_and_keep_their_arguments(monkeypatch):
    monkeypatch.setattr("sparsemask.costs._warned", set())
    made = []

    def net(a):
        made.append(torch.ones(2, dtype=torch.float64))
        return torch.sinh(a) @ torch.ones(4, 5)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert multiply_adds(net, (3, 4)) == 3 * 4 * 5
    assert made[0].dtype == torch.float64
    with pytest.warns(UserWarning, match="aten._trilinear has no formula"):
        multiply_adds(nn.Bilinear(3, 4, 5), [(2, 3), (2, 4)])


def test_the_kept_fraction_is_passed_on():
    assert measure(nn.Linear(4, 4), (1, 4), time=False).kept_fraction == 1.0
    assert measure(nn.Linear(4, 4), (1, 4), time=False, kept_fraction=0.25).kept_fraction == 0.25


def test_measuring_leaves_no_trace():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
    net.train()
    net[1].eval()  # a frozen batch norm inside a training network
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.get_rng_state()
    measure(net, (2, 3, 8, 8), repeats=2)
    assert [m.training for m in net.modules()] == [True, True, False, True]
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    # A cost measured in the middle of a run must not change what the run draws next.
    assert torch.equal(torch.get_rng_state(), state)
    assert net[0].weight.grad is None


def test_modes_return_after_an_error():
    net = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(RuntimeError):
        multiply_adds(net, (1, 5))
    assert net.training and net[0].training


def test_parts_sum_to_the_whole_with_shared_weights():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.decoder = nn.Linear(3, 5), nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 5))
            self.decoder[1].weight = self.backbone.weight
            self.scale = nn.Parameter(torch.ones(7))

        def forward(self, x):
            return self.decoder(self.backbone(x)) * self.scale.sum()

    net = Net()
    assert parameters_by_part(net) == {"backbone": 20, "decoder": 18 + 5, "": 7}
    cost = measure(net, (2, 3), time=False)
    assert cost.parameters == sum(cost.parts.values()) == count_parameters(net) == 50
    assert cost.decoder_parameters == 30 and cost.milliseconds is None
    assert count_parameters(net, "decoder.0") == 18
    with pytest.raises(sparsemask.UseError, match="no part 'head'"):
        count_parameters(net, "head")


def test_half_precision_network_gets_its_inputs():
    assert multiply_adds(nn.Linear(4, 4).bfloat16(), (1, 4)) == 16


def test_timing_orders_the_quartiles_and_keeps_its_bounds():
    timing = milliseconds(lambda: time.sleep(0.002), repeats=5, warmup=0)
    assert timing.repeats == 5
    assert 2 <= timing.fastest <= timing.low <= timing.median <= timing.high
    assert timing.spread == timing.high - timing.low
    # The budget ends it, but never before three.
    assert milliseconds(lambda: time.sleep(0.002), repeats=1000, budget=0.0).repeats == 3
    assert milliseconds(lambda: None, repeats=1).repeats == 1


def test_warmup_is_not_timed():
    calls = itertools.count()
    timing = milliseconds(lambda: time.sleep(0.3 if next(calls) < 1 else 0), repeats=4, warmup=1)
    assert timing.high < 150


def test_compare_calls_in_turn():
    order: list[str] = []
    result = compare({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warmup=1)
    assert "".join(order) == "abababab"
    assert set(result) == {"a", "b"} and all(value >= 0 for value in result.values())


def test_compare_tells_slow_from_fast():
    result = compare({"slow": lambda: time.sleep(0.01), "fast": lambda: None}, rounds=3, warmup=0)
    assert result["slow"] > 10 * result["fast"]


@pytest.mark.parametrize(
    "number, expected",
    [
        (0, "0"),
        (431, "431"),
        (1000, "1.00 k"),
        (26_901, "26.9 k"),
        (164_821, "0.16 M"),
        (560_981, "0.56 M"),
        (2_785_941, "2.79 M"),
        (64_000_000, "64.0 M"),
        (560e6, "0.56 G"),
        (9_996_000_000, "10.0 G"),
        (312.4e9, "312 G"),
    ],
)
def test_format_count(number, expected):
    assert format_count(number) == expected


def test_format_count_in_a_fixed_unit():
    assert format_count(26_901, "M") == "0.03 M"
    with pytest.raises(sparsemask.UseError, match="known: G, M, k"):
        format_count(1, "T")


ROWS = [
    {"name": "fcn", "connections": None, "params": 26_901, "miou": 0.5},
    {"name": "a|b", "connections": 15, "params": 2_785_941, "miou": float("nan")},
]


def test_table_aligns_and_dashes():
    columns = {
        "name": "network",
        "connections": "conn.",
        "params": ("params", format_count),
        "miou": ("mIoU", ".3f"),
    }
    assert table(ROWS, columns).splitlines() == [
        "network  conn.  params   mIoU",
        "-------  -----  ------  -----",
        "fcn          -  26.9 k  0.500",
        "a|b         15  2.79 M      -",
    ]


def test_markdown_table_escapes_bars():
    assert markdown_table(ROWS, ["name", "connections"]).splitlines() == [
        "| name | connections |",
        "| ---- | ----------: |",
        "| fcn  |           - |",
        "| a\\|b |          15 |",
    ]


def test_empty_table_is_its_header():
    assert table([], ["name"]) == "name\n----"
