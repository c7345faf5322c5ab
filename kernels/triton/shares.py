"""Gradients of embeddings and biases from their shares."""

import triton
import triton.language as tl


@triton.jit
def add_shares(
    parts_ptr, bias_parts_ptr, slots_ptr, gradient_ptr, bias_ptr,
    LINES, FIRST, END, D, scale: tl.float64, SHARES, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``da_i = scale sum_j ds_ij b_j`` and ``dbias_a``, or ``db`` and ``dbias_b``, from their shares, added in order.

    Lines of ``parts`` [shares, LINES, D] are slots, for rows that take part, or with ``slots`` of None the columns from
    ``FIRST`` to ``END``.
    """
    ACC: tl.constexpr = parts_ptr.dtype.element_ty
    line = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    if slots_ptr is not None:
        # Rows are their first field.
        index = tl.load(slots_ptr + line).to(tl.int64)
        ok = index >= 0
    else:
        index = (FIRST + line).to(tl.int64)
        ok = index < END
    offs_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask = ok[:, None] & (offs_d < D)[None, :]
    total = tl.zeros([BLOCK_N, BLOCK_D], dtype=ACC)
    bias = tl.zeros([BLOCK_N], dtype=ACC)
    for share in range(0, SHARES):
        source = tl.cast(share, tl.int64) * LINES + line
        total += tl.load(parts_ptr + source[:, None] * D + offs_d[None, :], mask=mask, other=0.0)
        if bias_ptr is not None:
            bias += tl.load(bias_parts_ptr + source, mask=ok, other=0.0)
    tl.store(gradient_ptr + index[:, None] * D + offs_d[None, :], total * tl.full([1, 1], scale, ACC), mask=mask)
    if bias_ptr is not None:  # noqa: SIM102
        if tl.program_id(1) == 0:
            tl.store(bias_ptr + index, bias, mask=ok)
