"""Steps: computed where they are used, or from the workspace that a pass fills with those of a range of columns.

A pass takes them in one of three ways (``WAY``):

- "computed": in the merged form, where every class has one tile and embeddings fit a tile. What a tile needs of steps
  and of gradients of scores is there in one product.
- "stored": in either form and for any classes, from the workspace. Else a tile would need the steps of the others of
  its class, and compute them over and over.
- "recomputed": in either form and for any classes, where embeddings fit a tile. It recomputes the steps of a class for
  each of its tiles. Without a workspace, ranges are large and launches few.

Where sizes of classes and the form have not been read back, and steps could be computed, a pass is launched both as
"computed" and as "recomputed", and one of them returns at once.
"""

import triton
import triton.language as tl

from fastassoc.kernels.triton.buffers import COLUMN_SHIFT, FACTOR, PAIR_COUNT, PLAIN, SHIFT, TILE_COUNT
from fastassoc.kernels.triton.forms import column_weight, row_weight
from fastassoc.kernels.triton.primitives import (
    joined,
    load_parts,
    load_rows,
    part_count,
    scores,
    split,
    store_parts,
)


@triton.constexpr_function
def kept_in(product):
    """In what ``left`` and ``right`` are stored: float32 with all its digits, for where they are no operands."""
    return "ieee" if product == "tf32" else product


