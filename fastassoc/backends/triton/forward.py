"""The forward passes: grids, what lives within one pass, and launches."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastassoc.backends.triton.buffers import Buffers
from fastassoc.backends.triton.launch import launch
from fastassoc.backends.triton.plan import MAX_SPLITS, Plan, ceil_div
from fastassoc.kernels.triton.buffers import ROW_PART_FIELDS, WALKER_PART_FIELDS
from fastassoc.kernels.triton.class_sizes import class_sizes
from fastassoc.kernels.triton.losses import losses
from fastassoc.kernels.triton.normalisers import normalisers
from fastassoc.kernels.triton.round_trips import round_trips
from fastassoc.kernels.triton.rows import rows
from fastassoc.kernels.triton.visits import visits
from fastassoc.kernels.triton.walker import walker

_LAYOUT_ROWS = 32
"""Rows that one program of the class layout deals to slots."""
_WALKER_ROWS = 16
"""Rows of a class tile that one program of the walker's part of the loss adds up; they divide those of every tile."""


def normalise(plan: Plan, buffers: Buffers) -> None:
    """Class layout and normalisers: passes 1 to 3."""
    values, ignore_index, _ = plan.inputs.labels
    slots, tiles = buffers.slots.shape[1], buffers.tiles.shape[1]
    layout = {
        "labels_ptr": values,
        "classes_ptr": buffers.classes,
        "slots_ptr": buffers.slots,
        "tiles_ptr": buffers.tiles,
        "N": plan.n,
        "SLOTS": slots,
        "TILES": tiles,
        "stride_label": values.stride(0),
        "WALKER": plan.inputs.walker,
        "CLASS_ROWS": plan.class_rows,
        "BLOCK_N": _LAYOUT_ROWS,
        "BLOCK_K": 128,
    }
    launch(
        class_sizes,
        (ceil_div(max(plan.n, slots), _LAYOUT_ROWS),),
        **layout,
        ignore_index=0 if ignore_index is None else ignore_index,
        HAS_IGNORED=ignore_index is not None,
    )
    tile = plan.config.normalisers
    programs = min(ceil_div(plan.m, tile.columns), plan.programs)
    row_parts = buffers.rows.new_empty(ROW_PART_FIELDS, programs, plan.n)
    launch(
        normalisers,
        (programs,),
        tile,
        **plan.embeddings(tile),
        classes_ptr=buffers.classes,
        row_parts_ptr=row_parts,
        columns_ptr=buffers.columns,
    )
    launch(
        rows,
        (ceil_div(plan.n, _LAYOUT_ROWS),),
        **layout,
        row_parts_ptr=row_parts,
        rows_ptr=buffers.rows,
        counts_ptr=buffers.counts,
        PARTS=programs,
        BLOCK_P=64,
    )


def visit(plan: Plan, buffers: Buffers) -> tuple[Tensor, Tensor]:
    """``visit`` and ``visit_parts``: pass 4."""
    tile = plan.config.visits
    programs = ceil_div(plan.m, tile.columns)
    visit_probability, parts = buffers.columns.new_empty(plan.m), buffers.columns.new_empty(programs)
    launch(
        visits,
        (programs,),
        tile,
        **plan.embeddings(tile),
        rows_ptr=buffers.rows,
        counts_ptr=buffers.counts,
        columns_ptr=buffers.columns,
        visit_ptr=visit_probability,
        parts_ptr=parts,
        eps=plan.inputs.eps,
        tiny=plan.tiny,
    )
    return visit_probability, parts


def walk(plan: Plan, buffers: Buffers, pairs: int, needs_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """``walker_parts`` and ``g``: passes 5 and 6, over up to ``pairs`` pairs."""
    inputs, tile = plan.inputs, plan.config.round_trips
    column_tiles, tiles = ceil_div(plan.m, tile.columns), buffers.tiles.shape[1]
    items = plan.items(pairs, column_tiles)
    block = (plan.class_rows, plan.class_rows)
    new = buffers.rows.new_empty
    trips = new(items, *block) if inputs.walker else None
    g_dtype = plan.precision.g_dtype(inputs.dtype)
    g = new(pairs, *block, dtype=g_dtype) if inputs.walker and needs_gradient else None
    terms = {"WALKER": inputs.walker, "VISIT": inputs.visit and needs_gradient}
    shared: dict[str, Any] = {
        "rows_ptr": buffers.rows,
        "slots_ptr": buffers.slots,
        "tiles_ptr": buffers.tiles,
        "counts_ptr": buffers.counts,
        "trips_ptr": trips,
        "rho_ptr": new(items, plan.class_rows) if terms["VISIT"] else None,
        "TILES": buffers.tiles.stride(0),
        "ITEMS": plan.programs,
        "MAX_SPLITS": MAX_SPLITS,
        **terms,
    }
    one_tile = pairs == tiles
    launch(
        round_trips,
        (items,),
        tile,
        **plan.embeddings(tile, products=True, hold=one_tile),
        **shared,
        columns_ptr=buffers.columns,
        ONE_TILE=one_tile,
    )
    programs = tiles * (plan.class_rows // _WALKER_ROWS)
    parts = new(WALKER_PART_FIELDS, programs)
    launch(
        walker,
        (programs,),
        **shared,
        classes_ptr=buffers.classes,
        g_ptr=g,
        parts_ptr=parts,
        N=plan.n,
        eps=inputs.eps,
        tiny=plan.tiny,
        SLOTS=buffers.slots.stride(0),
        COLUMN_TILES=column_tiles,
        CLASS_ROWS=plan.class_rows,
        BLOCK_N=_WALKER_ROWS,
        BLOCK_S=4,
        PRODUCT=plan.precision.others,
    )
    return parts, g


def add_up(
    plan: Plan, counts: Tensor, walker_parts: Tensor | None, visit_parts: Tensor | None, statistics: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Walker, visit, and the two statistics of the walker: pass 7."""
    inputs = plan.inputs
    wanted = inputs.walker, inputs.visit, inputs.walker and statistics, inputs.walker and statistics
    results = [inputs.a.new_empty((), dtype=inputs.dtype) if x else None for x in wanted]
    walker_loss, visit_loss, p_correct, accuracy_estimate = results
    launch(
        losses,
        (1,),
        walker_parts_ptr=walker_parts,
        visit_parts_ptr=visit_parts,
        counts_ptr=counts,
        walker_ptr=walker_loss,
        p_correct_ptr=p_correct,
        accuracy_ptr=accuracy_estimate,
        visit_ptr=visit_loss,
        M=plan.m,
        WALKER_PARTS=0 if walker_parts is None else walker_parts.shape[1],
        VISIT_PARTS=0 if visit_parts is None else visit_parts.shape[0],
        eps=inputs.eps,
        BLOCK=1024,
    )
    return walker_loss, visit_loss, p_correct, accuracy_estimate
