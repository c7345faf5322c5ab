"""The CPU backend: machine code of our own where it can run, else whole matrices or tiles, by the size of the batch."""

from __future__ import annotations

import math

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
from fastassoc.backends.cpu_labels import Labels

_WHOLE_SCORES = 2**20
"""Up to this many scores ``N M`` whole is quicker than tiled."""
_REMEMBERED_ROWS = 1024
"""A sampler that balances classes often gives the same labels at every step; up to this size they are compared, and
what was made of them for the same M is used again."""
_NATIVE_SCORES = 2**12
"""From so many scores on machine code is quicker than operations."""
_MAX_SAVED = 11
"""Tensors that any other form saves for its gradients, at most."""

_UPSTREAM = 2.0**20
"""Beyond it, and below its inverse, upstream gradients are brought near 1 first: what is made of them, in float32, is
then far from its limits."""

_latest: tuple[tuple[bytes, torch.dtype, int], Labels] | None = None


def prepare_labels(labels: Tensor, ignore_index: int | None, b: Tensor, dtype: torch.dtype) -> Labels:
    """Those of the rows that take part, of which there must be one."""
    global _latest
    if labels.dtype != torch.int64:
        labels = labels.to(torch.int64)
    # What is kept of them is copied: the caller may write to them before the backward pass.
    values = labels.numpy()
    columns = b.shape[0]
    if ignore_index is not None:
        kept = np.flatnonzero(values != ignore_index)
        validation.check_rows_left(len(kept), ignore_index)
        if len(kept) < len(values):
            return Labels(values[kept], dtype, columns, kept)
    if len(values) > _REMEMBERED_ROWS:
        return Labels(values.copy(), dtype, columns, None)
    key = values.tobytes(), dtype, columns
    latest = _latest
    if latest is None or latest[0] != key:
        latest = _latest = key, Labels(values.copy(), dtype, columns, None)
    return latest[1]


def _native(dtype: torch.dtype, scores: int) -> cpu_machine.Machine | None:
    """What runs machine code on so many scores, if that is the way."""
    return cpu_machine.machine() if dtype == torch.float32 and scores >= _NATIVE_SCORES else None


def losses(inputs: Inputs, needs_gradient: bool, statistics: bool) -> Losses:
    """See `fastassoc.backends.Backend`."""
    if inputs.differences:
        # Tiles alone know them. The derivative is that of the product, so what they save says the rest.
        inputs = inputs._replace(labels=inputs.labels.blocks())
        return block_losses.losses(cpu_blocked, inputs, needs_gradient, statistics)
    own = _native(inputs.dtype, inputs.labels.rows * inputs.b.shape[0])
    if own is not None and cpu_native.takes(inputs):
        native = cpu_native.losses(own, inputs, needs_gradient, statistics)
        if native is not None:
            return native
    inputs = inputs._replace(labels=inputs.labels.blocks())
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
    # Read as numbers, the upstream gradients are factors that a product takes along.
    walker, visit = (None if x is None else float(x.item()) for x in (grad_walker, grad_visit))
    factor = _common_factor(walker or 0.0, visit or 0.0)
    if factor == 1.0:
        return _gradients(inputs, saved, walker, visit, needs)
    # A loss scaled far up or down: its gradient is linear, and rounded to low precision after the factor, not before.
    in_full = inputs._replace(b=inputs.b.to(inputs.dtype))
    walker, visit = (None if x is None else x / factor for x in (walker, visit))
    found = _gradients(in_full, saved, walker, visit, needs)
    return Gradients(*(None if x is None else x.mul_(factor) for x in found))


def _common_factor(walker: float, visit: float) -> float:
    """A power of two: 1, unless the larger upstream gradient is very large or very small."""
    largest = max(abs(walker), abs(visit))
    if 0.0 < largest < 1.0 / _UPSTREAM or _UPSTREAM < largest < math.inf:
        return math.ldexp(1.0, math.frexp(largest)[1] - 1)
    return 1.0


def _gradients(
    inputs: Inputs, saved: Saved, upstream_walker: float | None, upstream_visit: float | None, needs: Needs
) -> Gradients:
    if len(saved) == cpu_native.SAVED and saved[-1] is not None:
        own = cpu_machine.machine()
        assert own is not None
        return cpu_native.gradients(own, inputs, saved, upstream_walker, upstream_visit, needs)
    inputs = inputs._replace(labels=inputs.labels.blocks())
    # Tiles save more tensors than whole, and their last but two is never None.
    if len(saved) < _MAX_SAVED or saved[_MAX_SAVED - 3] is None:
        return cpu_whole.gradients(inputs, saved, upstream_walker, upstream_visit, needs)
    return block_losses.gradients(cpu_blocked, inputs, saved[:_MAX_SAVED], upstream_walker, upstream_visit, needs)


def saved_dtypes(a: Tensor, dtype: torch.dtype) -> list[torch.dtype]:
    """See `fastassoc.backends.Backend`: all in the accumulation dtype."""
    return [dtype] * cpu_native.SAVED
