"""The forward passes: grids, what lives within one pass, and launches."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, int32

from fastassoc.backends.protocol import Ranks
from fastassoc.backends.triton.buffers import Buffers, Sizes
from fastassoc.backends.triton.launch import OverRanges, launch
from fastassoc.backends.triton.plan import Plan, ceil_div
from fastassoc.kernels.triton.buffers import (
    CLASS_FIELDS,
    EXTREME_FIELDS,
    ROW_FIELDS,
    ROW_PART_FIELDS,
    WALKER_PART_FIELDS,
    Embeddings,
    H,
    Results,
)
from fastassoc.kernels.triton.class_sizes import class_sizes
from fastassoc.kernels.triton.configs import Tile
from fastassoc.kernels.triton.forms import forms
from fastassoc.kernels.triton.losses import losses
from fastassoc.kernels.triton.normalisers import column_normalisers, row_normalisers
from fastassoc.kernels.triton.round_trips import round_trips
from fastassoc.kernels.triton.rows import rows
from fastassoc.kernels.triton.steps import steps
from fastassoc.kernels.triton.walker import walker

_COUNTED_ROWS, _COUNTED_AT_A_TIME = 8, 256
"""Rows whose classes one program counts, and rows that it compares them with at a time."""
_LAYOUT_ROWS, _LAYOUT_AT_A_TIME = 16, 256
"""Rows that one program of the class layout deals to slots, and rows whose classes it looks at at a time."""
_LINE = Tile(rows=1, columns=1024, depth=1, warps=8, stages=3)
"""Columns that a program of `forms` weighs at a time, and shares that the one of `losses` adds up."""
_WALKER_ROWS = 8
"""Rows of a class tile that one program of the walker's part of the loss adds up; they divide those of every tile."""
_LEAST_EPS = 1e-10
"""The least ``eps`` of the merged form, whose smallest round trips may underflow to 0."""


class Normalised(NamedTuple):
    """What the first passes leave to later ones of the forward pass."""

    classes: Tensor
    visit_probability: Tensor | None
    visit_parts: Tensor | None


def _layout(plan: Plan, buffers: Buffers, classes: Tensor) -> dict[str, Any]:
    """What the kernels of the class layout share."""
    values = plan.inputs.labels.values
    return {
        "labels_ptr": values,
        "classes_ptr": classes,
        "slots_ptr": buffers.slots,
        "tiles_ptr": buffers.tiles,
        "N": plan.n,
        "SLOTS": buffers.slots.shape[1],
        "TILES": buffers.tiles.shape[1],
        "stride_label": values.stride(0),
        "WALKER": plan.inputs.walker,
    }


def count_classes(plan: Plan, buffers: Buffers) -> Tensor:
    """``classes``; and slots and tiles are emptied."""
    ignore_index = plan.inputs.labels.ignore_index
    classes = plan.inputs.a.new_empty(CLASS_FIELDS, plan.n, dtype=int32)
    launch(
        class_sizes,
        (ceil_div(max(plan.n, buffers.slots.shape[1]), _COUNTED_ROWS),),
        **_layout(plan, buffers, classes),
        BLOCK_N=_COUNTED_ROWS,
        BLOCK_K=_COUNTED_AT_A_TIME,
        ignore_index=0 if ignore_index is None else ignore_index,
        HAS_IGNORED=ignore_index is not None,
    )
    return classes


