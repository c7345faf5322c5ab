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

MAX_SAVED = 9


def class_blocks(labels: Tensor, kept_rows: Tensor | None, columns: int, dtype: torch.dtype) -> classes.ClassBlocks:
    """One dense block for the smallest batches, else one block for each class."""
    n = labels.shape[0] if kept_rows is None else kept_rows.shape[0]
    if n * n * columns <= _DENSE_PRODUCTS:
        return classes.dense_block(labels, dtype, kept_rows)
    return classes.class_blocks(labels, dtype, kept_rows)


def walks(problem: Problem, needs_gradient: bool) -> Walks:
    """See `fastassoc.backends.Backend`."""
    return _passes(problem).walks(problem, needs_gradient)


def gradients(problem: Problem, saved: Saved, gradient: LossGradient, needs: Needs) -> Gradients:
    """See `fastassoc.backends.Backend`."""
    return _passes(problem).gradients(problem, saved, gradient, needs)


def _passes(problem: Problem) -> Passes:
    # Without round trips, whole has nothing to notice a column of -inf by.
    whole = problem.walker and problem.blocks.rows * problem.b.shape[0] <= _WHOLE_SCORES
    return cpu_whole if whole else cpu_blocked
