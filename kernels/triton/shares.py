"""Gradients of embeddings and biases from their shares."""

import triton
import triton.language as tl

from fastassoc.kernels.triton.buffers import TILE_COUNT

LOADED = tl.constexpr(4)
"""Shares that are on their way from memory at one time."""


@triton.jit
def row_share(tiles, column_tiles, programs):
    """Tiles of columns in a share of ``da``; program ``p`` has those after ``p`` shares, class tile by class tile.

    A share may end in another class tile than it begins in. What program ``p`` adds up of class tile ``t`` is number
    ``p + t`` of the parts.
    """
    return tl.cdiv(tiles * column_tiles, programs)


@triton.jit
def add_shares(
    parts_ptr, bias_parts_ptr, gradient_ptr, bias_ptr, source, stride, count, index, ok, D, scale,
    ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Lines ``index`` of a gradient: lines ``source`` of the parts and those ``stride`` further, added in order."""
    offs_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask = ok[:, None] & (offs_d < D)[None, :]
    total = tl.zeros([BLOCK_N, BLOCK_D], dtype=ACC)
    bias = tl.zeros([BLOCK_N], dtype=ACC)
    for start in range(0, count, LOADED):
        share = start + tl.arange(0, LOADED)
        line = source[None, :] + share.to(tl.int64)[:, None] * stride
        there = (share < count)[:, None] & ok[None, :]
        parts = tl.load(
            parts_ptr + line[:, :, None] * D + offs_d[None, None, :],
            mask=there[:, :, None] & (offs_d < D)[None, None, :],
            other=0.0,
        )
        total += tl.sum(parts, 0)
        if bias_ptr is not None:
            bias += tl.sum(tl.load(bias_parts_ptr + line, mask=there, other=0.0), 0)
    tl.store(gradient_ptr + index[:, None] * D + offs_d[None, :], total * tl.full([1, 1], scale, ACC), mask=mask)
    if bias_ptr is not None:  # noqa: SIM102
        if tl.program_id(1) == 0:
            tl.store(bias_ptr + index, bias, mask=ok)


@triton.jit
def add_row_shares(
    parts_ptr, bias_parts_ptr, slots_ptr, counts_ptr, gradient_ptr, bias_ptr,
    COLUMN_TILES, PROGRAMS, D, scale: tl.float64,
    CLASS_ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``da_i = scale sum_j ds_ij b_j`` and ``dbias_a`` of rows that take part, from the shares of `row_gradients`."""
    slot = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Rows are the first field of slots.
    row = tl.load(slots_ptr + slot).to(tl.int64)
    tile = tl.program_id(0) * BLOCK_N // CLASS_ROWS
    share = row_share(tl.load(counts_ptr + TILE_COUNT), COLUMN_TILES, PROGRAMS)
    first = tile * COLUMN_TILES // tl.maximum(share, 1)
    last = (tile * COLUMN_TILES + COLUMN_TILES - 1) // tl.maximum(share, 1)
    source = (first + tile).to(tl.int64) * CLASS_ROWS + slot % CLASS_ROWS
    add_shares(
        parts_ptr, bias_parts_ptr, gradient_ptr, bias_ptr, source, CLASS_ROWS, last - first + 1, row, row >= 0,
        D, scale, parts_ptr.dtype.element_ty, BLOCK_N, BLOCK_D,
    )  # fmt: skip


@triton.jit
def add_column_shares(
    parts_ptr, bias_parts_ptr, gradient_ptr, bias_ptr, LINES, FIRST, END, SHARES, D, scale: tl.float64,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``db_j = scale sum_i ds_ij a_i`` and ``dbias_b`` of columns ``FIRST ..``, from parts [SHARES, LINES, D]."""
    line = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    column = FIRST + line
    add_shares(
        parts_ptr, bias_parts_ptr, gradient_ptr, bias_ptr, line, LINES, SHARES, column, column < END, D, scale,
        parts_ptr.dtype.element_ty, BLOCK_N, BLOCK_D,
    )  # fmt: skip
