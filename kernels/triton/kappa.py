"""Backward pass 1: ``kappa``, what the step back takes off every column of the gradient."""

import triton
import triton.language as tl

from fastassoc.kernels.triton.buffers import TILE_COUNT
from fastassoc.kernels.triton.gradients import class_products, probabilities
from fastassoc.kernels.triton.primitives import load_rows, slot_rows


@triton.jit
def kappa(
    a_ptr, b_ptr, bias_a_ptr, bias_b_ptr, rows_ptr, columns_ptr, slots_ptr, tiles_ptr, counts_ptr, g_ptr, kappa_ptr,
    N, M, D, scale: tl.float64, TILES, stride_an, stride_ad, stride_bm, stride_bd,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, ONE_D: tl.constexpr,
    PRECISION: tl.constexpr, PRODUCT: tl.constexpr, ONE_TILE: tl.constexpr,
):  # fmt: skip
    """``kappa_j = sum_i p_ab_ij U_ij``.

    A program owns a column tile and all class tiles.
    """
    column = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    column_ok = column < M
    # [BLOCK_M, BLOCK_D]
    b_tile = load_rows(b_ptr, column, column_ok, 0, D, stride_bm, stride_bd, BLOCK_D, PRECISION) if ONE_D else None
    total = tl.zeros([BLOCK_M], dtype=kappa_ptr.dtype.element_ty)
    for tile in range(0, tl.load(counts_ptr + TILE_COUNT)):
        row, row_ok = slot_rows(slots_ptr, tile, BLOCK_N)
        # [BLOCK_N, BLOCK_D]
        a_tile = load_rows(a_ptr, row, row_ok, 0, D, stride_an, stride_ad, BLOCK_D, PRECISION) if ONE_D else None
        p, q = probabilities(
            a_tile, b_tile, a_ptr, b_ptr, bias_a_ptr, bias_b_ptr, rows_ptr, columns_ptr, row, row_ok, column, column_ok,
            N, M, D, scale, stride_an, stride_ad, stride_bm, stride_bd, BLOCK_N, BLOCK_M, BLOCK_D, ONE_D, PRECISION,
        )  # fmt: skip
        u, _ = class_products(
            p, q, tile, b_tile, a_ptr, b_ptr, bias_a_ptr, bias_b_ptr, rows_ptr, columns_ptr, slots_ptr, tiles_ptr,
            g_ptr, column, column_ok, N, M, D, scale, TILES, stride_an, stride_ad, stride_bm, stride_bd,
            False, BLOCK_N, BLOCK_M, BLOCK_D, ONE_D, PRECISION, PRODUCT, ONE_TILE,
        )  # fmt: skip
        total += tl.sum(p * u, 0)
    tl.store(kappa_ptr + column, total, mask=column_ok)
