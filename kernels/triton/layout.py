"""Which slot a row of ``a`` takes among the class tiles of ``CLASS_ROWS`` slots.

No class of at most ``CLASS_ROWS`` rows straddles a tile, and a larger one has its tiles to itself. In this order:

1. Classes of more than ``CLASS_ROWS`` rows, padded to whole tiles.
2. Full tiles. A class of which ``k = CLASS_ROWS // size`` fit into a tile shares it with others of the same ``k``, each
   on ``CLASS_ROWS // k`` slots.
3. Classes that are left over, fewer than ``k`` of each ``k``, padded to the next power of two, which those of one ``k``
   share; by rising ``k``, so that none straddles a tile.

More than half of the slots have a row, not counting the end of the last tile. A pair of tiles ``(I, K)`` holds round
trips where one class has rows in both: a class of ``T`` tiles has ``T^2`` pairs, any other tile one pair with itself.
"""

import math

import triton
import triton.language as tl

from fastassoc.kernels.triton.buffers import (
    CLASS,
    CLASS_TILES,
    FIRST_PAIR,
    FIRST_TILE,
    HEAD,
    KEPT,
    PAIR_COUNT,
    RANK,
    ROW,
    TILE_COUNT,
)

GROUP = tl.constexpr(2)
"""Blocks of rows that are passed over together where no class begins."""


@triton.jit
def label_or_row(labels_ptr, i, N, stride_label, WALKER: tl.constexpr):
    """What tells classes apart."""
    return tl.load(labels_ptr + i.to(tl.int64) * stride_label, mask=i < N, other=0).to(tl.int64) if WALKER else i


@triton.jit
def load_heads(classes_ptr, k, N):
    """``HEAD`` of rows ``k``, 0 where there is none."""
    return tl.load(classes_ptr + HEAD * N + k, mask=k < N, other=0)


@triton.jit
def next_power_of_two(x):
    """The least power of two that is not below ``x``, which is at least 1."""
    x -= 1
    x |= x >> 1
    x |= x >> 2
    x |= x >> 4
    x |= x >> 8
    return x + 1


@triton.jit
def at(values, index, positions):
    """``values[index]`` [len(index)] of a vector at ``positions``."""
    return tl.sum(tl.where(index[:, None] == positions[None, :], values[None, :], 0), 1)


@triton.constexpr_function
def few(class_rows):
    """The largest ``k`` up to which every one is that of some size. A larger one is that of one size or none."""
    return math.isqrt(class_rows)


@triton.constexpr_function
def kind_count(class_rows):
    """The number of kinds, rounded up to a power of two."""
    kinds = few(class_rows) + class_rows // (few(class_rows) + 1)
    return 1 << (kinds - 1).bit_length()


