"""A call by machine code: its tiles, its memory, and the passes that both directions share.

Rows are shifted only where the form does not hold without shifts: most batches need none.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fastassoc.backends.cpu.labels import Labels
from fastassoc.backends.cpu.native import buffers
from fastassoc.backends.cpu.native.machine import Machine, Program
from fastassoc.backends.protocol import Inputs
from fastassoc.kernels.cpu.backward import PACKED_ROWS
from fastassoc.kernels.cpu.products import DEPTH_STEP

_TILE_BYTES = 2**20
_MIN_COLUMNS = 128
_TILE_BLOCKS = 8
"""Blocks of columns that a tile is a multiple of."""
_WORKSPACE_BYTES = 32 * 2**20
"""Bound on the scratch tiles and the kept tiles together."""
_SCRATCH_TILES = 2
_KEPT_BYTES = 256 * 2**20
"""Up to this size the whole of ``t`` is kept for the backward pass, beyond only what the workspace holds."""
_STRIP_BYTES = 2**18
"""Of ``t`` that a thread takes at once: it stays in the second cache."""
_STRIP_BLOCKS = 2
"""Blocks of columns that it takes at least, so that what is read again for each strip is not all that it waits for."""
_SERIAL = 2**18
"""Up to so many products for the scores, ``N M D``, one thread is quicker than several."""
FLUSHED_COLUMNS = 2**13
"""Sums of products over more columns than these are less exact than sums of such sums."""
_PACKED = 2**16
"""Numbers that a thread packs at once, at most, unless a row of the largest class is longer: a quarter of its second
cache."""
RANGE = 2.0**60
"""Sums of exponentials lie between this and its inverse: what is made of them in the backward pass, and of upstream
gradients within `_UPSTREAM` of `fastassoc.backends.cpu`, is then far from the limits of float32."""


class Sizes(NamedTuple):
    """Of a batch, of its tiles, and of the memory that outlives a pass, where places are counted in float32 numbers."""

    rows: int
    """N."""
    columns: int
    """M."""
    depth: int
    parts: int
    """Shares of the work."""
    vectors: int
    """N up to a multiple of the vector."""
    row: int
    """Entries of ``t`` from one column to the next."""
    tile: int
    """Columns of a tile."""
    strip: int
    """Columns that a thread takes at once."""
    keep: int
    """Columns of ``t`` that may be kept."""
    flushed: int
    """Columns whose products are summed before that sum is added to the others."""
    r: int
    u: int
    f: int
    rho: int
    zero: int
    y: int
    g: int
    v: int
    visit: int
    a: int
    """The rows of ``a`` in order."""
    panels: int
    """The same in panels."""
    trips: int
    """S, at the end, as long as there are pairs."""


@functools.lru_cache(maxsize=8)
def _sizes(rows: int, columns: int, depth: int, threads: int, lanes: int, block: int, width: int) -> Sizes:
    parts = 1 if rows * columns * depth <= _SERIAL else threads
    vectors = -(-rows // lanes) * lanes
    # Columns a large power of two apart meet in the same places of a cache.
    row = vectors + lanes if vectors % 256 == 0 else vectors
    column_bytes = 4 * row
    tile = min(max(_MIN_COLUMNS, _TILE_BYTES // column_bytes), FLUSHED_COLUMNS)
    count = -(-columns // tile)
    # Even tiles of whole blocks for the parts, however many: other threads may run the backward pass.
    tile = columns if count == 1 else -(-columns // (count * _TILE_BLOCKS * block)) * _TILE_BLOCKS * block
    keep = columns
    if 4 * rows * columns > _KEPT_BYTES or column_bytes * columns > _KEPT_BYTES * 17 / 16:
        keep = max(0, min(columns, (_WORKSPACE_BYTES // (column_bytes * tile) - _SCRATCH_TILES) * tile))
    lengths = {
        "r": row, "u": row, "f": row, "rho": row, "zero": lanes, "y": columns, "g": columns, "v": columns,
        "visit": columns, "a": rows * depth, "panels": -(-row // width) * width * depth, "trips": 0,
    }  # fmt: skip
    strip = max(_STRIP_BLOCKS, _STRIP_BYTES // column_bytes // block) * block
    # Each at the begin of a vector.
    ends = itertools.accumulate((-(-length // lanes) * lanes for length in lengths.values()), initial=0)
    places = dict(zip(lengths, ends, strict=False))
    return Sizes(rows, columns, depth, parts, vectors, row, tile, strip, keep, FLUSHED_COLUMNS, **places)


class Walk:
    """A call: what all its passes over tiles have in common."""

    def __init__(self, own: Machine, inputs: Inputs, needs_gradient: bool, memory: Tensor | None = None) -> None:
        labels: Labels = inputs.labels if inputs.walker else inputs.labels.apart()
        b = inputs.b
        self.inputs = inputs
        self.b = b
        self.sizes = _sizes(
            labels.rows, b.shape[0], b.shape[1], torch.get_num_threads(), own.lanes, own.rows, own.width
        )
        self.layout = labels.layout(own, self.sizes.parts)
        self.program = Program(own, self.sizes.parts)
        # Behind what the sizes place: round trips, t as far as it is kept, and what only the forward passes use.
        sizes, longest = self.sizes, self.layout.longest
        # What a part packs at once: a row of the largest class at least, and what the gradients need.
        self.packed_row = max(DEPTH_STEP * PACKED_ROWS, longest, min(_PACKED, DEPTH_STEP * longest))
        self.kept = sizes.trips + -(-self.layout.pairs // own.lanes) * own.lanes
        one_tile = sizes.tile == sizes.columns
        self.kept_columns = sizes.keep if needs_gradient or one_tile else 0
        self.sums = self.kept + self.kept_columns * sizes.row
        self.packed = self.sums + 2 * sizes.parts * sizes.row
        self.memory = buffers.large(self.packed + sizes.parts * self.packed_row) if memory is None else memory
        self.base = self.memory.data_ptr()
        self._readable = b.dtype == torch.float32 and (b.stride(1) == 1 or b.shape[1] == 1)

    def at(self, place: int, offset: int = 0) -> int:
        """An address in the memory."""
        return self.base + 4 * (place + offset)

    def tiles(self) -> Iterator[tuple[int, int]]:
        """First column and number of columns."""
        columns, tile = self.sizes.columns, self.sizes.tile
        return ((start, min(tile, columns - start)) for start in range(0, columns, tile))

    def rows_of_b(self, start: int, count: int) -> tuple[Tensor, int]:
        """Rows as float32, and the address of the first: of rows that lie one after another, or of ``b`` itself."""
        if self._readable:
            return self.b, self.b.data_ptr() + 4 * start * self.b.stride(0)
        rows = self.b[start : start + count].to(torch.float32).contiguous()
        return rows, rows.data_ptr()

    def run_if_converted(self) -> None:
        """Converted rows of ``b`` live no longer than their tile."""
        if not self._readable:
            self.program.run()

    def steps(self, name: str, start: int, count: int, t: int, sums: int) -> None:
        """``t`` of a tile."""
        sizes, bias, at = self.sizes, self.inputs.bias_b, self.at
        b, b_at = self.rows_of_b(start, count)
        self.program.add(
            name, count, sizes.vectors, sizes.depth, b_at, b.stride(0), at(sizes.panels), t, sizes.row,
            at(sizes.r), at(sizes.u), at(sizes.zero) if bias is None else bias.data_ptr() + 4 * start,
            int(bias is not None), at(sizes.y, start), at(sizes.g, start), at(sizes.v, start), sums, sizes.strip,
        )  # fmt: skip
        self.run_if_converted()

    def known_steps(self, start: int, count: int, scratch: int) -> int:
        """The address of ``t`` of a tile, which is computed again if it was not kept."""
        if start + count <= self.kept_columns:
            return self.at(self.kept, start * self.sizes.row)
        self.steps("steps_again", start, count, scratch, 0)
        return scratch

    def shift(self, scratch: int) -> tuple[float, float] | None:
        """Shifts for rows from all scores, in place of none; the lowest and the highest of ``u``.

        With the highest scores of columns between ``low`` and ``high``, and that of a row ``x_i``:

            z = (low + high) / 2        shift_i = (x_i + 3/4 low + 1/4 high) / 2        f_i u_i ~ exp(-(high - low) / 4)

        so that sums over columns and over rows stay within limits. Nearer to ``low`` than ``z`` is, exponentials of a
        row are normal numbers also where they matter only to the sum over a column whose scores are all low. None
        where ``low`` and ``high`` are too far apart for any ``z``.
        """
        sizes, at, program = self.sizes, self.at, self.program
        rows, columns, row, parts = sizes.rows, sizes.columns, sizes.row, sizes.parts
        of_rows = self.memory[self.sums : self.sums + parts * row].fill_(-math.inf).view(parts, row)
        bias = self.inputs.bias_b
        for start, count in self.tiles():
            b, b_at = self.rows_of_b(start, count)
            program.add(
                "extremes", count, sizes.vectors, sizes.depth, b_at, b.stride(0), at(sizes.panels), scratch, row,
                at(sizes.r), at(sizes.zero) if bias is None else bias.data_ptr() + 4 * start, int(bias is not None),
                at(sizes.y, start), at(self.sums), sizes.strip,
            )  # fmt: skip
            self.run_if_converted()
        program.run()
        low, high = (float(x) for x in self.memory[sizes.y : sizes.y + columns].aminmax())
        # Nor does it hold for NaN, the difference where all scores of a column, or all of any, are NaN.
        if not (high - low <= 2.0 * math.log(RANGE)):
            return None
        z = float(round((low + high) / 2.0))
        r, u = (self.memory[place : place + rows] for place in (sizes.r, sizes.u))
        before = r.double()
        r += of_rows.amax(0)[:rows].add_(low + (high - low) / 4.0).div_(2.0).round_()
        # By what they were shifted once that was rounded.
        u.copy_((r.double() - before - z).exp_())
        program.add("clear", at(self.sums), parts * row)
        return float(u.min()), float(u.max())

    def scratch(self) -> Tensor:
        """A tile."""
        return buffers.large(self.sizes.tile * self.sizes.row)
