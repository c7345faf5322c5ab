"""The losses and the statistics from their shares."""

import triton
import triton.language as tl

from fastassoc.kernels.triton.buffers import CORRECT, KEPT, LOSS, ROOT


@triton.jit
def total(parts_ptr, COUNT, BLOCK: tl.constexpr):
    """The sum of COUNT shares in float64, in a fixed order."""
    sums = tl.zeros([BLOCK], dtype=tl.float64)
    for start in range(0, COUNT, BLOCK):
        i = start + tl.arange(0, BLOCK)
        sums += tl.load(parts_ptr + i, mask=i < COUNT, other=0.0).to(tl.float64)
    return tl.sum(sums, 0)


@triton.jit
def weighted(term, weight):
    """``weight term`` in float64. Of weight 0 a term counts only where it is NaN: not where it is infinite."""
    return tl.where((weight == 0.0) & (term == term), 0.0, weight * term.to(tl.float64))


@triton.jit
def store(ptr, value):
    """Stores a number, unless its place is None."""
    if ptr is not None:
        tl.store(ptr, value.to(ptr.dtype.element_ty))


@triton.jit
def store_losses(
    results, walker_sum, correct, root, visit_sum, kept, M, eps, walker_weight, visit_weight,
    WALKER: tl.constexpr, VISIT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """``walker = log(1 + N eps) + walker_sum``, ``visit = log(1 + M eps) + visit_sum / M``, and means over rows kept.

    The loss is the weighted sum of what is stored of them. Either term is left out where it is not wanted. Without any
    row all are NaN.
    """
    one = tl.full([], 1.0, tl.float64)
    rows = kept.to(tl.float64)
    loss = tl.full([], 0.0, tl.float64)
    if WALKER:
        walker = tl.log(one + rows * eps) + walker_sum + 0.0 / rows
        loss += weighted(walker.to(ACC), walker_weight)
        store(results.walker_ptr, walker)
        store(results.p_correct_ptr, correct / rows)
        store(results.accuracy_ptr, root / rows)
    if VISIT:
        columns = tl.cast(M, tl.float64)
        visit = tl.log(one + columns * eps) + visit_sum / columns
        loss += weighted(visit.to(ACC), visit_weight)
        store(results.visit_ptr, visit)
    store(results.loss_ptr, loss)


@triton.jit
def add_up(
    results, walker_parts_ptr, visit_parts_ptr, kept, M, WALKER_PARTS, VISIT_PARTS, eps, walker_weight, visit_weight,
    WALKER: tl.constexpr, VISIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The losses and the statistics from shares."""
    walker_sum = tl.full([], 0.0, tl.float64)
    correct = tl.full([], 0.0, tl.float64)
    root = tl.full([], 0.0, tl.float64)
    visit_sum = tl.full([], 0.0, tl.float64)
    if WALKER:
        walker_sum = total(walker_parts_ptr + LOSS * WALKER_PARTS, WALKER_PARTS, BLOCK)
        if results.p_correct_ptr is not None:
            correct = total(walker_parts_ptr + CORRECT * WALKER_PARTS, WALKER_PARTS, BLOCK)
            root = total(walker_parts_ptr + ROOT * WALKER_PARTS, WALKER_PARTS, BLOCK)
    if VISIT:
        visit_sum = total(visit_parts_ptr, VISIT_PARTS, BLOCK)
    store_losses(
        results, walker_sum, correct, root, visit_sum, kept, M, eps, walker_weight, visit_weight, WALKER, VISIT,
        walker_parts_ptr.dtype.element_ty if WALKER else visit_parts_ptr.dtype.element_ty,
    )  # fmt: skip


@triton.jit
def losses(
    results, walker_parts_ptr, visit_parts_ptr, counts_ptr, M, WALKER_PARTS, VISIT_PARTS,
    eps: tl.float64, walker_weight: tl.float64, visit_weight: tl.float64,
    WALKER: tl.constexpr, VISIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The losses and the statistics; one program."""
    add_up(
        results, walker_parts_ptr, visit_parts_ptr, tl.load(counts_ptr + KEPT), M, WALKER_PARTS, VISIT_PARTS, eps,
        walker_weight, visit_weight, WALKER, VISIT, BLOCK,
    )  # fmt: skip
