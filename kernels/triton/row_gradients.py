"""``da`` and the gradient of ``bias_a`` from the gradients of the scores, range by range."""

import triton
import triton.language as tl

from fastassoc.kernels.triton.buffers import TILE_COUNT
from fastassoc.kernels.triton.kappa import load_g
from fastassoc.kernels.triton.primitives import joined, load_rows, of_scores, product, split, transposed
from fastassoc.kernels.triton.round_trips import add_to
from fastassoc.kernels.triton.score_gradients import merged_gradients, recomputed_gradients
from fastassoc.kernels.triton.shares import row_share
from fastassoc.kernels.triton.steps import load_steps, load_values, other_way, slot_tile


@triton.jit
def row_gradients(
    a, b, ds, tables, g_ptr, terms_ptr, grad_walker_ptr, grad_visit_ptr, da_parts_ptr, dbias_a_parts_ptr,
    D, scale: tl.float64, PAIRS,
    WAY: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """Shares of ``sum_j ds_ij b_j`` and of ``dbias_a_i = sum_j ds_ij``.

    A program owns a share of what all class tiles and the range make (`fastassoc.kernels.triton.shares.row_share`), and
    BLOCK_D columns of the embedding. Adds to ``da_parts`` and, unless it is None, to ``dbias_a_parts``. ``WAY`` is that
    of the steps (`fastassoc.kernels.triton.steps`), from which ``ds`` is computed unless it is "stored".
    """
    ACC: tl.constexpr = tables.weights_ptr.dtype.element_ty
    if WAY != "stored":  # noqa: SIM102
        if other_way(tables, WAY):
            return
    program = tl.program_id(0)
    d = tl.program_id(1) * BLOCK_D
    column_tiles = ds.CHUNK // BLOCK_M
    share = row_share(tl.load(tables.counts_ptr + TILE_COUNT), column_tiles, tl.num_programs(0))
    work = tl.load(tables.counts_ptr + TILE_COUNT) * column_tiles
    begin = program * share
    stop = tl.minimum(begin + share, work)
    for tile in range(begin // column_tiles, tl.cdiv(stop, column_tiles)):
        a_tile = None
        g = None
        if WAY == "computed":
            if g_ptr is not None:
                g = load_g(g_ptr, tile, PAIRS, BLOCK_N, PRODUCT)  # [BLOCK_N, BLOCK_N]
            a_tile = slot_tile(a, tile, 0, D, BLOCK_N, BLOCK_D, PRECISION)  # [BLOCK_N, BLOCK_D]
        da = tl.zeros([BLOCK_N, BLOCK_D], dtype=ACC)
        total = tl.zeros([BLOCK_N], dtype=ACC)
        start = tl.maximum(begin - tile * column_tiles, 0) * BLOCK_M
        end = tl.minimum(stop - tile * column_tiles, column_tiles) * BLOCK_M
        end = tl.minimum(end, tables.M - ds.START)
        for first in range(start, end, BLOCK_M):
            within = first + tl.arange(0, BLOCK_M)
            column = (ds.START + within).to(tl.int64)
            valid = column < tables.M
            if WAY == "stored":
                x = load_steps(ds, 0, tile, first, BLOCK_M, BLOCK_N, PRODUCT)  # [BLOCK_M, BLOCK_N]
                b_tile = load_rows(b, column, valid, d, D, BLOCK_D, PRODUCT)  # [BLOCK_M, BLOCK_D]
                da = product(transposed(x), b_tile, da, PRODUCT)
            elif WAY == "computed":
                b_tile = load_rows(b, column, valid, 0, D, BLOCK_D, PRECISION)  # [BLOCK_M, BLOCK_D]
                exact = merged_gradients(
                    a, b, tables, g, terms_ptr, grad_walker_ptr, grad_visit_ptr, tile, column, within, ds.CHUNK,
                    a_tile, b_tile, D, scale, True, BLOCK_N, BLOCK_M, BLOCK_D, PRECISION, PRODUCT,
                )  # [BLOCK_N, BLOCK_M]  # fmt: skip
                x = split(exact, PRODUCT)
                da = product(x, of_scores(b_tile, b, PRECISION, PRODUCT), da, PRODUCT)
                if dbias_a_parts_ptr is not None:
                    total += tl.sum(joined(x, ACC), 1)
            else:
                b_tile = load_rows(b, column, valid, 0, D, BLOCK_D, PRECISION)  # [BLOCK_M, BLOCK_D]
                exact = recomputed_gradients(
                    a, b, ds, tables, tile, first, b_tile, D, scale, g_ptr, terms_ptr, grad_walker_ptr, grad_visit_ptr,
                    PAIRS, BLOCK_N, BLOCK_M, BLOCK_D, PRECISION, PRODUCT,
                )  # [BLOCK_M, BLOCK_N]  # fmt: skip
                x = split(exact, PRODUCT)
                da = product(transposed(x), of_scores(b_tile, b, PRECISION, PRODUCT), da, PRODUCT)
                if dbias_a_parts_ptr is not None:
                    total += tl.sum(joined(x, ACC), 0)
        if WAY == "stored" and dbias_a_parts_ptr is not None:
            for first in range(start, end, BLOCK_M):
                total += tl.sum(load_values(ds, 0, tile, first, ACC, BLOCK_M, BLOCK_N, PRODUCT), 0)
        offs_d = d + tl.arange(0, BLOCK_D)
        # No two programs and tiles have the same sum: the next program begins at this tile or a later one.
        line = (program + tile).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
        add_to(da_parts_ptr, line[:, None] * D + offs_d[None, :], da, (offs_d < D)[None, :], ds.START)
        if dbias_a_parts_ptr is not None:  # noqa: SIM102
            if d == 0:
                add_to(dbias_a_parts_ptr, line, total, None, ds.START)
