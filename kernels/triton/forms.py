"""The form in which steps are kept: factors ``left`` and ``right`` with weights of rows and of columns.

    p_ab_ij = left_ij alpha_j there_i        q_ij = right_ij back_i / alpha_j
    p_aba_ik = there_i back_k sum_j left_ij right_kj

*Merged*: both factors are one, the square root of ``p_ab_ij q_ij`` but for a weight of the row, so that a score takes
one exponential and a round trip is a symmetric product. Of the normaliser of a row or column, ``lse = m + log2 l`` in
units of log 2, half is kept as an integer ``r = round(lse / 2)`` and a factor ``f = exp2(r - m / 2) / sqrt(l)``, never
as a rounded logarithm. With any integer ``k``:

    left_ij = exp2(s2_ij - (r_j + k) - (r_i - k)) f_j      alpha_j = exp2(r_j - k) / f_j
    there_i = exp2(r_i + k - m_i) / l_i                    back_i = exp2(r_i - k)

Where steps are kept as one bfloat16 number, the rounding of a logarithm is far below theirs: ``r_j`` is half of ``lse``
there, not rounded to an integer, and ``f_j`` is 1.

*Plain*: ``left_ij = exp2(s2_ij - m_i)``, ``right = q``, ``alpha = back = 1``, ``there_i = 1 / l_i``. Two exponentials
and two products, but nothing underflows that matters. Merged, a step is ``left`` times a number of up to ``2^(d / 2)``
with normalisers ``d`` apart, and so is a round trip: beyond `FARTHEST` the plain form is taken. Upstream gradients
times ``2^(d / 2) / (eps N n)`` have to stay within the range of float32.
"""

import triton
import triton.language as tl

from fastassoc.kernels.triton.buffers import (
    ALPHA,
    BACK,
    COLUMN_SHIFT,
    FACTOR,
    LEAST,
    MOST,
    PLAIN,
    RHO_VISIT,
    RHO_WALKER,
    SHIFT,
    THERE,
    WEIGHT_FIELDS,
)
from fastassoc.kernels.triton.primitives import load_normaliser

FARTHEST = tl.constexpr(144.0)
"""Most that normalisers may be apart in the merged form, in units of log 2: 100 in natural ones."""
LARGEST = tl.constexpr(2.0**20)
"""Largest normaliser in the merged form, in units of log 2: float32 has four of its 24 digits left behind the point."""

FIELDS = tl.constexpr(WEIGHT_FIELDS)


@triton.jit
def row_weight(weights_ptr, slot, FIELD: tl.constexpr):
    """A field of ``weights``, [len(slot)]."""
    return tl.load(weights_ptr + slot * FIELDS + FIELD)


@triton.jit
def set_row_weight(weights_ptr, slot, FIELD: tl.constexpr, x):
    """The reverse of `row_weight`."""
    tl.store(weights_ptr + slot * FIELDS + FIELD, x)


@triton.jit
def slot_rows(slots_ptr, tile, BLOCK_N: tl.constexpr):
    """``(row of a, whether there is one)`` for each slot of a class tile; see `fastassoc.kernels.triton.layout`."""
    row = tl.load(slots_ptr + tile * BLOCK_N + tl.arange(0, BLOCK_N))
    return tl.maximum(row, 0).to(tl.int64), row >= 0


@triton.jit
def half(m, inverse):
    """``(r, f)`` of a normaliser ``(m, 1 / l)``."""
    r = tl.floor((m - tl.log2(inverse)) * 0.5 + 0.5)
    return r, tl.exp2(r - m * 0.5) * tl.sqrt(inverse)


@triton.jit
def column_weight(tables, column, valid, FIELD: tl.constexpr, other):
    """A field of ``columns``, ``other`` where there is no column."""
    return tl.load(tables.columns_ptr + FIELD * tl.cast(tables.M, tl.int64) + column, mask=valid, other=other)


