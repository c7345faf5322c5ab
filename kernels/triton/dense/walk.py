"""The losses from round trips and visits, and their derivatives by every one of these."""

import triton
import triton.language as tl

from fastassoc.kernels.triton.buffers import CORRECT, LOSS, ROOT, WALKER_PART_FIELDS
from fastassoc.kernels.triton.dense.buffers import (
    add_parts,
    g_part,
    h_part,
    loss_parts,
    rows_of,
    store_tile,
    trips_part,
    visit_parts,
)
from fastassoc.kernels.triton.dense.trips import column_normaliser
from fastassoc.kernels.triton.losses import add_up
from fastassoc.kernels.triton.walker import derivative

VISIT_LOSS = tl.constexpr(WALKER_PART_FIELDS)
"""Line of the loss parts that has those of the visits."""


@triton.jit
def walker_terms(p_aba, same, weight, eps, tiny):
    """``(sum_k~i log(eps + p_aba_ik), c_i, G_ik)``, where ``c_i = sum_{k~i} p_aba_ik``."""
    ACC: tl.constexpr = p_aba.dtype
    correct = tl.where(same, p_aba, 0.0)
    log_sum = tl.sum(tl.where(same, tl.log(p_aba + tl.full([1, 1], eps, ACC)), 0.0), 1)
    g = tl.where(same, derivative(p_aba, weight[:, None], eps, tiny, ACC), 0.0)
    return log_sum, tl.sum(correct, 1), g


@triton.jit
def visit_terms(visit, ok, kept, M, eps, tiny):
    """``(-sum_j log(eps + visit_j), h_j)``, 0 where not ``ok``."""
    y = visit + tl.full([1], eps, visit.dtype)
    # Without eps, 1 / tiny where no walk arrives.
    least = tl.maximum(y, tl.full([1], tiny, visit.dtype), propagate_nan=tl.PropagateNan.ALL)
    h = tl.where(ok, -1.0 / (kept.to(visit.dtype) * M * least), 0.0)
    return -tl.sum(tl.where(ok, tl.log(y), 0.0), 0), h


