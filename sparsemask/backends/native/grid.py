"""Which rows of the input an output row reads: tables of a geometry on a grid, made once and kept.

A grid is laid out as a padded one, position by position; `interior` gives the row of the real grid at every padded
position, or -1 for padding. An output row stands at one padded position and reads those at fixed offsets from it. A
transposed convolution falls into classes of outputs by their remainder at the division by the stride; each class reads
its own taps.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from sparsemask.ops.geometry import Geometry


@dataclass(frozen=True)
class Class:
    """Output rows that read alike. taps: (index of the tap in the kernel, offset)."""

    taps: tuple[tuple[int, int], ...]
    member: Tensor | None  # along an axis: bool (outputs,); of a grid None, `kind` says it

    @cached_property
    def offsets(self) -> np.ndarray:
        """The taps' offsets, int64."""
        return np.array([offset for _, offset in self.taps], np.int64)


@dataclass(frozen=True)
class Grid:
    """interior: int32 (padded positions,); position: int32 (outputs,); outputs in row order, batch first.

    kind: uint8 (outputs,), the class of each, where there are several. pitch: where outputs read 3×3 places, and their
    neighbours one place further, positions from one line to the next; else 0.
    """

    interior: Tensor
    position: Tensor
    classes: tuple[Class, ...]
    kind: Tensor | None
    pitch: int = 0


@lru_cache(maxsize=64)
def grid(batch: int, spatial: tuple[int, ...], geometry: Geometry) -> Grid:
    """The tables for inputs (batch, C, *spatial) under a geometry."""
    outputs = geometry.output_size(spatial)
    axes = [_axis(*each, geometry) for each in zip(range(len(spatial)), spatial, outputs, strict=True)]
    sizes = [axis.size for axis in axes]
    strides = [1] * len(sizes)
    for d in range(len(sizes) - 2, -1, -1):
        strides[d] = strides[d + 1] * sizes[d + 1]
    whole = strides[0] * sizes[0]
    if batch * whole >= 2**31:
        raise ValueError("more than 2^31 positions")
    interior = torch.full((batch, *sizes), -1, dtype=torch.int32)
    inner = tuple(slice(axis.pad, axis.pad + size) for axis, size in zip(axes, spatial, strict=True))
    count = batch * int(torch.tensor(spatial).prod())
    interior[(slice(None), *inner)] = torch.arange(count, dtype=torch.int32).view(batch, *spatial)
    position = torch.arange(batch, dtype=torch.int64).view(-1, *[1] * len(sizes)) * whole
    for d, axis in enumerate(axes):
        position = position + (axis.position * strides[d]).view(1, *[-1 if e == d else 1 for e in range(len(sizes))])
    classes, several = [], any(len(axis.classes) > 1 for axis in axes)
    kind = torch.zeros(outputs, dtype=torch.uint8) if several else None
    for number, chosen in enumerate(itertools.product(*(axis.classes for axis in axes))):
        taps = []
        for parts in itertools.product(*(one.taps for one in chosen)):
            index = 0
            for size, (tap, _) in zip(geometry.kernel, parts, strict=True):
                index = index * size + tap
            taps.append((index, sum(stride * offset for stride, (_, offset) in zip(strides, parts, strict=True))))
        if kind is not None:
            member = torch.ones(outputs, dtype=torch.bool)
            for d, one in enumerate(chosen):
                member &= one.member.view([-1 if e == d else 1 for e in range(len(sizes))])
            kind[member] = number
        classes.append(Class(tuple(taps), None))
    if kind is not None:
        kind = kind.expand(batch, *outputs).reshape(-1)
    listed = position.expand(batch, *outputs).reshape(-1).to(torch.int32)
    return Grid(interior.flatten(), listed, tuple(classes), kind, sizes[-1] if _in_squares(geometry) else 0)


def _in_squares(geometry: Geometry) -> bool:
    """Whether squares of outputs can be computed together, see src/squares.h."""
    plain = (geometry.stride[-2:], geometry.dilation[-2:]) == ((1, 1), (1, 1))
    return geometry.kernel[-2:] == (3, 3) and plain and not geometry.transposed


@dataclass(frozen=True)
class _Axis:
    pad: int
    size: int
    position: Tensor  # of every output, along this axis
    classes: tuple[Class, ...]


def _axis(d: int, size: int, outputs: int, geometry: Geometry) -> _Axis:
    kernel, stride, dilation = geometry.kernel[d], geometry.stride[d], geometry.dilation[d]
    pad, at = geometry.padding[d], torch.arange(outputs)
    if not geometry.transposed:
        taps = tuple((k, k * dilation) for k in range(kernel))
        extent = max(pad + size, (outputs - 1) * stride + (kernel - 1) * dilation + 1)
        return _Axis(pad, extent, at * stride, (Class(taps, torch.ones(outputs, dtype=torch.bool)),))
    # Output o reads tap k from input (o + pad - k·dilation) / stride where that is whole.
    reach = (kernel - 1) * dilation // stride
    rest = (at + pad) % stride
    position = (at + pad) // stride + reach
    classes = tuple(
        Class(
            tuple((k, -((k * dilation - c) // stride)) for k in range(kernel) if k * dilation % stride == c % stride),
            rest == c,
        )
        for c in range(stride)
        if bool((rest == c).any())
    )
    return _Axis(reach, max(reach + size, int(position.max()) + 1), position, classes)
