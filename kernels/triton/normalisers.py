"""Normalisers of the scores: a sweep for those of rows, in shares, and one for those of columns and for the visits."""

import triton
import triton.language as tl

from fastassoc.kernels.triton.buffers import (
    INVERSE_SUM,
    KEPT,
    LEAST,
    MAXIMUM,
    MOST,
    PART_MAXIMUM,
    PART_SUM,
    SIZE,
    H,
)
from fastassoc.kernels.triton.primitives import finite_shift, load_normaliser, load_rows, raw_scores


@triton.jit
def add_exponentials(m, l, s, unit):  # noqa: E741
    """``(m, l)`` of a running normaliser with the scores ``s unit`` of another tile, along its second axis.

    ``m`` is in the units of ``s``.
    """
    m_new = tl.maximum(m, tl.max(s, 1))
    shift = finite_shift(m_new)
    unit_1 = tl.max(unit, 1)
    l = l * tl.exp2((m - shift) * unit_1) + tl.sum(tl.exp2(s * unit - (shift * unit_1)[:, None]), 1)  # noqa: E741
    return m_new, l


@triton.jit
def joined_normaliser(max_ptr, sum_ptr, COUNT, size, index, ok, BLOCK_P: tl.constexpr):
    """``m = max_p m_p``, 0 for -inf, and ``l = sum_p l_p exp2(m_p - m)``, of COUNT shares that are ``size`` apart."""
    m = tl.full([index.shape[0]], -float("inf"), dtype=max_ptr.dtype.element_ty)
    l = tl.zeros([index.shape[0]], dtype=max_ptr.dtype.element_ty)  # noqa: E741
    for start in range(0, COUNT, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        offsets = p.to(tl.int64)[:, None] * size + index[None, :]
        valid = (p < COUNT)[:, None] & ok[None, :]
        m_p = tl.load(max_ptr + offsets, mask=valid, other=-float("inf"))  # [BLOCK_P, len(index)]
        l_p = tl.load(sum_ptr + offsets, mask=valid, other=0.0)
        m_new = tl.maximum(m, tl.max(m_p, 0))
        shift = finite_shift(m_new)
        l = l * tl.exp2(m - shift) + tl.sum(l_p * tl.exp2(m_p - shift[None, :]), 0)  # noqa: E741
        m = m_new
    return finite_shift(m), l


@triton.jit
def row_normalisers(
    a, b, classes_ptr, row_parts_ptr, N, M, D, scale: tl.float64,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, ONE_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Shares of ``lse_a_i = log sum_j exp s_ij``.

    A program owns BLOCK_N rows and one of num_programs(1) shares of the columns. Fills ``row_parts``.
    """
    ACC: tl.constexpr = row_parts_ptr.dtype.element_ty
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_ok = tl.load(classes_ptr + SIZE * N + row, mask=row < N, other=0) > 0
    # [BLOCK_N, BLOCK_D]
    a_tile = load_rows(a, row, row_ok, 0, D, BLOCK_D, PRECISION) if ONE_D else None
    m_i = tl.full([BLOCK_N], -float("inf"), dtype=ACC)
    l_i = tl.zeros([BLOCK_N], dtype=ACC)
    unit = tl.full([1, 1], 1.0, ACC)
    share = tl.cdiv(tl.cdiv(M, BLOCK_M), tl.num_programs(1)) * BLOCK_M
    start = tl.program_id(1) * share
    end = tl.minimum(start + share, M)
    # Whole tiles need no mask, which would be an instruction a score.
    whole = start + tl.maximum(end - start, 0) // BLOCK_M * BLOCK_M
    for MASKED in tl.static_range(2):
        for first in range(whole if MASKED else start, end if MASKED else whole, BLOCK_M):
            column = first + tl.arange(0, BLOCK_M)
            column_ok = column < M if MASKED else None
            # [BLOCK_M, BLOCK_D]
            b_tile = load_rows(b, column, column_ok, 0, D, BLOCK_D, PRECISION) if ONE_D else None
            s, unit = raw_scores(
                a_tile, b_tile, a, b, row, row_ok, column, column_ok, D, scale,
                ACC, BLOCK_N, BLOCK_M, BLOCK_D, ONE_D, PRECISION,
            )  # [BLOCK_N, BLOCK_M]  # fmt: skip
            if MASKED:
                s += tl.where(column_ok, 0.0, -float("inf"))[None, :]
            m_i, l_i = add_exponentials(m_i, l_i, s, unit)
    line = tl.program_id(1).to(tl.int64) * N + row
    size = tl.num_programs(1).to(tl.int64) * N
    tl.store(row_parts_ptr + PART_MAXIMUM * size + line, m_i * tl.max(unit, 1), mask=row < N)
    tl.store(row_parts_ptr + PART_SUM * size + line, l_i, mask=row < N)


@triton.jit
def column_normalisers(
    a, b, rows_ptr, counts_ptr, columns_ptr, extremes_ptr, visit_ptr, visit_parts_ptr,
    N, M, D, scale: tl.float64, eps: tl.float64, tiny: tl.float64,
    VISIT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, ONE_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """``lse_b_j = log sum_i exp s_ij``, ``visit_j = mean_i p_ab_ij``, and ``h_j = -1 / (N M (eps + visit_j))``.

    A program owns BLOCK_M columns and all rows. Fills the normalisers of ``columns``, ``extremes`` and, for the visits,
    ``H`` of ``columns``, ``visit_parts`` with ``-sum_j log(eps + visit_j)`` and, unless it is None, ``visit``.
    """
    ACC: tl.constexpr = columns_ptr.dtype.element_ty
    column = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    ok = column < M
    # [BLOCK_M, BLOCK_D]
    b_tile = load_rows(b, column, ok, 0, D, BLOCK_D, PRECISION) if ONE_D else None
    m_j = tl.full([BLOCK_M], -float("inf"), dtype=ACC)
    l_j = tl.zeros([BLOCK_M], dtype=ACC)
    total = tl.zeros([BLOCK_M], dtype=ACC)
    unit = tl.full([1, 1], 1.0, ACC)
    rows_kept = tl.load(counts_ptr + KEPT)
    # Tiles of rows that all take part need no mask, which would be an instruction a score.
    whole = tl.where(rows_kept == N, N // BLOCK_N * BLOCK_N, 0)
    for MASKED in tl.static_range(2):
        for start in range(whole if MASKED else 0, N if MASKED else whole, BLOCK_N):
            row = start + tl.arange(0, BLOCK_N)
            m_i, inverse_i = load_normaliser(rows_ptr, row, row < N if MASKED else None, N)
            # The inverse sum of a row that takes no part is 0.
            row_ok = inverse_i != 0.0 if MASKED else None
            # [BLOCK_N, BLOCK_D]
            a_tile = load_rows(a, row, row_ok, 0, D, BLOCK_D, PRECISION) if ONE_D else None
            s, unit = raw_scores(
                b_tile, a_tile, b, a, column, ok, row, row_ok, D, scale,
                ACC, BLOCK_M, BLOCK_N, BLOCK_D, ONE_D, PRECISION,
            )  # [BLOCK_M, BLOCK_N]  # fmt: skip
            if VISIT:
                # The maximum of a row that takes no part is infinity.
                p_ab = tl.exp2(s * unit - m_i[None, :])
                if PRECISION == "differences":
                    # Where a lane holds one row: its exact product plus a rounded one of another lane differs by lane.
                    p_ab = tl.fma(p_ab, inverse_i[None, :], 0.0)
                else:
                    p_ab *= inverse_i[None, :]
                total += tl.sum(p_ab, 1)
            if MASKED:
                s += tl.where(row_ok, 0.0, -float("inf"))[None, :]
            m_j, l_j = add_exponentials(m_j, l_j, s, unit)
    m_j = finite_shift(m_j) * tl.max(unit, 1)
    inverse_j = 1.0 / l_j
    tl.store(columns_ptr + MAXIMUM * M + column, m_j, mask=ok)
    tl.store(columns_ptr + INVERSE_SUM * M + column, inverse_j, mask=ok)
    normaliser = m_j + tl.log2(l_j)
    program, programs = tl.program_id(0), tl.num_programs(0)
    tl.store(extremes_ptr + LEAST * programs + program, tl.min(tl.where(ok, normaliser, float("inf")), 0))
    tl.store(extremes_ptr + MOST * programs + program, tl.max(tl.where(ok, normaliser, -float("inf")), 0))
    if VISIT:
        # A column of -inf has an infinite inverse sum, and NaN is what it gives; any other adds 0.
        visit = total / rows_kept.to(ACC) + 0.0 * inverse_j
        if visit_ptr is not None:
            tl.store(visit_ptr + column, visit, mask=ok)
        x = visit + tl.full([1], eps, ACC)
        # Without eps, 1 / tiny where no walk arrives.
        h = -1.0 / (rows_kept.to(ACC) * M * tl.maximum(x, tl.full([1], tiny, ACC), propagate_nan=tl.PropagateNan.ALL))
        tl.store(columns_ptr + H * tl.cast(M, tl.int64) + column, h, mask=ok)
        tl.store(visit_parts_ptr + program, -tl.sum(tl.where(ok, tl.log(x), 0.0), 0))
