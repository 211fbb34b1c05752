"""One layer over kernels, channels, sizes and shares kept, with scattered and with blobby masks.

*tiles* is the other way to skip on a regular grid, as SIGE (Li et al., 2022) has it: tiles that hold a kept location
are gathered with their border, convolved densely as a batch by torch, and put back; of 4, 8 and 16 locations a side
the fastest. What a tile holds besides is computed, too.
"""

from __future__ import annotations

import dataclasses
import itertools

import torch
import torch.nn.functional as F

from sparsemask.backends.native import library, tiles
from sparsemask.backends.native.conv import Product
from sparsemask.backends.native.grid import grid
from sparsemask.backends.native.rows import to_rows
from sparsemask.costs import compare
from sparsemask.ops.dispatch import find
from sparsemask.sparse import ConvCall, Geometry, available_backends

TILES = (4, 8, 16)


def mask_of(kind: str, size: int, kept: float, seed: int = 0) -> torch.Tensor:
    """bool (1, 1, size, size) with a share `kept` true: `random` places, or `blob`s as networks make them."""
    generator = torch.Generator().manual_seed(seed)
    field = torch.rand(1, 1, size, size, generator=generator)
    if kind == "blob":
        for _ in range(3):
            field = F.avg_pool2d(F.pad(field, (4, 4, 4, 4), mode="circular"), 9, 1)
    count = round(kept * size * size)
    order = field.flatten().argsort()
    mask = torch.zeros(size * size, dtype=torch.bool)
    mask[order[:count]] = True
    return mask.view(1, 1, size, size)


@torch.inference_mode()
def layer(kernel: int, channels: int, size: int, kept: float, kind: str, rounds: int) -> dict:
    """Medians of one configuration: the dense layer, every backend's operator, and the kernels inside a module."""
    torch.manual_seed(0)
    x = torch.randn(1, channels, size, size).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, kernel, kernel) / kernel / channels**0.5
    last = weight.contiguous(memory_format=torch.channels_last)
    mask, none = mask_of(kind, size, kept), torch.zeros(channels, dtype=torch.bool)
    geometry = Geometry.of(2, kernel)
    call = ConvCall(x, weight, None, mask, none, none, geometry, "relu")
    calls = {"dense": lambda: F.relu_(F.conv2d(x, last, padding=kernel // 2))}
    usable = [n for n, why in available_backends().items() if why is None and n not in ("reference", "auto")]
    want = F.relu(F.conv2d(x, weight, padding=kernel // 2)) * mask
    for name in [*usable, "auto"]:
        calls[name] = lambda name=name: find(name).conv(call)
        assert torch.allclose(calls[name](), want, atol=1e-4), f"{name} is wrong"
    for side in TILES:
        calls[f"tiles of {side}"] = run = in_tiles(x, last, mask, side)
        assert torch.allclose(run() * mask, want, atol=1e-4), "tiles are wrong"
    if "native" in usable:
        calls["in a module"] = inside(x, weight, mask, geometry)
    for _ in range(12):
        calls["auto"]()
    times = compare(calls, rounds=rounds, warmup=2)
    times["tiles"] = min(times.pop(f"tiles of {side}") for side in TILES)
    share = float(mask.float().mean())
    row = {"kernel": kernel, "channels": channels, "size": size, "mask": kind, "kept": share}
    row |= {f"ms {n}": t for n, t in times.items()}
    row |= {f"gain {n}": times["dense"] / t for n, t in times.items()}
    return row | {f"efficiency {n}": times["dense"] / t * share for n, t in times.items()}


def in_tiles(x, weight, mask, side):
    """The layer by tiles; what is listed of the mask was listed before, and tiles that hold nothing stay zero."""
    border, size = weight.shape[-1] // 2, tuple(x.shape[2:])
    down, right = F.max_pool2d(mask[0].float(), side)[0].nonzero().unbind(1)
    out = torch.zeros_like(x)  # (1, C, H, W), channels last, of which H and W are multiples of `side`
    places = out[0].permute(1, 2, 0).view(size[0] // side, side, size[1] // side, side, -1).transpose(1, 2)

    def run() -> torch.Tensor:
        wide = F.pad(x, [border] * 4)[0].permute(1, 2, 0)
        windows = wide.unfold(0, side + 2 * border, side).unfold(1, side + 2 * border, side)
        inputs = windows.permute(0, 1, 3, 4, 2)[down, right].permute(0, 3, 1, 2)
        places[down, right] = F.relu_(F.conv2d(inputs, weight)).permute(0, 2, 3, 1)
        return out

    return run


def inside(x, weight, mask, geometry):
    """The layer as it runs between two others of a module: compact rows in, compact rows out, the lists made before."""
    tables = grid(1, tuple(x.shape[2:]), geometry)
    kept, _, compact = library.split(mask)
    way = library.lookup(tables.interior, compact)
    rows = to_rows(x)[kept.long()].contiguous()
    out = torch.empty(len(kept), weight.shape[0])
    product = Product(weight.flatten(2).permute(2, 1, 0), None, 1, False, tables)
    calls = product.calls(rows, dataclasses.replace(tables, interior=way), kept, out, (1, 0.0), side_by_side=True)

    def run() -> torch.Tensor:
        library.products(calls)
        return out

    return run


def inside_packed(x, weight, mask, geometry, kind=tiles.BFLOAT16):
    """The same in bfloat16 or int8, where rows of all locations are read. Returns how what it gives is read, too."""
    tables = grid(1, tuple(x.shape[2:]), geometry)
    kept, _, _ = library.split(mask, compact=False)
    at, rows, columns = library.lookup(kept, tables.position), tiles.rows_of(x), weight.shape[0]
    packed = tiles.pack(weight.float().flatten(2).permute(2, 1, 0), kind)
    read = written = None
    if kind == tiles.INT8:
        read, written = tiles.Quantum.of(*tiles.range_of(rows)), tiles.Quantum.of(0.0, 6.0)
        rows = tiles.in_int8(rows, read)
    out = tiles.empty(len(kept), tiles.up_to(columns, kind), kind=kind)
    taps = [tiles.Segment(rows, tables.interior, offset, x.shape[1]) for _, offset in tables.classes[0].taps]

    def run() -> torch.Tensor:
        tiles.product(at, taps, packed, columns, out, activation=(1, 0.0), read=read, written=written)
        return out

    def values(out: torch.Tensor) -> torch.Tensor:
        numbers = out[:, :columns].float()
        return numbers if written is None else (numbers - written.zero) * written.scale

    return run, values


def sweep(kernels, channels, sizes, shares, kinds, rounds: int) -> list[dict]:
    """All combinations."""
    every = itertools.product(kernels, channels, sizes, shares, kinds)
    return [layer(*one, rounds) for one in every]
