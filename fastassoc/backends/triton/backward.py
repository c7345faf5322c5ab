"""The backward passes: grids, results and launches."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastassoc.backends.protocol import Gradients, Needs
from fastassoc.backends.triton.buffers import Buffers, Sizes
from fastassoc.backends.triton.forward import store_steps
from fastassoc.backends.triton.launch import OverRanges
from fastassoc.backends.triton.plan import Plan, Range, ceil_div
from fastassoc.kernels.triton.buffers import TERM_FIELDS, Embeddings
from fastassoc.kernels.triton.column_gradients import column_gradients
from fastassoc.kernels.triton.configs import MOST_COLUMNS
from fastassoc.kernels.triton.kappa import kappa, take_off_kappa
from fastassoc.kernels.triton.row_gradients import row_gradients
from fastassoc.kernels.triton.score_gradients import score_gradients
from fastassoc.kernels.triton.shares import add_column_shares, add_row_shares
from fastassoc.kernels.triton.terms import terms

_SHARE_LINES, _SHARE_COLUMNS = 4, 128
"""Rows and columns of a gradient that one program adds up."""

_KAPPA_TILES = 16
"""Shares of ``kappa`` that are read at one time."""
_KAPPA_COLUMNS, _KAPPA_PROGRAMS = 16, 8
"""Columns that one program takes ``kappa`` off, and programs that share their class tiles."""
_SHARE_TILES = 4
"""Fewest class tiles of a share of ``db``: for fewer a launch that adds shares up would cost more than it saves."""


class Backward:
    """A backward pass: what its launches share, and its results."""

    def __init__(
        self,
        plan: Plan,
        a: Embeddings,
        b: Embeddings,
        buffers: Buffers,
        sizes: Sizes,
        g: Tensor | None,
        grad_walker: Tensor | None,
        grad_visit: Tensor | None,
    ) -> None:
        self.plan, self.buffers, self.sizes = plan, buffers, sizes
        self.a, self.b = a, b
        self.launch = OverRanges()
        self.slots = sizes.tiles * plan.class_rows
        new, dtype = plan.inputs.a.new_empty, plan.inputs.dtype
        self.sides = sizes.sides * sizes.stored
        # What a column takes: steps, and gradients of scores before they are rounded; or shares of kappa and terms.
        column_bytes = (sizes.tiles + TERM_FIELDS) * dtype.itemsize
        exact_dtype = plan.precision.exact_dtype(dtype)
        exact = sizes.stored and grad_walker is not None
        if sizes.stored:
            column_bytes = self.sides * plan.step_bytes(self.slots) + exact * self.slots * exact_dtype.itemsize
        self.chunk = plan.chunk(column_bytes)
        self.exact = new(self.chunk, self.slots, dtype=exact_dtype) if exact else None
        self.units = new(sizes.tiles, self.chunk, dtype=dtype) if exact and exact_dtype == torch.float16 else None
        self.kappa_parts = None if grad_walker is None else new(sizes.tiles, self.chunk, dtype=dtype)
        self.upstream: dict[str, Any] = {
            "g_ptr": None if grad_walker is None else g,
            "terms_ptr": new(TERM_FIELDS, self.chunk, dtype=dtype),
            "grad_walker_ptr": grad_walker,
            "grad_visit_ptr": grad_visit,
            "tables": buffers.tables(plan)._replace(row_terms_ptr=new(self.slots, dtype=dtype)),
            "PAIRS": sizes.pairs,
            "PRODUCT": plan.precision.others,
        }

    def gradients(self, needs: Needs) -> Gradients:
        """All that are needed, one range of columns after the other."""
        plan = self.plan
        da = RowParts.allocate(plan, self.sizes, self.chunk, needs[2]) if needs[0] or needs[2] else None
        db = ColumnGradients.allocate(self, needs[3]) if needs[1] or needs[3] else None
        if self.sizes.stored:
            # Columns have no terms of their own.
            self._find_terms(0, 0)
        for part in plan.ranges(self.slots, self.chunk, self.sides):
            if self.sizes.stored:
                store_steps(self.launch, plan, self.a, self.b, self.buffers, self.sizes, part.steps, part.columns)
                self._store_score_gradients(part)
            else:
                self._find_kappa(part)
                self._find_terms(part.steps.START, part.columns)
            if da is not None:
                self._row_gradients(da, part)
            if db is not None:
                self._columns(part, db)
        result_a, dbias_a = (None, None) if da is None else self._rows(da)
        result_b, dbias_b = (None, None) if db is None else (db.whole, db.bias)
        return Gradients(result_a if needs[0] else None, result_b if needs[1] else None, dbias_a, dbias_b)

    def _find_kappa(self, part: Range) -> None:
        """``kappa_parts`` of a range."""
        plan, tile = self.plan, self.plan.config.kappa
        items = plan.kappa_items(self.sizes.tiles, self.chunk)
        for way in self.sizes.ways if self.kappa_parts is not None else ():
            self.launch(
                kappa,
                (items,),
                plan.config.tile("kappa", way),
                steps=part.steps,
                tables=self.upstream["tables"],
                g_ptr=self.upstream["g_ptr"],
                kappa_parts_ptr=self.kappa_parts,
                PAIRS=self.sizes.pairs,
                ITEMS=items,
                WAY=way,
                PRODUCT=plan.precision.others,
                **plan.scores(tile, self.a, self.b),
            )

    def _find_terms(self, start: int, columns: int) -> None:
        """``row_terms``, and ``terms`` of so many columns."""
        self.launch(
            terms,
            (self.sizes.tiles + columns // MOST_COLUMNS,),
            kappa_parts_ptr=self.kappa_parts,
            ROW_PROGRAMS=self.sizes.tiles,
            CHUNK=self.chunk,
            START=start,
            BLOCK_N=self.plan.class_rows,
            BLOCK_M=MOST_COLUMNS,
            BLOCK_T=_KAPPA_TILES,
            **{name: self.upstream[name] for name in ("tables", "grad_walker_ptr", "grad_visit_ptr", "terms_ptr")},
        )

    def _store_score_gradients(self, part: Range) -> None:
        """``ds`` of a range."""
        plan, tile = self.plan, self.plan.config.score_gradients
        shared: dict[str, Any] = {
            "steps": part.steps,
            "exact_ptr": self.exact,
            "units_ptr": self.units,
            "tables": self.upstream["tables"],
            "kappa_parts_ptr": self.kappa_parts,
            "grad_walker_ptr": self.upstream["grad_walker_ptr"],
            "SIDES": self.sizes.sides,
            "BLOCK_N": tile.rows,
            "PRODUCT": plan.precision.others,
        }
        self.launch(
            score_gradients,
            (part.columns // tile.columns, self.sizes.tiles),
            tile,
            g_ptr=self.upstream["g_ptr"],
            grad_visit_ptr=self.upstream["grad_visit_ptr"],
            PAIRS=self.sizes.pairs,
            BLOCK_M=tile.columns,
            **shared,
        )
        if self.kappa_parts is not None:
            self.launch(
                take_off_kappa,
                (part.columns // _KAPPA_COLUMNS, min(self.sizes.tiles, _KAPPA_PROGRAMS)),
                BLOCK_M=_KAPPA_COLUMNS,
                BLOCK_T=_KAPPA_TILES,
                **shared,
            )

    def _columns(self, part: Range, db: ColumnGradients) -> None:
        """``db`` and ``dbias_b`` of a range."""
        plan, shared = self.plan, db.parts is not None
        for way in self.sizes.ways:
            tile = plan.config.tile("column_gradients", way)
            self.launch(
                column_gradients,
                (part.columns // tile.columns, db.depths, 1 if db.parts is None else db.parts.shape[0]),
                tile,
                ds=part.steps,
                db_ptr=db.parts if shared else db.whole,
                dbias_b_ptr=db.bias_parts if shared else db.bias,
                WAY=way,
                WHOLE=not shared,
                **self.upstream,
                **plan.scores(tile, self.a, self.b, self.sizes.stored),
            )
        if db.parts is not None:
            self._add_shares(
                add_column_shares,
                part.columns,
                db.parts,
                db.bias_parts,
                db.whole,
                db.bias,
                LINES=self.chunk,
                FIRST=part.steps.START,
                END=plan.m,
                SHARES=db.parts.shape[0],
            )

    def _add_shares(
        self,
        kernel: Any,
        lines: int,
        parts: Tensor,
        bias_parts: Tensor | None,
        gradient: Tensor,
        bias: Tensor | None,
        **others: Any,
    ) -> None:
        """``lines`` of a gradient, and that of the biases, from ``parts``."""
        self.launch(
            kernel,
            (lines // _SHARE_LINES, ceil_div(self.plan.d, _SHARE_COLUMNS)),
            parts_ptr=parts,
            bias_parts_ptr=bias_parts,
            gradient_ptr=gradient,
            bias_ptr=bias,
            D=self.plan.d,
            scale=self.plan.inputs.scale,
            BLOCK_N=_SHARE_LINES,
            BLOCK_D=_SHARE_COLUMNS,
            **others,
        )

    def _row_gradients(self, da: RowParts, part: Range) -> None:
        """What a range gives to ``da`` and ``dbias_a``."""
        plan, tile = self.plan, self.plan.config.row_gradients
        for way in self.sizes.ways:
            self.launch(
                row_gradients,
                (da.programs, da.depths),
                plan.config.tile("row_gradients", way),
                ds=part.steps,
                da_parts_ptr=da.parts,
                dbias_a_parts_ptr=da.bias_parts,
                WAY=way,
                **self.upstream,
                **plan.scores(tile, self.a, self.b, self.sizes.stored),
            )

    def _rows(self, da: RowParts) -> tuple[Tensor, Tensor | None]:
        """``da`` and ``dbias_a``, 0 for rows that take no part."""
        plan, inputs = self.plan, self.plan.inputs
        allocate = inputs.a.new_empty if inputs.labels.ignore_index is None else inputs.a.new_zeros
        # Parts of a sum over ranks are not rounded yet.
        result = allocate(plan.n, plan.d, dtype=inputs.a.dtype if inputs.ranks is None else inputs.dtype)
        bias = None if da.bias_parts is None else allocate(plan.n, dtype=inputs.dtype)
        self._add_shares(
            add_row_shares,
            self.slots,
            da.parts,
            da.bias_parts,
            result,
            bias,
            slots_ptr=self.buffers.slots,
            counts_ptr=self.buffers.counts,
            COLUMN_TILES=self.chunk // plan.config.row_gradients.columns,
            PROGRAMS=da.programs,
            CLASS_ROWS=plan.class_rows,
        )
        return result, bias


class RowParts(NamedTuple):
    """``da_parts`` and ``dbias_a_parts``, and the programs that share the work of a range."""

    parts: Tensor
    bias_parts: Tensor | None
    programs: int
    depths: int

    @classmethod
    def allocate(cls, plan: Plan, sizes: Sizes, chunk: int, bias: bool) -> RowParts:
        """As many shares as run at one time, and their parts (`fastassoc.kernels.triton.shares.row_share`)."""
        tile, new, dtype = plan.config.row_gradients, plan.inputs.a.new_empty, plan.inputs.dtype
        depths = ceil_div(plan.d, plan.depth(tile))
        programs = max(1, min(plan.programs(tile) // depths, sizes.tiles * (chunk // tile.columns)))
        lines = programs + sizes.tiles - 1, plan.class_rows
        return cls(new(*lines, plan.d, dtype=dtype), new(*lines, dtype=dtype) if bias else None, programs, depths)


class ColumnGradients(NamedTuple):
    """``db`` and ``dbias_b``, and ``db_parts`` and ``dbias_b_parts`` where a range is too few programs."""

    whole: Tensor
    bias: Tensor | None
    parts: Tensor | None
    bias_parts: Tensor | None
    depths: int

    @classmethod
    def allocate(cls, backward: Backward, bias: bool) -> ColumnGradients:
        """As many shares of the class tiles as run at one time; of steps that are computed, ranges are large."""
        plan = backward.plan
        tile = plan.config.tile("column_gradients", backward.sizes.ways[0])
        new, dtype = plan.inputs.b.new_empty, plan.inputs.dtype
        depths = ceil_div(plan.d, plan.depth(tile))
        owners = backward.chunk // tile.columns * depths
        shares = (
            min(backward.sizes.tiles // _SHARE_TILES, plan.programs(tile) // owners) if backward.sizes.stored else 1
        )
        lines = shares, backward.chunk
        parts = new(*lines, plan.d, dtype=dtype) if shares > 1 else None
        bias_parts = new(*lines, dtype=dtype) if bias and shares > 1 else None
        return cls(new(plan.m, plan.d), new(plan.m, dtype=dtype) if bias else None, parts, bias_parts, depths)
