"""The Triton kernels against the formula: on a GPU where there is one, else in Triton's interpreter on the CPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton absent", allow_module_level=True)

from sparsemask.backends import BlockCall, ConvCall
from sparsemask.backends import triton as triton_backend
from sparsemask.backends.triton import BACKEND
from sparsemask.backends.triton import block as triton_block
from sparsemask.backends.triton import launch as triton_launch
from sparsemask.errors import UseError
from sparsemask.ops.geometry import Geometry

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Only while the kernels are made and in these tests: other tests must not be offered the interpreter.
INTERPRET = {} if DEVICE == "cuda" else {"TRITON_INTERPRET": "1"}
with mock.patch.dict(os.environ, INTERPRET):
    UNFIT = BACKEND.why_not(DEVICE, torch.float32)
pytestmark = pytest.mark.skipif(UNFIT is not None, reason=f"triton: {UNFIT}")

# float32 on GPUs is three TF32 products; the others round inputs and outputs.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def sparse_conv(*given) -> torch.Tensor:
    return BACKEND.conv(ConvCall(*given))


def sparse_block(*given) -> torch.Tensor:
    return BACKEND.block(BlockCall(*given))


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    for name, value in INTERPRET.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(autouse=True)
def unwritten_is_nan():
    """Fresh memory is full of NaN, so that reading or returning what nobody wrote shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def convolve(x, weight, geometry: Geometry):
    if geometry.transposed:
        conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[geometry.dims - 1]
        return conv(x, weight, None, geometry.stride, geometry.padding, geometry.output_padding, geometry.groups,
                    geometry.dilation)  # fmt: skip
    conv = (F.conv1d, F.conv2d, F.conv3d)[geometry.dims - 1]
    return conv(x, weight, None, geometry.stride, geometry.padding, geometry.dilation, geometry.groups)


def judge(x, weight, bias, mask, in_dense, out_dense, geometry, act=torch.relu):
    """The formula with hard masks, in float64: dense convolutions times masks, nothing skipped."""
    x, weight, mask = x.double(), weight.double(), mask.double()
    column = (1, -1) + (1,) * geometry.dims
    c_dense, o_dense = in_dense.double().view(column), out_dense.double().view(column)
    y = convolve(x * c_dense, weight, geometry) + mask * convolve(x * (1 - c_dense), weight, geometry)
    if bias is not None:
        y = y + bias.double().view(column)
    y = act(y)
    return o_dense * y + (1 - o_dense) * mask * y


def random_bool(count: int, share: float) -> torch.Tensor:
    """bool (count,), True at round(share * count) random places."""
    return torch.randperm(count) < round(share * count)


