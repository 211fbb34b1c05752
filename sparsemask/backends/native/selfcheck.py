"""Whether the kernels compute what they should on the processor at hand: small problems against NumPy in float64.

A build is checked at its first use on a machine, over the shapes at which kernels change their way (tails of vectors,
panels, chunks of rows), in a few milliseconds. Each problem below is a function of sizes that returns the largest
error; the tests sweep the same functions over all sizes.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsemask.backends.native import (
    block,
    build,
    inverted_residual,
    library,
    multiscale_sum,
    points,
    predict_mask,
    stereo,
    tiles,
)
from sparsemask.backends.native.grid import grid
from sparsemask.backends.native.library import Segment, Target
from sparsemask.datasets import cache
from sparsemask.devices import processor
from sparsemask.errors import UseError
from sparsemask.files import read_json, sha256, write_json
from sparsemask.ops import block as modules
from sparsemask.ops import inverted_residual as residuals
from sparsemask.ops import multiscale_sum as stages
from sparsemask.ops import predict_mask as branches
from sparsemask.ops.block import BlockCall
from sparsemask.ops.block_with_channel_attention import AttendedBlockCall, factors
from sparsemask.ops.dispatch import find
from sparsemask.ops.geometry import Geometry
from sparsemask.ops.inverted_residual import InvertedResidualCall
from sparsemask.ops.multiscale_sum import MultiscaleSumCall
from sparsemask.ops.predict_mask import PredictMaskCall

TOLERANCE = 1e-4  # float32 sums of at most a few hundred terms of size one
_COLUMNS = (1, 7, 8, 9, 15, 16, 17, 24, 25, 32, 33, 40, 41, 48, 49, 56, 57, 64, 65, 81, 88, 89, 113, 120, 130)
_ACTIVATIONS = (
    lambda y: y,
    lambda y: np.maximum(y, 0),
    lambda y: np.where(y > 0, y, 0.1 * y),
    lambda y: np.clip(y, 0, 6),
)


def trust() -> str | None:
    """None where the library that serves has computed rightly on this processor, now or before; else what was wrong."""
    path = Path(library.lib()._name)  # where it was loaded from: finding it anew would ask the compiler again
    with contextlib.suppress(OSError):
        key = hashlib.sha256(repr((processor(), library.width(), sha256(path))).encode()).hexdigest()[:16]
        # A wheel's own folder may belong to somebody else, and what is written there outlives the wheel.
        folder = cache() / "kernels" if path == build.SHIPPED else path.parent
        kept = folder / f"checked-{key}.json"
        with contextlib.suppress(UseError):
            if kept.exists() and read_json(kept).get("right") is True:
                return None
        wrong = check()
        if wrong is None:  # a failure is not kept: it is looked into again in the next process
            write_json(kept, {"right": True, "processor": processor(), "vector width": library.width()})
        return wrong
    return check()


def check() -> str | None:
    """None where all problems come out right, else what the first wrong one is; leaves random states alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # problems so small only wait for a second thread
    try:
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
            for name, error in problems():
                if not error <= TOLERANCE:
                    return f"{name}: off by {error:.3g}"
    finally:
        torch.set_num_threads(threads)
    return None


