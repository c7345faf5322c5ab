"""Same-class round trips over a range of columns, by pairs of class tiles and shares of the columns."""

import triton
import triton.language as tl

from fastassoc.kernels.triton.buffers import ALPHA, FIRST_PAIR, FIRST_TILE, NO_PAIR, PAIR_COUNT, PLAIN, H
from fastassoc.kernels.triton.forms import column_weight
from fastassoc.kernels.triton.primitives import load_rows, product, split, transposed
from fastassoc.kernels.triton.steps import load_steps, load_values, merged_steps, slot_tile


@triton.jit
def column_shares(pairs, ITEMS, COLUMN_TILES):
    """Shares of the columns of a range: as many as make at most ``ITEMS`` programs, which run at one time, but one."""
    return tl.minimum(tl.maximum(ITEMS // tl.maximum(pairs, 1), 1), COLUMN_TILES)


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
def add_to(ptr, offsets, x, mask, START):
    """Stores ``x``, added to what earlier ranges left there; ``mask`` may be None."""
    if START > 0:
        x += tl.load(ptr + offsets, mask=mask)
    tl.store(ptr + offsets, x, mask=mask)


@triton.jit
def weighted_h(tables, column, valid):
    """``alpha_j h_j``, 0 where there is no column."""
    return column_weight(tables, column, valid, H, 0.0) * column_weight(tables, column, valid, ALPHA, 0.0)


@triton.jit
def round_trips(
    a, b, steps, tables, trips_ptr, rho_ptr, D, scale: tl.float64, ITEMS,
    WALKER: tl.constexpr, SIDES: tl.constexpr, STORED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """Shares of ``sum_j left_ij right_kj`` and, for the visits, of ``sum_j left_ij alpha_j h_j``.

    A program owns an item: a pair (I, K) of class tiles and a share of the range. Adds to ``trips``, and to ``rho``
    unless it is None. Steps that are not ``STORED`` are computed (`fastassoc.kernels.triton.steps`).
    """
    ACC: tl.constexpr = tables.weights_ptr.dtype.element_ty
    item = tl.program_id(0)
    pairs = tl.load(tables.counts_ptr + PAIR_COUNT)
    column_tiles = steps.CHUNK // BLOCK_M
    shares = column_shares(pairs, ITEMS, column_tiles)
    if item >= pairs * shares:
        return
    # 1. The pair.
    tile_i = item // shares
    tile_k = tile_i
    side = 0
    if STORED:
        pair = tile_i
        tile_i = tile_of_pair(tables.tiles_ptr, pair, tables.TILES, 128)
        first_tile = tl.load(tables.tiles_ptr + FIRST_TILE * tables.TILES + tile_i)
        tile_k = first_tile + pair - tl.load(tables.tiles_ptr + FIRST_PAIR * tables.TILES + tile_i)
        if SIDES == 2:
            side = tl.load(tables.counts_ptr + PLAIN)
        # Merged, a product is symmetric, and the other pair takes its transpose.
        if side == 0:  # noqa: SIM102
            if tile_k < tile_i:
                return
    a_tile = None if STORED else slot_tile(a, tables, tile_i, D, BLOCK_N, BLOCK_D, PRECISION)  # [BLOCK_N, BLOCK_D]
    # 2. The columns of this share.
    trips = tl.zeros([BLOCK_N, BLOCK_N], dtype=ACC)
    rho = tl.zeros([BLOCK_N], dtype=ACC)
    share = tl.cdiv(column_tiles, shares) * BLOCK_M
    start = item % shares * share
    end = tl.minimum(start + share, tl.minimum(steps.CHUNK, tables.M - steps.START))
    for first in range(start, end, BLOCK_M):
        column = (steps.START + first + tl.arange(0, BLOCK_M)).to(tl.int64)
        valid = column < tables.M
        if rho_ptr is not None and not STORED:
            h = weighted_h(tables, column, valid)
        if STORED:
            if WALKER:
                left = load_steps(steps, 0, tile_i, first, BLOCK_M, BLOCK_N, PRODUCT)  # [BLOCK_M, BLOCK_N]
                right = load_steps(steps, side, tile_k, first, BLOCK_M, BLOCK_N, PRODUCT)  # [BLOCK_M, BLOCK_N]
                trips = product(transposed(left), right, trips)
        else:
            b_tile = load_rows(b, column, valid, 0, D, BLOCK_D, PRECISION)  # [BLOCK_M, BLOCK_D]
            exact = merged_steps(
                a, b, tables, tile_i, column, a_tile, b_tile, D, scale, True, BLOCK_N, BLOCK_M, BLOCK_D, PRECISION
            )  # [BLOCK_N, BLOCK_M]
            if WALKER:
                left = split(exact, PRODUCT)
                trips = product(left, transposed(left), trips)
            if rho_ptr is not None:
                rho += tl.sum(exact * h[None, :], 1)
    if rho_ptr is not None and STORED:  # noqa: SIM102
        if tile_k == tile_i:
            for first in range(start, end, BLOCK_M):
                column = (steps.START + first + tl.arange(0, BLOCK_M)).to(tl.int64)
                left = load_values(steps, tile_i, first, ACC, BLOCK_M, BLOCK_N, PRODUCT)
                rho += tl.sum(left * weighted_h(tables, column, column < tables.M)[:, None], 0)
    # 3. Add the share.
    offs = tl.arange(0, BLOCK_N)
    base = item.to(tl.int64) * BLOCK_N
    if WALKER:
        offsets = (base + offs[:, None]) * BLOCK_N + offs[None, :]
        add_to(trips_ptr, offsets, trips, None, steps.START)
    if rho_ptr is not None:  # noqa: SIM102
        if tile_k == tile_i:
            add_to(rho_ptr, base + offs, rho, None, steps.START)
