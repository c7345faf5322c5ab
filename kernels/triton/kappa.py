"""``kappa``, what the step back takes off every column of the gradient."""

import triton
import triton.language as tl

from fastassoc.kernels.triton.buffers import (
    BACK,
    CLASS_TILES,
    FIRST_PAIR,
    FIRST_TILE,
    PLAIN,
    TILE_COUNT,
)
from fastassoc.kernels.triton.forms import row_weight
from fastassoc.kernels.triton.primitives import load_parts, load_rows, part_count, product, split, transposed
from fastassoc.kernels.triton.round_trips import column_shares
from fastassoc.kernels.triton.steps import (
    class_steps,
    load_values,
    merged_steps,
    other_way,
    recomputed_steps,
    slot_tile,
    store_steps,
    tile_offsets,
    tile_shifts,
)
from fastassoc.kernels.triton.terms import back_term


@triton.jit
def load_g(g_ptr, pair, PAIRS, BLOCK_N: tl.constexpr, PRODUCT: tl.constexpr):
    """``g`` of a pair of tiles as an operand, [BLOCK_N, BLOCK_N]."""
    offs = tl.arange(0, BLOCK_N)
    offsets = (tl.cast(pair, tl.int64) * BLOCK_N + offs[:, None]) * BLOCK_N + offs[None, :]
    size = tl.cast(PAIRS, tl.int64) * BLOCK_N * BLOCK_N
    return load_parts(g_ptr, size, offsets, None, part_count(PRODUCT))


