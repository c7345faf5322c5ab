"""Labels as the CPU backend keeps them: what passes need is made of them when it is needed."""

from __future__ import annotations

import ctypes
from collections import Counter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastassoc.backends.cpu.native.machine import Machine, Program
from fastassoc.backends.cpu.operations.class_blocks import ClassBlocks, class_blocks, dense_block
from fastassoc.kernels.cpu.layout import CLASS_NUMBERS, RESULTS, TASK_NUMBERS

_DENSE_PRODUCTS = 4 * 10**6
"""Up to this many products ``N^2 M`` one dense block is quicker than sorting the labels."""
_DENSE_ROWS = 256
"""Up to this many rows it is so up to as many products for each size of class, for each size takes operations."""


class Layout(NamedTuple):
    """Rows in the order of their classes, the largest first, and where the tables that passes read lie.

    See `fastassoc.kernels.cpu.layout` for the tables; those of classes of several rows come before those of one row.
    """

    memory: np.ndarray
    """Kept alive: the row of ``a`` at each place, [N]; classes, N + 1 of which there is room for; tasks."""
    order: int
    """The address of the first."""
    moves: bool
    """Whether any row of ``a`` has another place."""
    classes: int
    """An address."""
    number: int
    """Of classes."""
    several: int
    """Classes of several rows."""
    tasks: int
    """An address."""
    task_number: int
    single: int
    """The first row that is alone in its class."""
    singles: int
    single_place: int
    """Its pair with itself."""
    single_kernel: int
    pairs: int
    kernels: int
    """Entries of all kernels."""
    longest: int
    """Entries of a kernel's row, at most."""

    def class_table(self) -> np.ndarray:
        """[classes, 5]."""
        first = (self.classes - self.order) // 8
        return self.memory[first : first + CLASS_NUMBERS * self.number].reshape(-1, CLASS_NUMBERS)

    def task_table(self) -> np.ndarray:
        """[tasks, 6]."""
        first = (self.tasks - self.order) // 8
        return self.memory[first : first + TASK_NUMBERS * self.task_number].reshape(-1, TASK_NUMBERS)


class Labels:
    """The labels of the rows that take part."""

    def __init__(self, values: np.ndarray, dtype: torch.dtype, columns: int, kept_rows: np.ndarray | None) -> None:
        """``values`` [N] int64 that nobody writes to; ``kept_rows``: the rows of ``a`` they are of, if not of all."""
        self.rows = len(values)
        self._values = values
        self._dtype = dtype
        self._columns = columns
        self._kept_rows = kept_rows
        self._blocks: dict[bool, ClassBlocks] = {}
        self._layout: tuple[Machine, int, Layout] | None = None
        self._apart: Labels | None = None

    def blocks(self, may_be_dense: bool = True) -> ClassBlocks:
        """For operations: class blocks, or one dense block where that is quicker."""
        made = self._blocks.get(may_be_dense)
        if made is not None:
            return made
        values, rows = self._values, self.rows
        products = rows * rows * self._columns
        dense = may_be_dense and products <= _DENSE_PRODUCTS
        if may_be_dense and not dense and rows <= _DENSE_ROWS:
            # So few labels are counted in less time than it takes to sort them.
            dense = products <= _DENSE_PRODUCTS * len(set(Counter(values.tolist()).values()))
        kept_rows = None if self._kept_rows is None else torch.from_numpy(self._kept_rows)
        blocks = (dense_block if dense else class_blocks)(torch.from_numpy(values), self._dtype, kept_rows)
        if type(blocks.minus_target) is Tensor:
            # Not a fake one, of which later calls could make nothing.
            self._blocks[may_be_dense] = blocks
        return blocks

    def apart(self) -> Labels:
        """The same rows, each in a class of its own: where there are no round trips, no classes are needed."""
        if self._apart is None:
            self._apart = Labels(np.arange(self.rows), self._dtype, self._columns, self._kept_rows)
        return self._apart

    def layout(self, own: Machine, parts: int) -> Layout:
        """For machine code, with tasks for so many parts; remembered labels may meet another number of them."""
        latest = self._layout
        if latest is None or latest[0] is not own or latest[1] != parts:
            latest = self._layout = own, parts, self._make_layout(own, parts)
        return latest[2]

    def _make_layout(self, own: Machine, parts: int) -> Layout:
        values, rows = self._values, self.rows
        ascending = values.argsort(kind="stable")
        chosen = ascending if self._kept_rows is None else self._kept_rows
        room = rows + 1
        memory = np.empty(rows + room * (CLASS_NUMBERS + TASK_NUMBERS), np.int64)
        scratch = np.empty(3 * room + parts, np.int64)
        results = (ctypes.c_int64 * RESULTS)()
        order = memory.ctypes.data
        classes = order + 8 * rows
        tasks = classes + 8 * CLASS_NUMBERS * room
        program = Program(own, 1)
        program.add(
            "layout", rows, values.ctypes.data, ascending.ctypes.data, chosen.ctypes.data,
            int(self._kept_rows is not None), parts, order, classes, tasks, scratch.ctypes.data,
            ctypes.addressof(results),
        )  # fmt: skip
        program.run()
        number, several, task_number, pairs, kernels, moved = results
        singles = number - several
        longest = int(memory[rows + 4])
        return Layout(
            memory, order, moved > 0, classes, number, several, tasks, task_number, rows - singles, singles,
            pairs - singles, kernels - singles, pairs, kernels, longest,
        )  # fmt: skip
