"""A convolution over several features at once, each read where it lies."""

from __future__ import annotations

from functools import lru_cache

from torch import Tensor

from sparsemask.backends.native import library
from sparsemask.backends.native.conv import activation_code
from sparsemask.backends.native.grid import grid
from sparsemask.backends.native.library import Segment, Target
from sparsemask.backends.native.rows import from_rows, to_rows
from sparsemask.ops.concat_conv import ConcatConvCall
from sparsemask.ops.conv import same_size
from sparsemask.ops.geometry import Geometry
from sparsemask.ops.weight_cache import Derived

_derived = Derived()


def joined_conv(call: ConcatConvCall) -> Tensor:
    """See :mod:`sparsemask.ops.concat_conv`."""
    xs, weight, add = call.xs, call.weight, call.add
    place = xs[0].shape[0], tuple(xs[0].shape[2:]), same_size(weight)
    tables, channels = grid(*place), weight.shape[1]
    rows = [to_rows(x) for x in xs]
    out = library.empty(len(rows[0]), weight.shape[0])
    ending = {
        "bias": call.bias.detach().contiguous() if call.bias is not None else None,
        "activation": activation_code(call.activation),
        "add": to_rows(add) if add is not None else None,
    }

    def product(pos: Tensor, packed: Tensor, every: int, at: Tensor | None, pitch: int = 0) -> library.Call:
        taps = tables.classes[0].taps[::every]
        segments = [Segment(r, tables.interior, o, r.shape[1]) for _, o in taps for r in rows]
        return library.Call(pos, segments, packed, weight.shape[0], Target(out, at), **ending, pitch=pitch)

    taps = lambda: weight.flatten(2).permute(2, 1, 0)
    packed = _derived.get([weight], lambda: library.pack(taps().flatten(0, 1)))
    if tables.pitch and library.in_squares(channels, weight.shape[0]):
        squared = _derived.get([weight], lambda: library.pack_squares(taps()), "squares")
        upper, found, pos, rest = _squares(*place)
        calls = [
            product(upper, squared, library.TAPS_OF_SQUARES, found, tables.pitch), product(pos, packed, 1, rest),
        ]  # fmt: skip
    else:
        calls = [product(tables.position, packed, 1, None)]
    library.products(calls)
    return from_rows(out, *place[:2], xs[0])


@lru_cache(maxsize=16)
def _squares(batch: int, spatial: tuple[int, ...], geometry: Geometry) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of all outputs: positions of squares, their outputs, positions of those in none, and these."""
    tables = grid(batch, spatial, geometry)
    found, rest = library.squares(tables.position, tables.pitch)
    at = lambda listed: library.lookup(listed.contiguous(), tables.position)
    return at(found[:, 0]), found.flatten(), at(rest), rest
