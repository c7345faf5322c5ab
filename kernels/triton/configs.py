"""Tile sizes: data by architecture (grouped by shared memory), precision of the products, and embedding size.

A row was taken where the compiler reports few spilled registers (at most 128 bytes a thread, and more than 32 for tf32
alone, whose operands go through registers to be rounded) and shared memory in the limit for every kernel, both with
classes known to fit one tile and not, at D = 64, 128 and 256: the figures are in
`benchmarks/results/compile_report.md`. None has been timed yet: among those that fit, the widest tile of columns was
preferred, then the fewer warps.
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

_HOPPER, _AMPERE, _USUAL, _SMALL = "227 KiB", "163 KiB", "99 KiB", "64 KiB"
_BLACKWELL = "227 KiB and tensor memory"
_GROUPS = {
    "sm_70": (_SMALL,),
    "sm_72": (_SMALL,),
    "sm_75": (_SMALL,),
    "sm_80": (_AMPERE, _USUAL),
    "sm_87": (_AMPERE, _USUAL),
    "sm_90": (_HOPPER, _AMPERE, _USUAL),
    "sm_100": (_BLACKWELL, _AMPERE, _USUAL),
    "sm_103": (_BLACKWELL, _AMPERE, _USUAL),
}
"""Groups of rows that an architecture takes the first of; sm_86, sm_89, sm_120 and those not known take `_USUAL`."""

# Rows of a group and a precision by the largest embedding they are for; the last serves any.
_TABLE: dict[tuple[str, str], tuple[tuple[int, Config], ...]] = {
    (_BLACKWELL, "bf16"): (
        (64, _config(Tile(64, 64, 64, 8, 2), Tile(64, 32, 64, 8, 2), *[Tile(64, 32, 64, 4, 2)] * 2)),
        (0, _config(Tile(64, 64, 128, 8, 2), *[Tile(64, 32, 128, 8, 2)] * 3)),
    ),
    (_BLACKWELL, "tf32"): (
        # Gradients of rows, of the walker alone, spill 40 bytes at 32 columns.
        (
            0,
            _config(Tile(64, 64, 128, 8, 2), Tile(64, 32, 128, 8, 2), Tile(64, 32, 64, 8, 2), Tile(64, 16, 64, 8, 2)),
        ),
    ),
    (_BLACKWELL, "fp32-bf16"): (
        (0, _config(Tile(64, 64, 128, 8, 2), Tile(64, 32, 128, 8, 2), *[Tile(64, 32, 64, 8, 2)] * 2)),
    ),
    (_BLACKWELL, "ieee"): ((0, _config(Tile(64, 32, 32, 4, 2), *[Tile(16, 32, 32, 4, 1)] * 3)),),
    (_BLACKWELL, "fp64"): ((0, _config(Tile(32, 32, 32, 4, 2), *[Tile(16, 32, 16, 4, 1)] * 3)),),
    (_HOPPER, "bf16"): (
        (128, _config(Tile(128, 64, 128, 8, 3), Tile(64, 64, 128, 8, 2), *[Tile(64, 32, 128, 8, 2)] * 2)),
        (256, _config(Tile(64, 64, 256, 4, 2), Tile(64, 32, 256, 8, 2), *[Tile(64, 16, 256, 8, 2)] * 2)),
        (0, _config(Tile(128, 64, 128, 8, 2), Tile(64, 64, 128, 8, 2), *[Tile(64, 32, 128, 8, 2)] * 2)),
    ),
    (_HOPPER, "tf32"): (
        (64, _config(Tile(128, 64, 64, 8, 3), Tile(64, 64, 64, 8, 2), *[Tile(64, 32, 64, 8, 2)] * 2)),
        # Embeddings that are rounded go through registers: of float32, 128 columns of them spill up to 472 bytes.
        (0, _config(Tile(64, 64, 128, 4, 2), Tile(64, 32, 128, 8, 2), *[Tile(64, 32, 64, 8, 2)] * 2)),
    ),
    (_HOPPER, "fp32-bf16"): (
        (64, _config(Tile(128, 64, 64, 8, 3), Tile(64, 64, 64, 8, 2), *[Tile(64, 32, 64, 8, 2)] * 2)),
        (
            0,
            _config(Tile(64, 64, 128, 4, 2), Tile(64, 32, 128, 8, 2), Tile(64, 16, 128, 8, 2), Tile(64, 32, 64, 8, 2)),
        ),
    ),
    # Products in double precision hold their operands in registers, and sm_90 spills more of them than sm_80.
    (_HOPPER, "fp64"): ((0, _config(Tile(32, 32, 32, 4, 2), *[Tile(16, 32, 16, 4, 1)] * 3)),),
    # Before sm_90, operands of a product are in registers.
    (_AMPERE, "bf16"): (
        (128, _config(Tile(64, 64, 128, 4, 2), *[Tile(64, 32, 128, 8, 2)] * 2, Tile(64, 16, 128, 8, 2))),
        (0, _config(Tile(64, 64, 128, 4, 2), *[Tile(64, 32, 128, 8, 2)] * 2, Tile(64, 16, 128, 8, 1))),
    ),
    (_AMPERE, "tf32"): (
        # Gradients of rows beside 128 columns spill up to 1,072 bytes since they are rounded.
        (
            0,
            _config(Tile(64, 64, 128, 4, 2), Tile(64, 32, 128, 8, 2), Tile(64, 16, 128, 8, 2), Tile(64, 16, 64, 8, 2)),
        ),
    ),
    (_AMPERE, "fp32-bf16"): (
        (
            0,
            _config(Tile(64, 64, 128, 4, 2), Tile(64, 32, 128, 8, 2), Tile(64, 16, 128, 8, 2), Tile(64, 16, 64, 8, 2)),
        ),
    ),
    (_USUAL, "bf16"): ((0, _config(Tile(64, 64, 128, 4, 2), *[Tile(64, 32, 128, 8, 2)] * 2, Tile(64, 16, 128, 8, 2))),),
    (_USUAL, "tf32"): (
        (64, _config(Tile(64, 64, 64, 4, 2), Tile(64, 32, 64, 4, 2), *[Tile(64, 32, 64, 8, 2)] * 2)),
        (0, _config(Tile(64, 64, 64, 4, 2), Tile(64, 32, 64, 4, 2), *[Tile(64, 16, 64, 8, 2)] * 2)),
    ),
    (_USUAL, "fp32-bf16"): (
        (0, _config(Tile(64, 64, 64, 4, 2), Tile(64, 32, 64, 4, 2), *[Tile(64, 16, 64, 8, 2)] * 2)),
    ),
    # No tensor cores: one product at a time fills the registers.
    (_AMPERE, "ieee"): (
        (0, _config(Tile(64, 32, 32, 4, 2), Tile(32, 32, 32, 4, 2), Tile(32, 32, 64, 4, 2), Tile(32, 32, 64, 8, 2))),
    ),
    (_USUAL, "ieee"): ((0, _config(Tile(64, 32, 32, 4, 2), Tile(32, 32, 32, 4, 2), *[Tile(32, 32, 64, 4, 2)] * 2)),),
    (_AMPERE, "fp64"): ((0, _config(*[Tile(32, 32, 32, 4, 2)] * 2, *[Tile(32, 16, 32, 4, 2)] * 2)),),
    # Without double-precision tensor cores, round trips of 32 columns spill 368 bytes beside scores by differences.
    (_USUAL, "fp64"): ((0, _config(Tile(32, 32, 32, 4, 2), *[Tile(32, 16, 32, 4, 2)] * 3)),),
    # AMD's matrix cores take operands from registers, of which wider tiles spill; sm_75 has no more memory.
    **{
        (_SMALL, precision): ((0, _config(Tile(64, 32, 64, 4, 1), *[Tile(32, 32, 64, 4, 1)] * 3)),)
        for precision in ("bf16", "fp32-bf16", "tf32", "ieee")
    },
    (_SMALL, "fp64"): ((0, _config(*[Tile(32, 32, 32, 4, 1)] * 4)),),
}


def choose_config(architecture: str, precision: str, depth: int) -> Config:
    """The row for embeddings of ``depth`` columns.

    ``precision`` of the products: "bf16", "fp32-bf16" (rounded to it from float32), "tf32", "ieee" or "fp64".
    """
    if architecture == "interpreter":
        return Config(*[_INTERPRETER] * 6)
    groups = (_SMALL,) if architecture.startswith("gfx") else _GROUPS.get(architecture, (_USUAL,))
    rows = next(_TABLE[group, precision] for group in groups if (group, precision) in _TABLE)
    return next(config for largest, config in rows if depth <= largest or largest == 0)
