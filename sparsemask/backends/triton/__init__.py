"""Sparse mask convolution on CUDA with Triton: float32, float16 and bfloat16, sums in float32.

Two launches a layer, both by indirect convolution (the input rows that an output row reads are computed where they are
used; no patches are laid out): kept rows, with every channel, and dropped rows, from dense channels to dense channels.
Bias, activation and the zeros of dropped sparse channels are written by the same kernels. A block (`block`) keeps the
features of all layers in one channels-last buffer, dense channels first, and computes its last layer and the 1x1
convolution in one kernel.

Nothing here waits for the device: row and channel lists and their lengths are made there and read there. Weights are
brought into the kernels' order at every call, a copy of some tens of kilobytes: a cache would have to compare contents,
which costs the same and a wait. Weights of a convolution in channels-last format are used as they lie.

float32 products follow `torch.set_float32_matmul_precision`: "highest" (torch's default) splits each factor so that
tensor cores give float32's accuracy, anything else is TF32.

Without a GPU, TRITON_INTERPRET=1 in the environment runs the same kernels slowly on CPU tensors.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os

import torch
from torch import Tensor

from sparsemask.backends import Backend
from sparsemask.backends.triton.block import run_block
from sparsemask.backends.triton.launch import (
    SMALL,
    activation_of,
    arithmetic,
    as_rows,
    dense_first,
    on_device,
    row_lists,
    shape_of,
    tile,
    weight_of,
)

# Under other names: `kernels` and `launch` are modules of this package.
from sparsemask.backends.triton.launch import kernels as load_kernels
from sparsemask.backends.triton.launch import launch as launch_conv
from sparsemask.ops.block import BlockCall
from sparsemask.ops.conv import ConvCall
from sparsemask.ops.layout import from_rows

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_OLDEST = (3, 4)  # the first whose compiler takes tuples as compile-time arguments; torch 2.8 came with it


@functools.lru_cache
def _why_not(device: torch.device, dtype: torch.dtype, interpret: bool) -> str | None:
    if dtype not in _DTYPES:
        return f"{str(dtype).removeprefix('torch.')} is not among float32, float16 and bfloat16"
    if importlib.util.find_spec("triton") is None:
        return "triton absent (it comes with torch for CUDA, or: pip install triton)"
    if device.type == "cpu":
        if not interpret:
            return "no CPU kernels (TRITON_INTERPRET=1 runs them slowly, to check them)"
    elif device.type != "cuda":
        return f"no kernels for {device.type}, only for CUDA"
    elif not torch.cuda.is_available():
        return "no CUDA device"
    elif torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability(device)
        needed = 8 if dtype == torch.bfloat16 else 7
        if major < needed:
            return f"this GPU has compute capability {major}.{minor}, {needed}.0 is needed"
    try:
        version = importlib.import_module("triton").__version__
        if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
            return f"triton {version} is too old, {_OLDEST[0]}.{_OLDEST[1]} is needed"
        loaded = load_kernels()
    except Exception as error:  # whatever a half-installed triton raises: the other backends must go on
        return f"triton cannot be used: {type(error).__name__}: {error}".splitlines()[0]
    if device.type == "cpu" and not loaded.INTERPRETED:
        return "TRITON_INTERPRET=1 was set after the kernels had been loaded: set it before the process starts"
    return None


class TritonBackend(Backend):
    """The backend `triton`."""

    name = "triton"

    def why_not(self, device: torch.device | str, dtype: torch.dtype) -> str | None:
        """Why tensors of this device and dtype cannot be computed here, None if they can."""
        return _why_not(torch.device(device), dtype, os.environ.get("TRITON_INTERPRET") == "1")

    def conv(self, call: ConvCall) -> Tensor:
        """Two launches, of kept rows and of dropped ones."""
        x, weight, bias, mask, geometry = call.x, call.weight, call.bias, call.mask, call.geometry
        in_dense, out_dense = call.in_dense, call.out_dense
        target = geometry.output_size(x.shape[2:])
        groups = geometry.groups
        n_out = weight.shape[1] * groups if geometry.transposed else weight.shape[0]
        count = x.shape[0] * torch.Size(target).numel()
        out = x.new_empty(count, n_out)
        if not out.numel():
            return from_rows(out, x.shape[0], target)
        shape = shape_of(geometry, x.shape[2:], target)
        rows_in = as_rows(x)
        by, steps = weight_of(weight, geometry.transposed, groups)
        how = {**arithmetic(x, max(rows_in.numel(), out.numel())), **activation_of(call.activation)}
        with on_device(x):
            if x.shape[1] // groups < SMALL:
                self._small(rows_in, by, steps, bias, mask, in_dense, out_dense, out, shape, how, x)
            else:
                lists = row_lists(mask, x.shape[0], shape, max(rows_in.shape[0], count))
                ins, n_ins = dense_first(in_dense.view(groups, -1))
                outs, n_outs = dense_first(out_dense.view(groups, -1))
                common = dict(shape=shape, how=how, lists=lists, groups=groups, in_counts=n_ins, out_counts=n_outs)
                launch_conv(rows_in, by, steps, bias, out, kept=True, **common)
                launch_conv(rows_in, by, steps, bias, out, kept=False, in_list=ins, out_list=outs, **common)
        return from_rows(out, x.shape[0], target)

    def _small(self, rows_in, by, steps, bias, mask, in_dense, out_dense, out, shape, how, x) -> None:
        groups, _, n_in, n_out = by.shape
        block_m, block_n = (32, 16) if load_kernels().INTERPRETED else (64, tile(out.shape[1], 64))
        flat = mask.expand(x.shape[0], *mask.shape[1:]).reshape(-1)
        grid = (-(-out.shape[0] // block_m) * -(-out.shape[1] // block_n),)
        load_kernels().conv_small[grid](
            rows_in, by, bias if bias is not None else rows_in, out, flat.to(torch.uint8),
            in_dense.to(torch.uint8), out_dense.to(torch.uint8), out.shape[0], *shape.source, *shape.target,
            rows_in.stride(0), out.stride(0), **steps, C_IN=n_in, C_OUT=n_out, TOTAL_OUT=out.shape[1],
            GEO=shape.geometry, BIASED=bias is not None, ACT=how["ACT"], SLOPE=how["SLOPE"], WIDE=how["WIDE"],
            BLOCK_N=block_n, BLOCK_M=block_m, enable_fp_fusion=True,
        )  # fmt: skip

    def block(self, call: BlockCall) -> Tensor:
        """One features buffer, the 1x1 convolution in the last layer's kernel."""
        return run_block(call)


BACKEND = TritonBackend()
