"""The walker and the visit term around passes over class blocks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastassoc.backends.cpu.operations import tiles, whole
from fastassoc.backends.cpu.operations.class_blocks import ClassBlocks
from fastassoc.backends.cpu.operations.passes import Passes, Problem, TermGradients, visit_gradient
from fastassoc.backends.protocol import Gradients, Inputs, Losses, Needs, Saved

_WHOLE_SCORES = 2**18
"""Up to this many scores ``N M`` whole matrices are quicker than tiles."""
MOST_SAVED = 11
"""Tensors in `Losses.saved`, at most."""


def losses(inputs: Inputs, needs_gradient: bool, statistics: bool) -> Losses:
    """The passes, then logarithms of the round trips and of the visits, weighted and summed."""
    problem = _make_problem(inputs)
    blocks, eps = problem.blocks, inputs.eps
    p_aba, visit_probability, saved = _passes(problem).walks(problem, needs_gradient)
    walker = visit = p_correct = accuracy_estimate = None
    if p_aba is not None:
        x = p_aba + eps
        walker = weighted_log(x, blocks.minus_target, eps, out=x) + math.log1p(blocks.rows * eps)
        if statistics:
            p_correct, accuracy_estimate = _walk_statistics(p_aba, blocks)
    if visit_probability is not None:
        visit = math.log1p(inputs.b.shape[0] * eps) - (visit_probability + eps).log_().mean()
    kept = (p_aba, visit_probability, *saved) if needs_gradient else ()
    return Losses(walker, visit, p_correct, accuracy_estimate, visit_probability if statistics else None, kept)


def gradients(
    inputs: Inputs, saved: Saved, upstream_walker: float | None, upstream_visit: float | None, needs: Needs
) -> Gradients:
    """The losses differentiated by round trips and visits, then the passes."""
    problem = _make_problem(inputs)
    blocks, eps = problem.blocks, inputs.eps
    p_aba, visit_probability, *saved_by_passes = saved
    g = h = None
    if upstream_walker is not None:
        assert p_aba is not None
        denominator = p_aba + eps
        if eps == 0.0:
            # Off-class pairs are 0 / tiny, not 0 / 0.
            denominator.clamp_min_(torch.finfo(p_aba.dtype).tiny)
        g = torch.div(blocks.minus_target, denominator, out=denominator).mul_(upstream_walker)
    if upstream_visit is not None:
        assert visit_probability is not None
        h = visit_gradient(visit_probability, eps, blocks.rows, inputs.b.shape[0]).mul_(upstream_visit)
    gradient = TermGradients(p_aba, g, h, upstream_visit)
    da, db, dbias_a, dbias_b = _passes(problem).gradients(problem, tuple(saved_by_passes), gradient, needs)
    rows = inputs.a.shape[0]
    return Gradients(
        None if da is None else _rows_back(da, blocks, rows),
        db,
        None if dbias_a is None else _rows_back(dbias_a, blocks, rows),
        dbias_b,
    )


def _passes(problem: Problem) -> Passes:
    """The quicker ones. Only tiles know differences, and without round trips see that a score is not finite."""
    small = problem.a.shape[0] * problem.b.shape[0] <= _WHOLE_SCORES
    return whole if small and problem.walker and not problem.differences else tiles


def weighted_log(x: Tensor, weights: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """``sum_i weights_i log x_i`` of vectors, with memory for the logarithms in ``out``.

    Where ``eps`` is 0, the logarithm of an off-class round trip may be -inf, and 0 times that must stay 0.
    """
    terms = torch.xlogy(weights, x) if eps == 0.0 else torch.log(x, out=out).mul_(weights)
    # Not a dot product, which adds one term after another: of 2^16 equal ones it loses eight bits.
    return terms.sum()


def _make_problem(inputs: Inputs) -> Problem:
    """The call with its rows in the order of the blocks."""
    blocks: ClassBlocks = inputs.labels.blocks()
    return Problem(
        a=_rows_in_order(inputs.a, blocks),
        b=inputs.b,
        bias_a=None if inputs.bias_a is None else _rows_in_order(inputs.bias_a, blocks),
        bias_b=inputs.bias_b,
        scale=inputs.scale,
        eps=inputs.eps,
        blocks=blocks,
        walker=inputs.walker,
        visit=inputs.visit,
        dtype=inputs.dtype,
        differences=inputs.differences,
    )


def _walk_statistics(p_aba: Tensor, blocks: ClassBlocks) -> tuple[Tensor, Tensor]:
    """``p_correct``, the mean probability of a return to the class, and ``accuracy_estimate``, that of its root."""
    correct = blocks.row_sums(p_aba * (blocks.minus_target < 0))
    return correct.mean(), correct.sqrt().mean()


def _rows_in_order(x: Tensor, blocks: ClassBlocks) -> Tensor:
    """Rows in the order of the blocks, those that take part."""
    return x if blocks.order is None else x.index_select(0, blocks.order)


def _rows_back(x: Tensor, blocks: ClassBlocks, rows: int) -> Tensor:
    """Rows to where they came from; those that took no part are zero."""
    if blocks.order is None:
        return x
    if blocks.position is not None:
        return x.index_select(0, blocks.position)
    return x.new_zeros((rows, *x.shape[1:])).index_copy_(0, blocks.order, x)
