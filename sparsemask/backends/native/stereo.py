"""The native cost volume; what it does stands in src/stereo.h."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsemask.backends.native import library


def correlation(left: Tensor, right: Tensor, levels: int, groups: int) -> Tensor:
    """See :func:`sparsemask.ops.cost_volume.correlation_volume`; float32 on the CPU."""
    batch, channels, height, width = left.shape
    # A group's channels apart, so that groups stand side by side in a vector.
    a, b = (
        one.unflatten(1, (groups, -1)).permute(0, 3, 4, 2, 1).reshape(batch * height, width, channels).contiguous()
        for one in (left, right)
    )
    out = library.empty(batch * levels * height * width, groups).view(batch, levels, height, width, groups)
    step = height * width * channels
    for number in range(batch):
        library.lib().sm_correlation(
            a.data_ptr() + 4 * number * step, b.data_ptr() + 4 * number * step, levels, height, width, groups,
            channels // groups, out[number].data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
    return out.permute(0, 4, 1, 2, 3)
