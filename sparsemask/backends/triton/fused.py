"""Triton kernels for a whole block: the last layer together with the 1x1 convolution over all layers' features."""

from __future__ import annotations

import triton
import triton.language as tl

from sparsemask.backends.triton.kernels import ANY_SIZE, activate, configs, conv_tile, locate, product


@triton.autotune(configs=configs(), key=["C_IN", "C_MID", "C_OUT", "GEO", "BUCKET"])
@triton.jit(**ANY_SIZE)
def block_tail(
    x, w, features, collect, bias, out, rows, kept, mask_in, in_counts,
    M, BUCKET, SD, SH, SW, X_STRIDE, F_STRIDE, OUT_STRIDE, W_TAP, W_IN, W_OUT,
    C_IN: tl.constexpr, C_MID: tl.constexpr, BEFORE: tl.constexpr, C_OUT: tl.constexpr, GEO: tl.constexpr,
    MASK_IN: tl.constexpr, BIASED: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Last layer of a block and the 1x1 convolution over all its layers, for kept rows.

    The last layer's features never leave the registers; those of earlier layers are columns [0, BEFORE) of `features`.
    """
    start = tl.program_id(0) * BLOCK_M
    n_kept = tl.load(kept)
    if start >= n_kept:
        return
    at = start + tl.arange(0, BLOCK_M)
    live = at < n_kept
    row = tl.load(rows + at, mask=live, other=0)
    mid = tl.arange(0, BLOCK_N)
    unwritten = tl.load(in_counts) == 0 if MASK_IN else False
    acc = conv_tile(
        x, w, row, live, locate(row, SD, SH, SW), C_IN, mid, mid < C_MID, in_counts, mask_in, unwritten,
        SD, SH, SW, X_STRIDE, W_TAP, W_IN, W_OUT, C_IN, GEO,
        False, MASK_IN, PRECISION, WIDEN, WIDE, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    feature = activate(acc, ACT, SLOPE).to(features.dtype.element_ty)
    column = tl.arange(0, BLOCK_C)
    column_ok = column < C_OUT
    own = tl.load(collect + (BEFORE + mid)[:, None] * C_OUT + column[None, :],
                  mask=(mid < C_MID)[:, None] & column_ok[None, :], other=0.0)  # fmt: skip
    total = product(feature, own, tl.full((BLOCK_M, BLOCK_C), 0.0, dtype=tl.float32), PRECISION, WIDEN)
    if WIDE:
        row = row.to(tl.int64)
    for start_k in range(0, BEFORE, BLOCK_K):
        k = start_k + tl.arange(0, BLOCK_K)
        a = tl.load(features + row[:, None] * F_STRIDE + k[None, :], mask=live[:, None] & (k < BEFORE)[None, :],
                    other=0.0)  # fmt: skip
        b = tl.load(collect + k[:, None] * C_OUT + column[None, :], mask=(k < BEFORE)[:, None] & column_ok[None, :],
                    other=0.0)  # fmt: skip
        total = product(a, b, total, PRECISION, WIDEN)
    if BIASED:
        total += tl.load(bias + column, mask=column_ok, other=0).to(tl.float32)[None, :]
    to = out + row[:, None] * OUT_STRIDE + column[None, :]
    tl.store(to, total.to(out.dtype.element_ty), mask=live[:, None] & column_ok[None, :])


@triton.autotune(configs=configs(), key=["LAYERS", "C_MID", "C_OUT", "BUCKET"])
@triton.jit(**ANY_SIZE)
def collect_dropped(
    features, collect, bias, out, rows, kept, counts, M, BUCKET, F_STRIDE, OUT_STRIDE,
    LAYERS: tl.constexpr, C_MID: tl.constexpr, C_OUT: tl.constexpr, BIASED: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr, WIDE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """The 1x1 convolution for dropped rows: of layer l's columns only the first counts[l] (its dense channels).

    A layer with any wrote zeros beside them, so what a chunk reads beyond the count adds nothing.
    """
    tiles: tl.constexpr = (C_OUT + BLOCK_N - 1) // BLOCK_N
    start = (tl.program_id(0) // tiles) * BLOCK_M + tl.load(kept)
    if start >= M:
        return
    at = start + tl.arange(0, BLOCK_M)
    live = at < M
    row = tl.load(rows + at, mask=live, other=0)
    if WIDE:
        row = row.to(tl.int64)
    column = (tl.program_id(0) % tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    column_ok = column < C_OUT
    total = tl.full((BLOCK_M, BLOCK_N), 0.0, dtype=tl.float32)
    for layer in range(0, LAYERS):
        count = tl.load(counts + layer).to(tl.int32)
        for start_k in range(0, count, BLOCK_K):
            k = start_k + tl.arange(0, BLOCK_K)
            a = tl.load(features + row[:, None] * F_STRIDE + (layer * C_MID + k)[None, :],
                        mask=live[:, None] & (k < C_MID)[None, :], other=0.0)  # fmt: skip
            b = tl.load(collect + (layer * C_MID + k)[:, None] * C_OUT + column[None, :],
                        mask=(k < count)[:, None] & column_ok[None, :], other=0.0)  # fmt: skip
            total = product(a, b, total, PRECISION, WIDEN)
    if BIASED:
        total += tl.load(bias + column, mask=column_ok, other=0).to(tl.float32)[None, :]
    to = out + row[:, None] * OUT_STRIDE + column[None, :]
    tl.store(to, total.to(out.dtype.element_ty), mask=live[:, None] & column_ok[None, :])
