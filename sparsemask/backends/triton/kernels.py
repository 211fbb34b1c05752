"""Triton kernels of sparse mask convolution: one row of a channels-last tensor per location, indirect convolution.

Importing this module imports triton; :mod:`sparsemask.backends.triton` does so only when asked to compute.
Everything that depends on masks (row lists, channel lists, their lengths) stays on the device: grids are sized for the
most there can be, and a program that finds nothing left leaves at once. So nothing waits for the host, and a network of
these kernels can be captured in a CUDA graph.

A geometry is one compile-time tuple: kernel, stride, padding, dilation (three numbers each, leading ones for fewer
dimensions), transposed, pointwise (rows in are rows out), sorted (rows come in classes that share their taps).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activate(y, ACT: tl.constexpr, SLOPE: tl.constexpr):
    """The activation of a name."""
    # where and not maximum, which drops NaN: a broken network must not look sound
    if ACT == "relu":
        y = tl.where(y < 0, 0.0, y)
    elif ACT == "leaky_relu":
        y = tl.where(y < 0, y * SLOPE, y)
    return y


INTERPRETED = not isinstance(activate, triton.JITFunction)
"""Whether these kernels run in the interpreter; TRITON_INTERPRET counts when this module is first imported.

Importing torch may import triton before, and with it those of its functions that are kernels themselves (zeros, cdiv,
max): they are not used here, so that this module alone decides.
"""

# Pictures differ in size from call to call; compiling anew for every multiple of 16 would pay nothing back.
ANY_SIZE = {
    "do_not_specialize": ["M", "BUCKET", "SH", "SW", "OH", "OW"],
    "do_not_specialize_on_alignment": ["SD", "OD", "kept", "in_counts", "out_counts", "counts", "kept_before"],
}


def configs() -> list[triton.Config]:
    """Tile sizes that are tried on a device."""
    if INTERPRETED:  # nothing can be measured there, and small tiles make small tests cross several of them
        return [triton.Config({"BLOCK_M": 32}, num_warps=1, num_stages=1)]
    tiles = [(64, 4, 3), (128, 4, 3), (128, 8, 3), (64, 4, 4), (32, 4, 3)]
    return [triton.Config({"BLOCK_M": m}, num_warps=warps, num_stages=stages) for m, warps, stages in tiles]


@triton.jit
def locate(row, D, H, W):
    """The four coordinates of a row of a tensor (n, D, H, W)."""
    x = row % W
    row = row // W
    y = row % H
    row = row // H
    return row // D, row % D, y, x


@triton.jit
def along(o, k, size, S: tl.constexpr, P: tl.constexpr, D: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Input coordinate that tap k of output coordinate o reads, and whether there is one."""
    if TRANSPOSED:
        i = o + P - k * D
        inside = (i >= 0) & (i % S == 0)
        i = i // S
        inside = inside & (i < size)
    else:
        i = o * S - P + k * D
        inside = (i >= 0) & (i < size)
    return i, inside


