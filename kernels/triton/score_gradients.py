"""The gradient of the scores: of a range of columns in a pass of its own, or tile by tile in those that use it."""

import triton
import triton.language as tl

from fastassoc.kernels.triton.buffers import (
    ALPHA,
    BACK,
    OF_BACK,
    OF_THERE,
    PLAIN,
    RHO_VISIT,
    RHO_WALKER,
    THERE,
    TILE_COUNT,
)
from fastassoc.kernels.triton.forms import column_weight, row_weight
from fastassoc.kernels.triton.kappa import class_product
from fastassoc.kernels.triton.primitives import joined, product, split
from fastassoc.kernels.triton.steps import along, class_steps, load_values, merged_steps, recomputed_steps, store_steps


@triton.jit
def of_left(
    u, tables, slot, column, valid, within, CHUNK, merged, terms_ptr, grad_walker_ptr, grad_visit_ptr,
    ROWS_FIRST: tl.constexpr,
):  # fmt: skip
    """What ``left_ij`` is to be multiplied by: weights of rows and of columns, and ``u`` of both.

        g_w u_ij + there_i (g_v alpha_j h_j - (g_w rho_w_i + g_v rho_v_i) alpha_j) - back_i (g_w kappa_j / alpha_j)

    ``merged`` is 1, or 0 in the plain form, which has no last term.
    """
    there = row_weight(tables.weights_ptr, slot, THERE)
    rho = tl.zeros_like(there)
    if grad_walker_ptr is not None:
        rho += tl.load(grad_walker_ptr) * row_weight(tables.weights_ptr, slot, RHO_WALKER)
    if grad_visit_ptr is not None:
        rho += tl.load(grad_visit_ptr) * row_weight(tables.weights_ptr, slot, RHO_VISIT)
    alpha = along(column_weight(tables, column, valid, ALPHA, 0.0), not ROWS_FIRST)
    x = -along(there * rho, ROWS_FIRST) * alpha
    if grad_visit_ptr is not None:
        x += along(there, ROWS_FIRST) * along(tl.load(terms_ptr + OF_THERE * CHUNK + within), not ROWS_FIRST)
    if grad_walker_ptr is not None:
        x += tl.load(grad_walker_ptr) * u
        back = merged * row_weight(tables.weights_ptr, slot, BACK)
        x -= along(back, ROWS_FIRST) * along(tl.load(terms_ptr + OF_BACK * CHUNK + within), not ROWS_FIRST)
    return x


@triton.jit
def merged_gradients(
    a, b, tables, g, terms_ptr, grad_walker_ptr, grad_visit_ptr, tile, column, within, CHUNK, a_tile, b_tile, D, scale,
    ROWS_FIRST: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """``ds_ij`` of the merged form, computed as `merged_steps` are; ``g`` is that of the class tile, and symmetric."""
    left = merged_steps(
        a, b, tables, tile, column, a_tile, b_tile, D, scale, ROWS_FIRST, BLOCK_N, BLOCK_M, BLOCK_D, PRECISION
    )
    u = None
    if grad_walker_ptr is not None:
        steps = split(left, PRODUCT)
        if ROWS_FIRST:  # noqa: SIM108
            u = product(g, steps, tl.zeros_like(left))
        else:
            u = product(steps, g, tl.zeros_like(left))
    slot = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    valid = column < tables.M
    return left * of_left(
        u, tables, slot, column, valid, within, CHUNK, 1.0, terms_ptr, grad_walker_ptr, grad_visit_ptr, ROWS_FIRST
    )


@triton.jit
def class_gradients(
    a, b, steps, tables, tile, first, b_tile, D, scale, g_ptr, terms_ptr, grad_walker_ptr, grad_visit_ptr, PAIRS,
    SIDES: tl.constexpr, WAY: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """``ds_ij`` as `score_gradients` has it from steps that are "stored" or "recomputed", [BLOCK_M, BLOCK_N]."""
    within = first + tl.arange(0, BLOCK_M)
    column = (steps.START + within).to(tl.int64)
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
        left = load_values(steps, tile, first, tables.weights_ptr.dtype.element_ty, BLOCK_M, BLOCK_N, PRODUCT)
    else:
        left = recomputed_steps(a, b, tables, 0, tile, column, b_tile, D, scale, BLOCK_N, BLOCK_M, BLOCK_D, PRECISION)
    x = left * of_left(
        u, tables, slot, column, valid, within, steps.CHUNK, 1.0 - plain,
        terms_ptr, grad_walker_ptr, grad_visit_ptr, False,
    )  # fmt: skip
    if SIDES == 2 and grad_walker_ptr is not None:  # noqa: SIM102
        if plain != 0:
            w = class_product(
                a, b, steps, 0, tables, tile, first, b_tile, D, scale, g_ptr, PAIRS, 0,
                True, WAY, BLOCK_N, BLOCK_M, BLOCK_D, PRECISION, PRODUCT,
            )  # fmt: skip
            w = tl.load(grad_walker_ptr) * w - tl.load(terms_ptr + OF_BACK * steps.CHUNK + within)[:, None]
            right = class_steps(
                a, b, steps, tables, 1, tile, first, b_tile, D, scale,
                WAY, BLOCK_N, BLOCK_M, BLOCK_D, PRECISION, PRODUCT,
            )  # fmt: skip
            x += joined(right, w.dtype) * w
    return x


@triton.jit
def score_gradients(
    steps, ds, tables, g_ptr, terms_ptr, grad_walker_ptr, grad_visit_ptr, PAIRS,
    SIDES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """``ds_ij = p_ab_ij (U_ij + h_j - rho_i) + q_ij (W_ij - kappa_j)``, in the merged form

        left_ij (sum_k g_ik left_kj + alpha_j there_i (h_j - rho_i) - back_i kappa_j / alpha_j)

    with either term times its upstream gradient, and without a term whose upstream gradient is None.

    A program owns a class tile and a tile of columns. Fills ``ds``, which may be ``steps`` where no other tile needs
    these.
    """
    tile = tl.program_id(1)
    if tile >= tl.load(tables.counts_ptr + TILE_COUNT):
        return
    first = tl.program_id(0) * BLOCK_M
    x = class_gradients(
        None, None, steps, tables, tile, first, None, 0, 0.0, g_ptr, terms_ptr, grad_walker_ptr, grad_visit_ptr, PAIRS,
        SIDES, "stored", BLOCK_N, BLOCK_M, BLOCK_N, PRODUCT, PRODUCT,
    )  # fmt: skip
    store_steps(ds, 0, tile, first, x, BLOCK_M, BLOCK_N, PRODUCT)