@triton.jit
def kind_of(k, CLASS_ROWS: tl.constexpr):
    """Number of a ``k`` among those that sizes have, rising from 1; 0 for 0."""
    FEW: tl.constexpr = few(CLASS_ROWS)
    return tl.where(k <= FEW, k, FEW + CLASS_ROWS // (FEW + 1) + 1 - CLASS_ROWS // tl.maximum(k, 1))


@triton.jit
def k_of(kind, CLASS_ROWS: tl.constexpr):
    """The reverse of `kind_of`, for kinds from 1; ``CLASS_ROWS`` beyond the last."""
    FEW: tl.constexpr = few(CLASS_ROWS)
    size = FEW + CLASS_ROWS // (FEW + 1) + 1 - kind
    return tl.where(kind <= FEW, kind, CLASS_ROWS // tl.maximum(size, 1))


@triton.jit
def deal_slots(
    i, size, labels_ptr, classes_ptr, slots_ptr, tiles_ptr, counts_ptr, N, SLOTS, TILES, stride_label,
    WALKER: tl.constexpr, CLASS_ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Fills the slots of rows ``i``, the tiles that they describe and, in the first program, the counts."""
    # 1. What comes before the class of row i in its kind, and how many classes there are of each. A kind is all sizes
    # of one k.
    label = label_or_row(labels_ptr, i, N, stride_label, WALKER)
    fits = CLASS_ROWS // tl.maximum(size, 1)  # 0 above a tile
    kinds = 1 + tl.arange(0, kind_count(CLASS_ROWS))
    ks = k_of(kinds, CLASS_ROWS)
    # Added up along their first axis at the end, once.
    of_kind = tl.zeros([BLOCK_K, kind_count(CLASS_ROWS)], dtype=tl.int32)
    earlier_of_kind = tl.zeros([BLOCK_K, BLOCK_N], dtype=tl.int32)
    tiles_before = tl.zeros([BLOCK_N], dtype=tl.int32)
    pairs_before = tl.zeros([BLOCK_N], dtype=tl.int32)
    kept = 0
    whole_tiles = 0
    whole_pairs = 0
    for group in range(0, N, GROUP * BLOCK_K):
        # Sizes of the classes whose first row is here, mostly none.
        heads = load_heads(classes_ptr, group + tl.arange(0, GROUP * BLOCK_K), N)
        rows = tl.sum(heads, 0)
        kept += rows
        any_whole = tl.max(heads, 0) > CLASS_ROWS
        for start in range(group, tl.where(rows > 0, tl.minimum(group + GROUP * BLOCK_K, N), 0), BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            head = load_heads(classes_ptr, k, N)
            other_fits = tl.where(head > 0, CLASS_ROWS // tl.maximum(head, 1), -1)
            earlier = label_or_row(labels_ptr, k, N, stride_label, WALKER)[:, None] < label[None, :]
            of_kind += (kind_of(other_fits, CLASS_ROWS)[:, None] == kinds[None, :]).to(tl.int32)
            earlier_of_kind += (earlier & (other_fits[:, None] == fits[None, :])).to(tl.int32)
            if any_whole:
                other_tiles = tl.where(head > CLASS_ROWS, (head + CLASS_ROWS - 1) // CLASS_ROWS, 0)
                whole_tiles += tl.sum(other_tiles, 0)
                whole_pairs += tl.sum(other_tiles * other_tiles, 0)
                tiles_before += tl.sum(tl.where(earlier, other_tiles[:, None], 0), 0)
                pairs_before += tl.sum(tl.where(earlier, (other_tiles * other_tiles)[:, None], 0), 0)
    classes, before = tl.sum(of_kind, 0), tl.sum(earlier_of_kind, 0)
    full = classes // ks
    left = classes - full * ks
    padded = next_power_of_two(CLASS_ROWS // ks)
    full_tiles = tl.sum(full, 0)
    left_tiles = (tl.sum(left * padded, 0) + CLASS_ROWS - 1) // CLASS_ROWS
    if tl.program_id(0) == 0:
        tl.store(counts_ptr + KEPT, kept)
        tl.store(counts_ptr + TILE_COUNT, whole_tiles + full_tiles + left_tiles)
        tl.store(counts_ptr + PAIR_COUNT, whole_pairs + full_tiles + left_tiles)

    # 2. The first slot of the class of row i.
    group = tl.maximum(fits, 1)
    kind = kind_of(group, CLASS_ROWS)
    in_full = at(full, kind, kinds) * group
    full_before = at(tl.cumsum(full, 0) - full, kind, kinds)
    left_before = at(tl.cumsum(left * padded, 0) - left * padded, kind, kinds)
    of_full = (whole_tiles + full_before + before // group) * CLASS_ROWS + before % group * (CLASS_ROWS // group)
    of_left = left_before + (before - in_full) * next_power_of_two(CLASS_ROWS // group)
    first = tl.where(before < in_full, of_full, (whole_tiles + full_tiles) * CLASS_ROWS + of_left)
    whole = fits == 0
    first = tl.where(whole, tiles_before * CLASS_ROWS, first)

    # 3. The row's slot; the row in the first slot of a tile describes the tile.
    ok = (i < N) & (size > 0)
    slot = first + tl.load(classes_ptr + RANK * N + i, mask=i < N, other=0)
    tl.store(slots_ptr + ROW * SLOTS + slot, i, mask=ok)
    tl.store(slots_ptr + CLASS * SLOTS + slot, first, mask=ok)
    tile = slot // CLASS_ROWS
    describes = ok & (slot % CLASS_ROWS == 0)
    count = tl.where(whole, (size + CLASS_ROWS - 1) // CLASS_ROWS, 1)
    # Tiles of the others follow, one pair each.
    pair = tl.where(whole, pairs_before + (tile - tiles_before) * count, whole_pairs + tile - whole_tiles)
    tl.store(tiles_ptr + FIRST_PAIR * TILES + tile, pair, mask=describes)
    tl.store(tiles_ptr + FIRST_TILE * TILES + tile, tl.where(whole, tiles_before, tile), mask=describes)
    tl.store(tiles_ptr + CLASS_TILES * TILES + tile, count, mask=describes)
