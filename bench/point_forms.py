"""SMPointSeg as its public code computes it: every point's K neighbours fetched, and only then convolved.

Written from its description, on tensors (C, K, N): residual gather, relative coordinates joined to it, a 1×1
convolution over K·N places, the kernel looked up for each of them, product and sum. Nothing is skipped, as in the
public code, whose masks keep every point.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemask.spaces.smpointseg.layers import PointConv
from sparsemask.sparse import backend


def _literal(self: PointConv, rows: Tensor, level=None, mixed: int = 1, coordinates: bool = True) -> Tensor:
    if self.neighbours == 1:
        return F.conv1d(rows.t()[None], self.conv_1x1.weight, self.conv_1x1.bias)[0].t()
    features, near = rows.t(), level.neighbours.t().long()
    read = features[:, near.flatten()].view(-1, *near.shape)
    read = torch.cat([read[:, :1], read[:, 1:] - features[:, None]], 1)
    rel = level.xyz.t()[:, near.flatten()].view(3, *near.shape) - level.xyz.t()[:, None]
    y = F.conv2d(torch.cat([read, rel])[None], self.conv_1x1.weight[..., None])[0]
    kernel = self.conv_dw.flatten(2)[0][:, level.cells.t().long().flatten()].view(-1, *near.shape)
    return (y * kernel).sum(1).t()


@contextlib.contextmanager
def public_style() -> Iterator[None]:
    """Inside, networks compute as the public code does; give them the reading s2d="full", as that trains."""
    with mock.patch.object(PointConv, "forward", _literal), backend("reference"):
        yield
