"""The CPU backend: whole matrices for small batches, tiles for the rest."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor

from fastassoc import validation
from fastassoc.backends import Gradients, Inputs, Losses, Needs, Saved, block_losses, cpu_blocked, cpu_whole
from fastassoc.classes import ClassBlocks, class_blocks, dense_block

_DENSE_PRODUCTS = 4 * 10**6
"""Up to this many products ``N^2 M`` for each size of a class one dense block is quicker than one for each class."""
_WHOLE_SCORES = 2**20
"""Up to this many scores ``N M`` whole is quicker than tiled."""
_REMEMBERED_ROWS = 1024
"""A sampler that balances classes often gives the same labels at every step; up to this size they are compared."""
_MAX_SAVED = 11
"""Tensors that any form saves for its gradients, at most."""


class _Layout(NamedTuple):
    """What was made of labels."""

    columns: int
    """M."""
    dtype: torch.dtype
    labels: Tensor
    blocks: ClassBlocks


_latest: _Layout | None = None


def prepare_labels(labels: Tensor, ignore_index: int | None, b: Tensor, dtype: torch.dtype) -> ClassBlocks:
    """Class blocks of the rows that take part, of which there must be one: dense for the smallest batches."""
    global _latest
    if labels.dtype != torch.int64:
        labels = labels.to(torch.int64)
    kept_rows = None
    if ignore_index is not None:
        kept_rows = (labels != ignore_index).nonzero().view(-1)
        validation.check_rows_left(kept_rows.shape[0], ignore_index)
        if kept_rows.shape[0] == labels.shape[0]:
            kept_rows = None
    columns = b.shape[0]
    if kept_rows is not None or labels.shape[0] > _REMEMBERED_ROWS:
        return _make_blocks(labels, dtype, kept_rows, columns)
    latest = _latest
    if latest is None or latest.columns != columns or latest.dtype != dtype or not torch.equal(latest.labels, labels):
        _latest = latest = _Layout(columns, dtype, labels.clone(), _make_blocks(labels, dtype, None, columns))
    return latest.blocks


def _make_blocks(labels: Tensor, dtype: torch.dtype, kept_rows: Tensor | None, columns: int) -> ClassBlocks:
    if kept_rows is not None:
        labels = labels[kept_rows]
    rows = labels.shape[0]
    products = rows * rows * columns
    # N rows have at most sqrt(2 N) sizes of classes. To sort the labels for the number would take longer.
    dense = products <= _DENSE_PRODUCTS or (
        products <= _DENSE_PRODUCTS * math.isqrt(2 * rows)
        and products <= _DENSE_PRODUCTS * len(set(Counter(labels.tolist()).values()))
    )
    return (dense_block if dense else class_blocks)(labels, dtype, kept_rows)


def losses(inputs: Inputs, needs_gradient: bool, statistics: bool) -> Losses:
    """See `fastassoc.backends.Backend`."""
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
    # Tiles save more tensors, and their last but two is never None.
    if len(saved) < _MAX_SAVED or saved[_MAX_SAVED - 3] is None:
        return cpu_whole.gradients(inputs, saved, grad_walker, grad_visit, needs)
    return block_losses.gradients(cpu_blocked, inputs, saved, grad_walker, grad_visit, needs)


def saved_dtypes(a: Tensor, dtype: torch.dtype) -> list[torch.dtype]:
    """See `fastassoc.backends.Backend`: all in the accumulation dtype."""
    return [dtype] * _MAX_SAVED
