"""Pass 3: what belongs to a row: its normaliser, and its slot among the class tiles.

Rows are dealt to slots so that no class of at most ``CLASS_ROWS`` rows straddles a tile of ``CLASS_ROWS`` slots:
classes are padded to a power of two (above a tile, to whole tiles) and laid out by falling padded size. Fewer than half
of the slots stay empty, not counting the end of the last tile. A pair of tiles ``(I, K)`` holds round trips where one
class has rows in both; a class of ``T`` tiles has ``T^2`` pairs, any other tile one pair with itself.
"""

import triton
import triton.language as tl

from fastassoc.kernels.triton.buffers import (
    CLASS,
    CLASS_TILES,
    EXTENT,
    FIRST_PAIR,
    FIRST_TILE,
    INVERSE_SUM,
    KEPT,
    MAXIMUM,
    PAIR_COUNT,
    PART_MAXIMUM,
    PART_SUM,
    RANK,
    ROW,
    SIZE,
    TILE_COUNT,
)
from fastassoc.kernels.triton.class_sizes import padded_rows
from fastassoc.kernels.triton.primitives import finite_shift


@triton.jit
def label_or_row(labels_ptr, i, N, stride_label, WALKER: tl.constexpr):
    """What tells classes apart."""
    return tl.load(labels_ptr + i.to(tl.int64) * stride_label, mask=i < N, other=0).to(tl.int64) if WALKER else i


@triton.jit
def rows(
    labels_ptr, classes_ptr, row_parts_ptr, rows_ptr, slots_ptr, tiles_ptr, counts_ptr,
    N, PARTS, SLOTS, TILES, stride_label,
    WALKER: tl.constexpr, CLASS_ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """``m_i = max_p m_ip``, ``1 / l_i = 1 / sum_p l_ip exp(m_ip - m_i)``; the slot of row i; the number of rows kept.

    Fills the normalisers of ``rows``, and ``slots``, ``tiles`` and ``counts``.
    """
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    size = tl.load(classes_ptr + SIZE * N + i, mask=i < N, other=0)
    # 1. Normalisers. Those of ignored rows make every probability 0.
    m_i = tl.full([BLOCK_N], -float("inf"), dtype=rows_ptr.dtype.element_ty)
    l_i = tl.zeros([BLOCK_N], dtype=rows_ptr.dtype.element_ty)
    for start in range(0, PARTS, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        offsets = p.to(tl.int64)[:, None] * N + i[None, :]
        ok = (p < PARTS)[:, None] & (i < N)[None, :]
        max_ptr = row_parts_ptr + PART_MAXIMUM * tl.cast(PARTS, tl.int64) * N
        sum_ptr = row_parts_ptr + PART_SUM * tl.cast(PARTS, tl.int64) * N
        m = tl.load(max_ptr + offsets, mask=ok, other=-float("inf"))  # [BLOCK_P, BLOCK_N]
        l = tl.load(sum_ptr + offsets, mask=ok, other=0.0)  # noqa: E741
        m_new = tl.maximum(m_i, tl.max(m, 0))
        shift = finite_shift(m_new)
        l_i = l_i * tl.exp2(m_i - shift) + tl.sum(l * tl.exp2(m - shift[None, :]), 0)
        m_i = m_new
    tl.store(rows_ptr + MAXIMUM * N + i, tl.where(size > 0, finite_shift(m_i), float("inf")), mask=i < N)
    tl.store(rows_ptr + INVERSE_SUM * N + i, tl.where(size > 0, 1.0 / l_i, 0.0), mask=i < N)

    # 2. Slots before the class of row i, and totals.
    label = label_or_row(labels_ptr, i, N, stride_label, WALKER)
    extent = padded_rows(size, CLASS_ROWS)
    before = tl.zeros([BLOCK_N], dtype=tl.int32)
    whole_before = tl.zeros([BLOCK_N], dtype=tl.int32)
    pairs_before = tl.zeros([BLOCK_N], dtype=tl.int32)
    kept = 0
    whole_slots = 0
    whole_pairs = 0
    part_slots = 0
    for start in range(0, N, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        kept += tl.sum((tl.load(classes_ptr + SIZE * N + k, mask=k < N, other=0) > 0).to(tl.int32), 0)
        other = tl.load(classes_ptr + EXTENT * N + k, mask=k < N, other=0)
        whole = tl.where(other >= CLASS_ROWS, other, 0)
        whole_tiles = whole // CLASS_ROWS
        whole_slots += tl.sum(whole, 0)
        whole_pairs += tl.sum(whole_tiles * whole_tiles, 0)
        part_slots += tl.sum(other - whole, 0)
        other_label = label_or_row(labels_ptr, k, N, stride_label, WALKER)
        larger = other[None, :] > extent[:, None]
        earlier = larger | ((other[None, :] == extent[:, None]) & (other_label[None, :] < label[:, None]))
        before += tl.sum(tl.where(earlier, other[None, :], 0), 1)
        whole_before += tl.sum(tl.where(earlier, whole[None, :], 0), 1)
        pairs_before += tl.sum(tl.where(earlier, (whole_tiles * whole_tiles)[None, :], 0), 1)
    if tl.program_id(0) == 0:
        part_tiles = (part_slots + CLASS_ROWS - 1) // CLASS_ROWS
        tl.store(counts_ptr + KEPT, kept)
        tl.store(counts_ptr + TILE_COUNT, whole_slots // CLASS_ROWS + part_tiles)
        tl.store(counts_ptr + PAIR_COUNT, whole_pairs + part_tiles)

    # 3. The row's slot; the row in the first slot of a tile describes the tile.
    ok = (i < N) & (size > 0)
    slot = before + tl.load(classes_ptr + RANK * N + i, mask=i < N, other=0)
    tl.store(slots_ptr + ROW * SLOTS + slot, i, mask=ok)
    tl.store(slots_ptr + CLASS * SLOTS + slot, before, mask=ok)
    tile = slot // CLASS_ROWS
    describes = ok & (slot % CLASS_ROWS == 0)
    whole = extent >= CLASS_ROWS
    count = tl.where(whole, extent // CLASS_ROWS, 1)
    first = tl.where(whole, before // CLASS_ROWS, tile)
    # Tiles of small classes follow those of the whole-tile classes, one pair each.
    pair = pairs_before + tl.where(whole, (tile - first) * count, (slot - whole_before) // CLASS_ROWS)
    tl.store(tiles_ptr + FIRST_PAIR * TILES + tile, pair, mask=describes)
    tl.store(tiles_ptr + FIRST_TILE * TILES + tile, first, mask=describes)
    tl.store(tiles_ptr + CLASS_TILES * TILES + tile, count, mask=describes)
