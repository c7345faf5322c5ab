"""What belongs to a row: its normaliser, from its shares, and its slot among the class tiles."""

import triton
import triton.language as tl

from fastassoc.kernels.triton.buffers import INVERSE_SUM, MAXIMUM, PART_MAXIMUM, PART_SUM, SIZE
from fastassoc.kernels.triton.layout import deal_slots
from fastassoc.kernels.triton.normalisers import joined_normaliser


@triton.jit
def rows(
    labels_ptr, classes_ptr, row_parts_ptr, rows_ptr, slots_ptr, tiles_ptr, counts_ptr,
    N, SHARES, SLOTS, TILES, stride_label,
    WALKER: tl.constexpr, CLASS_ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """``m_i = max_p m_ip``, ``1 / l_i = 1 / sum_p l_ip exp(m_ip - m_i)``; the slot of row i; the number of rows kept.

    Fills ``rows``, ``slots``, ``tiles``, and of ``counts`` all but the form.
    """
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    size = tl.load(classes_ptr + SIZE * N + i, mask=i < N, other=0)
    # Normalisers. Those of ignored rows make every probability 0.
    line = tl.cast(SHARES, tl.int64) * N
    m_i, l_i = joined_normaliser(
        row_parts_ptr + PART_MAXIMUM * line, row_parts_ptr + PART_SUM * line, SHARES, N, i, i < N, BLOCK_P
    )
    tl.store(rows_ptr + MAXIMUM * N + i, tl.where(size > 0, m_i, float("inf")), mask=i < N)
    tl.store(rows_ptr + INVERSE_SUM * N + i, tl.where(size > 0, 1.0 / l_i, 0.0), mask=i < N)

    deal_slots(
        i, size, labels_ptr, classes_ptr, slots_ptr, tiles_ptr, counts_ptr, N, SLOTS, TILES, stride_label,
        WALKER, CLASS_ROWS, BLOCK_N, BLOCK_K,
    )  # fmt: skip
