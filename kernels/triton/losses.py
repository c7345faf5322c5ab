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
def store_losses(
    walker_sum, correct, root, visit_sum, kept, M, eps, walker_ptr, p_correct_ptr, accuracy_ptr, visit_ptr
):  # fmt: skip
    """``walker = log(1 + N eps) + walker_sum``, ``visit = log(1 + M eps) + visit_sum / M``, and means over rows kept.

    Either term is left out where its pointers are None. Without any row both are NaN.
    """
    one = tl.full([], 1.0, tl.float64)
    rows = kept.to(tl.float64)
    if walker_ptr is not None:
        walker = tl.log(one + rows * eps) + walker_sum + 0.0 / rows
        tl.store(walker_ptr, walker.to(walker_ptr.dtype.element_ty))
    if p_correct_ptr is not None:
        tl.store(p_correct_ptr, (correct / rows).to(p_correct_ptr.dtype.element_ty))
        tl.store(accuracy_ptr, (root / rows).to(accuracy_ptr.dtype.element_ty))
    if visit_ptr is not None:
        columns = tl.cast(M, tl.float64)
        visit = tl.log(one + columns * eps) + visit_sum / columns
        tl.store(visit_ptr, visit.to(visit_ptr.dtype.element_ty))


@triton.jit
def add_up(
    walker_parts_ptr, visit_parts_ptr, kept, walker_ptr, p_correct_ptr, accuracy_ptr, visit_ptr,
    M, WALKER_PARTS, VISIT_PARTS, eps, BLOCK: tl.constexpr,
):  # fmt: skip
    """The losses and the statistics from shares; what is not wanted has None in the place of a pointer."""
    walker_sum = tl.full([], 0.0, tl.float64)
    correct = tl.full([], 0.0, tl.float64)
    root = tl.full([], 0.0, tl.float64)
    visit_sum = tl.full([], 0.0, tl.float64)
    if walker_ptr is not None:
        walker_sum = total(walker_parts_ptr + LOSS * WALKER_PARTS, WALKER_PARTS, BLOCK)
    if p_correct_ptr is not None:
        correct = total(walker_parts_ptr + CORRECT * WALKER_PARTS, WALKER_PARTS, BLOCK)
        root = total(walker_parts_ptr + ROOT * WALKER_PARTS, WALKER_PARTS, BLOCK)
    if visit_ptr is not None:
        visit_sum = total(visit_parts_ptr, VISIT_PARTS, BLOCK)
    store_losses(walker_sum, correct, root, visit_sum, kept, M, eps, walker_ptr, p_correct_ptr, accuracy_ptr, visit_ptr)


@triton.jit
def losses(
    walker_parts_ptr, visit_parts_ptr, counts_ptr, walker_ptr, p_correct_ptr, accuracy_ptr, visit_ptr,
    M, WALKER_PARTS, VISIT_PARTS, eps: tl.float64, BLOCK: tl.constexpr,
):  # fmt: skip
    """The losses and the statistics; one program."""
    add_up(
        walker_parts_ptr, visit_parts_ptr, tl.load(counts_ptr + KEPT), walker_ptr, p_correct_ptr, accuracy_ptr,
        visit_ptr, M, WALKER_PARTS, VISIT_PARTS, eps, BLOCK,
    )  # fmt: skip
