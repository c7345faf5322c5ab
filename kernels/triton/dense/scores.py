"""Scores, once, with a tile's share of both normalisers."""

import triton
import triton.language as tl

from fastassoc.kernels.triton.dense.buffers import (
    column_parts,
    matrix_part,
    row_parts,
    rows_of,
    store_tile,
)
from fastassoc.kernels.triton.primitives import finite_shift, scores


@triton.jit
def masked_scores(
    a, b, x, i, j, scale, ACC: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """Scores of tile (i, j), -inf where there is no row or column: [BLOCK, BLOCK]."""
    row, _, row_ok = rows_of(x, i, BLOCK)
    column = j * BLOCK + tl.arange(0, BLOCK)
    column_ok = column < x.M
    s = scores(
        None, None, a, b, row, row_ok, column, column_ok, x.D, scale,
        ACC, BLOCK, BLOCK, BLOCK_D, False, PRECISION,
    )  # fmt: skip
    return tl.where(row_ok[:, None] & column_ok[None, :], s, -float("inf"))


@triton.jit
def score_tile(
    a, b, x, i, j, scale, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """Scores of tile (i, j); maxima of its rows and of its columns, and sums of exponentials relative to them."""
    ACC: tl.constexpr = x.scratch_ptr.dtype.element_ty
    row = i * BLOCK + tl.arange(0, BLOCK)
    column = j * BLOCK + tl.arange(0, BLOCK)
    s = masked_scores(a, b, x, i, j, scale, ACC, BLOCK, BLOCK_D, PRECISION)
    store_tile(matrix_part(x), i, j, x.MP, s, BLOCK)
    m_i = tl.max(s, 1)
    m_j = tl.max(s, 0)
    tiles_i = x.NP // BLOCK
    tiles_j = x.MP // BLOCK
    ptr = row_parts(x) + j * x.NP + row
    tl.store(ptr, m_i)
    tl.store(ptr + tiles_j * x.NP, tl.sum(tl.exp2(s - finite_shift(m_i)[:, None]), 1))
    ptr = column_parts(x, BLOCK) + i * x.MP + column
    tl.store(ptr, m_j)
    tl.store(ptr + tiles_i * x.MP, tl.sum(tl.exp2(s - finite_shift(m_j)[None, :]), 0))


@triton.jit
def dense_scores(
    a, b, x, scale: tl.float64, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """``s_ij``; a program owns a tile. Fills scores, row parts and column parts."""
    score_tile(a, b, x, tl.program_id(0), tl.program_id(1), scale, BLOCK, BLOCK_D, PRECISION)
