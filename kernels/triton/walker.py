"""Pass 6: round trips from their shares, the walker's part of the loss, and its gradient by every round trip."""

import triton
import triton.language as tl

from fastassoc.kernels.triton.buffers import (
    CLASS,
    CLASS_TILES,
    CORRECT,
    FIRST_PAIR,
    FIRST_TILE,
    KEPT,
    LOSS,
    PAIR_COUNT,
    RHO_VISIT,
    RHO_WALKER,
    ROOT,
    ROW,
    SIZE,
)
from fastassoc.kernels.triton.primitives import load_normaliser, rounded
from fastassoc.kernels.triton.round_trips import column_splits


@triton.jit
def walker(
    rows_ptr, classes_ptr, slots_ptr, tiles_ptr, counts_ptr, trips_ptr, rho_ptr, g_ptr, parts_ptr,
    N, eps: tl.float64, tiny: tl.float64, SLOTS, TILES, ITEMS, COLUMN_TILES, MAX_SPLITS,
    WALKER: tl.constexpr, VISIT: tl.constexpr, CLASS_ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr,
    PRODUCT: tl.constexpr,
):  # fmt: skip
    """``-sum_i 1/(N n_i) sum_{k~i} log(eps + p_aba_ik)``, its derivative ``G_ik = -1 / (N n_i (eps + p_aba_ik))``.

    A program owns BLOCK_N rows of a class tile. Fills ``walker_parts``, and for a gradient ``g`` and both ``rho`` of
    ``rows``.
    """
    ACC: tl.constexpr = rows_ptr.dtype.element_ty
    program = tl.program_id(0)
    tile = program // (CLASS_ROWS // BLOCK_N)
    offs_n = program % (CLASS_ROWS // BLOCK_N) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, CLASS_ROWS)
    pairs = tl.load(counts_ptr + PAIR_COUNT)
    splits = column_splits(pairs, ITEMS, COLUMN_TILES, MAX_SPLITS)
    # 1. The rows. A tile that does not exist has none, and no pairs.
    slot = tile * CLASS_ROWS + offs_n
    row = tl.load(slots_ptr + ROW * SLOTS + slot)
    class_i = tl.load(slots_ptr + CLASS * SLOTS + slot)
    ok = row >= 0
    row = tl.maximum(row, 0).to(tl.int64)
    _, inverse_i = load_normaliser(rows_ptr, row, ok, N)
    rows_kept = tl.load(counts_ptr + KEPT).to(ACC)
    weight = 1.0 / (rows_kept * tl.load(classes_ptr + SIZE * N + row, mask=ok, other=1).to(ACC))
    first_pair = tl.load(tiles_ptr + FIRST_PAIR * TILES + tile)
    first_tile = tl.load(tiles_ptr + FIRST_TILE * TILES + tile)
    count = tl.load(tiles_ptr + CLASS_TILES * TILES + tile)
    # 2. Their pairs of tiles, shares added in order.
    if WALKER:
        log_sum = tl.zeros([BLOCK_N], dtype=ACC)
        correct = tl.zeros([BLOCK_N], dtype=ACC)
        rho = tl.zeros([BLOCK_N], dtype=ACC)
        for t in range(0, count):
            pair = (first_pair + t).to(tl.int64)
            p_aba = tl.zeros([BLOCK_N, CLASS_ROWS], dtype=ACC)
            for start in range(0, splits, BLOCK_S):
                offs_s = start + tl.arange(0, BLOCK_S)
                line = ((pair * splits + offs_s)[:, None] * CLASS_ROWS + offs_n[None, :])[:, :, None] * CLASS_ROWS
                share_ok = (offs_s < splits)[:, None, None]
                p_aba += tl.sum(tl.load(trips_ptr + line + offs_k[None, None, :], mask=share_ok, other=0.0), 0)
            p_aba *= inverse_i[:, None]  # [BLOCK_N, CLASS_ROWS]
            class_k = tl.load(slots_ptr + CLASS * SLOTS + (first_tile + t) * CLASS_ROWS + offs_k)
            same = ok[:, None] & (class_i[:, None] == class_k[None, :])
            x = p_aba + tl.full([1, 1], eps, ACC)
            log_sum += tl.sum(tl.where(same, tl.log(x), 0.0), 1)
            correct += tl.sum(tl.where(same, p_aba, 0.0), 1)
            if g_ptr is not None:
                # Without eps, 1 / tiny where no round trip arrives.
                x = tl.maximum(x, tl.full([1, 1], tiny, ACC), propagate_nan=tl.PropagateNan.ALL)
                # As the products will round it.
                g = rounded(tl.where(same, -weight[:, None] / x, 0.0), PRODUCT).to(g_ptr.dtype.element_ty)
                rho += tl.sum(g.to(ACC) * p_aba, 1)
                tl.store(g_ptr + (pair * CLASS_ROWS + offs_n[:, None]) * CLASS_ROWS + offs_k[None, :], g)
        programs = tl.num_programs(0)
        tl.store(parts_ptr + LOSS * programs + program, -tl.sum(tl.where(ok, log_sum * weight, 0.0), 0))
        tl.store(parts_ptr + CORRECT * programs + program, tl.sum(correct, 0))
        tl.store(parts_ptr + ROOT * programs + program, tl.sum(tl.sqrt(correct), 0))
        if g_ptr is not None:
            tl.store(rows_ptr + RHO_WALKER * tl.cast(N, tl.int64) + row, rho, mask=ok)
    # 3. The rows' share of the visits.
    if VISIT:
        total = tl.zeros([BLOCK_N], dtype=ACC)
        for split in range(0, splits):
            item = first_pair.to(tl.int64) * splits + split
            total += tl.load(rho_ptr + item * CLASS_ROWS + offs_n, mask=ok, other=0.0)
        tl.store(rows_ptr + RHO_VISIT * tl.cast(N, tl.int64) + row, total * inverse_i, mask=ok)
