"""Pass 5: same-class round trips, by pairs of class tiles and ranges of columns."""

import triton
import triton.language as tl

from fastassoc.kernels.triton.buffers import FIRST_PAIR, FIRST_TILE, NO_PAIR, PAIR_COUNT, H
from fastassoc.kernels.triton.primitives import load_normaliser, load_rows, product, rounded, scores, slot_rows


@triton.jit
def column_splits(pairs, ITEMS, COLUMN_TILES, MAX_SPLITS):
    """Ranges of columns into which every pair of tiles is split, so that there are about ``ITEMS`` programs."""
    return tl.minimum(tl.minimum(tl.cdiv(ITEMS, tl.maximum(pairs, 1)), COLUMN_TILES), MAX_SPLITS)


@triton.jit
def tile_of_pair(tiles_ptr, pair, TILES, BLOCK_T: tl.constexpr):
    """The tile ``I`` whose pairs include ``pair``: first pairs rise from tile to tile."""
    tile = -1
    for start in range(0, TILES, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        first_pair = tl.load(tiles_ptr + FIRST_PAIR * TILES + t, mask=t < TILES, other=NO_PAIR)
        tile += tl.sum((first_pair <= pair).to(tl.int32), 0)
    return tile


@triton.jit
def round_trips(
    a_ptr, b_ptr, bias_a_ptr, bias_b_ptr, rows_ptr, columns_ptr, slots_ptr, tiles_ptr, counts_ptr, trips_ptr, rho_ptr,
    N, M, D, scale: tl.float64, TILES, ITEMS, MAX_SPLITS, stride_an, stride_ad, stride_bm, stride_bd,
    WALKER: tl.constexpr, VISIT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    ONE_D: tl.constexpr, PRECISION: tl.constexpr, PRODUCT: tl.constexpr, ONE_TILE: tl.constexpr,
):  # fmt: skip
    """``l_i p_aba_ik = sum_j exp(s_ij - m_i) q_kj`` and ``l_i rho_i = sum_j exp(s_ij - m_i) h_j``, shares of both.

    A program owns an item: a pair (I, K) of class tiles and a range of column tiles. Fills ``trips`` and ``rho``.
    """
    ACC: tl.constexpr = columns_ptr.dtype.element_ty
    item = tl.program_id(0)
    pairs = tl.load(counts_ptr + PAIR_COUNT)
    column_tiles = tl.cdiv(M, BLOCK_M)
    splits = column_splits(pairs, ITEMS, column_tiles, MAX_SPLITS)
    if item >= pairs * splits:
        return
    # 1. The pair and its rows.
    pair = item // splits
    tile_i = tile_of_pair(tiles_ptr, pair, TILES, 128)
    first_tile = tl.load(tiles_ptr + FIRST_TILE * TILES + tile_i)
    tile_k = first_tile + pair - tl.load(tiles_ptr + FIRST_PAIR * TILES + tile_i)
    row_i, ok_i = slot_rows(slots_ptr, tile_i, BLOCK_N)
    row_k, ok_k = slot_rows(slots_ptr, tile_k, BLOCK_N)
    m_i, _ = load_normaliser(rows_ptr, row_i, ok_i, N)
    # [BLOCK_N, BLOCK_D]
    a_i = load_rows(a_ptr, row_i, ok_i, 0, D, stride_an, stride_ad, BLOCK_D, PRECISION) if ONE_D else None
    # 2. The columns of this split.
    trips = tl.zeros([BLOCK_N, BLOCK_N], dtype=ACC)
    rho = tl.zeros([BLOCK_N], dtype=ACC)
    share = tl.cdiv(column_tiles, splits)
    start = item % splits * share
    for tile in range(start, tl.minimum(start + share, column_tiles)):
        column = (tile * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
        column_ok = column < M
        m_j, inverse_j = load_normaliser(columns_ptr, column, column_ok, M)
        # [BLOCK_M, BLOCK_D]
        b_tile = load_rows(b_ptr, column, column_ok, 0, D, stride_bm, stride_bd, BLOCK_D, PRECISION) if ONE_D else None
        s = scores(
            a_i, b_tile, a_ptr, b_ptr, row_i, ok_i, column, column_ok, bias_a_ptr, bias_b_ptr, D, scale,
            stride_an, stride_ad, stride_bm, stride_bd, ACC, BLOCK_N, BLOCK_M, BLOCK_D, ONE_D, PRECISION,
        )  # [BLOCK_N, BLOCK_M]  # fmt: skip
        t = tl.exp2(s - m_i[:, None])
        if VISIT:
            h = tl.load(columns_ptr + H * tl.cast(M, tl.int64) + column, mask=column_ok, other=0.0)
            weighted = t * h[None, :]
            if PRECISION == "differences":
                # Where a lane holds one column: its exact product plus a rounded one of another lane differs by lane.
                weighted = tl.fma(t, h[None, :], 0.0)
            rho += tl.sum(weighted, 1)
        if WALKER:
            if not ONE_TILE:  # noqa: SIM102
                # A class within one tile needs its scores once.
                if tile_k != tile_i:
                    a_k = None
                    if ONE_D:
                        # [BLOCK_N, BLOCK_D]
                        a_k = load_rows(a_ptr, row_k, ok_k, 0, D, stride_an, stride_ad, BLOCK_D, PRECISION)
                    s = scores(
                        a_k, b_tile, a_ptr, b_ptr, row_k, ok_k, column, column_ok, bias_a_ptr, bias_b_ptr, D, scale,
                        stride_an, stride_ad, stride_bm, stride_bd, ACC, BLOCK_N, BLOCK_M, BLOCK_D, ONE_D, PRECISION,
                    )  # [BLOCK_N, BLOCK_M]  # fmt: skip
            q = tl.exp2(s - m_j[None, :]) * inverse_j[None, :]
            trips = product(rounded(t, PRODUCT), tl.trans(rounded(q, PRODUCT)), trips, PRODUCT)
    # 3. Store the share.
    offs = tl.arange(0, BLOCK_N)
    base = item.to(tl.int64) * BLOCK_N
    if WALKER:
        tl.store(trips_ptr + base * BLOCK_N + offs[:, None] * BLOCK_N + offs[None, :], trips)
    if VISIT:
        tl.store(rho_ptr + base + offs, rho)
