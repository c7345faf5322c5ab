"""Batches of which all rows and all columns fit one tile: one program forward, one backward.

`P_AB`, `Q`, `G` and `H` are kept as of other small batches, ``NP`` and ``MP`` being the tile; nothing else is stored.
"""

import triton
import triton.language as tl

from fastassoc.kernels.triton.dense.buffers import (
    g_part,
    h_part,
    load_tile,
    p_ab_part,
    q_part,
    rows_of,
    store_tile,
)
from fastassoc.kernels.triton.dense.embedding_gradients import store_gradient
from fastassoc.kernels.triton.dense.score_gradients import weighted_upstream
from fastassoc.kernels.triton.dense.scores import masked_scores
from fastassoc.kernels.triton.dense.trips import inverse_where
from fastassoc.kernels.triton.dense.walk import visit_terms, walker_terms
from fastassoc.kernels.triton.losses import store_losses
from fastassoc.kernels.triton.primitives import finite_shift, joined, load_rows, product, split, transposed


@triton.jit
def dense_forward(
    a, b, x, results, scale: tl.float64, eps: tl.float64, tiny: tl.float64,
    walker_weight: tl.float64, visit_weight: tl.float64,
    WALKER: tl.constexpr, VISIT: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
    PRODUCT: tl.constexpr,
):  # fmt: skip
    """The losses and the statistics, and for a gradient `P_AB`, `Q`, `G` and `H`; one program."""
    term_ptr = results.walker_ptr if WALKER else results.visit_ptr
    ACC: tl.constexpr = (term_ptr if results.loss_ptr is None else results.loss_ptr).dtype.element_ty
    _, label_i, row_ok = rows_of(x, 0, BLOCK)
    column = tl.arange(0, BLOCK)
    column_ok = column < x.M
    kept = tl.sum(row_ok.to(tl.int32), 0)
    loss = tl.full([], 0.0, ACC)
    correct = tl.full([], 0.0, ACC)
    root = tl.full([], 0.0, ACC)
    visit_loss = tl.full([], 0.0, ACC)
    # 1. Steps.
    s = masked_scores(a, b, x, 0, 0, scale, ACC, BLOCK, BLOCK_D, PRECISION)  # [BLOCK, BLOCK], as all matrices are
    m_i = finite_shift(tl.max(s, 1))
    m_j = finite_shift(tl.max(s, 0))
    p_ab = tl.exp2(s - m_i[:, None])
    p_ab *= inverse_where(row_ok, tl.sum(p_ab, 1))[:, None]
    q = tl.exp2(s - m_j[None, :])
    inverse_j = inverse_where(column_ok, tl.sum(q, 0))
    if x.saved_ptr is not None:
        store_tile(p_ab_part(x), 0, 0, x.MP, p_ab, BLOCK)
    # 2. Visits.
    if VISIT:
        # A column of -inf has an infinite inverse sum, and NaN is what it gives; any other adds 0.
        visit = tl.sum(p_ab, 0) / kept.to(ACC) + 0.0 * inverse_j
        visit_loss, h = visit_terms(visit, column_ok, kept, x.M, eps, tiny)
        if results.visit_probability_ptr is not None:
            tl.store(results.visit_probability_ptr + column, visit, mask=column_ok)
        if x.saved_ptr is not None:
            tl.store(h_part(x) + column, h)
    # 3. Round trips.
    if WALKER:
        q *= inverse_j[None, :]
        if x.saved_ptr is not None:
            store_tile(q_part(x), 0, 0, x.MP, q, BLOCK)
        p_aba = product(split(p_ab, PRODUCT), transposed(split(q, PRODUCT)), None, PRODUCT)
        same = (label_i[:, None] == label_i[None, :]) & row_ok[:, None] & row_ok[None, :]
        size = tl.sum(same.to(tl.int32), 1)
        weight = 1.0 / (kept * tl.maximum(size, 1)).to(ACC)
        log_sum, correct_i, g = walker_terms(p_aba, same, weight, eps, tiny)
        loss = -tl.sum(log_sum * weight, 0)
        correct = tl.sum(correct_i, 0)
        root = tl.sum(tl.sqrt(correct_i), 0)
        if x.saved_ptr is not None:
            store_tile(g_part(x), 0, 0, x.NP, g, BLOCK)
    store_losses(
        results, loss.to(tl.float64), correct.to(tl.float64), root.to(tl.float64), visit_loss.to(tl.float64), kept, x.M,
        eps, walker_weight, visit_weight, WALKER, VISIT, ACC,
    )  # fmt: skip


@triton.jit
def dense_backward(
    a, b, x, grad_walker_ptr, grad_visit_ptr, walker_weight: tl.float64, visit_weight: tl.float64,
    da_ptr, db_ptr, dbias_a_ptr, dbias_b_ptr, scale: tl.float64,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """``da``, ``db``, ``dbias_a``, ``dbias_b``; what is not wanted is None. One program.

    With ``U = G q`` and ``W = G' p_ab``, ``ds_ij = p_ab_ij (U_ij + h_j - rho_i) + q_ij (W_ij - kappa_j)``, where
    ``rho_i = sum_j p_ab_ij (U_ij + h_j)`` and ``kappa_j = sum_i q_ij W_ij``.
    """
    ACC: tl.constexpr = x.saved_ptr.dtype.element_ty
    index = tl.arange(0, BLOCK)
    # 1. Gradients of the scores.
    p_ab = load_tile(p_ab_part(x), 0, 0, x.MP, BLOCK)
    there = tl.zeros([BLOCK, BLOCK], dtype=ACC)
    if grad_walker_ptr is not None:
        g = split(load_tile(g_part(x), 0, 0, x.NP, BLOCK), PRODUCT)
        q = load_tile(q_part(x), 0, 0, x.MP, BLOCK)
        upstream = weighted_upstream(grad_walker_ptr, walker_weight)
        there = product(g, split(q, PRODUCT), None, PRODUCT) * upstream
    if grad_visit_ptr is not None:
        there += (weighted_upstream(grad_visit_ptr, visit_weight) * tl.load(h_part(x) + index))[None, :]
    ds = p_ab * (there - tl.sum(there * p_ab, 1)[:, None])
    if grad_walker_ptr is not None:
        back = product(transposed(g), split(p_ab, PRODUCT), None, PRODUCT)
        back *= upstream
        ds += q * (back - tl.sum(back * q, 0)[None, :])
    ds = split(ds, PRODUCT)
    # 2. Gradients of the embeddings.
    _, _, row_ok = rows_of(x, 0, BLOCK)
    if da_ptr is not None:
        total = tl.sum(joined(ds, ACC), 1)
        for d in range(0, x.D, BLOCK_D):
            b_tile = load_rows(b, index, index < x.M, d, x.D, BLOCK_D, PRODUCT)  # [BLOCK, BLOCK_D]
            da = product(ds, b_tile, None, PRODUCT)
            store_gradient(da_ptr, dbias_a_ptr, da, total, index, row_ok, x.N, x.D, d, scale, BLOCK_D)
    if db_ptr is not None:
        total = tl.sum(joined(ds, ACC), 0)
        ds = transposed(ds)
        for d in range(0, x.D, BLOCK_D):
            a_tile = load_rows(a, index, row_ok, d, x.D, BLOCK_D, PRODUCT)  # [BLOCK, BLOCK_D]
            db = product(ds, a_tile, None, PRODUCT)
            store_gradient(db_ptr, dbias_b_ptr, db, total, index, index < x.M, x.M, x.D, d, scale, BLOCK_D)
