"""Sizes, tiles and ranges of a call, and the arguments that most kernels share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastassoc.backends.protocol import Inputs
from fastassoc.backends.triton.launch import launch, machine
from fastassoc.backends.triton.precision import choose_precision
from fastassoc.kernels.triton.buffers import COLUMN_FIELDS, SIZE, Embeddings, Steps
from fastassoc.kernels.triton.configs import MOST_COLUMNS, Config, Tile, choose_config
from fastassoc.kernels.triton.row_operands import row_operands

WORKSPACE_BYTES = 33 * 2**20
"""Of what is kept of a range of columns: what the second-level cache of a large GPU holds beside the embeddings. For
4,096 rows of ten classes in bf16 that is 13 tiles of columns, whose gradients of scores are nearly four programs for
each processor of an H100; with 32 MiB it would be 12, and three and a half."""
WORKSPACE_AND_COLUMNS, LEAST_WORKSPACE = 35 * 2**20, 19 * 2**20
"""What the workspace and the numbers of all columns may take together, for a step of a million columns to stay within
64 MiB; but the workspace has at least ``LEAST_WORKSPACE``."""
MAX_ROWS_WITHOUT_SYNC = 2048
"""Up to this many rows, buffers for the worst classes are small: at most 18 MiB of round trips in float32, 33 in
float64, and 27 of their gradient (float32 at "highest")."""
_WAVES = 4
"""Work whose shares cost no memory to speak of is shared out for up to so many times the programs that run at one
time."""
_FEW_WAVES = 2
"""The same where the device alone knows how many owners share it out: fewer than such programs."""
_LEAST_DEPTH = 16
"""Columns of an embedding that a product needs."""


class Range(NamedTuple):
    """Columns that are taken at one time."""

    steps: Steps
    columns: int
    """Those that have steps: the columns of the range, rounded up to `MOST_COLUMNS`."""


class Plan:
    """What a call's sizes and its machine decide; the backward pass makes the same plan again."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self.n, self.m, self.d = inputs.a.shape[0], inputs.b.shape[0], inputs.a.shape[1]
        device = machine(inputs.a.device)
        self.precision = choose_precision(inputs.a.dtype, device, inputs.labels.float32_products)
        if inputs.differences:
            self.precision = self.precision._replace(scores="differences", scaled=False)
        self.config: Config = choose_config(device.architecture, self.precision.tiles(inputs.a.dtype), self.d)
        self.class_rows = self.config.class_rows
        self.processors = device.processors
        # More than half of the slots have a row (`fastassoc.kernels.triton.layout`).
        self.max_tiles = ceil_div(2 * self.n, self.class_rows)
        # As many as if all rows were one class, and one for each tile.
        whole_tiles = ceil_div(self.n, self.class_rows)
        self.max_pairs = self.max_tiles + (whole_tiles**2 if whole_tiles > 1 else 0)
        # What crosses ranks is to be as small as the classes allow.
        self.reads_counts = self.n > MAX_ROWS_WITHOUT_SYNC or inputs.ranks is not None
        self.step_dtype = self.precision.step_dtype(inputs.dtype)
        self.tiny = torch.finfo(inputs.dtype).tiny

    def programs(self, tile: Tile) -> int:
        """Programs of a pass that run at one time."""
        return tile.resident * self.processors

    def shares(self, tile: Tile, owners: int, columns: int) -> int:
        """Shares of ``columns`` for each of so many owners, with which the last program ends earliest."""
        return _quickest_shares(max(1, owners), ceil_div(columns, tile.columns), self.programs(tile))

    def kappa_items(self, tiles: int, columns: int) -> int:
        """Programs that ``kappa`` of so many class tiles, or up to so many, is shared out for."""
        tile = self.config.kappa
        if not self.reads_counts:
            return max(_FEW_WAVES * self.programs(tile), tiles)
        return tiles * self.shares(tile, tiles, columns)

    def items(self, trips: int, column_tiles: int, exact: bool) -> int:
        """Programs that so many pairs, or up to so many, need as `fastassoc.kernels.triton.round_trips` has it."""
        programs = self.programs(self.config.round_trips)
        if exact:
            return trips * min(max(1, programs // trips), column_tiles)
        return min(max(trips, programs), trips * column_tiles)

    def largest(self, classes: Tensor) -> Tensor | None:
        """The largest absolute values of ``a``, of rows that take part, and of ``b``, or None.

        [2, 4], the first column: both begin at a multiple of 16 bytes, and what is saved is contiguous.
        """
        if not self.precision.scaled:
            return None
        a, b, ignore_index = self.inputs.a, self.inputs.b, self.inputs.labels.ignore_index
        if ignore_index is not None:
            a = torch.where(classes[SIZE.value, :, None] > 0, a, 0.0)
        largest = a.new_empty(2, 4)
        for x, out in zip((a, b), largest[:, 0].unbind(), strict=True):
            torch.linalg.vector_norm(x, float("inf"), out=out)
        return largest

    def embeddings_a(self, largest: Tensor | None) -> Embeddings:
        """``a`` as the products of scores take it, rounded or split once."""
        a, bias = self.inputs.a, self.inputs.bias_a
        if not self.precision.prepares_rows:
            return Embeddings(a, bias, None, 0, *a.stride())
        return self._operands(None, largest, bias)

    def embeddings_by_slot(self, slots: Tensor, largest: Tensor | None) -> Embeddings:
        """``a`` as passes over class tiles take it, and its biases, in the order of the slots; 0 in empty ones."""
        bias = self.inputs.bias_a
        return self._operands(slots, largest, None if bias is None else bias.new_empty(slots.shape[1]))

    def _operands(self, slots: Tensor | None, largest: Tensor | None, biases: Tensor | None) -> Embeddings:
        """``a`` as products of scores take it, with ``biases``, which are filled in the order of the slots."""
        a, count = self.inputs.a, self.n if slots is None else slots.shape[1]
        dtype = self.precision.operand_dtype(a.dtype)
        parts = a.new_empty(self.operand_parts, count, self.d, dtype=dtype)
        of_a = None if largest is None else largest[0]
        launch(
            row_operands,
            (ceil_div(count, 32), ceil_div(self.d, 128)),
            x_ptr=a,
            bias_ptr=None if slots is None else self.inputs.bias_a,
            slots_ptr=slots,
            largest_ptr=of_a,
            parts_ptr=parts,
            biases_ptr=None if slots is None else biases,
            COUNT=count,
            D=self.d,
            stride_n=a.stride(0),
            stride_d=a.stride(1),
            BLOCK_N=32,
            BLOCK_D=128,
            PRECISION=self.precision.scores,
        )
        return Embeddings(parts, biases, of_a, *parts.stride())

    @property
    def operand_parts(self) -> int:
        """Parts of embeddings, where products of scores take them from memory of their own."""
        return 3 if self.precision.scores == "bf16x3" else 1

    def embeddings_b(self, largest: Tensor | None) -> Embeddings:
        """``b`` as the caller gave it."""
        b = self.inputs.b
        return Embeddings(b, self.inputs.bias_b, None if largest is None else largest[1], 0, *b.stride())

    def depth(self, tile: Tile) -> int:
        """Columns of the embeddings in a tile of a pass."""
        return tile_depth(tile, self.d)

    def whole_rows(self, tile: Tile) -> bool:
        """Whether products of scores take whole rows of the embeddings."""
        return self.depth(tile) >= self.d and not self.inputs.differences

    def scores(self, tile: Tile, a: Embeddings, b: Embeddings, stored: bool = False) -> dict[str, Any]:
        """What every pass over scores takes, or one that could compute them but has what it needs ``stored``."""
        if stored:
            # What it does not read is to make no difference to how it is compiled.
            a, b = a._replace(bias_ptr=None), b._replace(bias_ptr=None, largest_ptr=None)
        return {
            "a": a,
            "b": b,
            "D": self.d,
            # Not 0, by which kernels would multiply the infinities that their running maxima begin with.
            "scale": self.tiny if 0.0 <= self.inputs.scale < self.tiny else self.inputs.scale,
            "BLOCK_N": tile.rows,
            "BLOCK_M": tile.columns,
            "BLOCK_D": self.depth(tile),
            "PRECISION": self.precision.others if stored else self.precision.scores,
        }

    def step_bytes(self, slots: int) -> int:
        """Bytes of the steps of a column on one side."""
        return self.precision.parts * slots * self.step_dtype.itemsize

    @property
    def whole_chunk(self) -> int:
        """A range that has all columns."""
        return ceil_div(self.m, MOST_COLUMNS) * MOST_COLUMNS

    def chunk(self, column_bytes: int) -> int:
        """Columns of a range that take that many bytes each."""
        kept = COLUMN_FIELDS * self.m * self.inputs.dtype.itemsize
        workspace = min(WORKSPACE_BYTES, max(LEAST_WORKSPACE, WORKSPACE_AND_COLUMNS - kept))
        most = max(1, workspace // (column_bytes * MOST_COLUMNS)) * MOST_COLUMNS
        return min(most, self.whole_chunk)

    def ranges(self, slots: int, chunk: int, sides: int) -> Iterator[Range]:
        """All ranges of columns, one after the other in a workspace for so many sides of the steps."""
        workspace = None
        if sides:
            workspace = self.inputs.a.new_empty(sides, self.precision.parts, chunk, slots, dtype=self.step_dtype)
        for start in range(0, self.m, chunk):
            columns = min(chunk, ceil_div(self.m - start, MOST_COLUMNS) * MOST_COLUMNS)
            yield Range(Steps(workspace, slots, chunk, start), columns)


@lru_cache(64)
def _quickest_shares(owners: int, tiles: int, programs: int) -> int:
    """Shares of so many tiles for each owner, where so many programs run at one time; none is empty.

    What a program does once takes about as long as a tile.
    """
    most = max(1, min(_WAVES * programs // owners, tiles))
    # Half as many at least: with some dtypes fewer programs run at one time, with some more.
    counts = range(max(1, most // 2), most + 1)
    quickest = min(counts, key=lambda n: ceil_div(n * owners, programs) * (ceil_div(tiles, n) + 1))
    return ceil_div(tiles, ceil_div(tiles, quickest))


def tile_depth(tile: Tile, depth: int) -> int:
    """Columns of embeddings with ``depth`` of them in a tile."""
    return min(tile.depth, max(_LEAST_DEPTH, 1 << (depth - 1).bit_length()))


def ceil_div(x: int, y: int) -> int:
    """``x / y``, rounded up."""
    return -(-x // y)
