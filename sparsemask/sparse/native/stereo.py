"""The native cost volume; what it does stands in src/stereo.h."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from sparsemask.sparse.native import library


@lru_cache(maxsize=1)
def _correlation():
    function = library.lib().sm_correlation
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes, function.restype = [pointer, pointer, *[number] * 5, pointer, number], None
    return function


def correlation(left: Tensor, right: Tensor, levels: int, groups: int) -> Tensor:
    """See :func:`sparsemask.sparse.cost_volume.correlation_volume`; float32 on the CPU."""
    batch, channels, height, width = left.shape
    # A group's channels apart, so that groups stand side by side in a vector.
    a, b = (
        one.unflatten(1, (groups, -1)).permute(0, 3, 4, 2, 1).reshape(batch * height, width, channels).contiguous()
        for one in (left, right)
    )
    out = library.empty(batch * levels * height * width, groups).view(batch, levels, height, width, groups)
    step = height * width * channels
    for number in range(batch):
        _correlation()(
            a.data_ptr() + 4 * number * step, b.data_ptr() + 4 * number * step, levels, height, width, groups,
            channels // groups, out[number].data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
    return out.permute(0, 4, 1, 2, 3)
