"""Tile sizes: data by architecture, precision and embedding size."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """How one pass cuts its work."""

    rows: int
    """Rows of ``a`` in a tile; for passes over class tiles, the rows of such a tile."""
    columns: int
    """Rows of ``b`` in a tile."""
    depth: int
    """Columns of both embeddings in a tile; a larger embedding is looped over."""
    warps: int
    stages: int


@dataclass(frozen=True)
class Config:
    """The tiles of every pass. The rows of class tiles are those of the forward pass in the backward pass too."""

    normalisers: Tile
    visits: Tile
    round_trips: Tile
    kappa: Tile
    column_gradients: Tile
    row_gradients: Tile

    def __post_init__(self) -> None:
        rows = {tile.rows for tile in (self.round_trips, self.kappa, self.column_gradients, self.row_gradients)}
        assert len(rows) == 1, f"passes over class tiles differ in their rows: {sorted(rows)}"

    @property
    def class_rows(self) -> int:
        """Rows of a class tile."""
        return self.round_trips.rows


def _same(rows: int, columns: int, depth: int, warps: int, stages: int) -> Config:
    tile = Tile(rows, columns, depth, warps, stages)
    return Config(tile, tile, tile, tile, tile, tile)


INTERPRETER = _same(64, 64, 256, 1, 1)


def choose_config(architecture: str, precision: str, depth: int) -> Config:
    """The row for an embedding of ``depth`` columns."""
    return INTERPRETER
