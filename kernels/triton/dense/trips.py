"""Both steps, and what they add up to: round trips and visits."""

import triton
import triton.language as tl

from fastassoc.kernels.triton.dense.buffers import (
    column_parts,
    load_tile,
    matrix_part,
    p_ab_part,
    q_part,
    row_parts,
    rows_of,
    store_tile,
    trips_part,
    visit_parts,
)
from fastassoc.kernels.triton.normalisers import joined_normaliser
from fastassoc.kernels.triton.primitives import product, split, transposed


@triton.jit
def inverse_where(ok, l):  # noqa: E741
    """``1 / l``, 0 where not ``ok``."""
    return tl.where(ok, 1.0 / tl.where(ok, l, 1.0), 0.0)


@triton.jit
def column_normaliser(x, column, BLOCK: tl.constexpr):
    """``(m_j, 1 / l_j)``, the inverse 0 where there is no column."""
    tiles = x.NP // BLOCK
    ptr = column_parts(x, BLOCK)
    m_j, l_j = joined_normaliser(ptr, ptr + tiles * x.MP, tiles, x.MP, column, column < x.MP, 16)
    return m_j, inverse_where(column < x.M, l_j)


@triton.jit
def trips_tile(
    x, i, k, share, shares, WALKER: tl.constexpr, VISIT: tl.constexpr, BLOCK: tl.constexpr, PRODUCT: tl.constexpr
):  # fmt: skip
    """``sum_j p_ab_ij q_kj`` of tile (i, k) over a share of the columns, if the tile has a class on both sides.

    Those of k = 0 also keep ``p_ab`` and add up the visits, those of i = 0 keep ``q``.
    """
    ACC: tl.constexpr = x.scratch_ptr.dtype.element_ty
    row, label_i, ok_i = rows_of(x, i, BLOCK)
    _, label_k, ok_k = rows_of(x, k, BLOCK)
    same = (label_i[:, None] == label_k[None, :]) & ok_i[:, None] & ok_k[None, :]
    meets = tl.max(tl.max(same.to(tl.int32), 1), 0) != 0
    tiles = x.MP // BLOCK
    each = tl.cdiv(tiles, shares)
    start = share * each
    end = tl.minimum(start + each, tiles)
    ptr = row_parts(x)
    m_i, l_i = joined_normaliser(ptr, ptr + tiles * x.NP, tiles, x.NP, row, row < x.NP, 16)
    inverse_i = inverse_where(ok_i, l_i)
    # 1. What every later pass takes.
    if k == 0:
        for j in range(start, end):
            p_ab = tl.exp2(load_tile(matrix_part(x), i, j, x.MP, BLOCK) - m_i[:, None]) * inverse_i[:, None]
            if x.saved_ptr is not None:
                store_tile(p_ab_part(x), i, j, x.MP, p_ab, BLOCK)
            if VISIT:
                column = j * BLOCK + tl.arange(0, BLOCK)
                tl.store(visit_parts(x, BLOCK) + i * x.MP + column, tl.sum(p_ab, 0))
    if WALKER:
        if x.saved_ptr is not None:  # noqa: SIM102
            if i == 0:
                for j in range(start, end):
                    m_j, inverse_j = column_normaliser(x, j * BLOCK + tl.arange(0, BLOCK), BLOCK)
                    s = load_tile(matrix_part(x), k, j, x.MP, BLOCK)
                    store_tile(q_part(x), k, j, x.MP, tl.exp2(s - m_j[None, :]) * inverse_j[None, :], BLOCK)
        # 2. Round trips.
        if meets:
            trips = tl.zeros([BLOCK, BLOCK], dtype=ACC)
            for j in range(start, end):
                m_j, inverse_j = column_normaliser(x, j * BLOCK + tl.arange(0, BLOCK), BLOCK)
                p_ab = tl.exp2(load_tile(matrix_part(x), i, j, x.MP, BLOCK) - m_i[:, None]) * inverse_i[:, None]
                q = tl.exp2(load_tile(matrix_part(x), k, j, x.MP, BLOCK) - m_j[None, :]) * inverse_j[None, :]
                trips = product(split(p_ab, PRODUCT), transposed(split(q, PRODUCT)), trips, PRODUCT)
            store_tile(trips_part(x, BLOCK) + share * x.NP * x.NP, i, k, x.NP, trips, BLOCK)


@triton.jit
def dense_trips(
    x, WALKER: tl.constexpr, VISIT: tl.constexpr, BLOCK: tl.constexpr, PRODUCT: tl.constexpr
):  # fmt: skip
    """``p_ab``, ``q``, and shares of ``p_aba`` and of the visits.

    A program owns tiles i and k of the rows, the latter 0 without the walker, and one of num_programs(2) shares of the
    columns. Fills `P_AB`, `Q`, visit parts and trips.
    """
    trips_tile(
        x, tl.program_id(0), tl.program_id(1), tl.program_id(2), tl.num_programs(2), WALKER, VISIT, BLOCK, PRODUCT
    )
