"""Sparse convolutions in bfloat16: by emulated tiles and dot products everywhere, and by the processor's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from literal_sparse import Case, one_thread, problem  # noqa: F401
from sparsemask.backends import AttendedBlockCall, BlockCall
from sparsemask.backends.native import BACKEND, tiles
from sparsemask.backends.reference import BACKEND as REFERENCE
from sparsemask.ops.concat_conv import ConcatConvCall
from sparsemask.spaces.smsr.network import SMSR
from sparsemask.spaces.sparse_conv.plan import Machine, Plan, Plans
from sparsemask.sparse import backend, repeatable

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(BACKEND.why_not(CPU, torch.float32) is not None, reason="no C++ compiler here")
STEP = 2**-8  # the largest relative error of a rounding to bfloat16


@pytest.fixture(autouse=True, params=tiles.KINDS[1:])
def kind(request):
    torch.manual_seed(0)
    with tiles.using(request.param) as kind:
        if kind != request.param:
            pytest.skip(f"this processor has no {request.param}")
        yield kind


def rounded(*shape: int) -> Tensor:
    """Normal numbers that bfloat16 holds, in float32."""
    return torch.randn(shape).bfloat16().float()


def block(c: int = 24, layers: int = 3, size: tuple[int, int] = (9, 40), share: float = 0.4, batch: int = 2):
    """A block's call in bfloat16 and the same in float64."""
    mask = torch.rand(batch, 1, *size) < share
    mask[..., 5:25] |= torch.rand(batch, 1, size[0], 1) < 0.5  # runs of neighbours, too
    weights = [rounded(c, c, 3, 3) / 16 for _ in range(layers)]
    fusion = rounded(c, layers * c, 1, 1) / 8, rounded(c)
    given = rounded(batch, c, *size), mask, weights, torch.rand(layers, c) < 0.4, *fusion
    as_type = lambda one, t: (
        [w.to(t) for w in one] if isinstance(one, list) else one.to(t) if one.is_floating_point() else one
    )
    return (BlockCall(*(as_type(one, t) for one in given), "relu") for t in (torch.bfloat16, torch.float64))


def error(y: Tensor, exact: Tensor) -> float:
    """The largest difference over the size of the values, in roundings."""
    return float((y.double() - exact).abs().max() / exact.abs().max() / STEP)


FORMS = {
    "same size": (("kernel", 3),),
    "stride 2": (("kernel", 3), ("stride", 2)),
    "dilated": (("kernel", 3), ("dilation", 2)),
    "transposed": (("kernel", 3), ("stride", 2), ("transposed", True)),
    "groups": (("kernel", 3), ("groups", 2)),
}


@pytest.mark.parametrize("kept", [0.1, 0.9])
@pytest.mark.parametrize("form", FORMS)
def test_one_layer_is_rounded_once(form, kept):
    case = Case(c_in=6, c_out=40, spatial=(7, 37), kept=kept, form=FORMS[form])
    half = problem(case, torch.bfloat16)
    exact = problem(case, torch.float64)
    exact.x, exact.weight, exact.bias = half.x.double(), half.weight.double(), half.bias.double()
    y = half.run("native")
    assert y.dtype == torch.bfloat16 and error(y, exact.run("reference")) <= 1


@pytest.mark.parametrize("dense", [(), (0, 1, 2), (3, 20, 38)])
def test_where_a_layer_is_dropped_only_dense_channels_are_computed(dense, monkeypatch):
    call = problem(Case(c_in=6, c_out=40, spatial=(7, 37), kept=0.5), torch.bfloat16)
    call.out_dense[:] = False
    call.out_dense[list(dense)] = True
    wanted, columns, run = call.run("reference"), [], tiles.product
    monkeypatch.setattr(tiles, "product", lambda *given, **more: (columns.append(given[3]), run(*given, **more)))
    y = call.run("native")
    assert columns == [40, len(dense)]
    assert error(y, wanted.double()) <= 2 and torch.equal(y == 0, wanted == 0)


@pytest.mark.parametrize("share", [0.05, 0.4, 1.0])
def test_a_block_is_as_exact_as_torchs_own_in_bfloat16(share):
    half, exact = block(share=share)
    y = BACKEND.block(half)
    wanted = REFERENCE.block(exact)
    assert error(y, wanted) <= max(4, 1.5 * error(REFERENCE.block(half), wanted))