def problem(n, c_in, c_out, spatial, kept=0.4, dense=(0.5, 0.5), dtype=torch.float32, bias=True, **form):
    """Arguments of `conv`; sparse inputs are not zero anywhere, so that reading too much shows."""
    torch.manual_seed(0)
    geometry = Geometry.of(len(spatial), **form)
    x = torch.randn(n, c_in, *spatial)
    shape = (c_in, c_out // geometry.groups) if geometry.transposed else (c_out, c_in // geometry.groups)
    weight = torch.randn(*shape, *geometry.kernel) / (shape[1] * torch.Size(geometry.kernel).numel()) ** 0.5
    mask = torch.rand(n, 1, *geometry.output_size(spatial)) < kept
    b = torch.randn(c_out).to(DEVICE, dtype) if bias else None
    share = [random_bool(c, d).to(DEVICE) for c, d in zip((c_in, c_out), dense, strict=True)]
    return x.to(DEVICE, dtype), weight.to(DEVICE, dtype), b, mask.to(DEVICE), *share, geometry


def difference(y, expected) -> float:
    """Largest error relative to the largest value."""
    assert y.shape == expected.shape
    return ((y.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


# name: batch, channels in, out, size, then what differs from a 3x3 convolution of stride 1
CASES = {
    "several tiles each way": (2, 18, 34, (6, 5), dict(kernel=3)),
    "1x1": (1, 18, 16, (6, 5), dict(kernel=1)),
    "even kernel, no padding": (1, 16, 16, (6, 5), dict(kernel=2, padding=0)),
    "5x3, one-sided stride": (1, 16, 16, (9, 6), dict(kernel=(5, 3), stride=(1, 2))),
    "stride 2, odd size": (2, 16, 16, (7, 5), dict(kernel=3, stride=2, padding=1)),
    "strided 1x1": (1, 16, 16, (7, 5), dict(kernel=1, stride=2)),
    "dilation": (1, 16, 16, (7, 5), dict(kernel=3, dilation=2)),
    "transposed, stride 2": (2, 16, 17, (3, 4), dict(kernel=3, stride=2, padding=1, output_padding=1, transposed=True)),
    "transposed, holes": (1, 16, 16, (3, 2), dict(kernel=2, stride=3, dilation=2, padding=0, transposed=True)),
    "transposed, stride 1": (1, 16, 16, (4, 5), dict(kernel=3, padding=0, transposed=True)),
    "two groups": (1, 36, 20, (4, 5), dict(kernel=3, groups=2)),
    "two groups transposed": (1, 32, 20, (3, 2), dict(kernel=3, stride=2, padding=1, transposed=True, groups=2)),
    "depth-wise": (2, 18, 18, (4, 5), dict(kernel=3, groups=18)),
    "depth-wise, stride 2, multiplier": (1, 6, 12, (5, 6), dict(kernel=3, stride=2, padding=1, groups=6)),
    "transposed, few channels": (1, 4, 6, (3, 4), dict(kernel=3, stride=2, padding=1, transposed=True, groups=2)),
    "three input channels": (1, 3, 20, (5, 6), dict(kernel=3)),
    "one channel": (1, 1, 1, (5, 6), dict(kernel=3)),
    "points": (2, 20, 18, (33,), dict(kernel=1)),
    "line": (1, 16, 16, (33,), dict(kernel=5, stride=2, padding=2)),
    "volume": (1, 16, 16, (3, 4, 3), dict(kernel=3)),
    "volume, stride 2": (1, 16, 16, (5, 4, 3), dict(kernel=3, stride=2, padding=1)),
    "volume transposed": (1, 16, 16, (2, 1, 2), dict(kernel=3, stride=2, padding=1, output_padding=1, transposed=True)),
    "one location": (1, 16, 16, (1, 1), dict(kernel=3)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_convolution_is_the_formula(case):
    *sizes, form = CASES[case]
    given = problem(*sizes, **form)
    assert difference(sparse_conv(*given, "relu"), judge(*given)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("kept", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dense", [(0, 0), (0, 0.5), (0.5, 0), (1, 1), (1, 0), (0.06, 0.06)], ids=str)
@pytest.mark.parametrize("channels", [16, 4])  # both kinds of kernel
def test_every_split_of_channels_and_locations(channels, dense, kept):
    given = problem(1, channels, channels, (3, 4), kept, dense, kernel=3)
    y = sparse_conv(*given, "relu")
    assert difference(y, judge(*given)) < TOLERANCE[torch.float32]
    dropped_sparse = ~given[3] & ~given[5].view(1, -1, 1, 1)
    assert torch.count_nonzero(y[dropped_sparse]) == 0  # not small: exactly zero


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [18, 4])
def test_half_precision_adds_up_in_float32(channels, dtype):
    if reason := BACKEND.why_not(DEVICE, dtype):
        pytest.skip(reason)
    given = problem(1, channels, channels, (5, 6), dtype=dtype, kernel=3)
    y = sparse_conv(*given, "relu")
    assert y.dtype == dtype
    # nothing beyond the rounding of the result: sums in half precision would lose several times that
    assert difference(y, judge(*given)) < torch.finfo(dtype).eps


@pytest.mark.parametrize("activation, act", [
    ("none", lambda y: y), ("leaky_relu:0.2", lambda y: F.leaky_relu(y, 0.2)), ("leaky_relu", F.leaky_relu),
])  # fmt: skip
@pytest.mark.parametrize("channels", [16, 2])
def test_activations(channels, activation, act):
    given = problem(1, channels, channels, (3, 4), bias=False, kernel=3)
    assert difference(sparse_conv(*given, activation), judge(*given, act)) < TOLERANCE[torch.float32]


def test_unknown_activation_is_an_error_of_use():
    with pytest.raises(UseError, match="gelu"):
        sparse_conv(*problem(1, 16, 16, (3, 4), kernel=3), "gelu")


def test_memory_formats():
    x, weight, *rest = problem(2, 16, 18, (5, 4), kernel=3)
    y = sparse_conv(x, weight, *rest, "relu")
    last = torch.channels_last
    # channels-last weights are read as they lie, others are packed: the same numbers
    z = sparse_conv(x.to(memory_format=last), weight.to(memory_format=last), *rest, "relu")
    assert z.is_contiguous(memory_format=last)
    assert torch.equal(y, z)
    # part of wider features, read where it lies
    wide = torch.cat([x, x], 1).contiguous(memory_format=last)[:, :16]
    assert torch.equal(y, sparse_conv(wide, weight, *rest, "relu"))


@pytest.mark.parametrize("form", [dict(kernel=3), dict(kernel=3, stride=2, padding=1, transposed=True)], ids=str)
@pytest.mark.parametrize("channels", [16, 2])
def test_addresses_of_64_bits(monkeypatch, channels, form):
    # tensors that need them do not fit here, so they are asked for
    arithmetic, row_lists = triton_launch.arithmetic, triton_launch.row_lists
    monkeypatch.setattr(triton_backend, "arithmetic", lambda x, largest: arithmetic(x, 2**31))
    monkeypatch.setattr(triton_backend, "row_lists", lambda mask, n, shape, largest: row_lists(mask, n, shape, 2**31))
    given = problem(1, channels, channels, (3, 4), **form)
    assert difference(sparse_conv(*given, "relu"), judge(*given)) < TOLERANCE[torch.float32]


def test_rows_of_a_transposed_convolution_come_by_class():
    # only so do tiles meet a quarter of the taps; the numbers would be right in any order
    *_, geometry = problem(1, 16, 16, (3, 4), kernel=3, stride=2, padding=1, transposed=True)
    shape = triton_launch.shape_of(geometry, (3, 4), geometry.output_size((3, 4)))
    rows = triton_launch._by_parity(2, shape, torch.int32, torch.device("cpu"))
    width, height = shape.target[2], shape.target[1]
    classes = torch.stack([rows // width % height % 2, rows % width % 2], 1)
    assert sorted(rows.tolist()) == list(range(2 * height * width))
    assert len(torch.unique_consecutive(classes, dim=0)) == 4


def test_empty_batch():
    assert sparse_conv(*problem(0, 16, 18, (3, 4), kernel=3), "relu").shape == (0, 18, 3, 4)


@pytest.mark.parametrize("channels", [16, 2])
def test_broken_numbers_reach_only_who_reads_them(channels):
    x, weight, bias, mask, in_dense, out_dense, geometry = problem(1, channels, 16, (5, 5), 0.0, kernel=3)
    in_dense[:] = torch.arange(channels, device=DEVICE) > 0
    x[:, 0] = torch.inf  # a sparse input: no dropped location may see it
    mask[..., 0, 0] = True
    y = sparse_conv(x, weight, bias, mask, in_dense, out_dense, geometry, "none")
    assert not y[..., 0, 0].isfinite().any()
    assert y[~mask.expand_as(y)].isfinite().all()


def block_problem(n, channels, spatial, kernel=3, dense=(0.5, 0.2, 0.0), kept=0.4, c_out=None, dtype=torch.float32):
    """Arguments of `block`; `dense`: share of dense channels, layer by layer."""
    torch.manual_seed(0)
    layers, dims = len(dense), len(spatial)
    one = (1,) * dims
    weights = [torch.randn(channels, channels, *(kernel,) * dims) / (channels * kernel) ** 0.5 for _ in dense]
    collect = torch.randn(c_out or channels, layers * channels, *one) / (layers * channels) ** 0.5
    mask = torch.rand(n, 1, *spatial) < kept
    return (
        torch.randn(n, channels, *spatial).to(DEVICE, dtype), mask.to(DEVICE),
        [weight.to(DEVICE, dtype) for weight in weights],
        torch.stack([random_bool(channels, share) for share in dense]).to(DEVICE), collect.to(DEVICE, dtype),
        torch.randn(c_out or channels).to(DEVICE, dtype),
    )  # fmt: skip


def judge_block(x, mask, weights, dense, collect, bias, act=torch.relu):
    """Layer after layer by the formula, concatenated, one plain 1x1 convolution."""
    dims = x.dim() - 2
    features, y, before = [], x, torch.ones(x.shape[1], dtype=torch.bool, device=x.device)
    for weight, now in zip(weights, dense, strict=True):
        y = judge(y, weight, None, mask, before, now, Geometry.of(dims, tuple(weight.shape[2:])), act)
        features.append(y)
        before = now
    y = convolve(torch.cat(features, 1), collect.double(), Geometry.of(dims, 1))
    return y + (0 if bias is None else bias.double().view(1, -1, *(1,) * dims))


BLOCKS = {
    "falling to none, two pictures": (2, 18, (4, 5), dict()),
    "none in the middle": (1, 16, (4, 5), dict(dense=(0.5, 0.0, 0.5))),
    "none at all": (1, 16, (4, 5), dict(dense=(0, 0))),
    "all": (1, 16, (4, 5), dict(dense=(1, 1))),
    "nothing kept": (1, 16, (4, 5), dict(kept=0.0)),
    "all kept": (1, 16, (4, 5), dict(kept=1.0)),
    "one layer": (1, 16, (4, 5), dict(dense=(0.3,))),
    "1x1 layers": (1, 16, (4, 5), dict(kernel=1, dense=(0.5, 0, 0.5))),
    "5x5 layers": (1, 4, (3, 4), dict(kernel=5, dense=(0.0, 0.5))),
    "other width out": (1, 16, (4, 5), dict(c_out=35, dense=(0.5, 0.5))),
    "few channels": (1, 3, (4, 5), dict()),
    "volume": (1, 4, (3, 2, 3), dict(dense=(0.0, 0.5))),
    "too many taps for a word": (1, 2, (3, 4), dict(kernel=7, dense=(0.0, 0.5))),
}


@pytest.mark.parametrize("case", BLOCKS)
def test_block_is_the_formula(case):
    n, channels, spatial, form = BLOCKS[case]
    given = block_problem(n, channels, spatial, **form)
    assert difference(sparse_block(*given, "relu"), judge_block(*given)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_block_in_half_precision(dtype):
    if reason := BACKEND.why_not(DEVICE, dtype):
        pytest.skip(reason)
    given = block_problem(1, 16, (4, 5), dense=(0.5, 0.0), dtype=dtype)
    assert difference(sparse_block(*given, "relu"), judge_block(*given)) < TOLERANCE[dtype]


def test_block_too_wide_for_one_kernel(monkeypatch):
    # as 256 channels would be on a GPU: the 1x1 convolution gets launches of its own
    monkeypatch.setattr(triton_block, "WIDEST", dict.fromkeys(TOLERANCE, 16))
    given = block_problem(1, 18, (4, 5), dense=(0.5, 0.2))
    assert difference(sparse_block(*given, "relu"), judge_block(*given)) < TOLERANCE[torch.float32]


def test_block_without_bias_keeps_channels_last():
    x, *rest, _ = block_problem(1, 16, (4, 5), dense=(0.5, 0.2))
    y = sparse_block(x.to(memory_format=torch.channels_last), *rest, None, "none")
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert difference(y, judge_block(x, *rest, None, act=lambda y: y)) < TOLERANCE[torch.float32]


class _Waits(TorchDispatchMode):
    """Names of operators that bring a number to the host."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        if any(word in name for word in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device():
    # a wait a layer would leave the GPU idle, and no CUDA graph could hold the network
    conv, block = (
        problem(1, 16, 16, (3, 4), kernel=3, stride=2, padding=1, transposed=True),
        block_problem(1, 16, (3, 4)),
    )
    with _Waits() as waits:
        sparse_conv(*conv, "relu")
        sparse_conv(*problem(1, 2, 2, (2, 2), kernel=3), "relu")
        sparse_block(*block, "relu")
    assert waits.seen == []
    with _Waits() as waits:  # the check can fail
        conv[0].sum().item()
    assert waits.seen


def test_why_not(monkeypatch):
    assert BACKEND.why_not(DEVICE, torch.float32) is None
    assert "float64" in BACKEND.why_not(DEVICE, torch.float64)
    assert "mps" in BACKEND.why_not("mps", torch.float32)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "TRITON_INTERPRET" in BACKEND.why_not("cpu", torch.float32)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else find_spec(name))
    triton_backend._why_not.cache_clear()
    assert "triton absent" in BACKEND.why_not("cuda", torch.float32)
    triton_backend._why_not.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("what, capability, kernels", [("conv", 80, 3), ("block", 90, 6), ("small", 80, 1)])
def test_kernels_compile_for_gpus_that_are_not_here(tmp_path, what, capability, kernels):
    """The interpreter forgives what the compiler refuses."""
    here = Path(__file__).resolve().parent
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(here.parent)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(here / "triton_compile.py"), what, str(capability)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    lines = [line.split() for line in ran.stdout.splitlines()]
    assert len(lines) == kernels
    for name, *figures in lines:
        figure = dict(item.split("=") for item in figures)
        products = name not in ("partition", "conv_small")
        assert (int(figure["products"]) > 0) == products  # tensor cores
        assert int(figure["shared"]) <= 99 * 1024  # the smallest of Ampere and later