@triton.jit
def tile_offsets(steps, tile, first, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Where columns ``first ..`` of the range and the slots of a class tile lie in a part of ``steps``."""
    column = first + tl.arange(0, BLOCK_M)
    slot = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    return column.to(tl.int64)[:, None] * steps.SLOTS + slot[None, :]


@triton.jit
def load_steps(steps, side, tile, first, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRODUCT: tl.constexpr):
    """An operand [BLOCK_M, BLOCK_N]: columns ``first ..`` of the range and the slots of a class tile."""
    PARTS: tl.constexpr = part_count(PRODUCT)
    size = tl.cast(steps.CHUNK, tl.int64) * steps.SLOTS
    offsets = tile_offsets(steps, tile, first, BLOCK_M, BLOCK_N)
    return load_parts(steps.ptr + side * PARTS * size, size, offsets, None, PARTS)


@triton.jit
def load_values(
    steps, side, tile, first, ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRODUCT: tl.constexpr
):
    """Numbers [BLOCK_M, BLOCK_N], not an operand.

    Not for an innermost loop, which is pipelined, that multiplies the same tile: on sm_90, Triton 3.7.1 gives what is
    read for both one buffer, and copies the next tile into it while tensor cores still read this one.
    """
    return joined(load_steps(steps, side, tile, first, BLOCK_M, BLOCK_N, PRODUCT), ACC)


@triton.jit
def store_steps(steps, side, tile, first, x, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRODUCT: tl.constexpr):
    """The reverse of `load_steps`."""
    size = tl.cast(steps.CHUNK, tl.int64) * steps.SLOTS
    offsets = tile_offsets(steps, tile, first, BLOCK_M, BLOCK_N)
    store_parts(steps.ptr + side * part_count(PRODUCT) * size, size, offsets, split(x, PRODUCT), None)


@triton.jit
def along(x, FIRST: tl.constexpr):
    """A vector along the first or the second axis of a tile."""
    return x[:, None] if FIRST else x[None, :]


@triton.jit
def tile_shifts(tables, tile, BLOCK_N: tl.constexpr):
    """``shift_i`` of the rows of a class tile, [BLOCK_N]."""
    return row_weight(tables.weights_ptr, tile * BLOCK_N + tl.arange(0, BLOCK_N), SHIFT)


@triton.jit
def column_weights(tables, column, valid, PRODUCT: tl.constexpr):
    """``(shift_j, factor_j)`` of the merged form; no factor where the shift has it (`forms`)."""
    shift_j = column_weight(tables, column, valid, COLUMN_SHIFT, float("inf"))
    if PRODUCT == "bf16":  # noqa: SIM108
        weights = (shift_j,)
    else:
        weights = (shift_j, column_weight(tables, column, valid, FACTOR, 0.0))
    return weights


@triton.jit
def left_factor(s, shift_i, weights_j, ROWS_FIRST: tl.constexpr):
    """``left_ij = exp2(s2_ij - shift_j - shift_i) factor_j`` of the merged form; 0 for no column, no row.

    In this order no digit is lost: a column's shift is near the scores that count, and a row's is small.
    """
    left = tl.exp2(s - along(weights_j[0], not ROWS_FIRST) - along(shift_i, ROWS_FIRST))
    if len(weights_j) == 2:
        left *= along(weights_j[1], not ROWS_FIRST)
    return left


@triton.jit
def factor(s, side, tables, slot, column, valid):
    """``left_ij`` for side 0 and ``right_ij`` for side 1 of the form that is taken, [BLOCK_M, BLOCK_N].

    The merged form has side 0 alone. 0 for no column, no row.
    """
    plain = tl.load(tables.counts_ptr + PLAIN) != 0
    shift_i = row_weight(tables.weights_ptr, slot, SHIFT)
    shift_j = column_weight(tables, column, valid, COLUMN_SHIFT, float("inf"))
    factor_j = column_weight(tables, column, valid, FACTOR, 0.0)
    # In the plain form either side has the normaliser of its own alone.
    of_rows = plain & (side == 0)
    shift_j = tl.where(of_rows & valid, 0.0, shift_j)
    factor_j = tl.where(of_rows & valid, 1.0, factor_j)
    shift_i = tl.where((side == 1) & (shift_i != float("inf")), 0.0, shift_i)
    return tl.exp2(s - shift_j[:, None] - shift_i[None, :]) * factor_j[:, None]


@triton.jit
def other_way(tables, WAY: tl.constexpr):
    """Whether a pass that may be launched in two ways is to leave its work to the other."""
    tiles = tl.load(tables.counts_ptr + TILE_COUNT)
    pairs = tl.load(tables.counts_ptr + PAIR_COUNT)
    computed = (tl.load(tables.counts_ptr + PLAIN) == 0) & (tiles == pairs)
    return computed if WAY == "recomputed" else computed == 0


@triton.jit
def slot_tile(a, tile, d, D, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr):
    """Columns ``d ..`` of the rows of ``a`` of a class tile as an operand, [BLOCK_N, BLOCK_D]."""
    return load_rows(a, tile * BLOCK_N + tl.arange(0, BLOCK_N), None, d, D, BLOCK_D, PRECISION)


@triton.jit
def recomputed_steps(
    a, b, tables, side, tile, column, b_tile, D, scale,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`factor`, computed from whole rows of both embeddings."""
    slot = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    a_tile = slot_tile(a, tile, 0, D, BLOCK_N, BLOCK_D, PRECISION)
    valid = column < tables.M
    s = scores(
        b_tile, a_tile, b, a, column, valid, slot, None, D, scale,
        tables.weights_ptr.dtype.element_ty, BLOCK_M, BLOCK_N, BLOCK_D, True, PRECISION,
    )  # fmt: skip
    return factor(s, side, tables, slot, column, valid)


@triton.jit
def class_steps(
    a, b, steps, tables, side, tile, first, b_tile, D, scale,
    WAY: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
    PRODUCT: tl.constexpr,
):  # fmt: skip
    """An operand [BLOCK_M, BLOCK_N], "stored" or "recomputed"."""
    if WAY == "stored":
        parts = load_steps(steps, side, tile, first, BLOCK_M, BLOCK_N, PRODUCT)
        if PRODUCT == "tf32":
            parts = split(parts[0], PRODUCT)
    else:
        column = (steps.START + first + tl.arange(0, BLOCK_M)).to(tl.int64)
        x = recomputed_steps(a, b, tables, side, tile, column, b_tile, D, scale, BLOCK_N, BLOCK_M, BLOCK_D, PRECISION)
        parts = split(x, PRODUCT)
    return parts


@triton.jit
def merged_steps(
    a, b, tables, tile, column, a_tile, b_tile, shift_i, D, scale, ROWS_FIRST: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """``left_ij`` of the merged form, computed from whole rows of both embeddings.

    [BLOCK_N, BLOCK_M] with ``ROWS_FIRST``, else [BLOCK_M, BLOCK_N]: a product takes its first operand from registers
    where it lies as the product that it comes from left it. With ``shift_i``, the `tile_shifts`, the columns' weights
    are read before the product too, which hides how long that takes; without, None, all are read after it, which saves
    registers.
    """
    ACC: tl.constexpr = tables.weights_ptr.dtype.element_ty
    slot = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    valid = column < tables.M
    if shift_i is not None:
        weights = column_weights(tables, column, valid, PRODUCT)
    if ROWS_FIRST:
        s = scores(
            a_tile, b_tile, a, b, slot, None, column, valid, D, scale,
            ACC, BLOCK_N, BLOCK_M, BLOCK_D, True, PRECISION,
        )  # fmt: skip
    else:
        s = scores(
            b_tile, a_tile, b, a, column, valid, slot, None, D, scale,
            ACC, BLOCK_M, BLOCK_N, BLOCK_D, True, PRECISION,
        )  # fmt: skip
    if shift_i is None:
        weights = column_weights(tables, column, valid, PRODUCT)
        shift_i = tile_shifts(tables, tile, BLOCK_N)
    return left_factor(s, shift_i, weights, ROWS_FIRST)


@triton.jit
def steps(
    a, b, out, tables, D, scale: tl.float64,
    WALKER: tl.constexpr, SIDES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    ONE_D: tl.constexpr, PRECISION: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """``left_ij`` and, in the plain form, ``right_ij`` (`fastassoc.kernels.triton.forms`).

    A program owns a class tile and a tile of columns. Fills ``out``, a workspace for ``steps``.
    """
    ACC: tl.constexpr = tables.weights_ptr.dtype.element_ty
    tile = tl.program_id(1)
    if tile >= tl.load(tables.counts_ptr + TILE_COUNT):
        return
    first = tl.program_id(0) * BLOCK_M
    column = (out.START + first + tl.arange(0, BLOCK_M)).to(tl.int64)
    valid = column < tables.M
    slot = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    b_tile = load_rows(b, column, valid, 0, D, BLOCK_D, PRECISION) if ONE_D else None  # [BLOCK_M, BLOCK_D]
    a_tile = slot_tile(a, tile, 0, D, BLOCK_N, BLOCK_D, PRECISION) if ONE_D else None
    s = scores(
        b_tile, a_tile, b, a, column, valid, slot, None, D, scale,
        ACC, BLOCK_M, BLOCK_N, BLOCK_D, ONE_D, PRECISION,
    )  # [BLOCK_M, BLOCK_N]  # fmt: skip
    if SIDES == 1:
        shift_i = tile_shifts(tables, tile, BLOCK_N)
        left = left_factor(s, shift_i, column_weights(tables, column, valid, PRODUCT), False)
    else:
        left = factor(s, 0, tables, slot, column, valid)
    store_steps(out, 0, tile, first, left, BLOCK_M, BLOCK_N, kept_in(PRODUCT))
    if SIDES == 2 and WALKER:  # noqa: SIM102
        if tl.load(tables.counts_ptr + PLAIN) != 0:
            right = factor(s, 1, tables, slot, column, valid)
            store_steps(out, 1, tile, first, right, BLOCK_M, BLOCK_N, kept_in(PRODUCT))
