"""The buffers that outlive a pass, in memory; `fastassoc.kernels.triton.buffers` says what is in them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastassoc.backends.protocol import Saved
from fastassoc.backends.triton.launch import read_back
from fastassoc.backends.triton.plan import Plan
from fastassoc.kernels.triton.buffers import (
    COLUMN_FIELDS,
    COUNTS,
    SLOT_FIELDS,
    TILE_FIELDS,
    WEIGHT_FIELDS,
    Embeddings,
    Tables,
)


class Sizes(NamedTuple):
    """What the classes and the form decide, or the most that they could."""

    tiles: int
    pairs: int
    sides: int
    """Of the steps: 1 where they are known to be merged."""
    ways: tuple[str, ...]
    """How passes take steps (`fastassoc.kernels.triton.steps`): one after the other where the device is to choose."""

    @classmethod
    def of(cls, plan: Plan, tiles: int, pairs: int, sides: int) -> Sizes:
        """With what follows from them."""
        config = plan.config
        computing = (config.round_trips, config.kappa, config.row_gradients, config.column_gradients)
        ways: tuple[str, ...] = ("stored",)
        if config.compute_steps and all(plan.whole_rows(tile) for tile in computing):
            if not plan.reads_counts:
                ways = ("computed", "recomputed")
            elif sides == 1 and pairs == tiles:
                ways = ("computed",)
        return cls(tiles, pairs, sides, ways)

    @property
    def trips(self) -> int:
        """Pairs that have round trips of their own: in the merged form, those that mirror no other."""
        return (self.pairs + self.tiles) // 2 if self.sides == 1 else self.pairs

    def sides_of(self, way: str) -> int:
        """Sides that a pass may meet: where the form has not been read back, "recomputed" is for both."""
        return {"computed": 1, "recomputed": 2}.get(way, self.sides)

    @property
    def stored(self) -> bool:
        """Whether steps have a workspace."""
        return self.ways == ("stored",)


class Buffers(NamedTuple):
    """The buffers of a call, under their names in the kernels."""

    columns: Tensor
    slots: Tensor
    tiles: Tensor
    weights: Tensor
    counts: Tensor

    @classmethod
    def allocate(cls, plan: Plan) -> Buffers:
        """As large as any classes could need, ``counts`` longer than kernels know, for `saved`."""
        new, dtype = plan.inputs.a.new_empty, plan.inputs.dtype
        slots = plan.max_tiles * plan.class_rows
        return cls(
            columns=new(COLUMN_FIELDS, plan.m, dtype=dtype),
            slots=new(SLOT_FIELDS, slots, dtype=torch.int32),
            tiles=new(TILE_FIELDS, plan.max_tiles, dtype=torch.int32),
            weights=new(slots, WEIGHT_FIELDS, dtype=dtype),
            counts=new(COUNTS + 2, dtype=torch.int32),
        )

    def sized(self, plan: Plan) -> tuple[Buffers, Sizes]:
        """For the walk: where counts are read, cut to the tiles that exist, in the form that is taken."""
        if not plan.reads_counts:
            return self, Sizes.of(plan, plan.max_tiles, plan.max_pairs, 2)
        _, tiles, pairs, plain = read_back(self.counts)[:4]
        # Without any row one tile, which does not exist, stands for the buffers to have a size.
        tiles, pairs = max(tiles, 1), max(pairs, 1)
        slots = tiles * plan.class_rows
        cut = self._replace(slots=self.slots[:, :slots], tiles=self.tiles[:, :tiles], weights=self.weights[:slots])
        return cut, Sizes.of(plan, tiles, pairs, 1 + plain)

    def tables(self, plan: Plan) -> Tables:
        """What passes look up."""
        return Tables(
            self.columns, self.slots, self.tiles, self.counts, self.weights, None, plan.m, self.tiles.stride(0)
        )  # fmt: skip

    def saved(self, sizes: Sizes, g: Tensor | None, a: Embeddings, largest: Tensor | None) -> Saved:
        """What `restore` takes, ``counts`` as much longer as there are sides.

        ``a`` is in the order of the slots.
        """
        counts = self.counts[: COUNTS + sizes.sides]
        return self.columns, self.slots, self.tiles, self.weights, counts, g, a.ptr, a.bias_ptr, largest

    @staticmethod
    def saved_dtypes(dtype: torch.dtype, step_dtype: torch.dtype, operand_dtype: torch.dtype) -> list[torch.dtype]:
        """Dtypes of `saved`, for an accumulation in ``dtype``."""
        return [dtype, torch.int32, torch.int32, dtype, torch.int32, step_dtype, operand_dtype, dtype, dtype]

    @classmethod
    def restore(cls, saved: Saved, plan: Plan) -> tuple[Buffers, Sizes, Tensor | None, tuple[Embeddings, Embeddings]]:
        """What was saved, which may have become flat, in the shapes it had."""
        columns, slots, tiles, weights, counts, g, a, bias_a, largest = saved
        assert columns is not None
        assert slots is not None
        assert tiles is not None
        assert weights is not None
        assert counts is not None
        assert a is not None
        slots, tiles = slots.view(SLOT_FIELDS, -1), tiles.view(TILE_FIELDS, -1)
        sides = counts.shape[0] - COUNTS
        operands = plan.precision.operand_dtype(plan.inputs.a.dtype), plan.operand_parts * slots.shape[1] * plan.d
        if slots.shape[1] != tiles.shape[1] * plan.class_rows or (a.dtype, a.numel()) != operands:
            raise RuntimeError(
                "torch.get_float32_matmul_precision() changed between the forward and the backward pass of fastassoc's "
                "loss under torch.compile"
            )
        pairs = tiles.shape[1]
        if g is not None:
            g = g.view(plan.precision.parts, -1, plan.class_rows, plan.class_rows)
            pairs = g.shape[1]
        buffers = cls(columns.view(COLUMN_FIELDS, -1), slots, tiles, weights.view(-1, WEIGHT_FIELDS), counts)
        a = a.view(plan.operand_parts, -1, plan.d)
        largest = None if largest is None else largest.view(2, -1)
        by_slot = Embeddings(a, bias_a, None if largest is None else largest[0], *a.stride())
        sizes = Sizes.of(plan, tiles.shape[1], pairs, sides)
        return buffers, sizes, g, (by_slot, plan.embeddings_b(largest))