@triton.jit
def class_product(
    a, b, steps, side, tables, tile, first, b_tile, D, scale, g_ptr, PAIRS, half,
    TRANSPOSED: tl.constexpr, WAY: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """``sum_k g_ik x_kj`` or, if ``TRANSPOSED``, ``sum_k g_ki x_kj`` for a side ``x`` of the steps: [BLOCK_M, BLOCK_N].

    With ``half`` not 0 of rows k in earlier tiles nothing, and of those in the same tile half, which is half of what a
    symmetric ``g`` makes of the sum over i.
    """
    pair = tl.load(tables.tiles_ptr + FIRST_PAIR * tables.TILES + tile)
    first_tile = tl.load(tables.tiles_ptr + FIRST_TILE * tables.TILES + tile)
    count = tl.load(tables.tiles_ptr + CLASS_TILES * tables.TILES + tile)
    total = tl.zeros([BLOCK_M, BLOCK_N], dtype=tables.weights_ptr.dtype.element_ty)
    for t in range(tl.where(half != 0, tile - first_tile, 0), count):
        x = class_steps(
            a, b, steps, tables, side, first_tile + t, first, b_tile, D, scale,
            WAY, BLOCK_N, BLOCK_M, BLOCK_D, PRECISION, PRODUCT,
        )  # fmt: skip
        if TRANSPOSED:
            # First pairs of the tiles of a class are as far apart as it has tiles.
            back = pair + (first_tile + t - tile) * count + tile - first_tile
            total = product(x, load_g(g_ptr, back, PAIRS, BLOCK_N, PRODUCT), total, PRODUCT)
        else:
            total = product(x, transposed(load_g(g_ptr, pair + t, PAIRS, BLOCK_N, PRODUCT)), total, PRODUCT)
        total *= tl.where((half != 0) & (first_tile + t == tile), 0.5, 1.0)
    return total


@triton.jit
def kappa(
    a, b, steps, tables, g_ptr, kappa_parts_ptr, D, scale: tl.float64, PAIRS, ITEMS,
    WAY: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """Shares of ``kappa_j = sum_i p_ab_ij U_ij = sum_i left_ij sum_k G_ik there_i back_k right_kj``.

    In the merged form g counts both ways, and half of the sum is ``kappa``. A program owns a class tile and a share of
    the range. Fills ``kappa_parts``. ``WAY`` is that of the steps (`fastassoc.kernels.triton.steps`), "computed" or
    "recomputed".
    """
    if other_way(tables, WAY):
        return
    tiles = tl.load(tables.counts_ptr + TILE_COUNT)
    shares = column_shares(tiles, ITEMS, steps.CHUNK // BLOCK_M)
    tile = tl.program_id(0) // shares
    if tile >= tiles:
        return
    plain = tl.load(tables.counts_ptr + PLAIN)
    a_tile = None
    shift_i = None
    g = None
    if WAY == "computed":
        shift_i = tile_shifts(tables, tile, BLOCK_N)
        g = load_g(g_ptr, tile, PAIRS, BLOCK_N, PRODUCT)  # [BLOCK_N, BLOCK_N], symmetric
        a_tile = slot_tile(a, tile, 0, D, BLOCK_N, BLOCK_D, PRECISION)  # [BLOCK_N, BLOCK_D]
    share = tl.cdiv(steps.CHUNK // BLOCK_M, shares) * BLOCK_M
    start = tl.program_id(0) % shares * share
    for first in range(start, tl.minimum(start + share, tl.minimum(steps.CHUNK, tables.M - steps.START)), BLOCK_M):
        column = (steps.START + first + tl.arange(0, BLOCK_M)).to(tl.int64)
        b_tile = load_rows(b, column, column < tables.M, 0, D, BLOCK_D, PRECISION)  # [BLOCK_M, BLOCK_D]
        if WAY == "computed":
            left = merged_steps(
                a, b, tables, tile, column, a_tile, b_tile, shift_i, D, scale,
                False, BLOCK_N, BLOCK_M, BLOCK_D, PRECISION, PRODUCT,
            )  # fmt: skip
            u = product(split(left, PRODUCT), g, None, PRODUCT)
        else:
            u = class_product(
                a, b, steps, plain, tables, tile, first, b_tile, D, scale, g_ptr, PAIRS, 1 - plain,
                False, WAY, BLOCK_N, BLOCK_M, BLOCK_D, PRECISION, PRODUCT,
            )  # fmt: skip
            left = recomputed_steps(
                a, b, tables, 0, tile, column, b_tile, D, scale, BLOCK_N, BLOCK_M, BLOCK_D, PRECISION
            )
        total = tl.sum(left * u, 1)
        if WAY == "computed":
            # Every trip has been counted both ways.
            total *= 0.5
        offsets = tl.cast(tile, tl.int64) * steps.CHUNK + first + tl.arange(0, BLOCK_M)
        tl.store(kappa_parts_ptr + offsets, total)


@triton.jit
def take_off_kappa(
    steps, exact_ptr, units_ptr, tables, kappa_parts_ptr, grad_walker_ptr,
    SIDES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_T: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """``ds_ij = exact_ij - q_ij kappa_j``, with its upstream gradient, in the place of ``left_ij``.

    A program owns a tile of columns and every num_programs(1)-th class tile.
    """
    ACC: tl.constexpr = tables.weights_ptr.dtype.element_ty
    first = tl.program_id(0) * BLOCK_M
    within = first + tl.arange(0, BLOCK_M)
    column = (steps.START + within).to(tl.int64)
    valid = column < tables.M
    of_back = back_term(tables, kappa_parts_ptr, column, within, valid, steps.CHUNK, grad_walker_ptr, BLOCK_T)
    # In the merged form both sides are one.
    side = tl.cast(0, tl.int32)
    if SIDES == 2:
        side = tl.load(tables.counts_ptr + PLAIN)
    for tile in range(tl.program_id(1), tl.load(tables.counts_ptr + TILE_COUNT), tl.num_programs(1)):
        x = tl.load(exact_ptr + tile_offsets(steps, tile, first, BLOCK_M, BLOCK_N)).to(ACC)
        if units_ptr is not None:
            x *= tl.load(units_ptr + tl.cast(tile, tl.int64) * steps.CHUNK + within)[:, None]
        right = load_values(steps, side, tile, first, ACC, BLOCK_M, BLOCK_N, PRODUCT)
        back = row_weight(tables.weights_ptr, tile * BLOCK_N + tl.arange(0, BLOCK_N), BACK)
        x -= right * (back[None, :] * of_back[:, None])
        store_steps(steps, 0, tile, first, x, BLOCK_M, BLOCK_N, PRODUCT)
