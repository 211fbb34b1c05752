"""Features of several sizes fused at one; what it does stands in src/scales.h."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from sparsemask.sparse.native import library
from sparsemask.sparse.native.rows import from_rows, to_rows

MOST = 16  # features, as many as src/scales.h has room for
_P, _I = ctypes.c_void_p, ctypes.c_int64


class _Scale(ctypes.Structure):
    _fields_ = [("rows", _P), ("stride", _I), ("height", _I), ("width", _I)]


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
    ]


@lru_cache(maxsize=1)
def _function():
    function = library.lib().sm_scales
    function.argtypes, function.restype = [_P], None
    return function


def fuse_scales(xs: list[Tensor], bias: Tensor, mask: Tensor | None, dense: int, height: int, width: int) -> Tensor:
    """See :func:`sparsemask.sparse.scales.fuse_scales`; float32 on the CPU, at most `MOST` features."""
    batch, columns = xs[0].shape[:2]
    rows = [to_rows(x) for x in xs]
    listed = (_Scale * len(xs))(
        *(_Scale(r.data_ptr(), r.stride(0), *x.shape[-2:]) for r, x in zip(rows, xs, strict=True))
    )
    out = library.empty(batch * height * width, columns)
    bias = bias.detach().to(torch.float32).contiguous()
    mask = mask.contiguous() if mask is not None else None
    said = _Scales(
        batch, height, width, columns, len(xs), ctypes.addressof(listed), bias.data_ptr(),
        mask.data_ptr() if mask is not None else None, dense, out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    if out.numel():
        _function()(ctypes.addressof(said))
    return from_rows(out, batch, (height, width), xs[0])
