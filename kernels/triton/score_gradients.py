"""The gradient of the scores: of a range of columns in a pass of its own, or tile by tile in those that use it."""

import triton
import triton.language as tl

from fastassoc.kernels.triton.buffers import (
    ALPHA,
    BACK,
    OF_BACK,
    OF_THERE,
    PLAIN,
    THERE,
    TILE_COUNT,
)
from fastassoc.kernels.triton.forms import column_weight, row_weight
from fastassoc.kernels.triton.kappa import class_product
from fastassoc.kernels.triton.primitives import product, split
from fastassoc.kernels.triton.steps import (
    along,
    load_values,
    merged_steps,
    recomputed_steps,
    store_steps,
    tile_offsets,
    tile_shifts,
)
from fastassoc.kernels.triton.terms import there_term


@triton.jit
def load_terms(terms_ptr, within, CHUNK):
    """Both of ``terms``."""
    return tl.load(terms_ptr + OF_THERE * CHUNK + within), tl.load(terms_ptr + OF_BACK * CHUNK + within)


@triton.jit
def power_of_two(x):
    """``2^x`` of whole numbers from -126 to 127, and 1 of infinity."""
    if x.dtype == tl.float32:
        # The last digits of the sum with 1.5 2^23 are those of x.
        bits = ((x + 12582912.0).to(tl.int32, bitcast=True) << 23) + 0x3F800000
        result = bits.to(tl.float32, bitcast=True)
    else:
        result = tl.exp2(tl.where(x == float("inf"), 0.0, x))
    return result


@triton.jit
def of_left(
    u, tables, slot, column, valid, of_there, back, of_back, grad_walker_ptr, grad_visit_ptr,
    ROWS_FIRST: tl.constexpr,
):  # fmt: skip
    """What ``left_ij`` is to be multiplied by: weights of rows and of columns, and ``u`` of both.

        g_w u_ij + there_i of_there_j - row_term_i alpha_j - back_i of_back_j

    without the last term where ``back`` is None.
    """
    alpha = along(column_weight(tables, column, valid, ALPHA, 0.0), not ROWS_FIRST)
    x = along(tl.load(tables.row_terms_ptr + slot), ROWS_FIRST) * -alpha
    if grad_walker_ptr is not None:
        x += tl.load(grad_walker_ptr) * u
    if grad_visit_ptr is not None:
        there = row_weight(tables.weights_ptr, slot, THERE)
        x += along(there, ROWS_FIRST) * along(of_there, not ROWS_FIRST)
    if grad_walker_ptr is not None and back is not None:
        x -= along(back, ROWS_FIRST) * along(of_back, not ROWS_FIRST)
    return x


