"""Backward passes 3 and 4: ``da`` and the gradient of ``bias_a``, by ranges of columns, and their sum."""

import triton
import triton.language as tl

from fastassoc.kernels.triton.buffers import INVERSE_SUM, TILE_COUNT
from fastassoc.kernels.triton.gradients import score_gradient
from fastassoc.kernels.triton.primitives import load_rows, product, rounded, slot_rows


@triton.jit
def row_gradients(
    a_ptr, b_ptr, bias_a_ptr, bias_b_ptr, rows_ptr, columns_ptr, kappa_ptr, slots_ptr, tiles_ptr, counts_ptr, g_ptr,
    grad_walker_ptr, grad_visit_ptr, da_ptr, dbias_a_ptr,
    N, M, D, scale: tl.float64, TILES, stride_an, stride_ad, stride_bm, stride_bd,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, ONE_D: tl.constexpr,
    PRECISION: tl.constexpr, PRODUCT: tl.constexpr, ONE_TILE: tl.constexpr,
):  # fmt: skip
    """``da_i = scale sum_j ds_ij b_j`` and ``dbias_a_i = sum_j ds_ij``, shares of both.

    A program owns a class tile, one of num_programs(1) ranges of columns, and BLOCK_D columns of the embedding.
    ``da_ptr`` and ``dbias_a_ptr`` are ``da_parts`` and ``dbias_a_parts``.
    """
    ACC: tl.constexpr = rows_ptr.dtype.element_ty
    tile = tl.program_id(0)
    if tile >= tl.load(counts_ptr + TILE_COUNT):
        return
    split = tl.program_id(1)
    d = tl.program_id(2) * BLOCK_D
    row, row_ok = slot_rows(slots_ptr, tile, BLOCK_N)
    # [BLOCK_N, BLOCK_D]
    a_tile = load_rows(a_ptr, row, row_ok, 0, D, stride_an, stride_ad, BLOCK_D, PRECISION) if ONE_D else None
    da = tl.zeros([BLOCK_N, BLOCK_D], dtype=ACC)
    total = tl.zeros([BLOCK_N], dtype=ACC)
    column_tiles = tl.cdiv(M, BLOCK_M)
    share = tl.cdiv(column_tiles, tl.num_programs(1))
    for column_tile in range(split * share, tl.minimum(split * share + share, column_tiles)):
        column = (column_tile * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
        column_ok = column < M
        # [BLOCK_M, BLOCK_D]
        b_tile = load_rows(b_ptr, column, column_ok, 0, D, stride_bm, stride_bd, BLOCK_D, PRECISION) if ONE_D else None
        ds = score_gradient(
            tile, row, row_ok, a_tile, b_tile, a_ptr, b_ptr, bias_a_ptr, bias_b_ptr, rows_ptr, columns_ptr, kappa_ptr,
            slots_ptr, tiles_ptr, g_ptr, grad_walker_ptr, grad_visit_ptr, column, column_ok,
            N, M, D, scale, TILES, stride_an, stride_ad, stride_bm, stride_bd,
            BLOCK_N, BLOCK_M, BLOCK_D, ONE_D, PRECISION, PRODUCT, ONE_TILE,
        )  # [BLOCK_N, BLOCK_M]  # fmt: skip
        if not ONE_D:
            b_tile = load_rows(b_ptr, column, column_ok, d, D, stride_bm, stride_bd, BLOCK_D, PRODUCT)
        da = product(rounded(ds, PRODUCT), b_tile, da, PRODUCT)
        if dbias_a_ptr is not None:
            total += tl.sum(ds, 1)
    offs_d = d + tl.arange(0, BLOCK_D)
    line = split.to(tl.int64) * N + row
    mask = row_ok[:, None] & (offs_d < D)[None, :]
    tl.store(da_ptr + line[:, None] * D + offs_d[None, :], da * tl.full([1, 1], scale, ACC), mask=mask)
    if dbias_a_ptr is not None:
        tl.store(dbias_a_ptr + line, total, mask=row_ok & (d == 0))


@triton.jit
def add_shares(
    da_parts_ptr, dbias_a_parts_ptr, rows_ptr, da_ptr, dbias_a_ptr,
    N, D, SPLITS, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``da`` and ``dbias_a`` from their shares, added in order; 0 for rows that take no part."""
    row = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    # The inverse sum of a row that takes no part is 0.
    row_ok = tl.load(rows_ptr + INVERSE_SUM * N + row, mask=row < N, other=0.0) != 0.0
    offs_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    offsets = row[:, None] * D + offs_d[None, :]
    mask = row_ok[:, None] & (offs_d < D)[None, :]
    da = tl.zeros([BLOCK_N, BLOCK_D], dtype=rows_ptr.dtype.element_ty)
    total = tl.zeros([BLOCK_N], dtype=rows_ptr.dtype.element_ty)
    for split in range(0, SPLITS):
        start = tl.cast(split, tl.int64) * N
        da += tl.load(da_parts_ptr + start * D + offsets, mask=mask, other=0.0)
        if dbias_a_ptr is not None:
            total += tl.load(dbias_a_parts_ptr + start + row, mask=row_ok, other=0.0)
    tl.store(da_ptr + offsets, da, mask=(row < N)[:, None] & (offs_d < D)[None, :])
    if dbias_a_ptr is not None:
        tl.store(dbias_a_ptr + row, total, mask=(row < N) & (tl.program_id(1) == 0))
