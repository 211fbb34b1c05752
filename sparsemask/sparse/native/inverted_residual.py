"""An inverted residual in rows: the expanded features exist at kept places only, but for their dense channels.

Expansion and depth-wise have two buffers each: dense channels at all locations, sparse ones at the kept alone. The
middle channels fall into four kinds by what they are before and after the depth-wise convolution, dense or sparse; a
kind lies together in either buffer and is one call. The projection is written with the shortcut added. There are no
zero-filled expanded features, no concatenation, no addition of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsemask.sparse.derived import Derived
from sparsemask.sparse.inverted_residual import around, spread
from sparsemask.sparse.native import library
from sparsemask.sparse.native.grid import grid
from sparsemask.sparse.native.library import Segment, Taps, Target
from sparsemask.sparse.native.rows import from_rows, to_rows
from sparsemask.sparse.native.workspace import Workspace

_derived = Derived()
_RELU6, _NONE = (3, 0.0), (0, 0.0)


def inverted_residual(
    x, mask, expand, expand_bias, expand_dense, depthwise, depthwise_bias, depthwise_dense, project, project_bias,
    project_dense, stride, shortcut,
) -> Tensor:  # fmt: skip
    """See :func:`sparsemask.sparse.inverted_residual.inverted_residual`; float32 on the CPU."""
    given = (
        expand, expand_bias, expand_dense, depthwise, depthwise_bias, depthwise_dense, project, project_bias,
        project_dense,
    )  # fmt: skip
    plan = _derived.get([one for one in given if one is not None], lambda: _Plan(*given))
    batch, spatial, size = x.shape[0], tuple(x.shape[2:]), tuple(mask.shape[2:])
    tables = grid(batch, spatial, around(len(depthwise), stride))
    rows = to_rows(x)
    kept, dropped, compact = library.split(mask.contiguous())
    wide = (kept, dropped, compact) if stride == 1 else library.split(spread(mask, spatial).contiguous())
    with Workspace() as space:
        if expand is None:
            middle = _Half(rows, rows[:0, :0], None)
        else:
            middle = plan.expand(rows, wide, space)
            middle.compact = library.lookup(tables.interior, wide[2]) if plan.n_in_sparse else None
        after = plan.depthwise(middle, tables, kept, dropped, space)
        out = plan.project(after, rows if shortcut else None, kept, dropped)
    return from_rows(out, batch, size, x)


class _Half:
    """Features in two buffers: everywhere (all locations, dense) and here (kept ones, sparse), and the way to these."""

    def __init__(self, everywhere: Tensor, here: Tensor, compact: Tensor | None):
        self.everywhere, self.here, self.compact = everywhere, here, compact


class _Plan:
    """Packed weights, the middle channels in the order of the buffers.

    Kinds of middle channels: dense before and after (a), dense before only (b), dense after only (c), neither (d).
    Before: everywhere holds a, b; here c, d. After: everywhere holds a, c; here b, d.
    """

    def __init__(self, expand, expand_bias, expand_dense, depthwise, depthwise_bias, depthwise_dense, project,
                 project_bias, project_dense):  # fmt: skip
        before = torch.ones_like(depthwise_dense) if expand is None else expand_dense
        after = depthwise_dense
        a, b, c, d = (
            k.nonzero().flatten() for k in (before & after, before & ~after, ~before & after, ~before & ~after)
        )
        self.kinds = tuple(map(len, (a, b, c, d)))
        self.n_in_dense, self.n_in_sparse = len(a) + len(b), len(c) + len(d)
        self.n_out_dense, self.n_out_sparse = len(a) + len(c), len(b) + len(d)
        self.ordered = None  # without an expansion the depth-wise reads the input as it lies
        if expand is None:
            self.ordered = torch.cat([a, b]).to(torch.int32)
            if torch.equal(self.ordered, torch.arange(len(self.ordered), dtype=torch.int32)):
                self.ordered = None
        else:
            order = torch.cat([a, b, c, d])
            weights, bias = _matrix(expand)[:, order], expand_bias.detach().to(torch.float32)[order]
            self.expand_all = library.pack(weights), bias
            self.expand_dense = library.pack(weights[:, : self.n_in_dense]), bias[: self.n_in_dense].clone()
        taps = depthwise.detach().to(torch.float32).flatten(1).T  # (9, middle)
        bias = depthwise_bias.detach().to(torch.float32)
        self.taps = {name: (taps[:, k].contiguous(), bias[k]) for name, k in zip("abcd", (a, b, c, d), strict=True)}
        order = torch.cat([a, c, b, d])
        weights = _matrix(project)[order]
        self.project_all = library.pack(weights), project_bias.detach().to(torch.float32).clone()
        # What dropped places have of sparse outputs is nothing: their weights are zero, which is written too.
        self.project_dense = None
        if bool(project_dense.any()):
            gate = project_dense.to(torch.float32)
            self.project_dense = library.pack(weights[: self.n_out_dense] * gate), self.project_all[1] * gate
        self.columns = len(project)

    def expand(self, rows: Tensor, places, space: Workspace) -> _Half:
        """The 1×1 expansion and its relu6."""
        kept, dropped, _ = places
        everywhere = space.take(len(rows) if self.n_in_dense else 0, self.n_in_dense)
        here = space.take(len(kept) if self.n_in_sparse else 0, self.n_in_sparse)
        read = [Segment(rows, None, 0, rows.shape[1])]
        packed, bias = self.expand_all
        columns, targets = self.n_in_dense + self.n_in_sparse, [Target(everywhere, kept), Target(here)]
        library.product(kept, read, packed, columns, *targets, bias=bias, activation=_RELU6)
        if self.n_in_dense:
            packed, bias = self.expand_dense
            target = Target(everywhere, dropped)
            library.product(dropped, read, packed, self.n_in_dense, target, bias=bias, activation=_RELU6)
        return _Half(everywhere, here, None)

    def depthwise(self, middle: _Half, tables, kept: Tensor, dropped: Tensor, space: Workspace) -> _Half:
        """The depth-wise convolution and its relu6, kind by kind."""
        a, b, c, d = self.kinds
        source = middle.everywhere if self.ordered is None else library.narrow(middle.everywhere, self.ordered)
        everywhere = space.take(len(tables.position) if self.n_out_dense else 0, self.n_out_dense)
        here = space.take(len(kept) if self.n_out_sparse else 0, self.n_out_sparse)
        at_kept = library.lookup(kept, tables.position)
        offsets = tables.classes[0].offsets
        calls = (  # kind, how many, read from (rows, map), where, written to, at
            ("a", a, source[:, :a], tables.interior, tables.position, everywhere[:, :a], None),
            ("b", b, source[:, a:], tables.interior, at_kept, here[:, :b], None),
            ("c", c, middle.here[:, :c], middle.compact, at_kept, everywhere[:, a:], kept),
            ("d", d, middle.here[:, c:], middle.compact, at_kept, here[:, b:], None),
        )
        for name, count, read, way, pos, out, at in calls:
            if count:
                taps, bias = self.taps[name]
                segments = Taps(read, way, offsets, count)
                target = Target(out, at)
                library.product(pos, segments, taps, count, target, bias=bias, activation=_RELU6, depthwise=True)
        if c:  # at dropped places nothing is read
            everywhere[dropped.long(), a:] = self.taps["c"][1].clamp(0, 6)
        return _Half(everywhere, here, None)

    def project(self, after: _Half, shortcut: Tensor | None, kept: Tensor, dropped: Tensor) -> Tensor:
        """The 1×1 projection, onto the shortcut where there is one."""
        places = len(kept) + len(dropped)
        if self.project_dense is not None:
            out = library.empty(places, self.columns)
        elif shortcut is not None:
            out = shortcut.clone()
        else:
            out = library.empty(places, self.columns)
            library.fill(out, dropped)
        everywhere = [Segment(after.everywhere, None, 0, self.n_out_dense)] if self.n_out_dense else []
        if self.project_dense is not None:
            packed, bias = self.project_dense
            target = Target(out, dropped)
            library.product(
                dropped, everywhere, packed, self.columns, target, bias=bias, activation=_NONE, add=shortcut
            )
        # Kept places are counted off where their sparse channels lie, and listed where the dense ones do.
        numbers = torch.arange(len(kept), dtype=torch.int32)
        read = [Segment(after.everywhere, kept, 0, self.n_out_dense)] if self.n_out_dense else []
        read += [Segment(after.here, None, 0, self.n_out_sparse)] if self.n_out_sparse else []
        packed, bias = self.project_all
        target = Target(out, kept)
        library.product(numbers, read, packed, self.columns, target, bias=bias, activation=_NONE, add=shortcut)
        return out


def _matrix(weight: Tensor) -> Tensor:
    """A 1×1 convolution's weights as (inputs, outputs)."""
    return weight.detach().to(torch.float32).flatten(1).T
