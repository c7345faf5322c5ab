"""The size of every class and the rank of every row in its class, by counting."""

import triton
import triton.language as tl

from fastassoc.kernels.triton.buffers import CLASS, CLASS_TILES, FIRST_PAIR, FIRST_TILE, HEAD, NO_PAIR, RANK, ROW, SIZE


@triton.jit
def count_equal(labels_ptr, label, start, end, stride_label, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """``#{k: label_k = label_i}`` of rows ``start`` to ``end``, [BLOCK_N]."""
    # Added up along k at the end, once.
    counts = tl.zeros([BLOCK_N, BLOCK_K], dtype=tl.int32)
    for first in range(start, end, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        other = tl.load(labels_ptr + k.to(tl.int64) * stride_label, mask=k < end, other=0).to(tl.int64)
        counts += ((label[:, None] == other[None, :]) & (k < end)[None, :]).to(tl.int32)
    return tl.sum(counts, 1)


@triton.jit
def class_sizes(
    labels_ptr, classes_ptr, slots_ptr, tiles_ptr,
    N, SLOTS, TILES, stride_label, ignore_index: tl.int64,
    WALKER: tl.constexpr, HAS_IGNORED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``size_i = #{k: label_k = label_i}`` and ``rank_i = #{k < i: label_k = label_i}``; both 0 for ignored rows.

    Fills ``classes``, and empties ``slots`` and ``tiles`` for `fastassoc.kernels.triton.layout`. Without the walker
    term every row is a class of its own.
    """
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    # 1. Counting: N^2 comparisons of integers, less than the launches of a sort.
    label = tl.load(labels_ptr + i.to(tl.int64) * stride_label, mask=i < N, other=0).to(tl.int64)
    if WALKER:
        # There are more slots than rows: nothing is counted for what lies beyond N.
        first = tl.program_id(0) * BLOCK_N
        before = count_equal(labels_ptr, label, 0, tl.where(first < N, first, 0), stride_label, BLOCK_N, BLOCK_K)
        size = before + count_equal(labels_ptr, label, first, N, stride_label, BLOCK_N, BLOCK_K)
        rank = before + tl.sum(((label[:, None] == label[None, :]) & (i[None, :] < i[:, None])).to(tl.int32), 1)
    else:
        size, rank = tl.full([BLOCK_N], 1, dtype=tl.int32), tl.zeros([BLOCK_N], dtype=tl.int32)
    if HAS_IGNORED:
        kept = label != ignore_index
        size = tl.where(kept, size, 0)
        rank = tl.where(kept, rank, 0)
    tl.store(classes_ptr + SIZE * N + i, size, mask=i < N)
    tl.store(classes_ptr + RANK * N + i, rank, mask=i < N)
    tl.store(classes_ptr + HEAD * N + i, tl.where(rank == 0, size, 0), mask=i < N)

    # 2. No slot has a row, no tile exists.
    tl.store(slots_ptr + ROW * SLOTS + i, -1, mask=i < SLOTS)
    tl.store(slots_ptr + CLASS * SLOTS + i, -1, mask=i < SLOTS)
    tl.store(tiles_ptr + FIRST_PAIR * TILES + i, NO_PAIR, mask=i < TILES)
    tl.store(tiles_ptr + FIRST_TILE * TILES + i, 0, mask=i < TILES)
    tl.store(tiles_ptr + CLASS_TILES * TILES + i, 0, mask=i < TILES)
