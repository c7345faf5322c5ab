"""Gradients of the scores, but for what the normalisers take off."""

import triton
import triton.language as tl

from fastassoc.kernels.triton.dense.buffers import (
    g_part,
    h_part,
    kappa_parts,
    load_tile,
    matrix_part,
    p_ab_part,
    q_part,
    rho_parts,
    store_tile,
)
from fastassoc.kernels.triton.primitives import product, split, transposed


@triton.jit
def weighted_upstream(grad_ptr, weight):
    """The upstream gradient of a term, from that of its multiple by ``weight``."""
    return tl.load(grad_ptr) * tl.full([], weight, grad_ptr.dtype.element_ty)


@triton.jit
def score_gradient_tile(
    x, grad_walker_ptr, grad_visit_ptr, walker_weight, visit_weight, i, j, BLOCK: tl.constexpr, PRODUCT: tl.constexpr
):  # fmt: skip
    """Tile (i, j) of ``p_ab_ij (U_ij + h_j) + q_ij W_ij``; the sums of both terms along its rows and its columns."""
    ACC: tl.constexpr = x.scratch_ptr.dtype.element_ty
    offs = tl.arange(0, BLOCK)
    there = tl.zeros([BLOCK, BLOCK], dtype=ACC)
    back = tl.zeros([BLOCK, BLOCK], dtype=ACC)
    if grad_walker_ptr is not None:
        for k in range(0, x.NP // BLOCK):
            g = split(load_tile(g_part(x), i, k, x.NP, BLOCK), PRODUCT)
            there = product(g, split(load_tile(q_part(x), k, j, x.MP, BLOCK), PRODUCT), there, PRODUCT)
            g = split(load_tile(g_part(x), k, i, x.NP, BLOCK), PRODUCT)
            back = product(transposed(g), split(load_tile(p_ab_part(x), k, j, x.MP, BLOCK), PRODUCT), back, PRODUCT)
        upstream = weighted_upstream(grad_walker_ptr, walker_weight)
        there *= upstream
        back *= upstream * load_tile(q_part(x), i, j, x.MP, BLOCK)
        tl.store(kappa_parts(x, BLOCK) + i * x.MP + j * BLOCK + offs, tl.sum(back, 0))
    if grad_visit_ptr is not None:
        there += (weighted_upstream(grad_visit_ptr, visit_weight) * tl.load(h_part(x) + j * BLOCK + offs))[None, :]
    there *= load_tile(p_ab_part(x), i, j, x.MP, BLOCK)
    tl.store(rho_parts(x) + j * x.NP + i * BLOCK + offs, tl.sum(there, 1))
    store_tile(matrix_part(x), i, j, x.MP, there + back, BLOCK)


@triton.jit
def dense_score_gradients(
    x, grad_walker_ptr, grad_visit_ptr, walker_weight: tl.float64, visit_weight: tl.float64,
    BLOCK: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """``p_ab_ij (U_ij + h_j) + q_ij W_ij``; a program owns a tile. Fills gradients, rho parts and kappa parts."""
    score_gradient_tile(
        x, grad_walker_ptr, grad_visit_ptr, walker_weight, visit_weight, tl.program_id(0), tl.program_id(1), BLOCK,
        PRODUCT,
    )  # fmt: skip
