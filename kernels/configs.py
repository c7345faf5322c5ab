"""Tile sizes: data by shared memory, precision of the products, and embedding size.

A row was taken where the compiler reports no spilled registers (at most 32 bytes) and shared memory in the limit for
every kernel, both with classes known to fit one tile and not. None has been timed yet: among those that fit, the
widest tile of columns was preferred, then the fewer warps.
"""

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


def _config(scores: Tile, trips: Tile, column_gradients: Tile, row_gradients: Tile) -> Config:
    return Config(scores, scores, trips, trips, column_gradients, row_gradients)


_INTERPRETER = Tile(rows=64, columns=64, depth=256, warps=1, stages=1)

_SHARED_KIB = {"sm_80": 163, "sm_87": 163, "sm_90": 227, "sm_100": 227, "sm_103": 227}
_SMALLEST_SHARED_KIB = 99
"""sm_86, sm_89, sm_120 and everything unknown; sm_70 and sm_75 have 96 and 64."""

# Shared memory of at least so many KiB, precision: rows by the largest embedding they are for; the last serves any.
_TABLE: dict[tuple[int, str], tuple[tuple[int, Config], ...]] = {
    (227, "bf16"): (
        (128, _config(Tile(128, 64, 128, 8, 3), Tile(64, 64, 128, 8, 2), *[Tile(64, 32, 128, 8, 2)] * 2)),
        (256, _config(Tile(64, 64, 256, 4, 2), Tile(64, 32, 256, 8, 2), *[Tile(64, 16, 256, 8, 2)] * 2)),
        (0, _config(Tile(128, 64, 128, 8, 2), Tile(64, 64, 128, 8, 2), *[Tile(64, 32, 128, 8, 2)] * 2)),
    ),
    # Without the asynchronous tensor cores of sm_90, operands of a product are in registers.
    (99, "bf16"): (
        (
            0,
            _config(Tile(64, 64, 128, 4, 2), Tile(64, 32, 128, 4, 2), Tile(64, 32, 128, 8, 2), Tile(64, 16, 128, 8, 2)),
        ),
    ),
    (227, "tf32"): (
        (64, _config(Tile(128, 64, 64, 8, 3), Tile(64, 64, 64, 8, 2), *[Tile(64, 32, 64, 8, 2)] * 2)),
        (128, _config(Tile(64, 64, 128, 4, 2), Tile(64, 32, 128, 8, 2), *[Tile(64, 32, 128, 8, 2)] * 2)),
        (0, _config(Tile(64, 64, 128, 4, 2), Tile(64, 32, 128, 8, 2), *[Tile(64, 32, 128, 8, 2)] * 2)),
    ),
    (163, "tf32"): ((0, _config(Tile(64, 64, 128, 4, 2), Tile(64, 32, 128, 8, 2), *[Tile(64, 16, 128, 8, 2)] * 2)),),
    (99, "tf32"): (
        (64, _config(Tile(64, 64, 64, 4, 2), Tile(64, 32, 64, 4, 2), *[Tile(64, 32, 64, 8, 2)] * 2)),
        (0, _config(Tile(64, 64, 64, 4, 2), Tile(64, 32, 64, 4, 2), *[Tile(64, 16, 64, 8, 2)] * 2)),
    ),
    # No tensor cores: one product at a time fills the registers.
    (99, "ieee"): ((0, _config(Tile(64, 32, 32, 4, 2), Tile(32, 32, 32, 4, 2), *[Tile(32, 32, 64, 4, 2)] * 2)),),
    (99, "fp64"): ((0, _config(*[Tile(32, 32, 32, 4, 2)] * 2, *[Tile(32, 16, 32, 4, 2)] * 2)),),
}


def choose_config(architecture: str, precision: str, depth: int) -> Config:
    """The row for embeddings of ``depth`` columns; precision "bf16", "tf32", "ieee" or "fp64"."""
    if architecture == "interpreter":
        return Config(*[_INTERPRETER] * 6)
    shared = _SHARED_KIB.get(architecture, _SMALLEST_SHARED_KIB)
    rows = next(_TABLE[least, kind] for least, kind in _TABLE if kind == precision and least <= shared)
    return next(config for largest, config in rows if depth <= largest or largest == 0)
