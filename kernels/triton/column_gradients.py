"""``db`` and the gradient of ``bias_b`` of a range of columns, from the gradients of their scores."""

import triton
import triton.language as tl

from fastassoc.kernels.triton.buffers import TILE_COUNT
from fastassoc.kernels.triton.kappa import load_g
from fastassoc.kernels.triton.primitives import joined, load_rows, of_scores, product, split
from fastassoc.kernels.triton.score_gradients import merged_gradients, recomputed_gradients
from fastassoc.kernels.triton.steps import load_steps, load_values, other_way, slot_tile


@triton.jit
def column_gradients(
    a, b, ds, tables, g_ptr, terms_ptr, grad_walker_ptr, grad_visit_ptr, db_ptr, dbias_b_ptr,
    D, scale: tl.float64, PAIRS,
    WAY: tl.constexpr, WHOLE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """``db_j = scale sum_i ds_ij a_i`` and ``dbias_b_j = sum_i ds_ij``.

    A program owns a tile of columns, BLOCK_D columns of the embedding, and one of num_programs(2) shares of the class
    tiles. One share writes ``db`` and ``dbias_b`` themselves, more of them ``db_parts`` [shares, CHUNK, D] and
    ``dbias_b_parts`` [shares, CHUNK] in their place. ``WAY`` is that of the steps (`fastassoc.kernels.triton.steps`),
    from which ``ds`` is computed unless it is "stored".
    """
    ACC: tl.constexpr = tables.weights_ptr.dtype.element_ty
    if WAY != "stored":  # noqa: SIM102
        if other_way(tables, WAY):
            return
    within = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = (ds.START + within).to(tl.int64)
    valid = column < tables.M
    d = tl.program_id(1) * BLOCK_D
    b_tile = None  # [BLOCK_M, BLOCK_D]
    if WAY != "stored":
        b_tile = load_rows(b, column, valid, 0, D, BLOCK_D, PRECISION)
    db = tl.zeros([BLOCK_M, BLOCK_D], dtype=ACC)
    total = tl.zeros([BLOCK_M], dtype=ACC)
    tiles = tl.load(tables.counts_ptr + TILE_COUNT)
    share = tl.cdiv(tiles, tl.num_programs(2))
    start = tl.program_id(2) * share
    for tile in range(start, tl.minimum(start + share, tiles)):
        if WAY == "stored":
            x = load_steps(ds, 0, tile, tl.program_id(0) * BLOCK_M, BLOCK_M, BLOCK_N, PRODUCT)  # [BLOCK_M, BLOCK_N]
        elif WAY == "computed":
            a_tile = slot_tile(a, tile, 0, D, BLOCK_N, BLOCK_D, PRECISION)  # [BLOCK_N, BLOCK_D]
            g = None
            if g_ptr is not None:
                g = load_g(g_ptr, tile, PAIRS, BLOCK_N, PRODUCT)  # [BLOCK_N, BLOCK_N]
            exact = merged_gradients(
                a, b, tables, g, terms_ptr, grad_walker_ptr, grad_visit_ptr, tile, column, within, ds.CHUNK,
                a_tile, b_tile, D, scale, False, BLOCK_N, BLOCK_M, BLOCK_D, PRECISION, PRODUCT,
            )  # fmt: skip
            x = split(exact, PRODUCT)
        else:
            exact = recomputed_gradients(
                a, b, ds, tables, tile, tl.program_id(0) * BLOCK_M, b_tile, D, scale, g_ptr, terms_ptr,
                grad_walker_ptr, grad_visit_ptr, PAIRS, BLOCK_N, BLOCK_M, BLOCK_D, PRECISION, PRODUCT,
            )  # fmt: skip
            x = split(exact, PRODUCT)
        if WAY == "computed":
            a_tile = of_scores(a_tile, a, PRECISION, PRODUCT)
        else:
            a_tile = slot_tile(a, tile, d, D, BLOCK_N, BLOCK_D, PRODUCT)  # [BLOCK_N, BLOCK_D]
        db = product(x, a_tile, db, PRODUCT)
        if dbias_b_ptr is not None and WAY != "stored":
            total += tl.sum(joined(x, ACC), 1)
    if WAY == "stored" and dbias_b_ptr is not None:
        for tile in range(start, tl.minimum(start + share, tiles)):
            total += tl.sum(load_values(ds, 0, tile, tl.program_id(0) * BLOCK_M, ACC, BLOCK_M, BLOCK_N, PRODUCT), 1)
    if WHOLE:
        line, unit = column, tl.full([1, 1], scale, ACC)
    else:
        line, unit = tl.program_id(2).to(tl.int64) * ds.CHUNK + within, tl.full([1, 1], 1.0, ACC)
    offs_d = d + tl.arange(0, BLOCK_D)
    tl.store(db_ptr + line[:, None] * D + offs_d[None, :], db * unit, mask=valid[:, None] & (offs_d < D)[None, :])
    if dbias_b_ptr is not None:  # noqa: SIM102
        if d == 0:
            tl.store(dbias_b_ptr + line, total, mask=valid)
