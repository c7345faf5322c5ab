"""Tiles of the scores for the CPU passes: their split, their memory and the matrix product that fills them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fastassoc.backends import Gradients, Problem
from fastassoc.backends.cpu_memory import borrow

_TILE_BYTES = 2 * 2**20
_MIN_COLUMNS = 128
_WORKSPACE_BYTES = 32 * 2**20
"""Bound on the scratch tiles and the kept tiles together."""
_SCRATCH_TILES = 3
_MIN_COLUMN_MAJOR = 16


class Tile(NamedTuple):
    """Columns ``start`` to ``stop``; ``kept`` is [N, stop - start] where the tile outlives its sweep, else None."""

    start: int
    stop: int
    kept: Tensor | None


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
        self.kept_columns = min(self.keep_limit(problem) * self.width, columns)

    def keep_limit(self, problem: Problem) -> int:
        """How many tiles the workspace holds beside the scratch."""
        tile_bytes = self.rows * self.width * problem.dtype.itemsize
        return max(0, _WORKSPACE_BYTES // tile_bytes - _SCRATCH_TILES)

    def tiles(self, kept: Tensor | None) -> Iterator[Tile]:
        """Every tile in order; ``kept`` (flat, ``rows * kept_columns`` entries) is dealt out to the first of them."""
        for start in range(0, self.columns, self.width):
            stop = min(start + self.width, self.columns)
            if kept is not None and stop <= self.kept_columns:
                memory = kept[self.rows * start : self.rows * stop].view(self.rows, stop - start)
                yield Tile(start, stop, memory)
            else:
                yield Tile(start, stop, None)

    def kept_memory(self, problem: Problem) -> Tensor | None:
        """Memory for the kept tiles, or None where not one fits."""
        if not self.kept_columns:
            return None
        return borrow((self.rows * self.kept_columns,), problem.dtype)


class Scratch:
    """A tile's worth of memory, used again by every tile of a sweep."""

    def __init__(self, problem: Problem, tiling: Tiling) -> None:
        self.rows = tiling.rows
        self.memory = borrow((tiling.rows * tiling.width,), problem.dtype)

    def shaped(self, tile: Tile, column_major: bool = False) -> Tensor:
        """A dense [N, columns of the tile] matrix, its rows or its columns contiguous."""
        columns = tile.stop - tile.start
        memory = self.memory[: self.rows * columns]
        # Sweeps in the two orders must agree on every score: narrow products round differently in each.
        if column_major and min(self.rows, columns) >= _MIN_COLUMN_MAJOR:
            return memory.view(columns, self.rows).t()
        return memory.view(self.rows, columns)


class Scores:
    """The scores ``s_ij`` of a tile and their exponentials.

    Every sweep computes a score by the same product and subtracts shifts from the rounded result. Folding the shifts
    into the product would save a pass, but round differently in each sweep: at scores of 1,000 the rows of ``p_ab``
    would then sum to one only within 1e-4.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        a = problem.a.to(problem.dtype)
        self.a = a if problem.scale == 1.0 else a * problem.scale

    def b_tile(self, tile: Tile) -> Tensor:
        """[columns of the tile, D] of ``b`` in the accumulation dtype."""
        return self.problem.b[tile.start : tile.stop].to(self.problem.dtype)

    def raw(self, tile: Tile, out: Tensor) -> Tensor:
        """``s`` of the tile."""
        torch.mm(self.a, self.b_tile(tile).t(), out=out)
        if self.problem.bias_a is not None:
            out += self.problem.bias_a.unsqueeze(1)
        if self.problem.bias_b is not None:
            out += self.problem.bias_b[tile.start : tile.stop]
        return out

    def exponentials(self, tile: Tile, row_shift: Tensor | None, column_shift: Tensor | None, out: Tensor) -> Tensor:
        """``exp(s_ij - row_shift_i - column_shift_j)`` of the tile, from the kept scores where there are any."""
        s = self.raw(tile, out) if tile.kept is None else tile.kept
        if row_shift is not None:
            s = torch.sub(s, row_shift.unsqueeze(1), out=out)
        if column_shift is not None:
            s = torch.sub(s, column_shift[tile.start : tile.stop], out=out)
        return torch.exp(s, out=out)


class GradientSums:
    """Collects ``ds`` tile by tile into the gradients that are asked for: of ``a``, ``b``, ``bias_a``, ``bias_b``."""

    def __init__(self, problem: Problem, scores: Scores, needs: tuple[bool, bool, bool, bool]) -> None:
        self.problem = problem
        self.scores = scores
        rows, columns = problem.a.shape[0], problem.b.shape[0]
        a = scores.a
        self.da = torch.zeros_like(a) if needs[0] else None
        self.db = torch.empty_like(problem.b, memory_format=torch.contiguous_format) if needs[1] else None
        self.dbias_a = a.new_zeros(rows) if needs[2] else None
        self.dbias_b = a.new_empty(columns) if needs[3] else None

    def add(self, tile: Tile, ds: Tensor) -> None:
        """Adds a tile of ``ds``, row-major [N, columns of the tile]."""
        if self.da is not None:
            self.da.addmm_(ds, self.scores.b_tile(tile))
        if self.db is not None:
            self._add_db(ds, self.db[tile.start : tile.stop])
        if self.dbias_a is not None:
            self.dbias_a += ds.sum(1)
        if self.dbias_b is not None:
            torch.sum(ds, 0, out=self.dbias_b[tile.start : tile.stop])

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

    def result(self) -> Gradients:
        """The gradients, ``da`` with the scale that ``ds b`` lacks."""
        if self.da is not None and self.problem.scale != 1.0:
            self.da *= self.problem.scale
        return Gradients(self.da, self.db, self.dbias_a, self.dbias_b)
