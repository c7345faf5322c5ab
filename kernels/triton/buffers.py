"""The buffers that passes hand to one another: what the kernels and their host agree on, in full.

*Acc* is the accumulation dtype: float64 for embeddings in float64, else float32. ``CLASS_ROWS`` slots are a class tile;
"pairs" are pairs of class tiles (`fastassoc.kernels.triton.rows`); an "item" is a pair and a range of columns.

Buffers with fields follow below, [fields, length]. A field begins at its number times the length; of ``slots`` and
``tiles`` that is the length they were allocated with, ``SLOTS`` and ``TILES``. All others are contiguous:

- ``visit`` [M] acc: visit probabilities; ``visit_parts`` [programs] acc: shares of the visit loss.
- ``trips`` [items, CLASS_ROWS, CLASS_ROWS] acc: shares of ``l_i p_aba_ik``; ``rho`` [items, CLASS_ROWS] acc: shares of
  ``l_i rho_i`` of the visits.
- ``g`` [pairs, CLASS_ROWS, CLASS_ROWS], bfloat16 where products round to it, else acc: ``G_ik`` as products round it,
  0 across classes. None without the walker or without a gradient.
- ``kappa`` [M] acc, at an upstream gradient of 1. None without the walker.
- ``da`` [N, D] and ``db`` [M, D] in the dtype of the embeddings; ``dbias_a`` [N] and ``dbias_b`` [M] acc.
- ``da_parts`` [ranges, N, D] and ``dbias_a_parts`` [ranges, N] acc: shares over ranges of columns; rows that take no
  part are not written. One range is ``da`` and ``dbias_a`` themselves.
"""

import triton.language as tl

# ``classes`` [CLASS_FIELDS, N] int32, by row of ``a``
CLASS_FIELDS = 3
SIZE, RANK, EXTENT = map(tl.constexpr, range(CLASS_FIELDS))
"""Rows of its class, 0 for an ignored row; its place among them; slots of its class, 0 in all but its first row."""

# ``slots`` [SLOT_FIELDS, SLOTS] int32
SLOT_FIELDS = 2
ROW, CLASS = map(tl.constexpr, range(SLOT_FIELDS))
"""Row of ``a``; first slot of its class, which tells classes apart. Both are -1 in an empty slot. ``ROW`` is first, as
passes that read nothing else do not know ``SLOTS``."""

# ``tiles`` [TILE_FIELDS, TILES] int32
TILE_FIELDS = 3
FIRST_PAIR, FIRST_TILE, CLASS_TILES = map(tl.constexpr, range(TILE_FIELDS))
"""First of the tile's pairs; first tile of its class; tiles of its class, as many as the tile has pairs."""
NO_PAIR = tl.constexpr(2**31 - 1)
"""First pair of a tile that does not exist; it has 0 in the other fields."""

# ``counts`` [COUNTS] int32
COUNTS = 3
KEPT, TILE_COUNT, PAIR_COUNT = map(tl.constexpr, range(COUNTS))
"""Rows that take part; class tiles; pairs of class tiles."""

# ``rows`` [ROW_FIELDS, N] and ``columns`` [COLUMN_FIELDS, M], both acc; ``MAXIMUM`` and ``INVERSE_SUM`` are in both
ROW_FIELDS = 4
MAXIMUM, INVERSE_SUM, RHO_WALKER, RHO_VISIT = map(tl.constexpr, range(ROW_FIELDS))
"""The normaliser (`fastassoc.kernels.triton.primitives`), infinity and 0 for a row that takes no part; ``rho`` of the
walker, ``sum_k G_ik p_aba_ik``, and of the visits, ``sum_j p_ab_ij h_j``, at upstream gradients of 1."""
COLUMN_FIELDS = 3
H = tl.constexpr(COLUMN_FIELDS - 1)
"""``h`` at an upstream gradient of 1."""

# ``row_parts`` [ROW_PART_FIELDS, programs, N] acc
ROW_PART_FIELDS = 2
PART_MAXIMUM, PART_SUM = map(tl.constexpr, range(ROW_PART_FIELDS))
"""A row's maximum, and its sum of exponentials relative to that, over the columns of one program."""

# ``walker_parts`` [WALKER_PART_FIELDS, programs] acc
WALKER_PART_FIELDS = 3
LOSS, CORRECT, ROOT = map(tl.constexpr, range(WALKER_PART_FIELDS))
"""Shares of the walker loss, of ``sum_i c_i`` and of ``sum_i sqrt(c_i)``, where ``c_i = sum_{k~i} p_aba_ik``."""
