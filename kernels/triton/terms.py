"""What is a row's alone and what is a column's alone in the gradients of scores."""

import triton
import triton.language as tl

from fastassoc.kernels.triton.buffers import (
    ALPHA,
    OF_BACK,
    OF_THERE,
    RHO_VISIT,
    RHO_WALKER,
    THERE,
    TILE_COUNT,
    H,
)
from fastassoc.kernels.triton.forms import column_weight, row_weight


@triton.jit
def added_kappa(tables, kappa_parts_ptr, within, valid, CHUNK, BLOCK_T: tl.constexpr):
    """``kappa`` from its shares, added in order; 0 where not ``valid``."""
    total = tl.zeros([within.shape[0]], dtype=kappa_parts_ptr.dtype.element_ty)
    tiles = tl.load(tables.counts_ptr + TILE_COUNT)
    for start in range(0, tiles, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        offsets = t.to(tl.int64)[:, None] * CHUNK + within[None, :]
        ok = (t < tiles)[:, None] & valid[None, :]
        total += tl.sum(tl.load(kappa_parts_ptr + offsets, mask=ok, other=0.0), 0)
    return total


@triton.jit
def there_term(tables, column, valid, grad_visit_ptr):
    """``OF_THERE`` of ``terms``, 0 without an upstream gradient."""
    alpha = column_weight(tables, column, valid, ALPHA, 1.0)
    x = tl.zeros_like(alpha)
    if grad_visit_ptr is not None:
        x = tl.load(grad_visit_ptr) * (alpha * column_weight(tables, column, valid, H, 0.0))
    return x


@triton.jit
def back_term(tables, kappa_parts_ptr, column, within, valid, CHUNK, grad_walker_ptr, BLOCK_T: tl.constexpr):
    """``OF_BACK`` of ``terms``, 0 without an upstream gradient."""
    alpha = column_weight(tables, column, valid, ALPHA, 1.0)
    x = tl.zeros_like(alpha)
    if grad_walker_ptr is not None:
        kappa = added_kappa(tables, kappa_parts_ptr, within, valid, CHUNK, BLOCK_T)
        x = kappa * (tl.load(grad_walker_ptr) / alpha)
    return x


@triton.jit
def find_row_terms(tables, slot, grad_walker_ptr, grad_visit_ptr):
    """``there_i (g_w rho_w_i + g_v rho_v_i)``, without a term whose upstream gradient is None."""
    there = row_weight(tables.weights_ptr, slot, THERE)
    rho = tl.zeros_like(there)
    if grad_walker_ptr is not None:
        rho += tl.load(grad_walker_ptr) * row_weight(tables.weights_ptr, slot, RHO_WALKER)
    if grad_visit_ptr is not None:
        rho += tl.load(grad_visit_ptr) * row_weight(tables.weights_ptr, slot, RHO_VISIT)
    tl.store(tables.row_terms_ptr + slot, there * rho)


@triton.jit
def terms(
    tables, kappa_parts_ptr, grad_walker_ptr, grad_visit_ptr, terms_ptr, ROW_PROGRAMS, CHUNK, START,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """What ``rho`` puts into the gradients of a row's scores, and ``kappa`` and ``h`` into those of a column's.

    The first ``ROW_PROGRAMS`` programs own BLOCK_N slots each and fill ``row_terms``, with the same numbers for every
    range; others own BLOCK_M columns of the range and fill ``terms``.
    """
    program = tl.program_id(0)
    if program < ROW_PROGRAMS:
        find_row_terms(tables, program * BLOCK_N + tl.arange(0, BLOCK_N), grad_walker_ptr, grad_visit_ptr)
    else:
        within = (program - ROW_PROGRAMS) * BLOCK_M + tl.arange(0, BLOCK_M)
        column = (START + within).to(tl.int64)
        valid = column < tables.M
        of_there = there_term(tables, column, valid, grad_visit_ptr)
        of_back = back_term(tables, kappa_parts_ptr, column, within, valid, CHUNK, grad_walker_ptr, BLOCK_T)
        tl.store(terms_ptr + OF_THERE * CHUNK + within, of_there)
        tl.store(terms_ptr + OF_BACK * CHUNK + within, of_back)
