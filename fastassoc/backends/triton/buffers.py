"""The buffers that outlive a pass, in memory; `fastassoc.kernels.triton.buffers` says what is in them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastassoc.backends.protocol import Saved
from fastassoc.backends.triton.plan import Plan
from fastassoc.kernels.triton.buffers import (
    CLASS_FIELDS,
    COLUMN_FIELDS,
    COUNTS,
    ROW_FIELDS,
    SLOT_FIELDS,
    TILE_FIELDS,
)

MAX_ROWS_WITHOUT_SYNC = 2048
"""Up to this many rows, buffers for the worst classes are small: two of at most 27 MB in float32, 40 in float64."""


class Buffers(NamedTuple):
    """The buffers of a call, under their names in the kernels."""

    rows: Tensor
    columns: Tensor
    slots: Tensor
    tiles: Tensor
    counts: Tensor
    g: Tensor | None = None
    """From the walk on."""
    classes: Tensor | None = None
    """In the forward pass alone."""

    @classmethod
    def allocate(cls, plan: Plan) -> Buffers:
        """As large as any classes could need, all but ``g``."""
        new, dtype = plan.inputs.a.new_empty, plan.inputs.dtype
        return cls(
            classes=new(CLASS_FIELDS, plan.n, dtype=torch.int32),
            slots=new(SLOT_FIELDS, plan.max_tiles * plan.class_rows, dtype=torch.int32),
            tiles=new(TILE_FIELDS, plan.max_tiles, dtype=torch.int32),
            counts=new(COUNTS, dtype=torch.int32),
            rows=new(ROW_FIELDS, plan.n, dtype=dtype),
            columns=new(COLUMN_FIELDS, plan.m, dtype=dtype),
        )

    def sized(self, plan: Plan) -> tuple[Buffers, int]:
        """For the walk, with the number of pairs: above `MAX_ROWS_WITHOUT_SYNC` rows, cut to the tiles that exist."""
        if plan.n <= MAX_ROWS_WITHOUT_SYNC:
            return self, plan.max_pairs
        _, tiles, pairs = self.counts.tolist()
        return self._replace(slots=self.slots[:, : tiles * plan.class_rows], tiles=self.tiles[:, :tiles]), pairs

    def saved(self) -> Saved:
        """What `restore` takes."""
        return self.rows, self.columns, self.slots, self.tiles, self.counts, self.g

    @staticmethod
    def saved_dtypes(dtype: torch.dtype, g_dtype: torch.dtype) -> list[torch.dtype]:
        """Dtypes of `saved`, for an accumulation in ``dtype``."""
        return [dtype, dtype, torch.int32, torch.int32, torch.int32, g_dtype]

    @classmethod
    def restore(cls, saved: Saved, class_rows: int) -> Buffers:
        """What was saved, which may have become flat, in the shapes it had."""
        *whole, g = saved
        rows, columns, slots, tiles, counts = (x for x in whole if x is not None)
        slots, tiles = slots.view(SLOT_FIELDS, -1), tiles.view(TILE_FIELDS, -1)
        if slots.shape[1] != tiles.shape[1] * class_rows:
            raise RuntimeError(
                "torch.get_float32_matmul_precision() changed between the forward and the backward pass of a compiled "
                "fastassoc.walker_visit_loss"
            )
        g = None if g is None else g.view(-1, class_rows, class_rows)
        return cls(rows.view(ROW_FIELDS, -1), columns.view(COLUMN_FIELDS, -1), slots, tiles, counts, g)

    @property
    def one_tile(self) -> bool:
        """Whether all classes are known to fit a tile: every tile is then a pair with itself alone."""
        return self.g is None or self.g.shape[0] == self.tiles.shape[1]

    def arguments(self) -> dict[str, Any]:
        """What every backward pass takes of them."""
        return {
            "rows_ptr": self.rows,
            "columns_ptr": self.columns,
            "slots_ptr": self.slots,
            "tiles_ptr": self.tiles,
            "counts_ptr": self.counts,
            "g_ptr": self.g,
            "TILES": self.tiles.stride(0),
            "ONE_TILE": self.one_tile,
        }