@triton.jit
def forms(
    rows_ptr, extremes_ptr, slots_ptr, counts_ptr, weights_ptr, columns_ptr, N, M, PROGRAMS, TILES,
    MAY_MERGE: tl.constexpr, KEEP_FACTOR: tl.constexpr, CLASS_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The form, and the weights of rows and columns.

    A program owns a class tile, if there is one left, and every num_programs-th BLOCK columns. Fills ``SHIFT``,
    ``THERE`` and ``BACK`` of ``weights``, all but ``H`` of ``columns`` and ``PLAIN`` of ``counts``.
    """
    ACC: tl.constexpr = rows_ptr.dtype.element_ty
    # 1. The least and the largest normaliser; a maximum of inf is a row that takes no part. NaN may be passed over, and
    # reaches the loss in either form.
    least = tl.full([BLOCK], float("inf"), dtype=ACC)
    most = tl.full([BLOCK], -float("inf"), dtype=ACC)
    for start in range(0, PROGRAMS, BLOCK):
        p = start + tl.arange(0, BLOCK)
        low = tl.load(extremes_ptr + LEAST * PROGRAMS + p, mask=p < PROGRAMS, other=float("inf"))
        high = tl.load(extremes_ptr + MOST * PROGRAMS + p, mask=p < PROGRAMS, other=-float("inf"))
        least = tl.minimum(least, low)
        most = tl.maximum(most, high)
    for start in range(0, N, BLOCK):
        i = start + tl.arange(0, BLOCK)
        m, inverse = load_normaliser(rows_ptr, i, i < N, N)
        normaliser = m - tl.log2(inverse)
        least = tl.minimum(least, tl.where(inverse == 0.0, float("inf"), normaliser))
        most = tl.maximum(most, tl.where(inverse == 0.0, -float("inf"), normaliser))
    lowest, highest = tl.min(least, 0), tl.max(most, 0)
    plain = 1
    if MAY_MERGE:
        plain = tl.where(highest - lowest <= FARTHEST, tl.where(tl.maximum(highest, -lowest) <= LARGEST, 0, 1), 1)
    merged = plain == 0
    centre = tl.where(merged, tl.floor((highest + lowest) * 0.25 + 0.5), 0.0)
    if tl.program_id(0) == 0:
        tl.store(counts_ptr + PLAIN, plain)

    # 2. Columns. In the plain form they keep their normalisers.
    for start in range(tl.program_id(0) * BLOCK, M, tl.num_programs(0) * BLOCK):
        column = (start + tl.arange(0, BLOCK)).to(tl.int64)
        column_ok = column < M
        m, inverse = load_normaliser(columns_ptr, column, column_ok, M)
        r, f = half(m, inverse)
        if not KEEP_FACTOR:
            r, f = (m - tl.log2(inverse)) * 0.5, tl.full([BLOCK], 1.0, ACC)
        shift = r + centre
        # Of the shift as it is stored.
        alpha = tl.exp2(shift - 2.0 * centre) / f
        tl.store(columns_ptr + COLUMN_SHIFT * M + column, tl.where(merged, shift, m), mask=column_ok)
        tl.store(columns_ptr + FACTOR * M + column, tl.where(merged, f, inverse), mask=column_ok)
        alpha = tl.where(merged, alpha, 1.0)
        tl.store(columns_ptr + ALPHA * tl.cast(M, tl.int64) + column, alpha, mask=column_ok)

    # 3. Rows.
    tile = tl.program_id(0)
    if tile >= TILES:
        return
    row, row_ok = slot_rows(slots_ptr, tile, CLASS_ROWS)
    slot = tile * CLASS_ROWS + tl.arange(0, CLASS_ROWS)
    m, inverse = load_normaliser(rows_ptr, row, row_ok, N)
    r, _ = half(tl.where(row_ok, m, 0.0), tl.where(row_ok, inverse, 1.0))
    shift = tl.where(merged, r - centre, m)
    # By differences that are exact: the rounding of r + centre - m would be an error of a whole row of p_ab.
    whole = tl.floor(m + 0.5)
    there = tl.where(merged, tl.exp2(r + centre - whole) * tl.exp2(whole - m), 1.0) * inverse
    back = tl.where(merged, tl.exp2(r - centre), 1.0)
    set_row_weight(weights_ptr, slot, SHIFT, tl.where(row_ok, shift, float("inf")))
    set_row_weight(weights_ptr, slot, THERE, tl.where(row_ok, there, 0.0))
    set_row_weight(weights_ptr, slot, BACK, tl.where(row_ok, back, 0.0))
    # What is not computed counts for nothing.
    set_row_weight(weights_ptr, slot, RHO_WALKER, tl.zeros([CLASS_ROWS], dtype=ACC))
    set_row_weight(weights_ptr, slot, RHO_VISIT, tl.zeros([CLASS_ROWS], dtype=ACC))