@triton.jit
def source(n, z, y, x, tap, SD, SH, SW, GEO: tl.constexpr):
    """Input row that a tap of output location (n, z, y, x) reads, and whether it lies inside."""
    KH: tl.constexpr = GEO[0][1]
    KW: tl.constexpr = GEO[0][2]
    iz, in_z = along(z, tap // (KH * KW), SD, GEO[1][0], GEO[2][0], GEO[3][0], GEO[4])
    iy, in_y = along(y, (tap // KW) % KH, SH, GEO[1][1], GEO[2][1], GEO[3][1], GEO[4])
    ix, in_x = along(x, tap % KW, SW, GEO[1][2], GEO[2][2], GEO[3][2], GEO[4])
    return ((n * SD + iz) * SH + iy) * SW + ix, in_z & in_y & in_x


@triton.jit
def either(a, b):
    """Bitwise or, for reductions."""
    return a | b


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """acc + a b, in the precision that is asked for."""
    if WIDEN:  # the interpreter keeps bfloat16 as bits and would multiply those
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def conv_tile(
    x, w, row, live, place, count_in, columns, column_ok, in_list, mask_in, unwritten,
    SD, SH, SW, X_STRIDE, W_TAP, W_IN, W_OUT, C_IN: tl.constexpr, GEO: tl.constexpr,
    LISTED: tl.constexpr, MASK_IN: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sum over the taps and `count_in` input channels for one tile of output rows and columns, in float32."""
    TAPS: tl.constexpr = GEO[0][0] * GEO[0][1] * GEO[0][2]
    acc = tl.full((BLOCK_M, BLOCK_N), 0.0, dtype=tl.float32)
    n, z, y, x_ = place
    chunks = (count_in + BLOCK_K - 1) // BLOCK_K
    if MASK_IN:
        # A layer without dense channels never wrote its dropped rows. One bit a tap, found before the loop: a load in
        # it that others wait for would stop their pipelining.
        written = tl.full((BLOCK_M,), -1, dtype=tl.int32)
        if unwritten:
            written = tl.full((BLOCK_M,), 0, dtype=tl.int32)
            for tap in tl.static_range(TAPS):
                at, valid = source(n, z, y, x_, tap, SD, SH, SW, GEO)
                kept = tl.load(mask_in + at, mask=valid & live, other=0) != 0
                written = written | (kept.to(tl.int32) << tap)
    # One flat loop over taps and channels, because only innermost loops are pipelined.
    for step in range(0, TAPS * chunks):
        tap = step // chunks
        k = (step % chunks) * BLOCK_K + tl.arange(0, BLOCK_K)
        if GEO[5]:
            at = row
            valid = live
        else:
            at, valid = source(n, z, y, x_, tap, SD, SH, SW, GEO)
            valid = valid & live
        if MASK_IN:
            valid = valid & ((written >> tap) & 1 == 1)
        if WIDE:
            at = at.to(tl.int64)
        if LISTED:
            c = tl.load(in_list + k, mask=k < count_in, other=0)
        else:
            c = k
        meets = True
        if GEO[6]:  # most taps of a strided transposed convolution meet no row of a tile of one class
            meets = tl.reduce(valid.to(tl.int32), 0, either) != 0
        if meets:
            # Masked by the static number of channels, then by the counted: a mask of unknown length per element
            # would split the loads into single elements.
            a = tl.load(x + at[:, None] * X_STRIDE + c[None, :], mask=valid[:, None] & (k < C_IN)[None, :], other=0.0)
            a = tl.where((k < count_in)[None, :], a, 0.0).to(a.dtype)
            b = tl.load(
                w + tap * W_TAP + c[:, None] * W_IN + columns[None, :] * W_OUT,
                mask=(k < count_in)[:, None] & column_ok[None, :],
                other=0.0,
            )
            acc = product(a, b, acc, PRECISION, WIDEN)
    return acc


@triton.jit(**ANY_SIZE)
def partition(kept_before, order, rows, M, ORDERED: tl.constexpr, BLOCK: tl.constexpr):
    """Kept rows to the front of `rows`, in order; dropped rows to the back. `kept_before`: running count of kept."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < M
    count = tl.load(kept_before + i, mask=inside, other=0).to(tl.int64)
    before = tl.load(kept_before + i - 1, mask=inside & (i > 0), other=0).to(tl.int64)
    kept = tl.load(kept_before + M - 1).to(tl.int64)
    row = i
    if ORDERED:
        row = tl.load(order + i, mask=inside, other=0).to(tl.int64)
    to = tl.where(count > before, count - 1, kept + i - count)
    tl.store(rows + to, row.to(rows.dtype.element_ty), mask=inside)


@triton.autotune(configs=configs(), key=["C_IN", "C_OUT", "GEO", "KEPT", "BUCKET"])
@triton.jit(**ANY_SIZE)
def conv_rows(
    x, w, bias, out, rows, kept, mask_in, in_counts, out_counts, in_list, out_list,
    M, BUCKET, SD, SH, SW, OD, OH, OW, X_STRIDE, OUT_STRIDE, W_GROUP, W_TAP, W_IN, W_OUT,
    C_IN: tl.constexpr, C_OUT: tl.constexpr, GEO: tl.constexpr, KEPT: tl.constexpr, ALL_IN: tl.constexpr,
    LISTED: tl.constexpr, MASK_IN: tl.constexpr, SKIP_EMPTY: tl.constexpr, BIASED: tl.constexpr,
    ACT: tl.constexpr, SLOPE: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Convolution of the kept rows (every channel) or of the dropped rows (dense channels to dense channels).

    Dropped rows get zeros in their sparse channels here, so that nothing clears the output beforehand. `C_IN`, `C_OUT`
    are channels of one group; grid: (tiles of rows and columns, groups).
    """
    tiles: tl.constexpr = (C_OUT + BLOCK_N - 1) // BLOCK_N
    group = tl.program_id(1)
    start = (tl.program_id(0) // tiles) * BLOCK_M
    first_column = (tl.program_id(0) % tiles) * BLOCK_N
    n_kept = tl.load(kept)
    if KEPT:
        first = n_kept * 0
        last = n_kept
        n_in = C_IN
        n_out = C_OUT
    else:
        first = n_kept
        last = n_kept * 0 + M
        n_in = C_IN if ALL_IN else tl.load(in_counts + group).to(tl.int32)
        n_out = tl.load(out_counts + group).to(tl.int32)
        if SKIP_EMPTY and n_out == 0:
            return
    if first + start >= last:
        return
    at = first + start + tl.arange(0, BLOCK_M)
    live = at < last
    row = tl.load(rows + at, mask=live, other=0)
    column = first_column + tl.arange(0, BLOCK_N)
    column_ok = column < C_OUT
    c_out = column
    if LISTED:
        c_out = tl.load(out_list + group * C_OUT + column, mask=column_ok, other=0)
    counted = n_in if KEPT else tl.where(first_column < n_out, n_in, 0)
    unwritten = tl.load(in_counts) == 0 if MASK_IN else False
    acc = conv_tile(
        x + group * C_IN, w + group * W_GROUP, row, live, locate(row, OD, OH, OW), counted, c_out, column_ok,
        in_list + group * C_IN, mask_in, unwritten, SD, SH, SW, X_STRIDE, W_TAP, W_IN, W_OUT, C_IN, GEO,
        LISTED, MASK_IN, PRECISION, WIDEN, WIDE, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    if BIASED:
        acc += tl.load(bias + group * C_OUT + c_out, mask=column_ok, other=0).to(tl.float32)[None, :]
    acc = activate(acc, ACT, SLOPE)
    if not KEPT:
        acc = tl.where((column < n_out)[None, :], acc, 0.0)
    if WIDE:
        row = row.to(tl.int64)
    to = out + row[:, None] * OUT_STRIDE + (group * C_OUT + c_out)[None, :]
    tl.store(to, acc.to(out.dtype.element_ty), mask=live[:, None] & column_ok[None, :])


@triton.jit(**ANY_SIZE)
def conv_small(
    x, w, bias, out, mask, in_dense, out_dense, M, SD, SH, SW, OD, OH, OW, X_STRIDE, OUT_STRIDE,
    W_GROUP, W_TAP, W_IN, W_OUT, C_IN: tl.constexpr, C_OUT: tl.constexpr, TOTAL_OUT: tl.constexpr, GEO: tl.constexpr,
    BIASED: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Few input channels a group (depth-wise above all): no matrix products, every location in natural order.

    What is not needed is not read. `C_IN`, `C_OUT` are channels of one group.
    """
    TAPS: tl.constexpr = GEO[0][0] * GEO[0][1] * GEO[0][2]
    tiles: tl.constexpr = (TOTAL_OUT + BLOCK_N - 1) // BLOCK_N
    row = (tl.program_id(0) // tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = row < M
    column = (tl.program_id(0) % tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    column_ok = column < TOTAL_OUT
    group = column // C_OUT
    kept = tl.load(mask + row, mask=live, other=0) != 0
    dense = tl.load(out_dense + column, mask=column_ok, other=0) != 0
    wanted = (live[:, None] & column_ok[None, :]) & (kept[:, None] | dense[None, :])
    n, z, y, x_ = locate(row, OD, OH, OW)
    acc = tl.full((BLOCK_M, BLOCK_N), 0.0, dtype=tl.float32)
    for tap in range(0, TAPS):
        at, valid = source(n, z, y, x_, tap, SD, SH, SW, GEO)
        if WIDE:
            at = at.to(tl.int64)
        for j in range(0, C_IN):
            c = group * C_IN + j
            alike = tl.load(in_dense + c, mask=column_ok, other=0) != 0
            use = wanted & valid[:, None] & (kept[:, None] | alike[None, :])
            a = tl.load(x + at[:, None] * X_STRIDE + c[None, :], mask=use, other=0.0).to(tl.float32)
            b = tl.load(w + group * W_GROUP + tap * W_TAP + j * W_IN + (column % C_OUT) * W_OUT, mask=column_ok,
                        other=0.0).to(tl.float32)  # fmt: skip
            acc += a * b[None, :]
    if BIASED:
        acc += tl.load(bias + column, mask=column_ok, other=0).to(tl.float32)[None, :]
    acc = tl.where(wanted, activate(acc, ACT, SLOPE), 0.0)
    if WIDE:
        row = row.to(tl.int64)
    to = out + row[:, None] * OUT_STRIDE + column[None, :]
    tl.store(to, acc.to(out.dtype.element_ty), mask=live[:, None] & column_ok[None, :])
