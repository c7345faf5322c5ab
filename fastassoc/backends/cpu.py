"""The CPU backend: dense for small batches, blocked for the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from fastassoc import classes
from fastassoc.backends import Backend, Gradients, LossGradient, Needs, Problem, Saved, Walks, cpu_blocked, cpu_dense

_DENSE_PRODUCTS = 2 * 10**7
"""Up to this many products ``N^2 M`` the dense passes win, however few of them are same-class: they launch the fewest
operations and sort nothing (benchmarks/README.md)."""


def class_blocks(labels: Tensor, kept_rows: Tensor | None, columns: int, dtype: torch.dtype) -> classes.ClassBlocks:
    """One dense block for a small batch, else one block for each class."""
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


def _passes(problem: Problem) -> Backend:
    n, m = problem.blocks.rows, problem.b.shape[0]
    return cpu_dense if problem.walker and n * n * m <= _DENSE_PRODUCTS else cpu_blocked
