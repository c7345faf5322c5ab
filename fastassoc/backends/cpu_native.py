"""The losses by machine code of our own (`fastassoc.kernels.cpu`): the merged form of `fastassoc.backends.cpu_blocked`
without shifts, ``t`` transposed, ``row`` entries for each column of the scores. For float32, with a walker term.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastassoc.backends import Gradients, Inputs, Losses, Needs, Saved
from fastassoc.backends.block_losses import rows_back, walk_statistics
from fastassoc.backends.cpu_machine import Machine, Program, double
from fastassoc.backends.cpu_memory import borrow
from fastassoc.classes import Bucket, ClassBlocks

SMALLEST_EPS = 1e-10
"""Below it the merged form leaves too much to underflow."""
SAVED = 12
"""Tensors saved, more than any other form saves; the last tells that they are of this one."""
_TILE_BYTES = 4 * 2**20
_MIN_COLUMNS = 128
_WORKSPACE_BYTES = 32 * 2**20
"""Bound on the scratch tiles and the kept tiles together."""
_SCRATCH_TILES = 2
_KEPT_BYTES = 256 * 2**20
"""Up to this size the whole of ``t`` is kept for the backward pass, beyond only what the workspace holds."""
_STRIP_BYTES = 2**19
"""Of ``t`` that a thread takes at once: it stays in the second cache."""
_SERIAL = 2**18
"""Up to so many products for the scores, ``N M D``, one thread is quicker than several."""
_FLUSHED_COLUMNS = 2**13
"""Sums of products over more columns than these are less exact than sums of such sums."""


class _Layout(NamedTuple):
    """Where rows and classes lie, as the passes read it."""

    rows: int
    """N."""
    vectors: int
    """N up to a multiple of the vector."""
    row: int
    """Entries of ``t`` from one column to the next."""
    all_classes: np.ndarray
    """First row, size and first pair of each; those of one row last."""
    class_count: int
    """Of several rows."""
    tasks: np.ndarray
    """See `fastassoc.kernels.cpu.forward.trips`."""
    single: int
    """First row that is alone in its class."""
    singles: int
    single_place: int
    """Its pair with itself."""
    pairs: int


@functools.lru_cache(maxsize=4)
def _layout(buckets: tuple[Bucket, ...], rows: int, parts: int, lanes: int, width: int) -> _Layout:
    vectors = -(-rows // lanes) * lanes
    # Columns a large power of two apart meet in the same places of a cache.
    row = vectors + lanes if vectors % 256 == 0 else vectors
    classes, tasks = [], [np.empty((0, 4), np.int64)]
    place = class_count = singles = 0
    single, single_place = rows, 0
    for start, blocks, size in buckets:
        number = np.arange(blocks)
        of_class = np.stack([start + number * size, np.full(blocks, size), place + number * size**2], 1)
        classes.append(of_class)
        if size == 1:
            single, singles, single_place = start, blocks, place
        else:
            class_count += blocks
            tasks += [
                np.column_stack(
                    (
                        of_class[:, 0] + first,
                        np.full(blocks, size - first),
                        of_class[:, 1],
                        of_class[:, 2] + first * (size + 1),
                    )
                )
                for first in range(0, size, width)
            ]
        place += blocks * size**2
    all_tasks = np.concatenate(tasks)
    left = all_tasks[:, 1]
    # The costliest first, dealt out back and forth.
    dealt = np.argsort(-left * np.minimum(-(-left // lanes) * lanes, width), kind="stable")
    turn = np.arange(len(dealt)) % (2 * parts)
    part = np.minimum(turn, 2 * parts - 1 - turn)
    head = -(-(parts + 1) // 4)
    table = np.full(4 * head + all_tasks.size, head)
    table[1 : parts + 1] += np.cumsum(np.bincount(part, minlength=parts))
    table[4 * head :] = all_tasks[dealt[np.argsort(part, kind="stable")]].reshape(-1)
    all_classes = np.concatenate(classes)
    return _Layout(rows, vectors, row, all_classes, class_count, table, single, singles, single_place, place)


class _Walk:
    """A call: its sizes, its tiles, and what all passes over tiles have in common."""

    def __init__(self, own: Machine, inputs: Inputs) -> None:
        self.own = own
        self.inputs = inputs
        self.b = inputs.b
        self.columns, self.depth = inputs.b.shape
        blocks: ClassBlocks = inputs.labels
        self.blocks = blocks
        self.parts = 1 if blocks.rows * self.columns * self.depth <= _SERIAL else torch.get_num_threads()
        self.layout = _layout(blocks.buckets, blocks.rows, self.parts, own.lanes, own.width)
        column_bytes = 4 * self.layout.row
        width = max(_MIN_COLUMNS, _TILE_BYTES // column_bytes)
        count = -(-self.columns // width)
        # Even tiles, of whole blocks for every part.
        multiple = 6 * self.parts
        self.width = self.columns if count == 1 else -(-self.columns // (count * multiple)) * multiple
        self.strip = max(6, _STRIP_BYTES // column_bytes // 6 * 6)
        self.program = Program(own, self.parts)
        self.panels = blocks.rows * self.depth
        """Where they begin in `operand`, behind the rows of ``a``."""
        self._readable = self.b.dtype == torch.float32 and (self.b.stride(1) == 1 or self.depth == 1)

    def operand_size(self) -> int:
        """Of the rows of ``a``, and of panels of them."""
        return self.panels + -(-self.layout.row // self.own.width) * self.own.width * self.depth

    def keep_limit(self) -> int:
        """How many columns of ``t`` may be kept."""
        column_bytes = 4 * self.layout.row
        if column_bytes * self.columns <= _KEPT_BYTES:
            return self.columns
        tiles = _WORKSPACE_BYTES // (column_bytes * self.width) - _SCRATCH_TILES
        return max(0, min(self.columns, tiles * self.width))

    def tiles(self) -> Iterator[tuple[int, int]]:
        """First column and number of columns."""
        for start in range(0, self.columns, self.width):
            yield start, min(self.width, self.columns - start)

    def rows_of_b(self, start: int, count: int) -> tuple[Tensor, int]:
        """Rows as float32, and the address of the first: of rows that lie one after another, or of ``b`` itself."""
        if self._readable:
            return self.b, self.b.data_ptr() + 4 * start * self.b.stride(0)
        rows = self.b[start : start + count].to(torch.float32).contiguous()
        return rows, rows.data_ptr()

    def steps(self, name: str, start: int, count: int, t: int, memory: _Memory, sums: int) -> None:
        """``t`` of a tile."""
        layout, bias = self.layout, self.inputs.bias_b
        rows, at = self.rows_of_b(start, count)
        y = memory.y + 4 * start
        self.program.add(
            name, count, layout.vectors, self.depth, at, rows.stride(0), 1, memory.own + 4 * self.panels, t, layout.row,
            memory.r, memory.u, memory.zero if bias is None else bias.data_ptr() + 4 * start, int(bias is not None),
            y, y + 4 * self.columns, y + 8 * self.columns, sums, self.strip,
        )  # fmt: skip
        self.run_if_converted()

    def run_if_converted(self) -> None:
        """Converted rows of ``b`` live no longer than their tile."""
        if not self._readable:
            self.program.run()

    def known_steps(self, start: int, count: int, memory: _Memory, scratch: Tensor | None) -> int:
        """The address of ``t`` of a tile, which is computed again if it was not kept."""
        if start + count <= memory.kept_columns:
            return memory.kept_at + 4 * start * self.layout.row
        assert scratch is not None
        self.steps("steps_again", start, count, scratch.data_ptr(), memory, 0)
        return scratch.data_ptr()

    def scratch(self) -> Tensor:
        """A tile."""
        return borrow((self.width * self.layout.row,), torch.float32)


class _Memory:
    """Addresses in the tensors that outlive a pass."""

    def __init__(self, walk: _Walk, vectors: Tensor, factors: Tensor, operand: Tensor, kept: Tensor | None) -> None:
        row, columns = walk.layout.row, walk.columns
        self.r = vectors.data_ptr()
        self.u, self.f, self.rho, self.zero = (self.r + 4 * row * number for number in range(1, 5))
        self.y = factors.data_ptr()
        self.g, self.v = self.y + 4 * columns, self.y + 8 * columns
        self.own = operand.data_ptr()
        self.kept_at = 0 if kept is None else kept.data_ptr()
        self.kept_columns = 0 if kept is None else kept.numel() // row


def losses(own: Machine, inputs: Inputs, needs_gradient: bool, statistics: bool) -> Losses | None:
    """See `fastassoc.backends.Backend`. None where the merged form does not hold."""
    walk = _Walk(own, inputs)
    layout, blocks, program, columns = walk.layout, walk.blocks, walk.program, walk.columns
    row, rows, pairs, parts = layout.row, layout.rows, layout.pairs, walk.parts
    a = inputs.a.to(torch.float32)
    new = torch.empty
    vectors, factors, operand = new(4 * row + 1), new(3 * columns), new(walk.operand_size())
    p_aba, walker, visit = new(pairs), new(()), new(())
    visit_probability = new(columns) if inputs.visit else None
    sums = new(parts * row + 2 * parts + 3, dtype=torch.float64)
    found = sums[parts * row + 2 * parts :].numpy().view(np.float32)
    kept_columns = walk.keep_limit() if needs_gradient else 0
    kept = borrow((kept_columns * row,), torch.float32) if kept_columns else None
    scratch = walk.scratch() if kept_columns < columns else None
    memory = _Memory(walk, vectors, factors, operand, kept)
    sums_at, parts_at = sums.data_ptr(), sums.data_ptr() + 8 * parts * row
    vectors[-1] = 0.0
    total = torch.zeros_like(p_aba) if columns > _FLUSHED_COLUMNS else None
    order, bias = blocks.order, inputs.bias_a
    program.add(
        "prepare", rows, walk.depth, a.data_ptr(), a.stride(0), a.stride(1),
        vectors.data_ptr() if order is None else order.data_ptr(), int(order is not None),
        memory.zero if bias is None else bias.data_ptr(), int(bias is not None), double(inputs.scale),
        memory.own, memory.own + 4 * walk.panels, row, memory.r, memory.u, sums_at, parts * row, p_aba.data_ptr(), pairs,
    )  # fmt: skip
    added = 0
    for start, count in walk.tiles():
        if start + count <= kept_columns:
            t = memory.kept_at + 4 * start * row
        else:
            assert scratch is not None
            t = scratch.data_ptr()
        walk.steps("steps", start, count, t, memory, sums_at)
        program.add(
            "trips", count, t, row, p_aba.data_ptr(), layout.tasks.ctypes.data, layout.single, layout.singles,
            p_aba.data_ptr() + 4 * layout.single_place,
        )  # fmt: skip
        added += count
        if total is not None and (added >= _FLUSHED_COLUMNS or start + count == columns):
            program.add("flush", p_aba.data_ptr(), total.data_ptr(), pairs)
            added = 0
        if start == 0 or start + count == columns:
            program.add("row_factors", rows, row, sums_at, memory.f)
            program.add("limits", memory.f, rows, memory.y, start + count, found.ctypes.data)
            program.run()
            # After the first tile already: most batches that this form is not for end here.
            if not _holds(inputs.eps, found, all_columns=start + count == columns):
                return None
    if total is not None:
        p_aba = total
    program.add("probabilities", layout.all_classes.ctypes.data, len(layout.all_classes), p_aba.data_ptr(), memory.f, memory.u)
    if visit_probability is not None:
        program.add("clear", sums_at, parts * row)
        for start, count in walk.tiles():
            t = walk.known_steps(start, count, memory, scratch)
            program.add(
                "visits", count, layout.vectors, t, row, memory.f, memory.g + 4 * start,
                visit_probability.data_ptr() + 4 * start, sums_at,
                double(1.0 / rows), double(inputs.eps), double(-1.0 / (rows * columns)),
            )  # fmt: skip
        program.add("row_sums", row, sums_at, memory.f, memory.rho)
    program.add(
        "logarithms", p_aba.data_ptr(), blocks.minus_target.data_ptr(), pairs,
        memory.y if visit_probability is None else visit_probability.data_ptr(), columns, double(inputs.eps), parts_at,
    )  # fmt: skip
    program.run()
    shares = sums[parts * row : parts * row + 2 * parts].numpy()
    walker.fill_(math.log1p(rows * inputs.eps) + float(shares[::2].sum()))
    visit.fill_(math.log1p(columns * inputs.eps) - float(shares[1::2].sum()) / columns)
    p_correct = accuracy_estimate = None
    if statistics:
        p_correct, accuracy_estimate = walk_statistics(p_aba, blocks)
    saved: Saved = ()
    if needs_gradient:
        saved = (p_aba, visit_probability, vectors, factors, kept, *(None,) * (SAVED - 6), operand)
    return Losses(
        walker,
        None if visit_probability is None else visit,
        p_correct,
        accuracy_estimate,
        visit_probability if statistics else None,
        saved,
    )


def gradients(
    own: Machine, inputs: Inputs, saved: Saved, grad_walker: Tensor | None, grad_visit: Tensor | None, needs: Needs
) -> Gradients:
    """See `fastassoc.backends.Backend`."""
    walk = _Walk(own, inputs)
    layout, blocks, program, columns = walk.layout, walk.blocks, walk.program, walk.columns
    row, rows, depth = layout.row, layout.rows, walk.depth
    p_aba, visit_probability, vectors, factors, kept, *_, operand = saved
    assert p_aba is not None
    assert vectors is not None
    assert factors is not None
    assert operand is not None
    memory = _Memory(walk, vectors, factors, operand, kept)
    new = torch.empty
    kernels, h, rho, trips = new(layout.pairs), new(columns), new(row), new(row, dtype=torch.float64)
    da = new(rows, depth) if needs[0] else None
    db = torch.empty_like(inputs.b, memory_format=torch.contiguous_format) if needs[1] else None
    dbias_a = torch.zeros(rows) if needs[2] else None
    dbias_b = new(columns) if needs[3] else None
    upstream_walker = 0.0 if grad_walker is None else grad_walker.item()
    upstream_visit = 0.0 if grad_visit is None else grad_visit.item()
    eps = double(inputs.eps)
    program.add(
        "kernels", layout.all_classes.ctypes.data, len(layout.all_classes), p_aba.data_ptr(),
        blocks.minus_target.data_ptr(), memory.f, memory.u, kernels.data_ptr(), trips.data_ptr(), eps,
        double(upstream_walker),
    )  # fmt: skip
    visits = grad_visit is not None and visit_probability is not None
    program.add(
        "terms", rows, row, trips.data_ptr(), memory.rho if visits else memory.f, memory.f, double(upstream_visit),
        rho.data_ptr(), columns, visit_probability.data_ptr() if visit_probability is not None else memory.y,
        memory.g, eps, double(-upstream_visit / (rows * columns)), h.data_ptr(),
    )  # fmt: skip
    scratch = walk.scratch() if memory.kept_columns < columns else None
    ds = walk.scratch()
    converts = db is not None and db.dtype != torch.float32
    for start, count in walk.tiles():
        t = walk.known_steps(start, count, memory, scratch)
        tile_db = None if db is None else new(count, depth) if converts else db[start:] if start else db
        program.add(
            "brackets", count, layout.vectors, rows, depth, t, ds.data_ptr(), row,
            layout.all_classes.ctypes.data, layout.class_count, kernels.data_ptr(),
            layout.single, layout.singles, kernels.data_ptr() + 4 * layout.single_place,
            memory.f, rho.data_ptr(), memory.u, memory.g + 4 * start, h.data_ptr() + 4 * start, memory.v + 4 * start,
            memory.own, 0 if tile_db is None else tile_db.data_ptr(), int(tile_db is not None), walk.strip,
        )  # fmt: skip
        if da is not None:
            b, at = walk.rows_of_b(start, count)
            program.add(
                "row_gradients", count, rows, depth, ds.data_ptr(), row, at, b.stride(0), da.data_ptr(), int(start > 0)
            )
            walk.run_if_converted()
        if converts or dbias_a is not None or dbias_b is not None:
            program.run()
        if converts and db is not None and tile_db is not None:
            db[start : start + count] = tile_db
        if dbias_a is not None or dbias_b is not None:
            tile_ds = ds[: count * row].view(count, row)[:, :rows]
            if dbias_a is not None:
                dbias_a += tile_ds.sum(0)
            if dbias_b is not None:
                torch.sum(tile_ds, 1, out=dbias_b[start : start + count])
    program.run()
    if da is not None and inputs.scale != 1.0:
        da *= inputs.scale
    total = inputs.a.shape[0]
    return Gradients(
        None if da is None else rows_back(da, blocks, total),
        db,
        None if dbias_a is None else rows_back(dbias_a, blocks, total),
        dbias_b,
    )


def _holds(eps: float, found: np.ndarray, all_columns: bool) -> bool:
    """Whether all is finite, and what underflows stays below ``eps`` times the roundoff of a probability.

    As in `fastassoc.backends.cpu_blocked`, for u of 1. With more columns f can only fall.
    """
    limits = torch.finfo(torch.float32)
    limit = eps * limits.eps / math.exp(-86)
    f_low, f_high, f_sum, y_low, y_high, y_sum = found.tolist()
    return (
        math.isfinite(f_sum + y_sum)
        and f_high <= limit * min(1.0, y_low)
        and y_high * max(1.0, y_high) <= limit
        and f_high <= limit
        and (f_low * limits.max >= 1.0 or not all_columns)
    )
