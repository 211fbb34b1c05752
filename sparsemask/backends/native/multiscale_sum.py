"""Features of several sizes fused at one; what it does stands in src/scales.h and src/stages.h."""

from __future__ import annotations

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemask.backends.native import library
from sparsemask.backends.native.rows import from_rows, to_rows
from sparsemask.ops.multiscale_sum import MultiscaleSumCall
from sparsemask.ops.weight_cache import Derived

MOST = 32  # features, as many as src/scales.h has room for
_derived = Derived()
_P, _I = ctypes.c_void_p, ctypes.c_int64


class _Scale(ctypes.Structure):
    _fields_ = [
        ("rows", _P),
        ("packed", _P),
        ("packed_dense", _P),
        ("stride", _I),
        ("height", _I),
        ("width", _I),
        ("channels", _I),
        ("cut", _I),
        ("first", _I),
    ]


class _Scales(ctypes.Structure):
    _fields_ = [
        ("batch", _I),
        ("height", _I),
        ("width", _I),
        ("columns", _I),
        ("n", _I),
        ("scales", _P),
        ("bias", _P),
        ("mask", _P),
        ("dense", _I),
        ("out", _P),
        ("threads", _I),
        ("wide", _I),
        ("wide_dense", _I),
    ]


def fuse_scales(call: MultiscaleSumCall) -> Tensor:
    """See :func:`sparsemask.ops.multiscale_sum.fuse_scales`; at most `MOST` features."""
    xs, weights, bias, mask = call.xs, call.weights, call.bias, call.mask
    dense, height, width = call.dense, call.height, call.width
    batch, columns = len(xs[0]), len(bias)
    packed, numbers = _derived.get([*weights, bias], lambda: _packed(weights, bias, dense), dense)
    rows = [to_rows(x) for x in xs]
    listed = (_Scale * len(xs))(
        *(
            _Scale(r.data_ptr(), a.data_ptr(), b.data_ptr(), r.stride(0), *x.shape[-2:], x.shape[1], limited)
            for r, x, limited, (a, b) in zip(rows, xs, call.apply_relu6, packed, strict=True)
        )
    )
    out = library.empty(batch * height * width, columns)
    mask = mask.contiguous() if mask is not None else None
    args = _Scales(
        batch, height, width, columns, len(xs), ctypes.addressof(listed), numbers.data_ptr(),
        mask.data_ptr() if mask is not None else None, dense, out.data_ptr(), torch.get_num_threads(),
        len(numbers), _whole(dense),
    )  # fmt: skip
    if out.numel():
        library.lib().sm_scales(ctypes.addressof(args))
    return from_rows(out, batch, (height, width), call.like)


def _packed(weights, bias: Tensor, dense: int) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Of each feature the weights of all columns and of the dense ones; the bias."""
    wider = lambda x, columns: F.pad(x.detach().to(torch.float32), (0, _whole(columns) - columns))
    matrices = [one.flatten(1).T for one in weights]
    pairs = [(library.pack(wider(m, len(bias))), library.pack(wider(m[:, :dense], dense))) for m in matrices]
    return [(a, b if dense else torch.zeros(1)) for a, b in pairs], wider(bias, len(bias)).clone()


def _whole(columns: int) -> int:
    """Columns with those of zeros that fill the last vector."""
    return -(-columns // 16) * 16
