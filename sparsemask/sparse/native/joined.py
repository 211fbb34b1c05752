"""A convolution over several features at once, each read where it lies."""

from __future__ import annotations

from torch import Tensor

from sparsemask.sparse.derived import Derived
from sparsemask.sparse.geometry import Geometry
from sparsemask.sparse.native import library
from sparsemask.sparse.native.conv import activation_code
from sparsemask.sparse.native.grid import grid
from sparsemask.sparse.native.library import Segment, Target
from sparsemask.sparse.native.rows import from_rows, to_rows

_derived = Derived()


def joined_conv(xs: list[Tensor], weight: Tensor, bias: Tensor | None, add: Tensor | None, activation: str) -> Tensor:
    """See :mod:`sparsemask.sparse.joined`."""
    batch, spatial = xs[0].shape[0], tuple(xs[0].shape[2:])
    tables = grid(batch, spatial, Geometry.of(len(spatial), tuple(weight.shape[2:])))
    rows = [to_rows(x) for x in xs]
    packed = _derived.get([weight], lambda: library.pack(weight.flatten(2).permute(2, 1, 0).flatten(0, 1)))
    segments = [Segment(r, tables.interior, o, r.shape[1]) for _, o in tables.classes[0].taps for r in rows]
    out = library.empty(len(rows[0]), weight.shape[0])
    library.product(
        tables.position,
        segments,
        packed,
        weight.shape[0],
        Target(out),
        bias=bias.detach().contiguous() if bias is not None else None,
        activation=activation_code(activation),
        add=to_rows(add) if add is not None else None,
    )
    return from_rows(out, batch, spatial, xs[0])
