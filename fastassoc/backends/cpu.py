"""The CPU backend: whole matrices for small batches, tiles for the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from fastassoc import classes
from fastassoc.backends import Gradients, LossGradient, Needs, Passes, Problem, Saved, Walks, cpu_blocked, cpu_whole

_DENSE_PRODUCTS = 4 * 10**6
"""Up to this many products ``N^2 M`` one dense block is quicker than sorting the labels."""
_WHOLE_SCORES = 2**18
"""Up to this many scores ``N M`` both probability matrices stay in cache, and whole is quicker than tiled."""
_REMEMBERED_ROWS = 1024
"""A sampler that balances classes often gives the same labels at every step; up to this size they are compared."""

MAX_SAVED = 9

_latest: tuple[tuple[bytes, torch.dtype, bool], classes.ClassBlocks] | None = None


def class_blocks(labels: Tensor, kept_rows: Tensor | None, columns: int, dtype: torch.dtype) -> classes.ClassBlocks:
    """One dense block for the smallest batches, else one block for each class."""
    global _latest
    n = labels.shape[0] if kept_rows is None else kept_rows.shape[0]
    dense = n * n * columns <= _DENSE_PRODUCTS
    make = classes.dense_block if dense else classes.class_blocks
    if kept_rows is not None or n > _REMEMBERED_ROWS:
        return make(labels, dtype, kept_rows)
    key = labels.numpy().tobytes(), dtype, dense
    latest = _latest
    if latest is None or latest[0] != key:
        _latest = latest = key, make(labels, dtype)
    return latest[1]


def walks(problem: Problem, needs_gradient: bool) -> Walks:
    """See `fastassoc.backends.Passes`."""
    return _passes(problem).walks(problem, needs_gradient)


def gradients(problem: Problem, saved: Saved, gradient: LossGradient, needs: Needs) -> Gradients:
    """See `fastassoc.backends.Passes`."""
    return _passes(problem).gradients(problem, saved, gradient, needs)


def _passes(problem: Problem) -> Passes:
    # Without round trips, whole has nothing to notice a column of -inf by.
    whole = problem.walker and problem.blocks.rows * problem.b.shape[0] <= _WHOLE_SCORES
    return cpu_whole if whole else cpu_blocked
