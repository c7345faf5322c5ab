"""Tile sizes: data by architecture (grouped by shared memory), precision of the products, and embedding size.

Most rows for sm_90 and sm_80 are those of a few tiles tried for which a model of the machine code (issue slots,
tensor cores, exponentials, shared memory, the second-level cache) says least time at 4096 x 65536 and D = 128, with 100
classes or, for passes over stored steps, 10. "fp32-bf16" follows "bf16" with smaller tiles; for other architectures
tiles were taken of which the compiler reports few spilled registers. Shared memory is within the limit for every kernel
that ships: the figures at D = 64, 128 and 256 are in `benchmarks/results/compile_report.md`. None has been timed yet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Tile:
    """How one pass cuts its work."""

    rows: int
    """Rows of ``a`` in a tile; for passes over class tiles, the slots of such a tile."""
    columns: int
    """Rows of ``b`` in a tile."""
    depth: int
    """Columns of the embeddings in a tile; a larger embedding is looped over."""
    warps: int
    stages: int
    resident: int = 1
    """Programs that a multiprocessor runs at one time; work is shared out for them."""


MOST_COLUMNS = 128
"""Tiles of columns of the passes over class tiles divide it."""


@dataclass(frozen=True)
class Config:
    """The tiles of every pass."""

    row_normalisers: Tile
    column_normalisers: Tile
    steps: Tile
    round_trips: Tile
    kappa: Tile
    score_gradients: Tile
    row_gradients: Tile
    column_gradients: Tile
    stored_column_gradients: Tile | None = None
    """In the place of the one before where steps are stored."""
    compute_steps: bool = True
    """Whether passes compute steps where they can (`fastassoc.kernels.triton.steps`), or they are always stored."""

    def __post_init__(self) -> None:
        tiles = (
            self.steps, self.round_trips, self.kappa, self.score_gradients, self.row_gradients, self.column_gradients
        )  # fmt: skip
        if self.stored_column_gradients is not None:
            tiles += (self.stored_column_gradients,)
        rows = {tile.rows for tile in tiles}
        assert len(rows) == 1, f"passes over class tiles differ in their rows: {sorted(rows)}"
        assert all(MOST_COLUMNS % tile.columns == 0 for tile in tiles), "tiles of columns do not divide a range"

    @property
    def class_rows(self) -> int:
        """Slots of a class tile."""
        return self.steps.rows

    def tile(self, name: str, way: str) -> Tile:
        """The tile of a pass that takes steps in a ``way`` (`fastassoc.kernels.triton.steps`)."""
        tile: Tile = getattr(self, name)
        if way == "stored" and name == "column_gradients":
            tile = self.stored_column_gradients or tile
        if way == "recomputed":
            # What it holds at one time leaves no memory for what would be copied ahead.
            tile = replace(tile, stages=1)
            if name == "column_gradients" and tile.columns > 64:
                # Of 128 columns Triton 3.7 makes an empty kernel for sm_100.
                tile = replace(tile, columns=64, warps=4)
        return tile


PASSES = tuple(name for name, kind in Config.__annotations__.items() if kind == "Tile")
"""Names of the passes that have tiles, which are those of their kernels."""


def _config(normalisers: Tile, others: Tile, compute_steps: bool = True) -> Config:
    return Config(normalisers, normalisers, *[others] * 6, compute_steps=compute_steps)


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

_HOPPER_TF32 = Config(
    row_normalisers=Tile(128, 64, 128, 8, 1, 4),
    column_normalisers=Tile(64, 64, 128, 4, 1, 4),
    steps=Tile(128, 64, 128, 4, 1, 2),
    round_trips=Tile(128, 64, 128, 4, 1, 2),
    kappa=Tile(128, 64, 128, 4, 1, 2),
    score_gradients=Tile(128, 128, 128, 8, 1, 1),
    row_gradients=Tile(128, 64, 128, 8, 1, 1),
    column_gradients=Tile(128, 128, 128, 8, 1, 1),
    stored_column_gradients=Tile(128, 64, 128, 4, 2, 1),
)
_HOPPER_X3 = Config(
    row_normalisers=Tile(128, 64, 128, 8, 3, 1),
    column_normalisers=Tile(128, 128, 128, 8, 1, 1),
    steps=Tile(128, 64, 128, 4, 1, 2),
    round_trips=Tile(128, 64, 64, 4, 1, 2),
    kappa=Tile(128, 64, 64, 4, 1, 1),
    score_gradients=Tile(128, 128, 64, 8, 1, 1),
    row_gradients=Tile(128, 64, 64, 4, 1, 2),
    column_gradients=Tile(128, 64, 64, 4, 2, 1),
    compute_steps=False,
)
"""Whole rows in three parts leave no room for what would be computed from them."""


def _in_halves(config: Config) -> Config:
    """With two tiles of half the depth in the place of one for scores, of embeddings larger than a tile."""
    rows, columns, steps = config.row_normalisers, config.column_normalisers, config.steps
    return replace(
        config,
        row_normalisers=replace(rows, depth=rows.depth // 2),
        column_normalisers=replace(columns, depth=columns.depth // 2),
        steps=replace(steps, depth=steps.depth // 2),
    )


# Rows of a group and a precision by the largest embedding they are for; the last serves any.
_TABLE: dict[tuple[str, str], tuple[tuple[int, Config], ...]] = {
    (_HOPPER, "bf16"): (
        (
            0,
            Config(
                row_normalisers=Tile(128, 128, 128, 8, 1, 2),
                column_normalisers=Tile(64, 64, 128, 4, 3, 4),
                steps=Tile(128, 128, 128, 8, 1, 2),
                round_trips=Tile(128, 64, 128, 4, 1, 2),
                kappa=Tile(128, 64, 128, 4, 3, 2),
                score_gradients=Tile(128, 128, 128, 8, 1, 1),
                row_gradients=Tile(128, 128, 128, 8, 3, 1),
                column_gradients=Tile(128, 128, 128, 8, 3, 1),
            ),
        ),
    ),
    (_HOPPER, "fp32-bf16"): (
        (
            0,
            Config(
                row_normalisers=Tile(128, 128, 128, 8, 1, 2),
                column_normalisers=Tile(64, 128, 128, 8, 1, 2),
                steps=Tile(128, 64, 128, 4, 1, 2),
                round_trips=Tile(128, 64, 128, 4, 1, 2),
                kappa=Tile(128, 64, 128, 4, 1, 2),
                score_gradients=Tile(128, 64, 128, 4, 1, 2),
                row_gradients=Tile(128, 64, 128, 8, 2, 1),
                column_gradients=Tile(128, 128, 128, 8, 2, 1),
            ),
        ),
    ),
    (_HOPPER, "tf32"): ((128, _HOPPER_TF32), (0, _in_halves(_HOPPER_TF32))),
    (_HOPPER, "bf16x3"): ((128, _HOPPER_X3), (0, _in_halves(_HOPPER_X3))),
    (_AMPERE, "bf16"): (
        (
            0,
            Config(
                row_normalisers=Tile(64, 64, 128, 4, 2, 4),
                column_normalisers=Tile(64, 64, 128, 4, 3, 3),
                steps=Tile(128, 128, 128, 8, 2, 2),
                round_trips=Tile(128, 64, 128, 4, 2, 2),
                kappa=Tile(128, 64, 128, 4, 1, 2),
                score_gradients=Tile(128, 64, 128, 4, 1, 2),
                row_gradients=Tile(128, 32, 128, 4, 1, 2),
                column_gradients=Tile(128, 128, 128, 8, 2, 1),
            ),
        ),
    ),
    (_AMPERE, "fp32-bf16"): ((0, _config(Tile(64, 64, 64, 4, 2, 2), Tile(64, 64, 64, 4, 1, 2))),),
    # Before sm_90, operands of a product are in registers, and spill where steps are computed.
    (_AMPERE, "tf32"): (
        (
            0,
            Config(
                row_normalisers=Tile(64, 128, 64, 4, 1, 2),
                column_normalisers=Tile(64, 64, 128, 4, 2, 2),
                steps=Tile(128, 64, 64, 4, 2, 2),
                round_trips=Tile(128, 32, 64, 4, 2, 2),
                kappa=Tile(128, 64, 64, 4, 1, 2),
                score_gradients=Tile(128, 64, 64, 8, 1, 1),
                row_gradients=Tile(128, 32, 64, 4, 2, 2),
                column_gradients=Tile(128, 64, 64, 4, 1, 2),
                compute_steps=False,
            ),
        ),
    ),
    (_AMPERE, "bf16x3"): ((0, _config(Tile(64, 64, 64, 4, 2, 2), Tile(64, 64, 64, 4, 1, 2), False)),),
    (_USUAL, "bf16"): ((0, _config(Tile(64, 64, 128, 4, 2, 1), Tile(64, 64, 128, 4, 1, 1))),),
    (_USUAL, "fp32-bf16"): ((0, _config(Tile(64, 64, 64, 4, 2, 1), Tile(64, 64, 64, 4, 1, 1))),),
    (_USUAL, "tf32"): ((0, _config(Tile(64, 64, 64, 4, 1, 1), Tile(64, 64, 64, 4, 1, 1), False)),),
    (_USUAL, "bf16x3"): ((0, _config(Tile(64, 64, 32, 4, 1, 1), Tile(64, 64, 32, 4, 1, 1), False)),),
    # Products in double precision hold their operands in registers.
    (_USUAL, "fp64"): ((0, _config(Tile(32, 32, 32, 4, 2), Tile(32, 16, 32, 4, 1))),),
    (_HOPPER, "fp64"): ((0, _config(Tile(32, 32, 32, 4, 2), Tile(16, 32, 16, 4, 1))),),
    (_BLACKWELL, "fp64"): ((0, _config(Tile(32, 32, 32, 4, 2), Tile(16, 32, 16, 4, 1))),),
    # AMD's matrix cores take operands from registers, of which wider tiles spill; sm_75 has no more memory.
    **{
        (_SMALL, precision): (
            (0, _config(Tile(64, 32, 64, 4, 1), Tile(32, 32, 64, 4, 1), precision not in ("tf32", "bf16x3"))),
        )
        for precision in ("bf16", "fp32-bf16", "tf32", "bf16x3", "ieee")
    },
    (_SMALL, "fp64"): ((0, _config(*[Tile(32, 32, 32, 4, 1)] * 2)),),
}


_DENSE = {
    (_USUAL, "fp64"): Tile(32, 32, 32, 4, 1),
    (_SMALL, "fp64"): Tile(32, 32, 32, 4, 1),
    **{(_SMALL, precision): Tile(32, 32, 64, 4, 1) for precision in ("bf16", "fp32-bf16", "tf32", "bf16x3", "ieee")},
    **{(_USUAL, precision): Tile(64, 64, 64, 4, 1) for precision in ("bf16", "fp32-bf16", "tf32", "bf16x3")},
}
"""Tiles of small batches (`fastassoc.kernels.triton.dense`), as many rows as columns, the same for all their passes."""


_ONE_TILE: dict[tuple[str, str], Tile | None] = {
    # Triton 3.7 fails to compile the forward pass.
    (_BLACKWELL, "bf16"): None,
    (_BLACKWELL, "fp32-bf16"): None,
    (_USUAL, "bf16"): Tile(128, 128, 64, 8, 1),
    (_USUAL, "fp32-bf16"): Tile(128, 128, 64, 8, 1),
    (_HOPPER, "tf32"): Tile(128, 128, 64, 8, 1),
    (_HOPPER, "bf16x3"): Tile(128, 128, 32, 8, 1),
}
"""Tiles of batches that fit one. Before sm_90, where operands are in registers, those of three parts spill so much that
compiling alone takes minutes; in tf32 they spill 3,760 bytes on sm_80, and take more shared memory than sm_89 has."""


def choose_one_tile(architecture: str, precision: str) -> Tile | None:
    """The tile of a batch that fits it, or None for such products; arguments as of `choose_config`."""
    if architecture == "interpreter":
        return Tile(rows=128, columns=128, depth=256, warps=1, stages=1)
    return next(
        (_ONE_TILE[group, precision] for group in _groups(architecture) if (group, precision) in _ONE_TILE), None
    )


def choose_dense_tile(architecture: str, precision: str) -> Tile:
    """The tile of small batches; arguments as of `choose_config`."""
    if architecture == "interpreter":
        return _INTERPRETER
    groups = _groups(architecture)
    return next(_DENSE[group, precision] for group in groups if (group, precision) in _DENSE)


def _groups(architecture: str) -> tuple[str, ...]:
    return (_SMALL,) if architecture.startswith("gfx") else _GROUPS.get(architecture, (_USUAL,))


def choose_config(architecture: str, precision: str, depth: int) -> Config:
    """The row for embeddings of ``depth`` columns.

    ``precision`` of the products: "bf16", "fp32-bf16" (rounded to it from float32), "tf32", "bf16x3", "ieee" or
    "fp64".
    """
    if architecture == "interpreter":
        return Config(*[_INTERPRETER] * 8)
    groups = _groups(architecture)
    rows = next(_TABLE[group, precision] for group in groups if (group, precision) in _TABLE)
    return next(config for largest, config in rows if depth <= largest or largest == 0)
