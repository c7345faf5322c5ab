"""Tiles of the scores for the CPU passes: their split, their memory and the matrix product that fills them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fastassoc.backends.cpu.memory import borrow
from fastassoc.backends.cpu.operations.class_blocks import ClassBlocks
from fastassoc.backends.protocol import Gradients, Needs, Ranks

_TILE_BYTES = 4 * 2**20
_MIN_COLUMNS = 128
_WORKSPACE_BYTES = 32 * 2**20
"""Bound on the scratch tiles and the kept tiles together."""
_SCRATCH_TILES = 3
_KEPT_BYTES = 256 * 2**20
"""Up to this size the whole of ``t`` is kept for the backward pass, beyond only what the workspace holds."""


class Problem(NamedTuple):
    """What every sweep reads. Scores are ``s_ij = scale a_i . b_j + bias_a_i + bias_b_j``."""

    a: Tensor
    """[N, D], rows in the order of ``blocks``."""
    b: Tensor
    """[M, D]."""
    bias_a: Tensor | None
    """[N] in the accumulation dtype, rows in the order of ``blocks``."""
    bias_b: Tensor | None
    """[M] in the accumulation dtype."""
    scale: float
    eps: float
    blocks: ClassBlocks
    walker: bool
    """Whether the round trips are wanted."""
    visit: bool
    """Whether the visits are wanted."""
    dtype: torch.dtype
    """Accumulation dtype: float64 for float64, else float32."""
    columns: int
    """M, of all ranks."""
    differences: bool = False
    """See `Inputs`."""
    ranks: Ranks | None = None
    """See `Inputs`."""


class Tile(NamedTuple):
    """A range of columns; ``kept`` is their [N, columns] where the tile outlives its sweep, else None."""

    number: int
    columns: slice
    kept: Tensor | None

    @property
    def width(self) -> int:
        """The number of columns."""
        return int(self.columns.stop - self.columns.start)


class Tiling:
    """The split of the M columns into tiles. As many as the workspace holds are kept for the sweeps that follow."""

    def __init__(self, problem: Problem) -> None:
        rows, columns = problem.a.shape[0], problem.b.shape[0]
        bytes_per_column = rows * problem.dtype.itemsize
        width = max(_MIN_COLUMNS, _TILE_BYTES // bytes_per_column)
        count = -(-columns // width)
        if count > 1:
            # Even tiles, each a multiple of the longest vector.
            width = -(-columns // (count * 16)) * 16
        self.rows = rows
        self.columns = columns
        self.width = min(width, columns)

    def tiles(self, kept: Tensor | None) -> Iterator[Tile]:
        """Every tile in order; ``kept`` (flat, ``rows * kept_columns`` entries) is dealt out to the first of them."""
        for number, start in enumerate(range(0, self.columns, self.width)):
            columns = slice(start, min(start + self.width, self.columns))
            memory = None
            if kept is not None and self.rows * columns.stop <= kept.numel():
                memory = kept[self.rows * start : self.rows * columns.stop].view(self.rows, -1)
            yield Tile(number, columns, memory)

    def kept_memory(self, problem: Problem, needs_gradient: bool) -> Tensor | None:
        """Memory for the kept tiles, or None where not one fits."""
        columns = min(self.keep_limit(problem, needs_gradient) * self.width, self.columns)
        return borrow((self.rows * columns,), problem.dtype) if columns else None

    def keep_limit(self, problem: Problem, needs_gradient: bool) -> int:
        """How many tiles may be kept beside the scratch."""
        tile_bytes = self.rows * self.width * problem.dtype.itemsize
        if needs_gradient and self.rows * self.columns * problem.dtype.itemsize <= _KEPT_BYTES:
            return -(-self.columns // self.width)
        return max(0, _WORKSPACE_BYTES // tile_bytes - _SCRATCH_TILES)


class Scratch:
    """A tile's worth of memory, used again by every tile of a sweep."""

    def __init__(self, problem: Problem, tiling: Tiling) -> None:
        self.rows = tiling.rows
        self.width = tiling.width
        self.memory = borrow((tiling.rows * tiling.width,), problem.dtype)

    def shaped(self, tile: Tile) -> Tensor:
        """A contiguous [N, columns of the tile] matrix."""
        columns = tile.width
        memory = self.memory if columns == self.width else self.memory[: self.rows * columns]
        return memory.view(self.rows, columns)