def problems() -> Iterator[tuple[str, float]]:
    """(what, largest error) of the shapes that matter, one after the other."""
    # Panels are of 8 and 16 columns, taken one, two or four at a time: a count on either side of every change.
    for n, columns in enumerate(_COLUMNS):
        yield f"product of {columns} columns", product(columns, rows=(49, 7)[n % 2], variant=n)
    for n, columns in enumerate((1, 4, 5, 8, 9, 12, 16, 17, 24)):
        group = 4 if columns <= 12 else 2
        lengths = ((8, 4), (4,), (64, 12))[n % 3]
        what = f"product of {columns} columns, {group} steps at a time"
        yield what, product(columns, rows=(49, 7)[n % 2], lengths=lengths, variant=5 * n, group=group)
    for n, columns in enumerate((3, 8, 24, 33, 41, 57, 70)):
        lengths, layers = ((5,), (20, 9))[n % 2], 1 + 2 * (n == 3)
        yield (
            f"product of {columns} columns by squares",
            squares(columns, lengths=lengths, layers=layers, variant=19 * n),
        )
    for columns in (1, 7, 8, 17, 31, 33, 64, 70):
        yield f"depth-wise product of {columns} columns", depthwise(columns, variant=columns)
    for columns in range(1, 10):
        yield f"inner products of {columns} outputs", narrow(columns, length=8 + 16 * (columns % 2), variant=columns)
    for kind in (tiles.in_use(),) if tiles.in_use() != "none" else ("emulated", "emulated dot"):
        with tiles.using(kind):
            for columns in (1, 16, 17, 32, 40, 64, 97):
                yield f"product of {columns} columns in bfloat16 ({kind})", tile_product(columns, variant=3 * columns)
    kind = tiles.in_use(tiles.INT8)
    with tiles.using(kind if kind != "none" else "emulated vnni"):
        for columns in (1, 16, 17, 32, 40, 64, 97):
            yield f"product of {columns} columns in int8", tile_product(columns, variant=3 * columns, kind=tiles.INT8)
    yield "rows in int8", rows_in_int8(70)
    for columns in (1, 3, 8, 13, 16, 24, 33, 70):
        yield f"point convolution of {columns} channels", point_rows(columns, variant=columns)
        yield f"gradients of a point convolution of {columns} channels", point_gradients(columns)
    for groups in (1, 5, 8, 20, 40):
        yield f"correlation of {groups} groups", correlation(groups)
    for middle, stride in ((16, 1), (24, 2), (40, 1)):
        yield f"inverted residual of {middle} channels, stride {stride}", inverted(middle, stride=stride)
    for columns in (8, 21, 40):
        yield f"decoder stage of {columns} channels", fused(columns)
    for stride, cut in ((1, 0), (1, 1), (2, 0)):
        yield f"mask branch of stride {stride}", mask_branch(9, stride=stride, size=(10, 13), variant=cut)
    yield "mask branch of two 3x3 convolutions", mask_branch(8, hidden=9, size=(9, 53), around=True)
    for channels, dense in ((12, (5, 0, 12)), (20, (8, 4, 20))):
        yield f"module of {channels} channels", module(channels, dense)
    yield "lists of locations", lists(70)


