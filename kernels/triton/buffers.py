"""The buffers that passes hand to one another: what the kernels and their host agree on, in full.

*Acc* is the accumulation dtype: float64 for embeddings in float64, else float32. ``CLASS_ROWS`` slots are a class tile
(`fastassoc.kernels.triton.layout`); "pairs" are pairs of class tiles; an "item" is a pair and a share of the columns,
in the merged form only of pairs (I, K) with K >= I, which the others mirror.
Passes over class tiles take ``a`` and its biases in the order of the slots, 0 in an empty one.
Columns are taken range by range, ``CHUNK`` of them, and what is said to be of a range is overwritten by the next.
``CHUNK`` is a multiple of every tile of columns; columns there are not have steps of 0. "Parts" of a number are
numbers that add up to it, three in bfloat16 or one (`fastassoc.kernels.triton.primitives.split`).

Buffers with fields follow below, [fields, length] unless they say otherwise. A field begins at its number times the
length; of ``slots`` and ``tiles`` that is their stride, ``SLOTS`` and ``TILES``. All others are contiguous:

- ``visit`` [M] acc: visit probabilities; ``visit_parts`` [programs] acc: shares of the visit loss.
- ``steps`` [sides, parts, CHUNK, SLOTS], of a range: both factors of the steps (`fastassoc.kernels.triton.forms`), one
  side where they are known to be the same. In the backward pass ``ds`` [parts, CHUNK, SLOTS], the gradients of the
  scores, take the place of the first side.
- ``exact`` [CHUNK, SLOTS] acc, of a range: gradients of the scores without ``kappa``, before they are rounded. Where
  steps are one bfloat16 part it is in float16, as a multiple of ``units`` [tiles, CHUNK] acc, the largest magnitude of
  a class tile and column. Both are None without the walker's gradient.
- ``trips`` [items, CLASS_ROWS, CLASS_ROWS] acc: shares of ``sum_j left_ij right_kj``, of all ranges so far; ``rho``
  [items, CLASS_ROWS] acc: shares of ``sum_j left_ij alpha_j h_j``, likewise.
- ``g`` [parts, pairs, CLASS_ROWS, CLASS_ROWS] in the dtype of the steps: ``G_ik there_i back_k``, 0 across classes,
  and in the merged form ``G_ki there_k back_i`` added. None without the walker or without a gradient.
- ``kappa_parts`` [tiles, CHUNK] acc, of a range: shares of ``kappa``, at an upstream gradient of 1.
- ``da_parts`` [programs + tiles - 1, CLASS_ROWS, D] and ``dbias_a_parts`` [programs + tiles - 1, CLASS_ROWS] acc: what
  a program adds to ``da`` and ``dbias_a`` of a class tile (`fastassoc.kernels.triton.shares.row_share`), of all ranges
  so far.
- ``db_parts`` [shares, CHUNK, D] and ``dbias_b_parts`` [shares, CHUNK] acc: shares of ``db`` and ``dbias_b``, of a
  range.
- ``da`` [N, D] and ``db`` [M, D] in the dtype of the embeddings; ``dbias_a`` [N] and ``dbias_b`` [M] acc.
"""

from typing import Any, NamedTuple

import triton.language as tl

# ``classes`` [CLASS_FIELDS, N] int32, by row of ``a``
CLASS_FIELDS = 3
SIZE, RANK, HEAD = map(tl.constexpr, range(CLASS_FIELDS))
"""Rows of its class, 0 for an ignored row; its place among them; the size again, but 0 in all but the first row."""

# ``slots`` [SLOT_FIELDS, SLOTS] int32
SLOT_FIELDS = 2
ROW, CLASS = map(tl.constexpr, range(SLOT_FIELDS))
"""Row of ``a``; first slot of its class, which tells classes apart. Both are -1 in an empty slot."""

# ``tiles`` [TILE_FIELDS, TILES] int32
TILE_FIELDS = 3
FIRST_PAIR, FIRST_TILE, CLASS_TILES = map(tl.constexpr, range(TILE_FIELDS))
"""First of the tile's pairs; first tile of its class; tiles of its class, as many as the tile has pairs."""
NO_PAIR = tl.constexpr(2**31 - 1)
"""First pair of a tile that does not exist; it has 0 in the other fields."""

