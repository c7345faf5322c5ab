"""The CPU backend: machine code of our own where it can run, else whole matrices or tiles, by the size of the batch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from torch import Tensor

from fastassoc import validation
from fastassoc.backends import (
    Gradients,
    Inputs,
    Losses,
    Needs,
    Saved,
    block_losses,
    cpu_blocked,
    cpu_machine,
    cpu_native,
    cpu_whole,
)
from fastassoc.classes import ClassBlocks, as_dense_block, class_blocks, dense_block

_DENSE_PRODUCTS = 4 * 10**6
"""Up to this many products ``N^2 M`` one dense block is quicker than sorting the labels."""
_DENSE_ROWS = 256
"""Up to this many rows it is so up to as many products for each size of class, for each size takes operations."""
_WHOLE_SCORES = 2**20
"""Up to this many scores ``N M`` whole is quicker than tiled."""
_REMEMBERED_ROWS = 1024
"""A sampler that balances classes often gives the same labels at every step; up to this size they are compared, and
what was made of them for the same M is used again."""
_NATIVE_SCORES = 2**12
"""From so many scores on machine code is quicker than operations."""
_NATIVE_SIZES = 2
"""Of classes: with more of them, few rows are quicker as one dense block where the sizes change from step to step."""
_MAX_SAVED = 11
"""Tensors that any other form saves for its gradients, at most."""

_latest: tuple[tuple[bytes, torch.dtype, int], ClassBlocks] | None = None


def prepare_labels(labels: Tensor, ignore_index: int | None, b: Tensor, dtype: torch.dtype) -> ClassBlocks:
    """Class blocks of the rows that take part, of which there must be one; dense for small batches of operations."""
    global _latest
    if labels.dtype != torch.int64:
        labels = labels.to(torch.int64)
    values = labels.numpy()
    kept_rows = None
    if ignore_index is not None:
        kept = np.flatnonzero(values != ignore_index)
        validation.check_rows_left(len(kept), ignore_index)
        if len(kept) < len(values):
            values, kept_rows = values[kept], torch.from_numpy(kept)
    columns = b.shape[0]
    if kept_rows is not None or len(values) > _REMEMBERED_ROWS:
        return _make_blocks(values, dtype, kept_rows, columns)
    key = values.tobytes(), dtype, columns
    latest = _latest
    if latest is None or latest[0] != key:
        latest = key, _make_blocks(values, dtype, None, columns)
        if type(latest[1].minus_target) is Tensor:
            # Not a fake one, of which later calls could make nothing.
            _latest = latest
    return latest[1]


def _native(dtype: torch.dtype, scores: int) -> cpu_machine.Machine | None:
    """What runs machine code on so many scores, if that is the way."""
    return cpu_machine.machine() if dtype == torch.float32 and scores >= _NATIVE_SCORES else None


def _make_blocks(values: np.ndarray, dtype: torch.dtype, kept_rows: Tensor | None, columns: int) -> ClassBlocks:
    rows = len(values)
    dense = False
    if rows * rows * columns <= _DENSE_PRODUCTS or rows <= _DENSE_ROWS:
        # So few labels are counted in less time than it takes to sort them.
        sizes = len(set(Counter(values.tolist()).values()))
        dense = _dense_is_quicker(rows, columns, sizes)
        if _native(dtype, rows * columns) is not None:
            # Machine code takes classes only, and laying out many sizes takes longer than it gains.
            dense = dense and sizes > _NATIVE_SIZES
    return (dense_block if dense else class_blocks)(torch.from_numpy(values), dtype, kept_rows)


def _dense_is_quicker(rows: int, columns: int, sizes: int) -> bool:
    """For operations, of which each size of class takes its own."""
    products = rows * rows * columns
    return products <= _DENSE_PRODUCTS or (rows <= _DENSE_ROWS and products <= _DENSE_PRODUCTS * sizes)


def _for_operations(inputs: Inputs) -> Inputs:
    """A batch that machine code does not take, with the blocks that operations are quickest on."""
    blocks: ClassBlocks = inputs.labels
    columns = inputs.b.shape[0]
    for_machine_code = blocks.of_classes and _native(inputs.dtype, blocks.rows * columns) is not None
    if for_machine_code and _dense_is_quicker(blocks.rows, columns, len(blocks.buckets)):
        return inputs._replace(labels=as_dense_block(blocks))
    return inputs


def losses(inputs: Inputs, needs_gradient: bool, statistics: bool) -> Losses:
    """See `fastassoc.backends.Backend`."""
    own = _native(inputs.dtype, inputs.labels.rows * inputs.b.shape[0])
    if own is not None and cpu_native.takes(inputs):
        native = cpu_native.losses(own, inputs, needs_gradient, statistics)
        if native is not None:
            return native
    inputs = _for_operations(inputs)
    # Without round trips, whole has nothing to notice a column of -inf by.
    if inputs.walker and inputs.labels.rows * inputs.b.shape[0] <= _WHOLE_SCORES:
        whole = cpu_whole.losses(inputs, needs_gradient, statistics)
        if whole is not None:
            return whole
    return block_losses.losses(cpu_blocked, inputs, needs_gradient, statistics)


def gradients(
    inputs: Inputs, saved: Saved, grad_walker: Tensor | None, grad_visit: Tensor | None, needs: Needs
) -> Gradients:
    """See `fastassoc.backends.Backend`."""
    if len(saved) == cpu_native.SAVED and saved[-1] is not None:
        own = cpu_machine.machine()
        assert own is not None
        return cpu_native.gradients(own, inputs, saved, grad_walker, grad_visit, needs)
    inputs = _for_operations(inputs)
    # Tiles save more tensors than whole, and their last but two is never None.
    if len(saved) < _MAX_SAVED or saved[_MAX_SAVED - 3] is None:
        return cpu_whole.gradients(inputs, saved, grad_walker, grad_visit, needs)
    return block_losses.gradients(cpu_blocked, inputs, saved[:_MAX_SAVED], grad_walker, grad_visit, needs)


def saved_dtypes(a: Tensor, dtype: torch.dtype) -> list[torch.dtype]:
    """See `fastassoc.backends.Backend`: all in the accumulation dtype."""
    return [dtype] * cpu_native.SAVED
