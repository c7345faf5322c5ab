"""Rows of ``a`` as products take them, once, where many passes would look them up and split them again."""

import triton
import triton.language as tl

from fastassoc.kernels.triton.primitives import part_count, power, split, store_parts


@triton.jit
def row_operands(
    x_ptr, bias_ptr, slots_ptr, largest_ptr, parts_ptr, biases_ptr, COUNT, D, stride_n, stride_d,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``sum_p parts_p = x``, and the bias if there is one: COUNT rows in their own order, or in that of the slots.

    ``parts`` [parts, COUNT, D] is contiguous; empty slots are 0. ``slots_ptr`` is None for the rows' own order. With
    ``largest``, times its `power`.
    """
    line = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row, ok = line.to(tl.int64), line < COUNT
    if slots_ptr is not None:
        # Rows are the first field of slots.
        row = tl.load(slots_ptr + line, mask=ok, other=-1).to(tl.int64)
    taken = ok & (row >= 0)
    offs_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask = (offs_d < D)[None, :]
    x = tl.load(
        x_ptr + row[:, None] * stride_n + offs_d.to(tl.int64)[None, :] * stride_d,
        mask=taken[:, None] & mask, other=0.0,
    )  # fmt: skip
    if largest_ptr is not None:
        there, _ = power(largest_ptr)
        x *= there
    parts = (x,) if part_count(PRECISION) == 1 else split(x, PRECISION)
    size = tl.cast(COUNT, tl.int64) * D
    store_parts(parts_ptr, size, line.to(tl.int64)[:, None] * D + offs_d[None, :], parts, ok[:, None] & mask)
    if bias_ptr is not None:  # noqa: SIM102
        if tl.program_id(1) == 0:
            tl.store(biases_ptr + line, tl.load(bias_ptr + row, mask=taken, other=0.0), mask=ok)
