"""The native kernels of point convolution on tensors of rows; what they do stands in src/points.h."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from sparsemask.backends.native import library

_P, _I = ctypes.c_void_p, ctypes.c_int64


def _struct(name: str, fields: str) -> type:
    """Pointers are written with a star, floating-point numbers with a tilde."""
    kinds = {"*": _P, "~": ctypes.c_double}
    listed = [(field.lstrip("*~"), kinds.get(field[0], _I)) for field in fields.split()]
    return type(name, (ctypes.Structure,), {"_fields_": listed})


_Points = _struct(
    "_Points",
    "rows *points k *neighbours *bins *g stride *map *xyz *rel rel_stride *table table_stride *bias relu columns split "
    "*out0 stride0 *out1 stride1 threads",
)
_PointBins = _struct("_PointBins", "rows k *xyz *neighbours ~radius size nearest *bins threads")
_PointGrads = _struct(
    "_PointGrads",
    "rows k *neighbours *bins *offsets *readers *reader_bins *g *xyz *rel *table *grad columns bins_count *to_g "
    "*to_table threads",
)


def bins(xyz: Tensor, neighbours: Tensor, radius: float, size: int, nearest: bool) -> Tensor:
    """uint8 (R, K) cells of float32 xyz (R, 3) under int32 neighbours (R, K)."""
    out = torch.empty(neighbours.shape, dtype=torch.uint8)
    n, k = neighbours.shape
    args = _PointBins(
        rows=n, k=k, xyz=xyz.data_ptr(), neighbours=neighbours.data_ptr(), radius=radius, size=size, nearest=nearest,
        bins=out.data_ptr(), threads=torch.get_num_threads(),
    )  # fmt: skip
    library.lib().sm_point_bins(ctypes.addressof(args))
    return out


def readers(neighbours: Tensor, bins: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(offsets, readers, bins) of who reads a point as a neighbour, for :func:`gradients`."""
    n, k = neighbours.shape
    offsets = torch.empty(n + 1, dtype=torch.int64)
    who, cells = torch.empty(n * (k - 1), dtype=torch.int32), torch.empty(n * (k - 1), dtype=torch.uint8)
    library.lib().sm_point_readers(
        neighbours.data_ptr(), bins.data_ptr(), n, k, offsets.data_ptr(), who.data_ptr(), cells.data_ptr()
    )
    return offsets, who, cells


def means(rows: Tensor, neighbours: Tensor) -> Tensor:
    """(n, C): the mean of rows (R, C) over each line of neighbours (n, K)."""
    n, k = neighbours.shape
    out = library.empty(n, rows.shape[1])
    library.lib().sm_point_means(
        rows.data_ptr(), rows.shape[1], neighbours.data_ptr(), n, k, out.data_ptr(), torch.get_num_threads()
    )
    return out


def aggregate(
    g: Tensor,
    xyz: Tensor,
    rel: Tensor,
    table: Tensor,
    neighbours: Tensor,
    bins: Tensor,
    out: Tensor,
    *,
    columns: int | None = None,
    points: Tensor | None = None,
    map: Tensor | None = None,
    bias: Tensor | None = None,
    relu: bool = False,
    rest: Tensor | None = None,
) -> None:
    """Compute the first `columns` channels of `points` (n,) int32 (None: all) into their rows of `out`.

    g: rows, found by `map` (R,) int32 where given; rel (3, C) and table (V, C) contiguous in C. Channels beyond the
    width of `out` go to row r of `rest` for the r-th of the points, without `rest` nowhere.
    """
    columns = g.shape[1] if columns is None else columns
    args = _Points(
        rows=len(neighbours) if points is None else len(points),
        points=None if points is None else points.data_ptr(),
        k=neighbours.shape[1],
        neighbours=neighbours.data_ptr(),
        bins=bins.data_ptr(),
        g=g.data_ptr(),
        stride=g.stride(0),
        map=None if map is None else map.data_ptr(),
        xyz=xyz.data_ptr(),
        rel=rel.data_ptr(),
        rel_stride=rel.stride(0),
        table=table.data_ptr(),
        table_stride=table.stride(0),
        bias=None if bias is None else bias.data_ptr(),
        relu=relu,
        columns=columns,
        split=min(columns, out.shape[1]),
        out0=out.data_ptr(),
        stride0=out.stride(0),
        threads=torch.get_num_threads(),
    )
    if rest is not None:
        args.out1, args.stride1 = rest.data_ptr(), rest.stride(0)
    library.lib().sm_points(ctypes.addressof(args))


def gradients(
    grad: Tensor, g: Tensor, xyz: Tensor, rel: Tensor, table: Tensor, neighbours: Tensor, bins: Tensor, read: tuple
) -> tuple[Tensor, Tensor]:
    """(gradient of g, of table), all of them contiguous rows; `read` as :func:`readers` gave it."""
    threads = torch.get_num_threads()
    to_g, to_table = torch.empty_like(g), torch.zeros(threads, *table.shape)
    offsets, who, cells = read
    args = _PointGrads(
        rows=len(g), k=neighbours.shape[1], neighbours=neighbours.data_ptr(), bins=bins.data_ptr(),
        offsets=offsets.data_ptr(), readers=who.data_ptr(), reader_bins=cells.data_ptr(), g=g.data_ptr(),
        xyz=xyz.data_ptr(), rel=rel.data_ptr(), table=table.data_ptr(), grad=grad.data_ptr(), columns=g.shape[1],
        bins_count=len(table), to_g=to_g.data_ptr(), to_table=to_table.data_ptr(), threads=threads,
    )  # fmt: skip
    library.lib().sm_point_gradients(ctypes.addressof(args))
    return to_g, to_table.sum(0)