class Scores:
    """The scores ``s_ij`` of a tile.

    Every sweep computes a score by the same product and subtracts shifts from the rounded result. Folding the shifts
    into the product would save a pass, but round differently in each sweep: at scores of 1,000 the rows of ``p_ab``
    would then sum to one only within 1e-4.
    """

    def __init__(self, problem: Problem, tiling: Tiling) -> None:
        self.problem = problem
        self.plain_a = problem.a.to(problem.dtype)
        self.a = self.plain_a if problem.scale == 1.0 else self.plain_a * problem.scale
        """Its product with ``b`` is the scores but for the biases."""
        self._b_tiles: tuple[Tensor, ...] = problem.b.split(tiling.width)

    def b_tile(self, tile: Tile) -> Tensor:
        """[columns of the tile, D] of ``b`` in the accumulation dtype."""
        return self._b_tiles[tile.number].to(self.problem.dtype)

    def raw(self, tile: Tile, out: Tensor) -> Tensor:
        """``s`` of the tile."""
        if self.problem.differences:
            distance = _distances(self.plain_a, self.b_tile(tile))
            return torch.mul(distance.square_(), -0.5 * self.problem.scale, out=out)
        torch.mm(self.a, self.b_tile(tile).t(), out=out)
        if self.problem.bias_a is not None:
            out += self.problem.bias_a.unsqueeze(1)
        if self.problem.bias_b is not None:
            out += self.problem.bias_b[tile.columns]
        return out


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """``|a_i - b_j|`` from differences."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


class GradientSums:
    """Collects ``ds`` tile by tile into the gradients that are asked for: of ``a``, ``b``, ``bias_a``, ``bias_b``.

    With differences those of ``a`` and ``b`` are whole, ``da_i = scale sum_j ds_ij (b_j - a_i)``, and the others None.
    """

    def __init__(self, problem: Problem, scores: Scores, needs: Needs) -> None:
        self.problem = problem
        self.scores = scores
        rows, columns = problem.a.shape[0], problem.b.shape[0]
        a = scores.a
        self.da = torch.zeros_like(a, memory_format=torch.contiguous_format) if needs[0] else None
        self.db = torch.empty_like(problem.b, memory_format=torch.contiguous_format) if needs[1] else None
        self.dbias_a = a.new_zeros(rows) if needs[2] and not problem.differences else None
        self.dbias_b = a.new_empty(columns) if needs[3] and not problem.differences else None

    def add(self, tile: Tile, ds: Tensor) -> None:
        """Adds a tile of ``ds``, row-major [N, columns of the tile]."""
        if self.problem.differences:
            self._add_differences(tile, ds)
            return
        if self.da is not None:
            self.da.addmm_(ds, self.scores.b_tile(tile))
        if self.db is not None:
            self._add_db(ds, self.db[tile.columns])
        if self.dbias_a is not None:
            self.dbias_a += ds.sum(1)
        if self.dbias_b is not None:
            torch.sum(ds, 0, out=self.dbias_b[tile.columns])

    def _add_db(self, ds: Tensor, db: Tensor) -> None:
        """``db = ds' a``, one batch for each thread: the library splits one such product badly."""
        rows, columns = ds.shape
        parts = torch.get_num_threads()
        if columns % parts:
            parts = 1
        left = ds.view(rows, parts, columns // parts).permute(1, 2, 0)
        right = self.scores.a.expand(parts, -1, -1)
        shape = (parts, columns // parts, right.shape[2])
        if db.dtype == ds.dtype:
            torch.bmm(left, right, out=db.view(shape))
        else:
            db.view(shape).copy_(torch.bmm(left, right))

    def _add_differences(self, tile: Tile, ds: Tensor) -> None:
        a, b = self.scores.plain_a.contiguous(), self.scores.b_tile(tile).contiguous()
        distance = _distances(a, b)
        # A score is ``-scale / 2`` times its square.
        gradient = ds * distance * -self.problem.scale
        if self.da is not None:
            self.da += torch.ops.aten._cdist_backward(gradient, a, b, 2.0, distance)
        if self.db is not None:
            gradient, distance = (x.t().contiguous() for x in (gradient, distance))
            self.db[tile.columns] = torch.ops.aten._cdist_backward(gradient, b, a, 2.0, distance)

    def result(self) -> Gradients:
        """The gradients, ``da`` with the scale that ``ds b`` lacks."""
        if self.da is not None and self.problem.scale != 1.0 and not self.problem.differences:
            self.da *= self.problem.scale
        return Gradients(self.da, self.db, self.dbias_a, self.dbias_b)