def product(
    columns: int, *, rows: int = 50, lengths: tuple[int, ...] = (5, 3), variant: int = 0, group: int = 0
) -> float:
    """A product of gathered rows, with what `variant` says of activation, split, addend, bias, sums and targets.

    group: steps of the depth taken at a time, 2 or 4, of which the lengths are multiples; 0: one by one.
    """
    g, draw = _generator(columns, rows, *lengths, variant)
    bit = lambda n: variant >> n & 1
    positions, height = torch.arange(rows, dtype=torch.int32) + 1, rows + 3
    weights = draw(sum(lengths), columns)
    segments, read = [], []
    for number, length in enumerate(lengths):
        buffer = draw(height, length + number)  # wider than what is read of it
        at = _places(height, g)
        offset = (0, 1, -1)[number % 3]
        segments.append(Segment(buffer, at if number % 2 == 0 else None, offset, length))
        row = positions.long() + offset
        row = at[row].long() if number % 2 == 0 else row
        read.append(torch.where(row[:, None] >= 0, buffer[row.clamp(min=0), :length], torch.zeros(())))
    activation = variant % 4
    split = (columns, columns, columns // 2, max(1, columns - 8))[variant // 4 % 4]
    to = torch.randperm(rows + 2, generator=g)[:rows].to(torch.int32) if bit(4) else None
    out = torch.full((rows + 2, split + 3), 7.0)
    rest = torch.full((rows + 2, columns - split), 7.0) if split < columns else None
    bias = draw(columns) if bit(0) or bit(5) else None
    add = draw(rows + 2, columns) if bit(1) or bit(6) else None
    sums = torch.zeros(torch.get_num_threads(), columns, dtype=torch.float64) if bit(2) else None
    slopes = draw(columns) if activation == 2 and bit(3) != bit(5) else None
    library.product(
        positions, segments, library.pack(weights, group), columns, Target(out[:, :split], to),
        Target(rest, to if bit(3) else None) if rest is not None else None,
        bias=bias, activation=(activation, 0.1), add=add, sums=sums, slopes=slopes, group=group,
    )  # fmt: skip
    wanted = torch.cat(read, 1).double().numpy() @ weights.double().numpy()
    row0 = torch.arange(rows) if to is None else to.long()
    wanted = wanted + (bias.double().numpy() if bias is not None else 0)
    wanted = wanted + (add[row0].double().numpy() if add is not None else 0)
    wanted = _activated(wanted, activation, slopes)
    expected = np.full(out.shape, 7.0)
    expected[row0, :split] = wanted[:, :split]
    error = _error(out, expected)
    if rest is not None:
        expected = np.full(rest.shape, 7.0)
        expected[row0 if bit(3) else np.arange(rows)] = wanted[:, split:]
        error = max(error, _error(rest, expected))
    if sums is not None:
        error = max(error, _error(sums.sum(0) / rows, wanted.mean(0)))
    return error


def squares(
    columns: int, *, lengths: tuple[int, ...] = (5, 3), size: tuple[int, int] = (9, 14), layers: int = 1,
    kept: float = 0.9, variant: int = 0,
) -> float:  # fmt: skip
    """The kept outputs of a 3×3 convolution that are squares, with what `variant` says as in :func:`product`.

    layers: of a kernel (layers, 3, 3); the outputs have two layers.
    """
    g, draw = _generator(columns, *lengths, *size, layers, variant)
    bit = lambda n: variant >> n & 1
    tables = grid(1, (layers + 1, *size), Geometry.of(3, (layers, 3, 3), padding=(0, 1, 1)))
    listed = (torch.rand(len(tables.position), generator=g) < kept).nonzero()[:, 0].to(torch.int32)
    pos, weights = library.lookup(listed, tables.position), draw(9 * layers, sum(lengths), columns) / (3 * layers)
    found, rest = library.squares(pos, tables.pitch)
    upper = pos[found[:, 0].long()] if len(found) else pos[:0]
    wrong = (pos[found.long()] != upper[:, None] + torch.tensor([0, 1, tables.pitch, tables.pitch + 1])).sum()
    wrong += int(sorted([*found.flatten().tolist(), *rest.tolist()]) != list(range(len(pos))))
    buffers = [draw(len(tables.interior), length + number) for number, length in enumerate(lengths)]
    maps = [tables.interior, _places(len(tables.interior), g)]  # by turns
    offsets = tables.classes[0].offsets
    segments = [
        Segment(buffer, maps[number % 2], int(offset), length)
        for offset in offsets[:: library.TAPS_OF_SQUARES]
        for number, (buffer, length) in enumerate(zip(buffers, lengths, strict=True))
    ]
    wanted = np.zeros((found.numel(), columns))
    for tap, offset in enumerate(offsets):
        rows, first = pos[found.flatten().long()].long() + int(offset), 0
        for number, (buffer, length) in enumerate(zip(buffers, lengths, strict=True)):
            at = maps[number % 2][rows].long()
            read = torch.where(at[:, None] >= 0, buffer[at.clamp(min=0), :length], torch.zeros(()))
            wanted += read.double().numpy() @ weights[tap, first : first + length].double().numpy()
            first += length
    activation, split = variant % 4, (columns, columns // 2)[variant // 4 % 2]
    bias, add = draw(columns) if bit(3) else None, draw(len(pos), columns) if bit(4) else None
    slopes = draw(columns) if activation == 2 and bit(5) else None
    sums = torch.zeros(torch.get_num_threads(), columns, dtype=torch.float64) if bit(6) else None
    out, more, to = torch.full((len(pos), split + 3), 7.0), draw(len(pos), columns - split), found.flatten()
    library.product(
        upper, segments, library.pack_squares(weights), columns, Target(out[:, :split], to), Target(more, to),
        bias=bias, activation=(activation, 0.1), add=add, sums=sums, slopes=slopes, pitch=tables.pitch,
    )  # fmt: skip
    wanted += (bias.double().numpy() if bias is not None else 0) + (
        add[to.long()].double().numpy() if add is not None else 0
    )
    wanted = _activated(wanted, activation, slopes)
    expected = np.full(out.shape, 7.0)
    expected[to, :split] = wanted[:, :split]
    error = max(float(wrong), _error(out, expected), _error(more[to.long()], wanted[:, split:]))
    return error if sums is None else max(error, _error(sums.sum(0) / max(1, len(to)), wanted.sum(0) / max(1, len(to))))


def tile_product(
    columns: int, *, rows: int = 50, lengths: tuple[int, ...] = (5, 40), step: int = 0, variant: int = 0,
    kind: torch.dtype = tiles.BFLOAT16,
) -> float:  # fmt: skip
    """A product in bfloat16 or int8, as it is in use. step: between the outputs' positions; 0: some of them, as of a
    mask.

    Of small whole numbers, whose sums are exact: the only error is that of the last rounding, which is known.
    """
    int8 = kind == tiles.INT8
    read = tiles.Quantum(2**-6, (0, 128, 37, 255)[variant // 3 % 4]) if int8 else None
    written = tiles.Quantum(2**3, (0, 100)[variant % 2]) if int8 and variant % 5 < 3 else None
    g, _ = _generator(columns, rows, *lengths, step, variant)
    whole = lambda most, *shape: torch.randint(-most, most + 1, shape, generator=g).float()
    bit = lambda n: variant >> n & 1
    positions = torch.arange(rows, dtype=torch.int32) * max(step, 1)
    if not step:  # runs, with gaps between them
        some = (torch.rand(4 * rows, generator=g) < 0.5) | (torch.arange(4 * rows) % 40 < 20)
        positions = some.nonzero().flatten()[:rows].to(torch.int32)
    height = int(positions.max()) + 4
    weights, segments, given, packed = whole(127 if int8 else 2, sum(lengths), columns), [], [], []
    if int8:
        weights[0] = 127  # so that a number's scale is 1
    for number, length in enumerate(lengths):
        buffer = tiles.empty(height, tiles.up_to(length, kind) + tiles.up_to(1, kind) * (number % 2), kind=kind)
        # What lies behind the channels meets weights of zero.
        buffer[:] = torch.randint(256, buffer.shape, generator=g) if int8 else whole(3, *buffer.shape)
        values = (buffer.float() - read.zero) * read.scale if read is not None else buffer.float()
        at, offset = _places(height, g) if number % 2 == 0 else None, (0, 2, 1)[number % 3]
        segments.append(tiles.Segment(buffer, at, offset, length))
        row = positions.long() + offset
        row = at[row].long() if at is not None else row
        given.append(torch.where(row[:, None] >= 0, values[row.clamp(min=0), :length], torch.zeros(())))
        packed.append(weights[sum(lengths[:number]) :][:length])
    fill = lambda one: torch.nn.functional.pad(one, (0, 0, 0, tiles.up_to(len(one), kind) - len(one)))
    padded = torch.cat([fill(one) for one in packed])
    to = torch.randperm(rows + 2, generator=g)[:rows].to(torch.int32) if bit(2) else None
    wide = tiles.up_to(columns) + 3 * bit(6) if bit(0) else columns
    out = torch.full((rows + 2, wide), 7, dtype=tiles.BFLOAT16 if written is None else kind)
    places = torch.randperm(wide, generator=g)[:columns].sort().values.to(torch.int32) if bit(6) else None
    bias = None
    if bit(3):
        bias = whole(64, columns) / 64 if int8 else torch.randn(columns, generator=g)
    add = whole(9, *out.shape).bfloat16() if bit(4) and places is None else None
    sums = torch.zeros(torch.get_num_threads(), columns, dtype=torch.float64) if bit(5) else None
    tiles.product(
        positions, segments, tiles.pack(padded[None], kind), columns, out, to,
        bias=tiles.padded(bias), activation=(variant % 4, 0.1), add=add, sums=sums, places=places, read=read,
        written=written,
    )  # fmt: skip
    row0 = torch.arange(rows) if to is None else to.long()
    wanted = torch.cat(given, 1) @ weights + (bias if bias is not None else 0)
    wanted = wanted + (add[row0, :columns].float() if add is not None else 0)
    wanted = torch.from_numpy(np.asarray(_ACTIVATIONS[variant % 4](wanted.numpy()), np.float32))
    expected = torch.full(out.shape, 7.0)
    expected[row0] = 0 if written is None else written.zero
    at = row0[:, None], torch.arange(columns) if places is None else places.long()
    expected[at] = wanted.bfloat16().float() if written is None else _numbers(wanted, written)
    error = _error(out, expected.double().numpy())
    # Half a step of bfloat16 is what the order of additions may decide; in int8 it decides nothing.
    if not int8 and error <= 2**-7 and _error(out[at], wanted.double().numpy()) <= 2**-8:
        error = 0.0
    return max(error, _error(sums.sum(0) / rows, wanted.double().mean(0).numpy())) if sums is not None else error


def rows_in_int8(length: int, *, rows: int = 60) -> float:
    """Rows of bfloat16 in int8, their range, and what the range does not hold."""
    g, draw = _generator(length, rows)
    given = tiles.empty(rows, tiles.up_to(length)).zero_()
    given[:, :length] = draw(rows, length)
    error = 0.0
    for values in (given, given.abs(), -given.abs()):
        least, most = tiles.range_of(values)
        found = [values.min().clamp(max=0).item(), values.max().clamp(min=0).item()]
        error = max(error, _error(torch.tensor([least, most]), np.array(found)))
        for quantum in (tiles.Quantum.of(least, most), tiles.Quantum(2**-6, 100)):
            numbers = tiles.in_int8(values, quantum)[:, : values.shape[1]].float()
            exact = values.float() * (1 / quantum.scale) + quantum.zero
            apart = (numbers - exact.clamp(0, 255)).abs().max()
            error = max(error, float(apart) - 0.5, 0.0)
    return error


def _numbers(values: Tensor, quantum: tiles.Quantum) -> Tensor:
    """What stands for values in int8, as float32."""
    return (values / quantum.scale + quantum.zero).round().clamp(0, 255)


def depthwise(columns: int, *, rows: int = 50, taps: int = 3, variant: int = 0) -> float:
    """Every column with weights of its own."""
    g, draw = _generator(columns, rows, taps, variant)
    buffer, weights, bias = draw(rows + taps, columns), draw(taps, columns), draw(columns) if variant % 2 else None
    at = _places(rows + taps, g)
    positions = torch.arange(rows, dtype=torch.int32)
    segments = [Segment(buffer, at, tap, columns) for tap in range(taps)]
    out = torch.full((rows, columns), 7.0)
    activation = variant % 4
    slopes = draw(columns) if activation == 2 and columns % 2 else None
    library.product(
        positions,
        segments,
        weights,
        columns,
        Target(out),
        bias=bias,
        activation=(activation, 0.1),
        slopes=slopes,
        depthwise=True,
    )
    wanted = np.zeros((rows, columns))
    for tap in range(taps):
        row = at[tap : tap + rows].numpy()
        wanted += np.where(row[:, None] >= 0, buffer.double().numpy()[row], 0) * weights.double().numpy()[tap]
    wanted = wanted + (bias.double().numpy() if bias is not None else 0)
    return _error(out, _activated(wanted, activation, slopes))


def _activated(values: np.ndarray, activation: int, slopes: Tensor | None) -> np.ndarray:
    """What an activation makes of values (rows, columns); slopes (columns,): those of its columns below zero."""
    if slopes is None:
        return _ACTIVATIONS[activation](values)
    return np.where(values > 0, values, values * slopes.double().numpy())


def narrow(columns: int, *, rows: int = 50, length: int = 8, taps: int = 2, variant: int = 0) -> float:
    """Few outputs as inner products, the rest of their rows zeroed."""
    g, draw = _generator(columns, rows, length, taps, variant)
    buffer, weights, bias = draw(rows + taps, length), draw(taps, length, columns), draw(columns)
    at = _places(rows + taps, g)
    segments = [Segment(buffer, at, tap, length) for tap in range(taps)]
    clear = columns + 5
    places = torch.randperm(clear, generator=g)[:columns].sort().values.to(torch.int32) if variant % 2 else None
    out = torch.full((rows, clear + 1), 7.0)
    call = library.Call(
        torch.arange(rows, dtype=torch.int32), segments, library.pack_narrow(weights), columns, Target(out),
        bias=bias, activation=(variant % 4, 0.1), narrow=True, clear=clear, places=places,
    )  # fmt: skip
    library.products([call])
    sums = np.zeros((rows, columns)) + bias.double().numpy()
    for tap in range(taps):
        row = at[tap : tap + rows].numpy()
        sums += np.where(row[:, None] >= 0, buffer.double().numpy()[row], 0) @ weights.double().numpy()[tap]
    wanted = np.zeros((rows, clear + 1))
    wanted[:, -1] = 7
    wanted[:, np.arange(columns) if places is None else places.numpy()] = _ACTIVATIONS[variant % 4](sums)
    return _error(out, wanted)


def _cloud(columns: int, rows: int, k: int, variant: int):
    """Rows, coordinates, tables, neighbours and cells of a point convolution."""
    g, draw = _generator(columns, rows, k, variant)
    neighbours = torch.randint(rows, (rows, k), generator=g, dtype=torch.int32)
    neighbours[:, 0] = torch.arange(rows)
    cells = torch.randint(27, (rows, k), generator=g).to(torch.uint8)
    return g, draw(rows, columns), draw(rows, 3), draw(3, columns), draw(27, columns), neighbours, cells, draw(columns)


def point_rows(columns: int, *, rows: int = 50, k: int = 4, variant: int = 0) -> float:
    """The pass over neighbours, of all or some points, into one buffer or two, and the means of neighbours."""
    g, own, xyz, rel, table, neighbours, cells, bias = _cloud(columns, rows, k, variant)
    listed = torch.randperm(rows, generator=g)[: rows // 2 + 1].sort().values.to(torch.int32) if variant & 1 else None
    chosen = torch.arange(rows) if listed is None else listed.long()
    order = torch.randperm(rows, generator=g).to(torch.int32) if variant & 2 else None
    held = own if order is None else own[order.long().argsort()].contiguous()
    split = columns if not variant & 4 else max(1, columns // 2)
    out = torch.full((rows, split), 7.0)
    rest = torch.full((len(chosen), columns - split), 7.0) if split < columns else None
    points.aggregate(
        held, xyz, rel, table, neighbours, cells, out, columns=columns, points=listed, map=order, bias=bias,
        relu=bool(variant & 8), rest=rest,
    )  # fmt: skip
    wanted = _aggregated(own, xyz, rel, table, neighbours, cells) + bias.double().numpy()
    wanted = np.maximum(wanted, 0) if variant & 8 else wanted
    expected = np.full((rows, split), 7.0)
    expected[chosen] = wanted[chosen, :split]
    error = _error(out, expected)
    if rest is not None:
        error = max(error, _error(rest, wanted[chosen, split:]))
    means = own.double().numpy()[neighbours.numpy()].mean(1)
    return max(error, _error(points.means(own, neighbours), means))


def _aggregated(own, xyz, rel, table, neighbours, cells) -> np.ndarray:
    g, xyz, rel, table = (one.double().numpy() for one in (own, xyz, rel, table))
    near, cells = neighbours.numpy(), cells.numpy()
    out = table[cells[:, 0]] * (g - xyz @ rel)
    for k in range(1, near.shape[1]):
        out += table[cells[:, k]] * (g[near[:, k]] - g)
    return out


def point_gradients(columns: int, *, rows: int = 20, k: int = 4, variant: int = 0) -> float:
    """Gradients of the pass with respect to its rows and its table."""
    _, own, xyz, rel, table, neighbours, cells, _ = _cloud(columns, rows, k, variant)
    _, draw = _generator(columns, rows, k)
    grad = draw(rows, columns)
    to_g, to_table = points.gradients(grad, own, xyz, rel, table, neighbours, cells, points.readers(neighbours, cells))
    g, dy, t, near, bins = (one.numpy().astype(np.float64) for one in (own, grad, table, neighbours, cells))
    near, bins = near.astype(int), bins.astype(int)
    want_g, want_t = dy * t[bins[:, 0]], np.zeros_like(t)
    np.add.at(want_t, bins[:, 0], dy * (g - xyz.double().numpy() @ rel.double().numpy()))
    for c in range(1, k):
        want_g -= dy * t[bins[:, c]]
        np.add.at(want_g, near[:, c], dy * t[bins[:, c]])
        np.add.at(want_t, bins[:, c], dy * (g[near[:, c]] - g))
    return max(_error(to_g, want_g), _error(to_table, want_t))


def correlation(groups: int, *, each: int = 3, levels: int = 3, size: tuple[int, int] = (2, 7)) -> float:
    """The group-wise correlation of a stereo pair's features."""
    _, draw = _generator(groups, each, levels, *size)
    left, right = draw(2, groups * each, *size), draw(2, groups * each, *size)
    out = stereo.correlation(left, right, levels, groups)
    a, b = (one.double().numpy().reshape(2, groups, each, *size) for one in (left, right))
    wanted = np.zeros((2, groups, levels, *size))
    for d in range(min(levels, size[1])):
        wanted[:, :, d, :, d:] = (a[..., d:] * b[..., : size[1] - d]).mean(2)
    return _error(out, wanted)


def inverted(
    middle: int, *, stride: int = 1, channels: int = 6, outputs: int = 6, size: tuple[int, int] = (7, 9),
    kept: float = 0.5, batch: int = 2, expansion: bool = True, variant: int = 1,
) -> float:  # fmt: skip
    """An inverted residual under a data mask and channel masks, with a shortcut where it can have one.

    kept: the share of kept locations; above 1: without a data mask.
    """
    g, draw = _generator(middle, stride, channels, outputs, *size, batch, expansion, variant)
    last = lambda x: x.contiguous(memory_format=torch.channels_last)
    flags = lambda n: torch.rand(n, generator=g) < 0.4
    if not expansion:
        channels = middle
    out_size = [-(-n // stride) for n in size]
    x = last(draw(batch, channels, *size))
    mask = torch.rand(batch, 1, *out_size, generator=g) < kept if kept <= 1 else None
    weights = (
        *((draw(middle, channels, 1, 1), draw(middle), flags(middle)) if expansion else (None, None, None)),
        draw(middle, 1, 3, 3), draw(middle), flags(middle),
        draw(outputs, middle, 1, 1) / math.sqrt(middle), draw(outputs), flags(outputs) & bool(variant & 1),
    )  # fmt: skip
    shortcut = stride == 1 and channels == outputs
    result = inverted_residual.inverted_residual(InvertedResidualCall(x, mask, *weights, stride, shortcut))
    wide = [one.double() if isinstance(one, Tensor) and one.dtype == torch.float32 else one for one in weights]
    return _error(result, _inverted_by_formula(x.double(), mask, *wide, stride, shortcut).numpy())


def _inverted_by_formula(x, mask, expand, b1, d1, depth, b2, d2, project, b3, d3, stride, shortcut) -> Tensor:
    """Dense outputs from dense inputs everywhere, everything else under the mask; torch's convolutions in float64."""

    def split(y, weight, bias, before, after, where, **form):
        conv = lambda v: torch.nn.functional.conv2d(v, weight, bias, **form)
        if where is None:
            return conv(y)
        along = lambda v: v.view(1, -1, 1, 1).to(y)
        return torch.where(where, conv(y), conv(y * along(before)) * along(after))

    y, before = x, torch.ones(x.shape[1], dtype=torch.bool)
    if expand is not None:
        where = mask if mask is None or stride == 1 else residuals.spread(mask, x.shape[-2:])
        y, before = split(y, expand, b1, before, d1, where).clamp(0, 6), d1
    y = split(y, depth, b2, before, d2, mask, stride=stride, padding=1, groups=len(depth)).clamp(0, 6)
    y = split(y, project, b3, d2, d3, mask)
    return y + x if shortcut else y


def fused(
    columns: int, *, channels: tuple[int, ...] = (5, 6, 7), batch: int = 2, kept: float = 0.5, dense: int | None = None,
    sizes: tuple[tuple[int, int], ...] = ((5, 7), (3, 4), (1, 1)), size: tuple[int, int] = (5, 7), variant: int = 0,
) -> float:  # fmt: skip
    """A decoder stage over features of several sizes, under a mask (or none, kept > 1)."""
    g, draw = _generator(columns, *channels, batch, variant)
    xs = [
        draw(batch, c, *s).contiguous(memory_format=torch.channels_last) * 3
        for c, s in zip(channels, sizes, strict=True)
    ]
    weights = [draw(columns, c, 1, 1) for c in channels]
    cut = [bool((number + variant) % 2) for number in range(len(xs))]
    mask = torch.rand(batch, 1, *size, generator=g) < kept if kept <= 1 else None
    given = (cut, draw(columns), mask, columns // 2 if dense is None else dense, *size)
    result = multiscale_sum.fuse_scales(MultiscaleSumCall(xs, weights, *given))
    wide = [x.double() for x in xs], [w.double() for w in weights]
    wanted = stages.reference(MultiscaleSumCall(*wide, *given))
    return _error(result, wanted.numpy())


def mask_branch(
    channels: int, *, stride: int = 1, hidden: int = 6, size: tuple[int, int] = (7, 9), batch: int = 2,
    variant: int = 0, around: bool = False,
) -> float:  # fmt: skip
    """A mask branch: 0 where it keeps the same locations, but for those too near the threshold to tell.

    around: its first convolution is 3x3, before the pooling.
    """
    _, draw = _generator(channels, stride, hidden, *size, batch, variant)
    x = draw(batch, channels, *size).contiguous(memory_format=torch.channels_last)
    last = draw(hidden, 2, 3, 3) if stride == 1 else draw(2, hidden, 1, 1)
    first = draw(hidden, channels, *(3, 3) if around else (1, 1))
    given = (first, draw(hidden), draw(hidden, hidden, 3, 3), draw(hidden), last, draw(2))
    threshold, cut = 0.4, bool(variant % 2)
    result = predict_mask.locate(PredictMaskCall(x, *given, threshold, cut))
    wide = [one.double() for one in (x, *given)]
    near = 1e-4  # in the share; both sides of it must agree for a location to count
    low, high = (branches.reference(PredictMaskCall(*wide, threshold + d, cut)) for d in (-near, near))
    return float(((result != low) & (low == high)).any())


def module(channels: int, dense: tuple[int, ...], *, size: tuple[int, int] = (9, 11), kept: float = 0.5) -> float:
    """A module's layers and their fusion, by itself and with channel attention. dense: channels of each layer."""
    g, draw = _generator(channels, *dense, *size)
    x, mask = draw(1, channels, *size), torch.rand(1, 1, *size, generator=g) < kept
    weights = [draw(channels, channels, 3, 3) / (3 * channels**0.5) for _ in dense]
    masks = torch.stack([torch.randperm(channels, generator=g) < n for n in dense])
    fusion = [draw(channels, len(dense) * channels, 1, 1) / (len(dense) * channels) ** 0.5, draw(channels)]
    attention = (draw(3, channels, 1, 1), draw(3), draw(channels, 3, 1, 1), draw(channels))
    call = BlockCall(x, mask, weights, masks, *fusion, "leaky_relu:0.1")
    wide = BlockCall(
        x.double(), mask, [w.double() for w in weights], masks, *(t.double() for t in fusion), "leaky_relu:0.1"
    )
    y = modules.compose(find("reference"), wide)
    error = _error(block.block(call), y.numpy())
    a = factors(y.mean((2, 3)), tuple(t.double() for t in attention))[..., None, None]
    result = block.attended_block(AttendedBlockCall(call, attention))
    return max(error, _error(result, (wide.x + a * y).numpy()))


def lists(n: int) -> float:
    """Kept and dropped locations of masks, sums with masks, rows zeroed and filled: 0 where all is exact."""
    g, draw = _generator(n)
    wrong = 0
    for share in (0.0, 0.1, 0.5, 1.0):
        mask = torch.rand(n, generator=g) < share
        mask[: n // 3] = mask[0]  # a blob
        kept, dropped, places = library.split(mask)
        wrong += not torch.equal(kept.long(), mask.nonzero()[:, 0])
        wrong += not torch.equal(dropped.long(), (~mask).nonzero()[:, 0])
        wrong += not torch.equal(places.long(), torch.where(mask, mask.cumsum(0) - 1, torch.tensor(-1)))
        a, b, dense = draw(n, 9), draw(n, 9), 4
        wanted = (a.double() + b.double()).clamp(min=0)
        wanted[:, dense:] *= mask[:, None]
        wrong += not torch.allclose(library.add_relu(a.clone(), b, mask, dense).double(), wanted, atol=1e-6)
        out, values, columns = draw(n, 9), draw(n, 3), torch.tensor([1, 4, 8], dtype=torch.int32)
        wanted = out.clone()
        wanted[dropped.long()] = 0
        wanted[dropped.long()[:, None], columns.long()] = values[dropped.long()]
        library.fill(out, dropped, values, columns)
        library.fill(out[:, 9:], dropped)  # no columns
        wrong += not torch.equal(out, wanted)
        wrong += not torch.equal(library.narrow(out, columns), out[:, columns.long()])
    return float(wrong)


def _places(n: int, g: torch.Generator) -> Tensor:
    """int32 (n,): rows of a buffer in order, at positions some of which hold nothing, -1."""
    here = torch.rand(n, generator=g) < 0.8
    return torch.where(here, here.cumsum(0) - 1, torch.tensor(-1)).to(torch.int32)


def _generator(*seeds) -> tuple[torch.Generator, callable]:
    """A generator of its own, and a function that draws float32 normal numbers from it."""
    g = torch.Generator().manual_seed(hash(tuple(map(int, seeds))) % 2**31)
    return g, lambda *shape: torch.randn(*shape, generator=g)


def _error(result: Tensor, wanted: np.ndarray) -> float:
    """The largest error, relative where values are above one; infinite where a number is not finite."""
    error = np.abs(result.double().numpy() - wanted) / np.maximum(1, np.abs(wanted))
    if not error.size:
        return 0.0
    return float(error.max()) if np.isfinite(error).all() else math.inf
