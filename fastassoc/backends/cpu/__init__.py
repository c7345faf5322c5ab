"""The CPU backend: machine code where it can run and its numbers allow, else torch operations."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fastassoc import validation
from fastassoc.backends.cpu.labels import Labels
from fastassoc.backends.cpu.native import backward, forward, machine
from fastassoc.backends.cpu.operations import tiles, whole
from fastassoc.backends.cpu.operations.vector_functions import resolve_vector_functions
from fastassoc.backends.protocol import Gradients, Inputs, Losses, Needs, Saved
from fastassoc.weights import weighted_sum

resolve_vector_functions()

_REMEMBERED_ROWS = 1024
"""A sampler that balances classes often gives the same labels at every step; up to this size they are compared, and
what was made of them for the same M is used again."""
_UPSTREAM = 2.0**20
"""Beyond it, and below its inverse, upstream gradients are brought near 1 first: what is made of them, in float32, is
then far from its limits. Without ``eps``, which bounds gradients of round trips, the bound is 1."""

_WHOLE_BYTES = 2**20
"""Up to this size of the scores whole matrices are quicker than tiles."""

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


def losses(inputs: Inputs, needs_gradient: bool, statistics: bool) -> Losses:
    """See `fastassoc.backends.protocol.Backend`."""
    own = machine.machine() if forward.takes(inputs) else None
    results = None if own is None else forward.losses(own, inputs, needs_gradient, statistics)
    if results is None:
        by_operations = whole.losses if _is_whole(inputs) else tiles.losses
        results = by_operations(inputs, needs_gradient, statistics)
        if needs_gradient:
            # The first place is that of machine code, which tells `gradients` whose the others are.
            results = Losses._make((*results[:-1], (None, *results.saved)))
    if inputs.weights is None:
        return results
    walker_weight, visit_weight = inputs.weights
    loss = weighted_sum(results.walker, walker_weight, results.visit, visit_weight)
    walker, visit = (results.walker, results.visit) if statistics else (None, None)
    return Losses._make((loss, walker, visit, *results[3:]))


def gradients(
    inputs: Inputs, saved: Saved, grad_walker: Tensor | None, grad_visit: Tensor | None, needs: Needs
) -> Gradients:
    """See `fastassoc.backends.protocol.Backend`."""
    # Read as numbers, the upstream gradients are factors that a product takes along.
    walker, visit = (None if x is None else float(x.item()) for x in (grad_walker, grad_visit))
    if inputs.weights is not None:
        walker, visit = (None if x is None else x * y for x, y in zip((walker, visit), inputs.weights, strict=True))
    factor = _common_factor(walker or 0.0, visit or 0.0, _UPSTREAM if inputs.eps > 0.0 else 1.0)
    if factor == 1.0:
        return _gradients(inputs, saved, walker, visit, needs)
    # A loss scaled far up or down: its gradient is linear, and rounded to low precision after the factor, not before.
    in_full = inputs._replace(b=inputs.b.to(inputs.dtype))
    walker, visit = (None if x is None else x / factor for x in (walker, visit))
    found = _gradients(in_full, saved, walker, visit, needs)
    return Gradients(*(None if x is None else x.mul_(factor) for x in found))


def _common_factor(walker: float, visit: float, limit: float) -> float:
    """A power of two: 1, unless the larger upstream gradient is beyond the limit or below its inverse."""
    largest = max(abs(walker), abs(visit))
    if 0.0 < largest < 1.0 / limit or limit < largest < math.inf:
        return math.ldexp(1.0, math.frexp(largest)[1] - 1)
    return 1.0


def _gradients(
    inputs: Inputs, saved: Saved, upstream_walker: float | None, upstream_visit: float | None, needs: Needs
) -> Gradients:
    native_memory = saved[0]
    if native_memory is None:
        by_operations = whole.gradients if _is_whole(inputs) else tiles.gradients
        return by_operations(inputs, saved[1:], upstream_walker, upstream_visit, needs)
    own = machine.machine()
    assert own is not None
    return backward.gradients(own, inputs, native_memory, upstream_walker, upstream_visit, needs)


def _is_whole(inputs: Inputs) -> bool:
    """Whether operations take whole matrices. Only tiles know ranks and differences, and notice -inf in visits."""
    small = inputs.labels.rows * inputs.b.shape[0] * inputs.dtype.itemsize <= _WHOLE_BYTES
    return small and inputs.walker and not inputs.differences and inputs.ranks is None


def agreement(device: torch.device) -> str:
    """See `fastassoc.backends.protocol.Backend`: labels alone decide."""
    return ""


def saved_sizes(a: Tensor, b: Tensor) -> list[int] | None:
    """See `fastassoc.backends.protocol.Backend`: classes decide."""
    return None


def saved_dtypes(a: Tensor, dtype: torch.dtype) -> list[torch.dtype]:
    """See `fastassoc.backends.protocol.Backend`: all in the accumulation dtype."""
    return [dtype] * (1 + tiles.MOST_SAVED)
