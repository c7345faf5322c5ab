"""``da`` and the gradient of ``bias_a`` from the gradients of the scores, range by range."""

import triton
import triton.language as tl

from fastassoc.kernels.triton.buffers import TILE_COUNT
from fastassoc.kernels.triton.kappa import load_g
from fastassoc.kernels.triton.primitives import joined, load_rows, product, split, transposed
from fastassoc.kernels.triton.round_trips import add_to
from fastassoc.kernels.triton.score_gradients import merged_gradients
from fastassoc.kernels.triton.steps import load_steps, load_values, slot_tile


@triton.jit
def row_gradients(
    a, b, ds, tables, g_ptr, terms_ptr, grad_walker_ptr, grad_visit_ptr, da_parts_ptr, dbias_a_parts_ptr,
    D, scale: tl.float64, PAIRS,
    STORED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """Shares of ``sum_j ds_ij b_j`` and of ``dbias_a_i = sum_j ds_ij``.

    A program owns a class tile, one of num_programs(1) shares of the range, and BLOCK_D columns of the embedding. Adds
    to ``da_parts`` and, unless it is None, to ``dbias_a_parts``. ``ds`` that is not ``STORED`` is computed.
    """
    ACC: tl.constexpr = tables.weights_ptr.dtype.element_ty
    tile = tl.program_id(0)
    if tile >= tl.load(tables.counts_ptr + TILE_COUNT):
        return
    d = tl.program_id(2) * BLOCK_D
    a_tile = None
    g = None
    if not STORED:
        if g_ptr is not None:
            g = load_g(g_ptr, tile, PAIRS, BLOCK_N, PRODUCT)  # [BLOCK_N, BLOCK_N]
        a_tile = slot_tile(a, tables, tile, D, BLOCK_N, BLOCK_D, PRECISION)  # [BLOCK_N, BLOCK_D]
    da = tl.zeros([BLOCK_N, BLOCK_D], dtype=ACC)
    total = tl.zeros([BLOCK_N], dtype=ACC)
    share = tl.cdiv(ds.CHUNK // BLOCK_M, tl.num_programs(1)) * BLOCK_M
    start = tl.program_id(1) * share
    end = tl.minimum(start + share, tl.minimum(ds.CHUNK, tables.M - ds.START))
    for first in range(start, end, BLOCK_M):
        within = first + tl.arange(0, BLOCK_M)
        column = (ds.START + within).to(tl.int64)
        valid = column < tables.M
        if STORED:
            x = load_steps(ds, 0, tile, first, BLOCK_M, BLOCK_N, PRODUCT)  # [BLOCK_M, BLOCK_N]
            b_tile = load_rows(b, column, valid, d, D, BLOCK_D, PRODUCT)  # [BLOCK_M, BLOCK_D]
            da = product(transposed(x), b_tile, da)
        else:
            b_tile = load_rows(b, column, valid, 0, D, BLOCK_D, PRECISION)  # [BLOCK_M, BLOCK_D]
            exact = merged_gradients(
                a, b, tables, g, terms_ptr, grad_walker_ptr, grad_visit_ptr, tile, column, within, ds.CHUNK,
                a_tile, b_tile, D, scale, True, BLOCK_N, BLOCK_M, BLOCK_D, PRECISION, PRODUCT,
            )  # [BLOCK_N, BLOCK_M]  # fmt: skip
            x = split(exact, PRODUCT)
            if PRECISION != PRODUCT:
                b_tile = load_rows(b, column, valid, d, D, BLOCK_D, PRODUCT)
            da = product(x, b_tile, da)
            if dbias_a_parts_ptr is not None:
                total += tl.sum(joined(x, ACC), 1)
    if STORED and dbias_a_parts_ptr is not None:
        for first in range(start, end, BLOCK_M):
            total += tl.sum(load_values(ds, tile, first, ACC, BLOCK_M, BLOCK_N, PRODUCT), 0)
    offs_d = d + tl.arange(0, BLOCK_D)
    line = tl.program_id(1).to(tl.int64) * ds.SLOTS + tile * BLOCK_N + tl.arange(0, BLOCK_N)
    add_to(da_parts_ptr, line[:, None] * D + offs_d[None, :], da, (offs_d < D)[None, :], ds.START)
    if dbias_a_parts_ptr is not None:  # noqa: SIM102
        if d == 0:
            add_to(dbias_a_parts_ptr, line, total, None, ds.START)
