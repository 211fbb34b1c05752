"""A convolution over several features at once, each read where it lies."""

from __future__ import annotations

from torch import Tensor

from sparsemask.backends.native import library
from sparsemask.backends.native.conv import activation_code
from sparsemask.backends.native.grid import grid
from sparsemask.backends.native.library import Segment, Target
from sparsemask.backends.native.rows import from_rows, to_rows
from sparsemask.ops.concat_conv import ConcatConvCall
from sparsemask.ops.conv import same_size
from sparsemask.ops.weight_cache import Derived

_derived = Derived()


def joined_conv(call: ConcatConvCall) -> Tensor:
    """See :mod:`sparsemask.ops.concat_conv`."""
    xs, weight, bias, add = call.xs, call.weight, call.bias, call.add
    batch, spatial = xs[0].shape[0], tuple(xs[0].shape[2:])
    tables = grid(batch, spatial, same_size(weight))
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
        activation=activation_code(call.activation),
        add=to_rows(add) if add is not None else None,
    )
    return from_rows(out, batch, spatial, xs[0])
