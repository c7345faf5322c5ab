"""The backward passes: grids, results and launches."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from fastassoc.backends.triton.buffers import Buffers
from fastassoc.backends.triton.launch import launch
from fastassoc.backends.triton.plan import Plan, ceil_div
from fastassoc.kernels.triton.column_gradients import column_gradients
from fastassoc.kernels.triton.kappa import kappa
from fastassoc.kernels.triton.row_gradients import add_shares, row_gradients

_SHARE_ROWS, _SHARE_COLUMNS = 16, 128
"""Rows and columns of ``da`` that one program adds up."""


class Upstream(NamedTuple):
    """What enters the gradients last; a term that has no gradient from above is None."""

    walker: Tensor | None
    """[] in the accumulation dtype."""
    visit: Tensor | None
    """[] in the accumulation dtype."""
    kappa: Tensor | None
    """Of the walker."""

    def arguments(self) -> dict[str, Any]:
        """What the passes that write gradients take of them."""
        return {"kappa_ptr": self.kappa, "grad_walker_ptr": self.walker, "grad_visit_ptr": self.visit}


def find_kappa(plan: Plan, buffers: Buffers) -> Tensor:
    """``kappa``: pass 1."""
    tile = plan.config.kappa
    result = plan.inputs.a.new_empty(plan.m, dtype=plan.inputs.dtype)
    launch(
        kappa,
        (ceil_div(plan.m, tile.columns),),
        tile,
        **plan.embeddings(tile, products=True, hold=buffers.one_tile),
        **buffers.arguments(),
        kappa_ptr=result,
    )
    return result


def gradients_of_columns(plan: Plan, buffers: Buffers, upstream: Upstream, bias: bool) -> tuple[Tensor, Tensor | None]:
    """``db`` and ``dbias_b``: pass 2."""
    tile, inputs = plan.config.column_gradients, plan.inputs
    db = inputs.b.new_empty(plan.m, plan.d)
    dbias_b = inputs.b.new_empty(plan.m, dtype=inputs.dtype) if bias else None
    embeddings = plan.embeddings(tile, products=True, hold=buffers.one_tile)
    launch(
        column_gradients,
        (ceil_div(plan.m, tile.columns), ceil_div(plan.d, embeddings["BLOCK_D"])),
        tile,
        **embeddings,
        **buffers.arguments(),
        **upstream.arguments(),
        db_ptr=db,
        dbias_b_ptr=dbias_b,
    )
    return db, dbias_b


def gradients_of_rows(plan: Plan, buffers: Buffers, upstream: Upstream, bias: bool) -> tuple[Tensor, Tensor | None]:
    """``da`` and ``dbias_a``: pass 3, in ranges of columns where the class tiles alone are too few programs, and 4."""
    tile, inputs = plan.config.row_gradients, plan.inputs
    embeddings = plan.embeddings(tile, products=True, hold=buffers.one_tile)
    tiles, depths = buffers.tiles.shape[1], ceil_div(plan.d, embeddings["BLOCK_D"])
    splits = min(ceil_div(plan.m, tile.columns), ceil_div(plan.programs, max(1, tiles * depths)))
    # One range writes the result itself, but not the rows that take no part.
    allocate = inputs.a.new_empty if splits > 1 or inputs.labels.ignore_index is None else inputs.a.new_zeros
    da = allocate(plan.n, plan.d)
    dbias_a = allocate(plan.n, dtype=inputs.dtype) if bias else None
    da_parts, dbias_a_parts = da, dbias_a
    if splits > 1:
        da_parts = da.new_empty(splits, plan.n, plan.d, dtype=inputs.dtype)
        dbias_a_parts = da_parts.new_empty(splits, plan.n) if bias else None
    launch(
        row_gradients,
        (tiles, splits, depths),
        tile,
        **embeddings,
        **buffers.arguments(),
        **upstream.arguments(),
        da_ptr=da_parts,
        dbias_a_ptr=dbias_a_parts,
    )
    if splits > 1:
        launch(
            add_shares,
            (ceil_div(plan.n, _SHARE_ROWS), ceil_div(plan.d, _SHARE_COLUMNS)),
            da_parts_ptr=da_parts,
            dbias_a_parts_ptr=dbias_a_parts,
            rows_ptr=buffers.rows,
            da_ptr=da,
            dbias_a_ptr=dbias_a,
            N=plan.n,
            D=plan.d,
            SPLITS=splits,
            BLOCK_N=_SHARE_ROWS,
            BLOCK_D=_SHARE_COLUMNS,
        )
    return da, dbias_a