def normalise(
    plan: Plan, a: Embeddings, b: Embeddings, classes: Tensor, buffers: Buffers, statistics: bool
) -> Normalised:
    """Class layout, normalisers, visits, and the form of the steps."""
    inputs, new, dtype = plan.inputs, plan.inputs.a.new_empty, plan.inputs.dtype
    normalisers = new(ROW_FIELDS, plan.n, dtype=dtype)
    tile = plan.config.row_normalisers
    shares = plan.shares(tile, ceil_div(plan.n, tile.rows), plan.m)
    row_parts = new(ROW_PART_FIELDS, shares, plan.n, dtype=dtype)
    launch(
        row_normalisers,
        (ceil_div(plan.n, tile.rows), shares),
        tile,
        classes_ptr=classes,
        row_parts_ptr=row_parts,
        N=plan.n,
        M=plan.m,
        ONE_D=plan.whole_rows(tile),
        **plan.scores(tile, a, b),
    )
    if inputs.ranks is not None:
        row_parts = _of_all_ranks(inputs.ranks, row_parts)
    launch(
        rows,
        (ceil_div(plan.n, _LAYOUT_ROWS),),
        **_layout(plan, buffers, classes),
        row_parts_ptr=row_parts,
        rows_ptr=normalisers,
        counts_ptr=buffers.counts,
        SHARES=row_parts.shape[1],
        CLASS_ROWS=plan.class_rows,
        BLOCK_N=_LAYOUT_ROWS,
        BLOCK_K=_LAYOUT_AT_A_TIME,
        BLOCK_P=64,
    )
    tile = plan.config.column_normalisers
    programs = ceil_div(plan.m, tile.columns)
    extremes = new(EXTREME_FIELDS, programs, dtype=dtype)
    visit_parts = new(programs, dtype=dtype) if inputs.visit else None
    visit_probability = new(plan.m, dtype=dtype) if inputs.visit and statistics else None
    launch(
        column_normalisers,
        (programs,),
        tile,
        rows_ptr=normalisers,
        counts_ptr=buffers.counts,
        columns_ptr=buffers.columns,
        extremes_ptr=extremes,
        visit_ptr=visit_probability,
        visit_parts_ptr=visit_parts,
        N=plan.n,
        M=plan.m,
        eps=inputs.eps,
        tiny=plan.tiny,
        VISIT=inputs.visit,
        ONE_D=plan.whole_rows(tile),
        **plan.scores(tile, a, b),
    )
    if inputs.ranks is not None:
        # Every rank takes the same form, in which round trips are sums over all columns.
        least, most = extremes.unbind(0)
        extremes = inputs.ranks.gather(torch.stack((least.amin(), most.amax()))).t().contiguous()
        # Kernels know of the columns that are here.
        buffers.columns[H.value].mul_(plan.m / inputs.ranks.columns)
    launch(
        forms,
        (max(buffers.tiles.shape[1], min(ceil_div(plan.m, _LINE.columns), plan.processors)),),
        _LINE,
        rows_ptr=normalisers,
        extremes_ptr=extremes,
        slots_ptr=buffers.slots,
        counts_ptr=buffers.counts,
        weights_ptr=buffers.weights,
        columns_ptr=buffers.columns,
        N=plan.n,
        M=plan.m,
        PROGRAMS=extremes.shape[1],
        TILES=buffers.tiles.shape[1],
        MAY_MERGE=inputs.eps >= _LEAST_EPS,
        KEEP_FACTOR=plan.precision.others != "bf16",
        CLASS_ROWS=plan.class_rows,
        BLOCK=_LINE.columns,
    )
    return Normalised(classes, visit_probability, visit_parts)


