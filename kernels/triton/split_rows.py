"""Embeddings as the parts that products take, once, where many passes would split them again."""

import triton
import triton.language as tl

from fastassoc.kernels.triton.primitives import split, store_parts


@triton.jit
def split_rows(
    x_ptr, parts_ptr, N, D, stride_n, stride_d,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``x = sum_p parts_p``; ``parts`` [parts, N, D] is contiguous."""
    row = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    offs_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask = (row < N)[:, None] & (offs_d < D)[None, :]
    x = tl.load(x_ptr + row[:, None] * stride_n + offs_d.to(tl.int64)[None, :] * stride_d, mask=mask)
    size = tl.cast(N, tl.int64) * D
    store_parts(parts_ptr, size, row[:, None] * D + offs_d[None, :], split(x, PRECISION), mask)
