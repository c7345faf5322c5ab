"""Same-class round trips over a range of columns, by pairs of class tiles and shares of the columns."""

import triton
import triton.language as tl

from fastassoc.kernels.triton.buffers import (
    ALPHA,
    CLASS_TILES,
    FIRST_PAIR,
    FIRST_TILE,
    NO_PAIR,
    PAIR_COUNT,
    PLAIN,
    TILE_COUNT,
    H,
)
from fastassoc.kernels.triton.forms import column_weight
from fastassoc.kernels.triton.primitives import load_rows, product, split, transposed
from fastassoc.kernels.triton.steps import (
    class_steps,
    load_values,
    merged_steps,
    other_way,
    recomputed_steps,
    slot_tile,
    tile_shifts,
)


@triton.jit
def column_shares(owners, ITEMS, COLUMN_TILES):
    """Shares of the columns of a range: as many as make at most ``ITEMS`` programs, which run at one time, but one."""
    return tl.minimum(tl.maximum(ITEMS // tl.maximum(owners, 1), 1), COLUMN_TILES)


@triton.jit
def trip_count(tables, side):
    """Pairs of tiles that have round trips of their own: all, or where ``side`` is 0 those that mirror no other."""
    pairs = tl.load(tables.counts_ptr + PAIR_COUNT)
    # A class of T tiles has T^2 pairs, T (T + 1) / 2 of them (I, K) with K >= I.
    return tl.where(side == 0, (pairs + tl.load(tables.counts_ptr + TILE_COUNT)) // 2, pairs)


@triton.jit
def first_trip(tables, tile, valid, side):
    """Number of the first round trips of a tile ``I``, with ``K = I`` where ``side`` is 0, else the first of its class.

    They rise from tile to tile; `NO_PAIR` where not ``valid``, which may be None.
    """
    LAST: tl.constexpr = None if valid is None else NO_PAIR
    NONE: tl.constexpr = None if valid is None else 0
    pair = tl.load(tables.tiles_ptr + FIRST_PAIR * tables.TILES + tile, mask=valid, other=LAST)
    first = tl.load(tables.tiles_ptr + FIRST_TILE * tables.TILES + tile, mask=valid, other=NONE)
    count = tl.load(tables.tiles_ptr + CLASS_TILES * tables.TILES + tile, mask=valid, other=NONE)
    before = tile - first
    # Of earlier classes, and of earlier tiles of this one.
    mirrors = (pair - before * count - first) // 2 + before * (before - 1) // 2
    return tl.where((side == 0) & (pair != NO_PAIR), pair - mirrors, pair)


@triton.jit
def tile_of_trip(tables, trip, side, BLOCK_T: tl.constexpr):
    """The tile ``I`` that has the round trips of that number."""
    tile = -1
    tiles = tl.load(tables.counts_ptr + TILE_COUNT)
    for start in range(0, tiles, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        tile += tl.sum((first_trip(tables, t, t < tiles, side) <= trip).to(tl.int32), 0)
    return tile


@triton.jit
def add_to(ptr, offsets, x, mask, START):
    """Stores ``x``, added to what earlier ranges left there; ``mask`` may be None."""
    if START > 0:
        x += tl.load(ptr + offsets, mask=mask)
        # Several warps may have the same numbers of a small tile: none stores a sum that another has yet to load.
        tl.debug_barrier()
    tl.store(ptr + offsets, x, mask=mask)


@triton.jit
def weighted_h(tables, column, valid):
    """``alpha_j h_j``, 0 where there is no column."""
    return column_weight(tables, column, valid, H, 0.0) * column_weight(tables, column, valid, ALPHA, 0.0)


@triton.jit
def round_trips(
    a, b, steps, tables, trips_ptr, rho_ptr, D, scale: tl.float64, ITEMS,
    WALKER: tl.constexpr, SIDES: tl.constexpr, WAY: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """Shares of ``sum_j left_ij right_kj`` and, for the visits, of ``sum_j left_ij alpha_j h_j``.

    A program owns an item: a pair (I, K) of class tiles, in the merged form with K >= I, and a share of the range. Adds
    to ``trips``, and to ``rho`` unless it is None. ``WAY`` is that of the steps (`fastassoc.kernels.triton.steps`).
    """
    ACC: tl.constexpr = tables.weights_ptr.dtype.element_ty
    if WAY != "stored":  # noqa: SIM102
        if other_way(tables, WAY):
            return
    item = tl.program_id(0)
    # Merged, a product is symmetric, and the mirrored pair takes its transpose.
    side = tl.cast(0, tl.int32)
    if SIDES == 2:
        side = tl.load(tables.counts_ptr + PLAIN)
    trips_of_all = trip_count(tables, side)
    column_tiles = steps.CHUNK // BLOCK_M
    shares = column_shares(trips_of_all, ITEMS, column_tiles)
    if item >= trips_of_all * shares:
        return
    # 1. The pair.
    tile_i = item // shares
    tile_k = tile_i
    if WAY != "computed":
        trip = tile_i
        tile_i = tile_of_trip(tables, trip, side, 128)
        first_tile = tl.load(tables.tiles_ptr + FIRST_TILE * tables.TILES + tile_i)
        tile_k = tl.where(side == 0, tile_i, first_tile) + trip - first_trip(tables, tile_i, None, side)
    a_tile = None  # [BLOCK_N, BLOCK_D]
    shift_i = None
    if WAY == "computed":
        shift_i = tile_shifts(tables, tile_i, BLOCK_N)
        a_tile = slot_tile(a, tile_i, 0, D, BLOCK_N, BLOCK_D, PRECISION)
    # 2. The columns of this share.
    trips = tl.zeros([BLOCK_N, BLOCK_N], dtype=ACC)
    rho = tl.zeros([BLOCK_N], dtype=ACC)
    share = tl.cdiv(column_tiles, shares) * BLOCK_M
    start = item % shares * share
    end = tl.minimum(start + share, tl.minimum(steps.CHUNK, tables.M - steps.START))
    for first in range(start, end, BLOCK_M):
        column = (steps.START + first + tl.arange(0, BLOCK_M)).to(tl.int64)
        valid = column < tables.M
        if rho_ptr is not None and WAY == "computed":
            h = weighted_h(tables, column, valid)
        b_tile = None  # [BLOCK_M, BLOCK_D]
        if WAY != "stored":
            b_tile = load_rows(b, column, valid, 0, D, BLOCK_D, PRECISION)
        if WAY != "computed":
            if WALKER:
                left = class_steps(
                    a, b, steps, tables, 0, tile_i, first, b_tile, D, scale,
                    WAY, BLOCK_N, BLOCK_M, BLOCK_D, PRECISION, PRODUCT,
                )  # [BLOCK_M, BLOCK_N]  # fmt: skip
                right = class_steps(
                    a, b, steps, tables, side, tile_k, first, b_tile, D, scale,
                    WAY, BLOCK_N, BLOCK_M, BLOCK_D, PRECISION, PRODUCT,
                )  # [BLOCK_M, BLOCK_N]  # fmt: skip
                trips = product(transposed(left), right, trips, PRODUCT)
        else:
            exact = merged_steps(
                a, b, tables, tile_i, column, a_tile, b_tile, shift_i, D, scale,
                True, BLOCK_N, BLOCK_M, BLOCK_D, PRECISION, PRODUCT,
            )  # [BLOCK_N, BLOCK_M]  # fmt: skip
            if WALKER:
                left = split(exact, PRODUCT)
                trips = product(left, transposed(left), trips, PRODUCT)
            if rho_ptr is not None:
                rho += tl.sum(exact * h[None, :], 1)
    if rho_ptr is not None and WAY != "computed":  # noqa: SIM102
        if tile_k == tile_i:
            for first in range(start, end, BLOCK_M):
                column = (steps.START + first + tl.arange(0, BLOCK_M)).to(tl.int64)
                if WAY == "stored":
                    left = load_values(steps, 0, tile_i, first, ACC, BLOCK_M, BLOCK_N, PRODUCT)
                else:
                    b_tile = load_rows(b, column, column < tables.M, 0, D, BLOCK_D, PRECISION)
                    left = recomputed_steps(
                        a, b, tables, 0, tile_i, column, b_tile, D, scale, BLOCK_N, BLOCK_M, BLOCK_D, PRECISION
                    )
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