def walk(
    plan: Plan,
    a: Embeddings,
    b: Embeddings,
    normalised: Normalised,
    buffers: Buffers,
    sizes: Sizes,
    needs_gradient: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """``walker_parts``, ``visit_parts`` and ``g``."""
    classes, _, visit_parts = normalised
    inputs, tile, dtype = plan.inputs, plan.config.round_trips, plan.inputs.dtype
    new = inputs.a.new_empty
    block = (plan.class_rows, plan.class_rows)
    slots = sizes.tiles * plan.class_rows
    chunk = plan.chunk(sizes.sides * plan.step_bytes(slots)) if sizes.stored else plan.whole_chunk
    column_tiles = chunk // tile.columns
    items = plan.items(sizes.trips, column_tiles, exact=plan.reads_counts)
    trips = new(items, *block, dtype=dtype) if inputs.walker else None
    rho = new(items, plan.class_rows, dtype=dtype) if inputs.visit and needs_gradient else None
    shared: dict[str, Any] = {
        "trips_ptr": trips,
        "rho_ptr": rho,
        "ITEMS": plan.programs(tile),
        "WALKER": inputs.walker,
        "PRODUCT": plan.precision.others,
    }
    launch_range = OverRanges()
    for part in plan.ranges(slots, chunk, sizes.sides * sizes.stored):
        if sizes.stored:
            store_steps(launch_range, plan, a, b, buffers, sizes, part.steps, part.columns)
        for way in sizes.ways:
            launch_range(
                round_trips,
                (items,),
                plan.config.tile("round_trips", way),
                steps=part.steps,
                tables=buffers.tables(plan),
                SIDES=sizes.sides_of(way),
                WAY=way,
                **shared,
                **plan.scores(tile, a, b, sizes.stored),
            )
    if inputs.ranks is not None:
        trips, rho, visit_parts = _sums_over_ranks(inputs.ranks, sizes.trips, trips, rho, visit_parts)
        # One share is left of each pair.
        shared |= {"trips_ptr": trips, "rho_ptr": rho, "ITEMS": sizes.trips}
    g = None
    if inputs.walker and needs_gradient:
        g = new(plan.precision.parts, sizes.pairs, *block, dtype=plan.step_dtype)
    programs = sizes.tiles * (plan.class_rows // _WALKER_ROWS)
    walker_parts = new(WALKER_PART_FIELDS, programs, dtype=dtype) if inputs.walker else None
    launch(
        walker,
        (programs,),
        tables=buffers.tables(plan),
        classes_ptr=classes,
        g_ptr=g,
        walker_parts_ptr=walker_parts,
        N=plan.n,
        SLOTS=buffers.slots.stride(0),
        PAIRS=sizes.pairs,
        COLUMN_TILES=column_tiles,
        eps=inputs.eps,
        tiny=plan.tiny,
        CLASS_ROWS=plan.class_rows,
        BLOCK_N=_WALKER_ROWS,
        BLOCK_S=4,
        **shared,
    )
    return walker_parts, visit_parts, g


def _of_all_ranks(ranks: Ranks, row_parts: Tensor) -> Tensor:
    """``row_parts`` with a share for each rank."""
    maxima, sums = row_parts.unbind(0)
    maximum = maxima.amax(0)
    # Rows that take no part have -inf, of which no difference is made.
    total = (maxima - maximum.clamp_min(torch.finfo(maximum.dtype).min)).exp2_().mul_(sums).sum(0)
    return ranks.gather(torch.stack((maximum, total))).transpose(0, 1).contiguous()


def _sums_over_ranks(
    ranks: Ranks, pairs: int, trips: Tensor | None, rho: Tensor | None, visit_parts: Tensor | None
) -> list[Tensor | None]:
    """Sums of shares, and of those over ranks: ``trips`` and ``rho`` by pair, and one number of ``visit_parts``."""
    by_pair = [None if x is None else x.view(pairs, -1, *x.shape[1:]).sum(1) for x in (trips, rho)]
    shares = [*by_pair, None if visit_parts is None else visit_parts.sum(0, keepdim=True)]
    sums = iter(ranks.sum(*(x for x in shares if x is not None)))
    return [None if x is None else next(sums) for x in shares]


def add_up(
    plan: Plan, counts: Tensor, walker_parts: Tensor | None, visit_parts: Tensor | None, statistics: bool
) -> tuple[Tensor | None, ...]:
    """Loss, walker, visit, and the two statistics of the walker."""
    inputs = plan.inputs
    weighted = inputs.weights is not None
    terms = statistics or not weighted
    wanted = weighted, inputs.walker and terms, inputs.visit and terms, *[inputs.walker and statistics] * 2
    results = tuple(inputs.a.new_empty((), dtype=inputs.dtype) if x else None for x in wanted)
    walker_weight, visit_weight = inputs.weights or (1.0, 1.0)
    launch(
        losses,
        (1,),
        _LINE,
        results=Results._make((*results, None)),
        walker_parts_ptr=walker_parts,
        visit_parts_ptr=visit_parts,
        counts_ptr=counts,
        M=inputs.columns,
        WALKER_PARTS=0 if walker_parts is None else walker_parts.shape[1],
        VISIT_PARTS=0 if visit_parts is None else visit_parts.shape[0],
        eps=inputs.eps,
        walker_weight=walker_weight,
        visit_weight=visit_weight,
        WALKER=inputs.walker,
        VISIT=inputs.visit,
        BLOCK=_LINE.columns,
    )
    return results


def store_steps(
    launch_range: OverRanges,
    plan: Plan,
    a: Embeddings,
    b: Embeddings,
    buffers: Buffers,
    sizes: Sizes,
    out: Any,
    columns: int,
) -> None:
    """The steps of a range, for the passes of either direction."""
    tile = plan.config.steps
    launch_range(
        steps,
        (columns // tile.columns, sizes.tiles),
        tile,
        out=out,
        tables=buffers.tables(plan),
        WALKER=plan.inputs.walker,
        SIDES=sizes.sides,
        ONE_D=plan.whole_rows(tile),
        PRODUCT=plan.precision.others,
        **plan.scores(tile, a, b),
    )
