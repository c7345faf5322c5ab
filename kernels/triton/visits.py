"""Pass 4: visit probabilities, their gradient and their share of the visit loss."""

import triton
import triton.language as tl

from fastassoc.kernels.triton.buffers import INVERSE_SUM, KEPT, H
from fastassoc.kernels.triton.primitives import load_normaliser, load_rows, scores


@triton.jit
def visits(
    a_ptr, b_ptr, bias_a_ptr, bias_b_ptr, rows_ptr, counts_ptr, columns_ptr, visit_ptr, parts_ptr,
    N, M, D, scale: tl.float64, eps: tl.float64, tiny: tl.float64, stride_an, stride_ad, stride_bm, stride_bd,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, ONE_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``visit_j = mean_i p_ab_ij``, ``h_j = -1 / (N M (eps + visit_j))`` and ``-sum_j log(eps + visit_j)``.

    A program owns a column tile and all rows. Fills ``visit``, ``h`` of ``columns`` and ``visit_parts``.
    """
    ACC: tl.constexpr = columns_ptr.dtype.element_ty
    column = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    column_ok = column < M
    # [BLOCK_M, BLOCK_D]
    b_tile = load_rows(b_ptr, column, column_ok, 0, D, stride_bm, stride_bd, BLOCK_D, PRECISION) if ONE_D else None
    total = tl.zeros([BLOCK_M], dtype=ACC)
    for start in range(0, N, BLOCK_N):
        row = start + tl.arange(0, BLOCK_N)
        m_i, inverse_i = load_normaliser(rows_ptr, row, row < N, N)
        # The inverse sum of a row that takes no part is 0.
        row_ok = inverse_i != 0.0
        # [BLOCK_N, BLOCK_D]
        a_tile = load_rows(a_ptr, row, row_ok, 0, D, stride_an, stride_ad, BLOCK_D, PRECISION) if ONE_D else None
        s = scores(
            a_tile, b_tile, a_ptr, b_ptr, row, row_ok, column, column_ok, bias_a_ptr, bias_b_ptr, D, scale,
            stride_an, stride_ad, stride_bm, stride_bd, ACC, BLOCK_N, BLOCK_M, BLOCK_D, ONE_D, PRECISION,
        )  # [BLOCK_N, BLOCK_M]  # fmt: skip
        total += tl.sum(tl.exp2(s - m_i[:, None]) * inverse_i[:, None], 0)
    rows_kept = tl.load(counts_ptr + KEPT).to(ACC)
    # A column of -inf has an infinite inverse sum, and NaN is what it gives; any other adds 0.
    visit = total / rows_kept + 0.0 * tl.load(columns_ptr + INVERSE_SUM * M + column, mask=column_ok, other=0.0)
    x = visit + tl.full([1], eps, ACC)
    tl.store(visit_ptr + column, visit, mask=column_ok)
    # Without eps, 1 / tiny where no walk arrives.
    h = -1.0 / (rows_kept * M * tl.maximum(x, tl.full([1], tiny, ACC), propagate_nan=tl.PropagateNan.ALL))
    tl.store(columns_ptr + H * tl.cast(M, tl.int64) + column, h, mask=column_ok)
    tl.store(parts_ptr + tl.program_id(0), -tl.sum(tl.where(column_ok, tl.log(x), 0.0), 0))