@triton.jit
def merged_gradients(
    a, b, tables, g, terms_ptr, grad_walker_ptr, grad_visit_ptr, tile, column, within, CHUNK, a_tile, b_tile, D, scale,
    ROWS_FIRST: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """``ds_ij`` of the merged form, computed as `merged_steps` are; ``g`` is that of the class tile, and symmetric."""
    left = merged_steps(
        a, b, tables, tile, column, a_tile, b_tile, None, D, scale,
        ROWS_FIRST, BLOCK_N, BLOCK_M, BLOCK_D, PRECISION, PRODUCT,
    )  # fmt: skip
    u = None
    if grad_walker_ptr is not None:
        parts = split(left, PRODUCT)
        if ROWS_FIRST:  # noqa: SIM108
            u = product(g, parts, None, PRODUCT)
        else:
            u = product(parts, g, None, PRODUCT)
    slot = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    valid = column < tables.M
    of_there, of_back = load_terms(terms_ptr, within, CHUNK)
    # Not read: a loop that copies weights ahead has room for no more of them in the shared memory of an H100.
    back = power_of_two(tile_shifts(tables, tile, BLOCK_N))
    return left * of_left(
        u, tables, slot, column, valid, of_there, back, of_back, grad_walker_ptr, grad_visit_ptr, ROWS_FIRST
    )


@triton.jit
def class_gradients(
    a, b, steps, tables, tile, first, b_tile, D, scale, g_ptr, of_there, of_back, grad_walker_ptr, grad_visit_ptr,
    PAIRS,
    SIDES: tl.constexpr, WAY: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """``ds_ij`` as `score_gradients` has it, [BLOCK_M, BLOCK_N], from steps that are "stored" or "recomputed"; without
    the term of ``kappa`` where ``of_back`` is None.

    And the tile's share of ``kappa_j``, [BLOCK_M]; 0 without the walker's upstream gradient.
    """
    column = (steps.START + first + tl.arange(0, BLOCK_M)).to(tl.int64)
    valid = column < tables.M
    slot = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    plain = 0
    if SIDES == 2:
        plain = tl.load(tables.counts_ptr + PLAIN)
    u = None
    if grad_walker_ptr is not None:
        u = class_product(
            a, b, steps, plain, tables, tile, first, b_tile, D, scale, g_ptr, PAIRS, 0,
            False, WAY, BLOCK_N, BLOCK_M, BLOCK_D, PRECISION, PRODUCT,
        )  # fmt: skip
    if WAY == "stored":
        left = load_values(steps, 0, tile, first, tables.weights_ptr.dtype.element_ty, BLOCK_M, BLOCK_N, PRODUCT)
    else:
        left = recomputed_steps(a, b, tables, 0, tile, column, b_tile, D, scale, BLOCK_N, BLOCK_M, BLOCK_D, PRECISION)
    back = None
    if of_back is not None:
        # The plain form has the term elsewhere.
        back = (1.0 - plain) * row_weight(tables.weights_ptr, slot, BACK)
    x = left * of_left(u, tables, slot, column, valid, of_there, back, of_back, grad_walker_ptr, grad_visit_ptr, False)
    kappa = tl.zeros([BLOCK_M], dtype=x.dtype)
    if grad_walker_ptr is not None:
        # In the merged form every trip has been counted both ways.
        kappa = tl.sum(left * u, 1) * tl.where(plain == 0, 0.5, 1.0)
    if SIDES == 2 and grad_walker_ptr is not None:  # noqa: SIM102
        if plain != 0:
            w = class_product(
                a, b, steps, 0, tables, tile, first, b_tile, D, scale, g_ptr, PAIRS, 0,
                True, WAY, BLOCK_N, BLOCK_M, BLOCK_D, PRECISION, PRODUCT,
            )  # fmt: skip
            w *= tl.load(grad_walker_ptr)
            if of_back is not None:
                w -= of_back[:, None]
            if WAY == "stored":
                right = load_values(steps, 1, tile, first, w.dtype, BLOCK_M, BLOCK_N, PRODUCT)
            else:
                right = recomputed_steps(
                    a, b, tables, 1, tile, column, b_tile, D, scale, BLOCK_N, BLOCK_M, BLOCK_D, PRECISION
                )
            x += right * w
    return x, kappa


@triton.jit
def recomputed_gradients(
    a, b, steps, tables, tile, first, b_tile, D, scale, g_ptr, terms_ptr, grad_walker_ptr, grad_visit_ptr, PAIRS,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """``ds_ij`` from steps that are "recomputed", [BLOCK_M, BLOCK_N]."""
    of_there, of_back = load_terms(terms_ptr, first + tl.arange(0, BLOCK_M), steps.CHUNK)
    x, _ = class_gradients(
        a, b, steps, tables, tile, first, b_tile, D, scale, g_ptr, of_there, of_back, grad_walker_ptr, grad_visit_ptr,
        PAIRS, 2, "recomputed", BLOCK_N, BLOCK_M, BLOCK_D, PRECISION, PRODUCT,
    )  # fmt: skip
    return x


@triton.jit
def score_gradients(
    steps, exact_ptr, units_ptr, tables, g_ptr, kappa_parts_ptr, grad_walker_ptr, grad_visit_ptr, PAIRS,
    SIDES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """``ds_ij = p_ab_ij (U_ij + h_j - rho_i) + q_ij (W_ij - kappa_j)``, in the merged form

        left_ij (sum_k g_ik left_kj + alpha_j there_i (h_j - rho_i) - back_i kappa_j / alpha_j)

    with either term times its upstream gradient, and without a term whose upstream gradient is None.

    Of ``kappa_j``, a sum over all rows, a program has its share alone: ``exact`` goes without, and
    `fastassoc.kernels.triton.kappa.take_off_kappa` makes ``ds`` of it. A program owns a class tile and a tile of
    columns. Fills ``exact``, ``kappa_parts`` and, unless it is None, ``units``. Without the walker it fills ``ds``, in
    the place of the steps, and none of these.
    """
    tile = tl.program_id(1)
    if tile >= tl.load(tables.counts_ptr + TILE_COUNT):
        return
    first = tl.program_id(0) * BLOCK_M
    column = (steps.START + first + tl.arange(0, BLOCK_M)).to(tl.int64)
    of_there = there_term(tables, column, column < tables.M, grad_visit_ptr)
    x, kappa = class_gradients(
        None, None, steps, tables, tile, first, None, 0, 0.0, g_ptr, of_there, None, grad_walker_ptr, grad_visit_ptr,
        PAIRS, SIDES, "stored", BLOCK_N, BLOCK_M, BLOCK_N, PRODUCT, PRODUCT,
    )  # fmt: skip
    if grad_walker_ptr is None:
        store_steps(steps, 0, tile, first, x, BLOCK_M, BLOCK_N, PRODUCT)
    else:
        line = tl.cast(tile, tl.int64) * steps.CHUNK + first + tl.arange(0, BLOCK_M)
        tl.store(kappa_parts_ptr + line, kappa)
        if units_ptr is not None:
            # Its inverse is well within the range of float32; what is smaller in all of a column is lost.
            least = tl.full([1], 2.0**-120, x.dtype)
            unit = tl.maximum(tl.max(tl.abs(x), 1), least)
            tl.store(units_ptr + line, unit)
            x *= (1.0 / unit)[:, None]
        tl.store(exact_ptr + tile_offsets(steps, tile, first, BLOCK_M, BLOCK_N), x.to(exact_ptr.dtype.element_ty))