# ``counts`` [COUNTS] int32
COUNTS = 4
KEPT, TILE_COUNT, PAIR_COUNT, PLAIN = map(tl.constexpr, range(COUNTS))
"""Rows that take part; class tiles; pairs of class tiles; whether the form of the steps
(`fastassoc.kernels.triton.forms`) is the plain one, 1 or 0."""

# ``rows`` [ROW_FIELDS, N] and ``columns`` [COLUMN_FIELDS, M], both acc
ROW_FIELDS = 2
MAXIMUM, INVERSE_SUM = map(tl.constexpr, range(ROW_FIELDS))
"""The normaliser (`fastassoc.kernels.triton.primitives`), infinity and 0 for a row that takes no part. Of columns it is
replaced by what follows (`fastassoc.kernels.triton.forms`)."""
COLUMN_FIELDS = 4
COLUMN_SHIFT, FACTOR, ALPHA, H = map(tl.constexpr, range(COLUMN_FIELDS))
"""What a column puts into the steps; ``h`` at an upstream gradient of 1."""

# ``row_parts`` [ROW_PART_FIELDS, shares, N] acc
ROW_PART_FIELDS = 2
PART_MAXIMUM, PART_SUM = map(tl.constexpr, range(ROW_PART_FIELDS))
"""A row's maximum, and its sum of exponentials relative to that, over the columns of one program."""

# ``extremes`` [EXTREME_FIELDS, programs] acc
EXTREME_FIELDS = 2
LEAST, MOST = map(tl.constexpr, range(EXTREME_FIELDS))
"""Least and largest normaliser of the columns of one program, in units of log 2."""

# ``weights`` [SLOTS, WEIGHT_FIELDS] acc
WEIGHT_FIELDS = 5
SHIFT, THERE, BACK, RHO_WALKER, RHO_VISIT = map(tl.constexpr, range(WEIGHT_FIELDS))
"""What a row puts into the steps (`fastassoc.kernels.triton.forms`), infinity, 0 and 0 in an empty slot; ``rho`` of the
walker, ``sum_k G_ik p_aba_ik``, and of the visits, ``sum_j p_ab_ij h_j``, at upstream gradients of 1."""

# ``terms`` [TERM_FIELDS, CHUNK] acc, of a range
TERM_FIELDS = 2
OF_THERE, OF_BACK = map(tl.constexpr, range(TERM_FIELDS))
"""``alpha_j h_j`` and ``kappa_j / alpha_j``, times their upstream gradients, 0 where there is none. Not where
steps are stored."""

# ``row_terms`` [SLOTS] acc: ``there_i rho_i``, of both ``rho`` times their upstream gradients

# ``walker_parts`` [WALKER_PART_FIELDS, programs] acc
WALKER_PART_FIELDS = 3
LOSS, CORRECT, ROOT = map(tl.constexpr, range(WALKER_PART_FIELDS))
"""Shares of the walker loss, of ``sum_i c_i`` and of ``sum_i sqrt(c_i)``, where ``c_i = sum_{k~i} p_aba_ik``."""


class Embeddings(NamedTuple):
    """Embeddings as an argument of a kernel."""

    ptr: Any
    """[parts, size, D]: one part as the caller gave them, or what `row_operands` makes of them."""
    bias_ptr: Any
    """[size] acc, or None."""
    largest_ptr: Any
    """The largest absolute value, where products of scores take float32 in float16; or None."""
    stride_part: Any
    """0 where they are as the caller gave them."""
    stride_n: Any
    stride_d: Any


class Steps(NamedTuple):
    """A range of columns as an argument of a kernel, and the workspace of the shape of ``steps`` that it has."""

    ptr: Any
    """None where every pass computes the steps that it needs."""
    SLOTS: Any
    CHUNK: Any
    START: Any
    """First column of the range."""


class Results(NamedTuple):
    """Where the losses and the statistics go, as an argument of a kernel; None what is not wanted."""

    loss_ptr: Any
    """The weighted sum of both terms."""
    walker_ptr: Any
    visit_ptr: Any
    p_correct_ptr: Any
    accuracy_ptr: Any
    visit_probability_ptr: Any
    """[M]; None where a pass before the last stores it."""


class Tables(NamedTuple):
    """What passes look up, as an argument of a kernel."""

    columns_ptr: Any
    slots_ptr: Any
    tiles_ptr: Any
    counts_ptr: Any
    weights_ptr: Any
    row_terms_ptr: Any
    """None where no gradient of scores is computed."""
    M: Any
    TILES: Any
