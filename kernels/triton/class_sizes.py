"""The size of every class and the rank of every row in its class, by counting."""

import triton
import triton.language as tl

from fastassoc.kernels.triton.buffers import CLASS, CLASS_TILES, FIRST_PAIR, FIRST_TILE, HEAD, NO_PAIR, RANK, ROW, SIZE


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
        # Added up along k at the end, once.
        sizes = tl.zeros([BLOCK_N, BLOCK_K], dtype=tl.int32)
        ranks = tl.zeros([BLOCK_N, BLOCK_K], dtype=tl.int32)
        # There are more slots than rows.
        for start in range(0, tl.where(tl.program_id(0) * BLOCK_N < N, N, 0), BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            other = tl.load(labels_ptr + k.to(tl.int64) * stride_label, mask=k < N, other=0).to(tl.int64)
            same = (label[:, None] == other[None, :]) & (k < N)[None, :]  # [BLOCK_N, BLOCK_K]
            sizes += same.to(tl.int32)
            ranks += (same & (k[None, :] < i[:, None])).to(tl.int32)
        size, rank = tl.sum(sizes, 1), tl.sum(ranks, 1)
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
