"""Gradients of the embeddings and of the biases."""

import triton
import triton.language as tl

from fastassoc.kernels.triton.dense.buffers import (
    add_parts,
    kappa_parts,
    load_tile,
    matrix_part,
    p_ab_part,
    q_part,
    rho_parts,
    rows_of,
)
from fastassoc.kernels.triton.primitives import joined, load_rows, product, split, transposed


@triton.jit
def rho(x, i, BLOCK: tl.constexpr):
    """``rho`` of a tile of rows."""
    return add_parts(rho_parts(x), x.MP // BLOCK, x.NP, i * BLOCK + tl.arange(0, BLOCK), 16)


@triton.jit
def kappa(x, j, WALKER: tl.constexpr, BLOCK: tl.constexpr):
    """``kappa`` of a tile of columns; None without the walker."""
    total = None
    if WALKER:
        total = add_parts(kappa_parts(x, BLOCK), x.NP // BLOCK, x.MP, j * BLOCK + tl.arange(0, BLOCK), 16)
    return total


@triton.jit
def complete_gradients(x, i, j, rho_i, kappa_j, BLOCK: tl.constexpr, PRODUCT: tl.constexpr):
    """Tile (i, j) of ``ds_ij = p_ab_ij (U_ij + h_j - rho_i) + q_ij (W_ij - kappa_j)``, as an operand."""
    ds = load_tile(matrix_part(x), i, j, x.MP, BLOCK) - load_tile(p_ab_part(x), i, j, x.MP, BLOCK) * rho_i[:, None]
    if kappa_j is not None:
        ds -= load_tile(q_part(x), i, j, x.MP, BLOCK) * kappa_j[None, :]
    return split(ds, PRODUCT)


@triton.jit
def store_gradient(gradient_ptr, bias_ptr, gradient, bias, index, ok, size, D, d, scale, BLOCK_D: tl.constexpr):
    """``scale gradient``, 0 where not ``ok``; its bias's from the program that has the first columns."""
    offs_d = d + tl.arange(0, BLOCK_D)
    there = index < size
    gradient = tl.where(ok[:, None], gradient * tl.full([1, 1], scale, gradient.dtype), 0.0)
    offsets = index.to(tl.int64)[:, None] * D + offs_d[None, :]
    mask = there[:, None] & (offs_d < D)[None, :]
    tl.store(gradient_ptr + offsets, gradient.to(gradient_ptr.dtype.element_ty), mask=mask)
    if bias_ptr is not None:  # noqa: SIM102
        if d == 0:
            tl.store(bias_ptr + index, tl.where(ok, bias, 0.0), mask=there)


@triton.jit
def row_gradients(
    b, x, i, d, da_ptr, dbias_a_ptr, scale,
    WALKER: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """``da_i = scale sum_j ds_ij b_j`` and ``dbias_a_i = sum_j ds_ij`` of a tile of rows."""
    ACC: tl.constexpr = x.scratch_ptr.dtype.element_ty
    da = tl.zeros([BLOCK_D, BLOCK], dtype=ACC)
    total = tl.zeros([BLOCK], dtype=ACC)
    rho_i = rho(x, i, BLOCK)
    for j in range(0, x.MP // BLOCK):
        column = j * BLOCK + tl.arange(0, BLOCK)
        ds = complete_gradients(x, i, j, rho_i, kappa(x, j, WALKER, BLOCK), BLOCK, PRODUCT)
        b_tile = load_rows(b, column, column < x.M, d, x.D, BLOCK_D, PRODUCT)  # [BLOCK, BLOCK_D]
        da = product(transposed(b_tile), transposed(ds), da, PRODUCT)
        total += tl.sum(joined(ds, ACC), 1)
    row, _, ok = rows_of(x, i, BLOCK)
    store_gradient(da_ptr, dbias_a_ptr, tl.trans(da), total, row, ok, x.N, x.D, d, scale, BLOCK_D)


@triton.jit
def column_gradients(
    a, x, j, d, db_ptr, dbias_b_ptr, scale,
    WALKER: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """``db_j = scale sum_i ds_ij a_i`` and ``dbias_b_j = sum_i ds_ij`` of a tile of columns."""
    ACC: tl.constexpr = x.scratch_ptr.dtype.element_ty
    db = tl.zeros([BLOCK_D, BLOCK], dtype=ACC)
    total = tl.zeros([BLOCK], dtype=ACC)
    kappa_j = kappa(x, j, WALKER, BLOCK)
    for i in range(0, x.NP // BLOCK):
        row, _, ok = rows_of(x, i, BLOCK)
        ds = complete_gradients(x, i, j, rho(x, i, BLOCK), kappa_j, BLOCK, PRODUCT)
        a_tile = load_rows(a, row, ok, d, x.D, BLOCK_D, PRODUCT)  # [BLOCK, BLOCK_D]
        db = product(transposed(a_tile), ds, db, PRODUCT)
        total += tl.sum(joined(ds, ACC), 0)
    column = j * BLOCK + tl.arange(0, BLOCK)
    store_gradient(db_ptr, dbias_b_ptr, tl.trans(db), total, column, column < x.M, x.M, x.D, d, scale, BLOCK_D)


@triton.jit
def dense_embedding_gradients(
    a, b, x, da_ptr, db_ptr, dbias_a_ptr, dbias_b_ptr, scale: tl.float64,
    WALKER: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """``da``, ``db``, ``dbias_a``, ``dbias_b``; what is not wanted is None, and with ``da`` or ``db`` its bias's.

    A program owns a tile of rows or, with higher numbers, of columns, and BLOCK_D columns of the embedding.
    """
    tile = tl.program_id(0)
    d = tl.program_id(1) * BLOCK_D
    tiles_i = 0
    if da_ptr is not None:
        tiles_i = x.NP // BLOCK
        if tile < tiles_i:
            row_gradients(b, x, tile, d, da_ptr, dbias_a_ptr, scale, WALKER, BLOCK, BLOCK_D, PRODUCT)
    if db_ptr is not None:  # noqa: SIM102
        if tile >= tiles_i:
            column_gradients(a, x, tile - tiles_i, d, db_ptr, dbias_b_ptr, scale, WALKER, BLOCK, BLOCK_D, PRODUCT)
