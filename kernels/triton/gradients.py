"""The gradient of a tile of scores, which the three backward passes share."""

import triton
import triton.language as tl

from fastassoc.kernels.triton.buffers import CLASS_TILES, FIRST_PAIR, FIRST_TILE, RHO_VISIT, RHO_WALKER, H
from fastassoc.kernels.triton.primitives import load_normaliser, load_rows, product, rounded, scores, slot_rows


@triton.jit
def probabilities(
    a_tile, b_tile, a_ptr, b_ptr, bias_a_ptr, bias_b_ptr, rows_ptr, columns_ptr, row, row_ok, column, column_ok,
    N, M, D, scale, stride_an, stride_ad, stride_bm, stride_bd,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, ONE_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``p_ab_ij = exp(s_ij - lse_a_i)`` and ``q_ij = exp(s_ij - lse_b_j)``, both [BLOCK_N, BLOCK_M]."""
    s = scores(
        a_tile, b_tile, a_ptr, b_ptr, row, row_ok, column, column_ok, bias_a_ptr, bias_b_ptr, D, scale,
        stride_an, stride_ad, stride_bm, stride_bd, rows_ptr.dtype.element_ty,
        BLOCK_N, BLOCK_M, BLOCK_D, ONE_D, PRECISION,
    )  # fmt: skip
    m_i, inverse_i = load_normaliser(rows_ptr, row, row_ok, N)
    m_j, inverse_j = load_normaliser(columns_ptr, column, column_ok, M)
    p = tl.exp2(s - m_i[:, None]) * inverse_i[:, None]
    q = tl.exp2(s - m_j[None, :]) * inverse_j[None, :]
    return p, q


@triton.jit
def load_g(g_ptr, pair, BLOCK_N: tl.constexpr):
    """``G`` of a pair of tiles, as products round it, [BLOCK_N, BLOCK_N]."""
    offs = tl.arange(0, BLOCK_N)
    return tl.load(g_ptr + (pair.to(tl.int64) * BLOCK_N + offs[:, None]) * BLOCK_N + offs[None, :])


@triton.jit
def class_products(
    p, q, tile, b_tile, a_ptr, b_ptr, bias_a_ptr, bias_b_ptr, rows_ptr, columns_ptr, slots_ptr, tiles_ptr, g_ptr,
    column, column_ok, N, M, D, scale, TILES, stride_an, stride_ad, stride_bm, stride_bd,
    BACK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, ONE_D: tl.constexpr,
    PRECISION: tl.constexpr, PRODUCT: tl.constexpr, ONE_TILE: tl.constexpr,
):  # fmt: skip
    """``U_ij = sum_k G_ik q_kj`` and, if ``BACK``, ``W_ij = sum_k G_ki p_ab_kj`` for the rows of a class tile."""
    pair = tl.load(tiles_ptr + FIRST_PAIR * TILES + tile)
    first = tl.load(tiles_ptr + FIRST_TILE * TILES + tile)
    count = tl.load(tiles_ptr + CLASS_TILES * TILES + tile)
    # 1. Round trips within the tile.
    g = load_g(g_ptr, pair + tile - first, BLOCK_N)
    u = product(g, rounded(q, PRODUCT), tl.zeros_like(q), PRODUCT)  # [BLOCK_N, BLOCK_M]
    w = u
    if BACK:
        w = product(tl.trans(g), rounded(p, PRODUCT), tl.zeros_like(p), PRODUCT)  # [BLOCK_N, BLOCK_M]
    # 2. To and from the other tiles of its class, whose first pairs are ``count`` apart. Known to have none, the loop
    # around this is the innermost one, the only one that is pipelined.
    if not ONE_TILE:
        for step in range(1, count):
            other = (tile - first + step) % count
            row, row_ok = slot_rows(slots_ptr, first + other, BLOCK_N)
            # [BLOCK_N, BLOCK_D]
            a_tile = load_rows(a_ptr, row, row_ok, 0, D, stride_an, stride_ad, BLOCK_D, PRECISION) if ONE_D else None
            p_k, q_k = probabilities(
                a_tile, b_tile, a_ptr, b_ptr, bias_a_ptr, bias_b_ptr, rows_ptr, columns_ptr, row, row_ok,
                column, column_ok, N, M, D, scale, stride_an, stride_ad, stride_bm, stride_bd,
                BLOCK_N, BLOCK_M, BLOCK_D, ONE_D, PRECISION,
            )  # fmt: skip
            u = product(load_g(g_ptr, pair + other, BLOCK_N), rounded(q_k, PRODUCT), u, PRODUCT)
            if BACK:
                back = pair + (other - (tile - first)) * count + tile - first
                w = product(tl.trans(load_g(g_ptr, back, BLOCK_N)), rounded(p_k, PRODUCT), w, PRODUCT)
    return u, w


@triton.jit
def score_gradient(
    tile, row, row_ok, a_tile, b_tile, a_ptr, b_ptr, bias_a_ptr, bias_b_ptr, rows_ptr, columns_ptr, kappa_ptr,
    slots_ptr, tiles_ptr, g_ptr, grad_walker_ptr, grad_visit_ptr, column, column_ok,
    N, M, D, scale, TILES, stride_an, stride_ad, stride_bm, stride_bd,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, ONE_D: tl.constexpr,
    PRECISION: tl.constexpr, PRODUCT: tl.constexpr, ONE_TILE: tl.constexpr,
):  # fmt: skip
    """``ds_ij = p_ab_ij (U_ij + h_j - rho_i) + q_ij (W_ij - kappa_j)`` [BLOCK_N, BLOCK_M]; 0 for no row, no column.

    A term whose upstream gradient is None is left out; that gradient is in none of ``G``, ``h``, ``rho``, ``kappa``.
    """
    p, q = probabilities(
        a_tile, b_tile, a_ptr, b_ptr, bias_a_ptr, bias_b_ptr, rows_ptr, columns_ptr, row, row_ok, column, column_ok,
        N, M, D, scale, stride_an, stride_ad, stride_bm, stride_bd, BLOCK_N, BLOCK_M, BLOCK_D, ONE_D, PRECISION,
    )  # fmt: skip
    ds = tl.zeros_like(p)
    if grad_visit_ptr is not None:
        h = tl.load(columns_ptr + H * tl.cast(M, tl.int64) + column, mask=column_ok, other=0.0)
        rho = tl.load(rows_ptr + RHO_VISIT * tl.cast(N, tl.int64) + row, mask=row_ok, other=0.0)
        ds += tl.load(grad_visit_ptr) * (p * (h[None, :] - rho[:, None]))
    if grad_walker_ptr is not None:
        u, w = class_products(
            p, q, tile, b_tile, a_ptr, b_ptr, bias_a_ptr, bias_b_ptr, rows_ptr, columns_ptr, slots_ptr, tiles_ptr,
            g_ptr, column, column_ok, N, M, D, scale, TILES, stride_an, stride_ad, stride_bm, stride_bd,
            True, BLOCK_N, BLOCK_M, BLOCK_D, ONE_D, PRECISION, PRODUCT, ONE_TILE,
        )  # fmt: skip
        rho = tl.load(rows_ptr + RHO_WALKER * tl.cast(N, tl.int64) + row, mask=row_ok, other=0.0)
        kappa = tl.load(kappa_ptr + column, mask=column_ok, other=0.0)
        ds += tl.load(grad_walker_ptr) * (p * (u - rho[:, None]) + q * (w - kappa[None, :]))
    return ds