@pytest.mark.parametrize("dense", [0, 1])
def test_channels_that_are_all_sparse_or_all_dense(dense):
    half, exact = block()
    half.dense[:], exact.dense[:] = bool(dense), bool(dense)
    assert error(BACKEND.block(half), REFERENCE.block(exact)) <= 4


def test_attention_and_the_input_that_is_added():
    half, exact = block(c=32)
    attention = rounded(4, 32), rounded(4), rounded(32, 4), rounded(32)
    calls = [
        AttendedBlockCall(one, tuple(part.to(one.x.dtype) for part in attention)) for one in (half, exact)
    ]  # fmt: skip
    y = BACKEND.attended_block(calls[0])
    assert error(y, REFERENCE.attended_block(calls[1])) <= 4


def test_several_features_of_any_number_of_channels():
    xs, weight, bias = [rounded(2, c, 5, 19) for c in (3, 32, 40)], rounded(20, 75, 3, 3) / 16, rounded(20)
    add = rounded(2, 20, 5, 19)
    half = ConcatConvCall([x.bfloat16() for x in xs], weight.bfloat16(), bias.bfloat16(), add.bfloat16(), "relu")
    wanted = F.relu(F.conv2d(torch.cat(xs, 1).double(), weight.double(), bias.double(), padding=1) + add.double())
    assert error(BACKEND.joined_conv(half), wanted) <= 1


def test_values_are_rounded_as_torch_rounds_them():
    # Ties, what overflows, what is infinite or not a number.
    values = torch.tensor(
        [1 + STEP, 1 + 3 * STEP, 1 + STEP * 1.01, -1 - STEP, 3.4e38, -3.4e38, float("inf"), float("nan")]
    )
    out = tiles.empty(3, 32)
    x = tiles.empty(3, 32).zero_()
    segments = [tiles.Segment(x, None, 0, 32)]
    pos = torch.arange(3, dtype=torch.int32)
    tiles.product(pos, segments, tiles.pack(torch.zeros(1, 32, 8)), 8, out, bias=tiles.padded(values))
    wanted = values.bfloat16().expand(3, 8)
    assert torch.equal(out[:, :8].isnan(), wanted.isnan())
    assert torch.equal(out[:, :8].nan_to_num(7), wanted.nan_to_num(7))
    assert not out[:, 8:].any()


def test_one_thread_and_two_give_the_same_bits():
    half, _ = block(size=(40, 64))
    one = BACKEND.block(half)
    torch.set_num_threads(2)
    assert torch.equal(BACKEND.block(half), one)


def test_other_libraries_find_their_tiles_as_they_left_them():
    # oneDNN convolves by tiles, too, and this between its calls must not disturb it, nor be disturbed.
    half, _ = block()
    x, weight = torch.randn(1, 64, 32, 32).bfloat16(), torch.randn(64, 64, 3, 3).bfloat16()
    alone, ours = F.conv2d(x, weight), BACKEND.block(half)
    for _ in range(5):
        assert torch.equal(BACKEND.block(half), ours)
        assert torch.equal(F.conv2d(x, weight), alone)


def test_a_network_under_autocast_skips_by_the_native_kernels(monkeypatch):
    net = SMSR(n_feats=16, n_modules=2, n_layers=2).eval().requires_grad_(False)
    x = 255 * torch.rand(1, 3, 20, 24)
    with repeatable():
        exact = net(x)
    calls = []
    run = tiles.product
    monkeypatch.setattr(tiles, "product", lambda *given, **more: (calls.append(1), run(*given, **more)))
    with backend("native"), torch.autocast("cpu", dtype=torch.bfloat16):
        y = net(x)
    assert calls and float((y - exact).abs().mean()) < 2


def test_without_tiles_it_says_why():
    with tiles.using("none"):
        assert "AMX, AVX512-BF16" in BACKEND.why_not(CPU, torch.bfloat16)
        assert BACKEND.why_not(CPU, torch.float32) is None


def test_a_plan_of_one_arithmetic_is_not_followed_in_another(kind):
    here = Machine.here(CPU)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = Machine.here(CPU)
        with tiles.using("none"):
            plain = Machine.here(CPU)
    assert [one.arithmetic for one in (here, half, plain)] == ["float32", f"bfloat16 by {kind}", "bfloat16"]
    plans = Plans([Plan(here, (1, 3, 8, 8), {"a": "native"}, 0.5)])
    assert plans.find((1, 3, 8, 8), CPU) is not None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert plans.find((1, 3, 8, 8), CPU) is None