@triton.jit
def rows_kept(x, BLOCK: tl.constexpr):
    """Rows that take part."""
    kept = 0
    for tile in range(0, x.NP // BLOCK):
        _, _, ok = rows_of(x, tile, BLOCK)
        kept += tl.sum(ok.to(tl.int32), 0)
    return kept


@triton.jit
def walker_rows(x, i, shares, kept, eps, tiny, BLOCK: tl.constexpr):
    """``(loss, sum_i c_i, sum_i sqrt(c_i))`` of a tile of rows, ``c_i = sum_{k~i} p_aba_ik``; fills its `G`."""
    ACC: tl.constexpr = x.scratch_ptr.dtype.element_ty
    tiles = x.NP // BLOCK
    row, label_i, ok_i = rows_of(x, i, BLOCK)
    # 1. Rows of the same class.
    size = tl.zeros([BLOCK], dtype=tl.int32)
    for k in range(0, tiles):
        _, label_k, ok_k = rows_of(x, k, BLOCK)
        size += tl.sum(((label_i[:, None] == label_k[None, :]) & ok_k[None, :]).to(tl.int32), 1)
    weight = 1.0 / (kept * tl.maximum(size, 1)).to(ACC)
    # 2. Round trips that end there.
    log_sum = tl.zeros([BLOCK], dtype=ACC)
    correct = tl.zeros([BLOCK], dtype=ACC)
    for k in range(0, tiles):
        column, label_k, ok_k = rows_of(x, k, BLOCK)
        same = (label_i[:, None] == label_k[None, :]) & ok_i[:, None] & ok_k[None, :]
        p_aba = tl.zeros([BLOCK, BLOCK], dtype=ACC)
        offsets = row[:, None] * x.NP + column[None, :]
        for share in range(0, shares):
            p_aba += tl.load(trips_part(x, BLOCK) + share * x.NP * x.NP + offsets, mask=same, other=0.0)
        log_sum_k, correct_k, g = walker_terms(p_aba, same, weight, eps, tiny)
        log_sum += log_sum_k
        correct += correct_k
        if x.saved_ptr is not None:
            store_tile(g_part(x), i, k, x.NP, g, BLOCK)
    return -tl.sum(log_sum * weight, 0), tl.sum(correct, 0), tl.sum(tl.sqrt(correct), 0)


@triton.jit
def visits(x, results, j, kept, eps, tiny, BLOCK: tl.constexpr):
    """``-sum_j log(eps + visit_j)`` of a tile of columns; fills its `H` and the visit probabilities."""
    ACC: tl.constexpr = x.scratch_ptr.dtype.element_ty
    column = j * BLOCK + tl.arange(0, BLOCK)
    ok = column < x.M
    total = add_parts(visit_parts(x, BLOCK), x.NP // BLOCK, x.MP, column, 16)
    # A column of -inf has an infinite inverse sum, and NaN is what it gives; any other adds 0.
    _, inverse_j = column_normaliser(x, column, BLOCK)
    visit = total / kept.to(ACC) + 0.0 * inverse_j
    if results.visit_probability_ptr is not None:
        tl.store(results.visit_probability_ptr + column, visit, mask=ok)
    loss, h = visit_terms(visit, ok, kept, x.M, eps, tiny)
    if x.saved_ptr is not None:
        tl.store(h_part(x) + column, h)
    return loss


@triton.jit
def walk_share(
    x, results, share, shares, trip_shares, eps, tiny, WALKER: tl.constexpr, VISIT: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A share of the rows, and of the columns; fills a column of the loss parts."""
    ACC: tl.constexpr = x.scratch_ptr.dtype.element_ty
    kept = rows_kept(x, BLOCK)
    parts_ptr = loss_parts(x, BLOCK) + share
    if WALKER:
        loss = tl.full([], 0.0, ACC)
        correct = tl.full([], 0.0, ACC)
        root = tl.full([], 0.0, ACC)
        for i in range(share, x.NP // BLOCK, shares):
            loss_i, correct_i, root_i = walker_rows(x, i, trip_shares, kept, eps, tiny, BLOCK)
            loss += loss_i
            correct += correct_i
            root += root_i
        tl.store(parts_ptr + LOSS * shares, loss)
        tl.store(parts_ptr + CORRECT * shares, correct)
        tl.store(parts_ptr + ROOT * shares, root)
    if VISIT:
        loss = tl.full([], 0.0, ACC)
        for j in range(share, x.MP // BLOCK, shares):
            loss += visits(x, results, j, kept, eps, tiny, BLOCK)
        tl.store(parts_ptr + VISIT_LOSS * shares, loss)


@triton.jit
def losses_of_shares(
    x, results, shares, eps, walker_weight, visit_weight,
    WALKER: tl.constexpr, VISIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The losses and the statistics, from the loss parts."""
    parts_ptr = loss_parts(x, BLOCK)
    add_up(
        results, parts_ptr, parts_ptr + VISIT_LOSS * shares, rows_kept(x, BLOCK), x.M, shares, shares, eps,
        walker_weight, visit_weight, WALKER, VISIT, 32,
    )  # fmt: skip


@triton.jit
def dense_walk(
    x, results, TRIP_SHARES, eps: tl.float64, tiny: tl.float64, walker_weight: tl.float64, visit_weight: tl.float64,
    WALKER: tl.constexpr, VISIT: tl.constexpr, ONE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``g`` and ``h``, and the walker and the visit loss.

    A program owns a share of the tiles of rows and of columns. Fills `G`, `H` and loss parts; with
    ``ONE``, which says that there is one program, the losses, as `dense_losses` does.
    """
    share, shares = tl.program_id(0), tl.num_programs(0)
    walk_share(x, results, share, shares, TRIP_SHARES, eps, tiny, WALKER, VISIT, BLOCK)
    if ONE:
        tl.debug_barrier()
        losses_of_shares(x, results, shares, eps, walker_weight, visit_weight, WALKER, VISIT, BLOCK)


@triton.jit
def dense_losses(
    x, results, SHARES, eps: tl.float64, walker_weight: tl.float64, visit_weight: tl.float64,
    WALKER: tl.constexpr, VISIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The losses and the statistics from the loss parts of ``SHARES`` programs; one program."""
    losses_of_shares(x, results, SHARES, eps, walker_weight, visit_weight, WALKER, VISIT, BLOCK)
