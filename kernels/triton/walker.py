"""The walker's part of the loss, from the shares of its round trips, and its gradient by every round trip."""

import triton
import triton.language as tl

from fastassoc.kernels.triton.buffers import (
    BACK,
    CLASS,
    CLASS_TILES,
    CORRECT,
    FIRST_PAIR,
    FIRST_TILE,
    KEPT,
    LOSS,
    PLAIN,
    RHO_VISIT,
    RHO_WALKER,
    ROOT,
    ROW,
    SIZE,
    THERE,
)
from fastassoc.kernels.triton.forms import row_weight, set_row_weight
from fastassoc.kernels.triton.primitives import joined, split, store_parts
from fastassoc.kernels.triton.round_trips import column_shares, first_trip, trip_count

RHO_SHARES = tl.constexpr(32)
"""Shares of ``rho`` that are added up at a time."""


@triton.jit
def derivative(p_aba, weight, eps, tiny, ACC: tl.constexpr):
    """``G = -weight / (eps + p_aba)``; without eps, with ``tiny`` where no round trip arrives."""
    x = p_aba + tl.full([1, 1], eps, ACC)
    return -weight / tl.maximum(x, tl.full([1, 1], tiny, ACC), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def walker(
    tables, classes_ptr, trips_ptr, rho_ptr, g_ptr, walker_parts_ptr,
    N, SLOTS, PAIRS, ITEMS, COLUMN_TILES, eps: tl.float64, tiny: tl.float64,
    WALKER: tl.constexpr, CLASS_ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr,
    PRODUCT: tl.constexpr,
):  # fmt: skip
    """``-sum_i 1/(N n_i) sum_{k~i} log(eps + p_aba_ik)``, its derivative ``G_ik = -1 / (N n_i (eps + p_aba_ik))``.

    A program owns BLOCK_N rows of a class tile. Fills ``walker_parts``, and for a gradient ``g`` and both ``rho`` of
    ``weights``.
    """
    ACC: tl.constexpr = tables.weights_ptr.dtype.element_ty
    program = tl.program_id(0)
    tile = program // (CLASS_ROWS // BLOCK_N)
    offs_n = program % (CLASS_ROWS // BLOCK_N) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, CLASS_ROWS)
    # 1. The rows. A tile that does not exist has none, and no pairs.
    slot = tile * CLASS_ROWS + offs_n
    row = tl.load(tables.slots_ptr + ROW * SLOTS + slot)
    class_i = tl.load(tables.slots_ptr + CLASS * SLOTS + slot)
    ok = row >= 0
    row = tl.maximum(row, 0).to(tl.int64)
    there_i = row_weight(tables.weights_ptr, slot, THERE)
    back_i = row_weight(tables.weights_ptr, slot, BACK)
    side = tl.load(tables.counts_ptr + PLAIN)
    merged = side == 0
    shares = column_shares(trip_count(tables, side), ITEMS, COLUMN_TILES)
    first_of_all = first_trip(tables, tile, None, side)
    first_pair = tl.load(tables.tiles_ptr + FIRST_PAIR * tables.TILES + tile)
    first_tile = tl.load(tables.tiles_ptr + FIRST_TILE * tables.TILES + tile)
    count = tl.load(tables.tiles_ptr + CLASS_TILES * tables.TILES + tile)
    # 2. Their pairs of tiles, shares added in order.
    if WALKER:
        rows_kept = tl.load(tables.counts_ptr + KEPT).to(ACC)
        weight = 1.0 / (rows_kept * tl.load(classes_ptr + SIZE * N + row, mask=ok, other=1).to(ACC))
        log_sum = tl.zeros([BLOCK_N], dtype=ACC)
        correct = tl.zeros([BLOCK_N], dtype=ACC)
        rho = tl.zeros([BLOCK_N], dtype=ACC)
        for t in range(0, count):
            pair = (first_pair + t).to(tl.int64)
            # Where they are symmetric, the pair (I, K) with K < I has none of its own (`round_trips`).
            tile_k = first_tile + t
            mirrored = merged & (tile_k < tile)
            source = first_of_all + tl.where(merged, tile_k - tile, t)
            source = tl.where(mirrored, first_trip(tables, tile_k, None, side) + tile - tile_k, source).to(tl.int64)
            inner_n = tl.where(mirrored, offs_n, offs_n * CLASS_ROWS)
            inner_k = tl.where(mirrored, offs_k * CLASS_ROWS, offs_k)
            trips = tl.zeros([BLOCK_N, CLASS_ROWS], dtype=ACC)
            for start in range(0, shares, BLOCK_S):
                offs_s = start + tl.arange(0, BLOCK_S)
                line = (source * shares + offs_s)[:, None] * (CLASS_ROWS * CLASS_ROWS) + inner_n[None, :]
                share_ok = (offs_s < shares)[:, None, None]
                share = tl.load(trips_ptr + line[:, :, None] + inner_k[None, None, :], mask=share_ok, other=0.0)
                trips += tl.sum(share, 0)
            slot_k = tile_k * CLASS_ROWS + offs_k
            there_k = row_weight(tables.weights_ptr, slot_k, THERE)
            back_k = row_weight(tables.weights_ptr, slot_k, BACK)
            same = ok[:, None] & (class_i[:, None] == tl.load(tables.slots_ptr + CLASS * SLOTS + slot_k)[None, :])
            walk = there_i[:, None] * back_k[None, :]
            p_aba = trips * walk  # [BLOCK_N, CLASS_ROWS]
            log_sum += tl.sum(tl.where(same, tl.log(p_aba + tl.full([1, 1], eps, ACC)), 0.0), 1)
            correct += tl.sum(tl.where(same, p_aba, 0.0), 1)
            if g_ptr is not None:
                own = tl.where(same, derivative(p_aba, weight[:, None], eps, tiny, ACC), 0.0)
                exact = own * walk
                # Merged, trips are symmetric, and so is the sum with the derivative of the trip from k to i.
                reverse = there_k[None, :] * back_i[:, None]
                other = tl.where(same, derivative(trips * reverse, weight[:, None], eps, tiny, ACC), 0.0)
                exact += tl.where(merged, other * reverse, 0.0)
                parts = split(exact, PRODUCT)
                offsets = (pair * CLASS_ROWS + offs_n[:, None]) * CLASS_ROWS + offs_k[None, :]
                size = tl.cast(PAIRS, tl.int64) * CLASS_ROWS * CLASS_ROWS
                store_parts(g_ptr, size, offsets, parts, None)
                # rho is of g as the products have it.
                stored = joined(parts, ACC)
                rho += tl.sum(tl.where(same, own * p_aba * (stored / tl.where(exact == 0.0, 1.0, exact)), 0.0), 1)
        programs = tl.num_programs(0)
        tl.store(walker_parts_ptr + LOSS * programs + program, -tl.sum(tl.where(ok, log_sum * weight, 0.0), 0))
        tl.store(walker_parts_ptr + CORRECT * programs + program, tl.sum(correct, 0))
        tl.store(walker_parts_ptr + ROOT * programs + program, tl.sum(tl.sqrt(correct), 0))
        if g_ptr is not None:
            set_row_weight(tables.weights_ptr, slot, RHO_WALKER, rho)
    # 3. The rows' share of the visits.
    if rho_ptr is not None:
        total = tl.zeros([BLOCK_N], dtype=ACC)
        item = (first_of_all + tl.where(merged, 0, tile - first_tile)).to(tl.int64) * shares
        for start in range(0, shares, RHO_SHARES):
            offs_s = start + tl.arange(0, RHO_SHARES)
            line = (item + offs_s)[:, None] * CLASS_ROWS + offs_n[None, :]
            total += tl.sum(tl.load(rho_ptr + line, mask=(offs_s < shares)[:, None] & ok[None, :], other=0.0), 0)
        set_row_weight(tables.weights_ptr, slot, RHO_VISIT, total * there_i)
