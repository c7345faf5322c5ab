"""Pass 2: row and column normalisers of the scores, from one sweep over them."""

import triton
import triton.language as tl

from fastassoc.kernels.triton.buffers import INVERSE_SUM, MAXIMUM, PART_MAXIMUM, PART_SUM, SIZE
from fastassoc.kernels.triton.primitives import finite_shift, load_rows, scores


@triton.jit
def normalisers(
    a_ptr, b_ptr, bias_a_ptr, bias_b_ptr, classes_ptr, row_parts_ptr, columns_ptr,
    N, M, D, scale: tl.float64, stride_an, stride_ad, stride_bm, stride_bd,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, ONE_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``lse_b_j = log sum_i exp s_ij``, and this program's share of ``lse_a_i = log sum_j exp s_ij``.

    A program owns every num_programs-th column tile and all rows: columns are complete inside it, rows are kept as
    running maxima and sums in the part of ``row_parts`` that only this program touches. Fills the normalisers of
    ``columns``.
    """
    ACC: tl.constexpr = columns_ptr.dtype.element_ty
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    part_ptr = row_parts_ptr + program.to(tl.int64) * N
    max_ptr = part_ptr + PART_MAXIMUM * programs.to(tl.int64) * N
    sum_ptr = part_ptr + PART_SUM * programs.to(tl.int64) * N
    for tile in range(program, tl.cdiv(M, BLOCK_M), programs):
        column = (tile * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
        column_ok = column < M
        # [BLOCK_M, BLOCK_D]
        b_tile = load_rows(b_ptr, column, column_ok, 0, D, stride_bm, stride_bd, BLOCK_D, PRECISION) if ONE_D else None
        m_j = tl.full([BLOCK_M], -float("inf"), dtype=ACC)
        l_j = tl.zeros([BLOCK_M], dtype=ACC)
        for start in range(0, N, BLOCK_N):
            # 1. Scores.
            row = start + tl.arange(0, BLOCK_N)
            row_ok = tl.load(classes_ptr + SIZE * N + row, mask=row < N, other=0) > 0
            # [BLOCK_N, BLOCK_D]
            a_tile = load_rows(a_ptr, row, row_ok, 0, D, stride_an, stride_ad, BLOCK_D, PRECISION) if ONE_D else None
            s = scores(
                a_tile, b_tile, a_ptr, b_ptr, row, row_ok, column, column_ok, bias_a_ptr, bias_b_ptr, D, scale,
                stride_an, stride_ad, stride_bm, stride_bd, ACC, BLOCK_N, BLOCK_M, BLOCK_D, ONE_D, PRECISION,
            )  # [BLOCK_N, BLOCK_M]  # fmt: skip
            # 2. Columns.
            m_new = tl.maximum(m_j, tl.max(s, 0))
            shift = finite_shift(m_new)
            l_j = l_j * tl.exp2(m_j - shift) + tl.sum(tl.exp2(s - shift[None, :]), 0)
            m_j = m_new
            # 3. Rows, with what the program's earlier column tiles left.
            m_i = tl.max(s, 1)
            shift = finite_shift(m_i)
            l_i = tl.sum(tl.exp2(s - shift[:, None]), 1)
            if tile != program:
                m_old = tl.load(max_ptr + row, mask=row < N, other=-float("inf"))
                l_old = tl.load(sum_ptr + row, mask=row < N, other=0.0)
                m_new_i = tl.maximum(m_i, m_old)
                shift = finite_shift(m_new_i)
                l_i = l_i * tl.exp2(m_i - shift) + l_old * tl.exp2(m_old - shift)
                m_i = m_new_i
            tl.store(max_ptr + row, m_i, mask=row < N)
            tl.store(sum_ptr + row, l_i, mask=row < N)
        # A row's running values may come back to another thread of the program.
        tl.debug_barrier()
        tl.store(columns_ptr + MAXIMUM * M + column, finite_shift(m_j), mask=column_ok)
        tl.store(columns_ptr + INVERSE_SUM * M + column, 1.0 / l_j, mask=column_ok)
