"""Backward pass 2: ``db`` and the gradient of ``bias_b``."""

import triton
import triton.language as tl

from fastassoc.kernels.triton.buffers import TILE_COUNT
from fastassoc.kernels.triton.gradients import score_gradient
from fastassoc.kernels.triton.primitives import load_rows, product, rounded, slot_rows


@triton.jit
def column_gradients(
    a_ptr, b_ptr, bias_a_ptr, bias_b_ptr, rows_ptr, columns_ptr, kappa_ptr, slots_ptr, tiles_ptr, counts_ptr, g_ptr,
    grad_walker_ptr, grad_visit_ptr, db_ptr, dbias_b_ptr,
    N, M, D, scale: tl.float64, TILES, stride_an, stride_ad, stride_bm, stride_bd,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, ONE_D: tl.constexpr,
    PRECISION: tl.constexpr, PRODUCT: tl.constexpr, ONE_TILE: tl.constexpr,
):  # fmt: skip
    """``db_j = scale sum_i ds_ij a_i`` and ``dbias_b_j = sum_i ds_ij``.

    A program owns a column tile, BLOCK_D columns of the embedding, and all class tiles.
    """
    ACC: tl.constexpr = rows_ptr.dtype.element_ty
    d = tl.program_id(1) * BLOCK_D
    column = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    column_ok = column < M
    # [BLOCK_M, BLOCK_D]
    b_tile = load_rows(b_ptr, column, column_ok, 0, D, stride_bm, stride_bd, BLOCK_D, PRECISION) if ONE_D else None
    # Transposed, so that the tile of columns may be narrower than a tensor-core instruction is high.
    db = tl.zeros([BLOCK_D, BLOCK_M], dtype=ACC)
    total = tl.zeros([BLOCK_M], dtype=ACC)
    for tile in range(0, tl.load(counts_ptr + TILE_COUNT)):
        row, row_ok = slot_rows(slots_ptr, tile, BLOCK_N)
        # [BLOCK_N, BLOCK_D]
        a_tile = load_rows(a_ptr, row, row_ok, 0, D, stride_an, stride_ad, BLOCK_D, PRECISION) if ONE_D else None
        ds = score_gradient(
            tile, row, row_ok, a_tile, b_tile, a_ptr, b_ptr, bias_a_ptr, bias_b_ptr, rows_ptr, columns_ptr, kappa_ptr,
            slots_ptr, tiles_ptr, g_ptr, grad_walker_ptr, grad_visit_ptr, column, column_ok,
            N, M, D, scale, TILES, stride_an, stride_ad, stride_bm, stride_bd,
            BLOCK_N, BLOCK_M, BLOCK_D, ONE_D, PRECISION, PRODUCT, ONE_TILE,
        )  # [BLOCK_N, BLOCK_M]  # fmt: skip
        if not ONE_D:
            a_tile = load_rows(a_ptr, row, row_ok, d, D, stride_an, stride_ad, BLOCK_D, PRODUCT)
        db = product(tl.trans(a_tile), rounded(ds, PRODUCT), db, PRODUCT)
        if dbias_b_ptr is not None:
            total += tl.sum(ds, 0)
    offs_d = d + tl.arange(0, BLOCK_D)
    mask = column_ok[None, :] & (offs_d < D)[:, None]
    tl.store(db_ptr + column[None, :] * D + offs_d[:, None], db * tl.full([1, 1], scale, ACC), mask=mask)
    if dbias_b_ptr is not None:
        tl.store(dbias_b_ptr + column, total, mask=column_ok & (d == 0))
