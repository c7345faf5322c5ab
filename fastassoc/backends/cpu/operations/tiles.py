"""Batches of any size: the walker and the visit term around sweeps over tiles of the scores."""

from __future__ import annotations

import math

import torch

from fastassoc.backends.cpu.operations import sweeps
from fastassoc.backends.cpu.operations.class_blocks import ClassBlocks
from fastassoc.backends.cpu.operations.terms import visit_gradient, walk_statistics, weighted_log
from fastassoc.backends.cpu.operations.tiling import Problem
from fastassoc.backends.protocol import Gradients, Inputs, Losses, Needs, Saved

MOST_SAVED = 11
"""Tensors in `Losses.saved`, at most."""


def losses(inputs: Inputs, needs_gradient: bool, statistics: bool) -> Losses:
    """The passes, then logarithms of the round trips and of the visits, weighted and summed."""
    problem = _make_problem(inputs)
    blocks, eps = problem.blocks, inputs.eps
    p_aba, visit_probability, rho_visit, saved = sweeps.walks(problem, needs_gradient)
    visit_sum = None if visit_probability is None else (visit_probability + eps).log_().sum()
    if inputs.ranks is not None:
        parts = [x for x in (p_aba, rho_visit, visit_sum) if x is not None]
        sums = iter(inputs.ranks.sum(*parts))
        p_aba, rho_visit, visit_sum = (None if x is None else next(sums) for x in (p_aba, rho_visit, visit_sum))
    walker = visit = p_correct = accuracy_estimate = None
    if p_aba is not None:
        x = p_aba + eps
        walker = weighted_log(x, blocks.minus_target, eps, out=x).add_(math.log1p(blocks.rows * eps))
        if statistics:
            p_correct, accuracy_estimate = walk_statistics(p_aba, blocks)
    if visit_sum is not None:
        visit = visit_sum.mul(-1.0 / inputs.columns).add_(math.log1p(inputs.columns * eps))
    kept = (p_aba, visit_probability, rho_visit, *saved) if needs_gradient else ()
    return Losses(None, walker, visit, p_correct, accuracy_estimate, visit_probability if statistics else None, kept)


def gradients(
    inputs: Inputs, saved: Saved, upstream_walker: float | None, upstream_visit: float | None, needs: Needs
) -> Gradients:
    """The losses differentiated by round trips and visits, then the passes."""
    problem = _make_problem(inputs)
    blocks, eps = problem.blocks, inputs.eps
    p_aba, visit_probability, rho_visit, *saved_by_passes = saved
    g = h = None
    if upstream_walker is not None:
        assert p_aba is not None
        denominator = p_aba + eps
        if eps == 0.0:
            # Off-class pairs are 0 / tiny, not 0 / 0.
            denominator.clamp_min_(torch.finfo(p_aba.dtype).tiny)
        g = torch.div(blocks.minus_target, denominator, out=denominator)
        g *= upstream_walker
    if upstream_visit is not None:
        assert visit_probability is not None
        h = visit_gradient(visit_probability, eps, blocks.rows, inputs.columns, upstream_visit)
    gradient = sweeps.TermGradients(p_aba, g, h, rho_visit, upstream_visit)
    da, db, dbias_a, dbias_b = sweeps.gradients(problem, tuple(saved_by_passes), gradient, needs)
    rows = inputs.a.shape[0]
    return Gradients(
        None if da is None else blocks.rows_back(da, rows),
        db,
        None if dbias_a is None else blocks.rows_back(dbias_a, rows),
        dbias_b,
    )


def _make_problem(inputs: Inputs) -> Problem:
    """The call with its rows in the order of the blocks."""
    # What crosses ranks does not depend on the number of columns, and is no more than classes need.
    blocks: ClassBlocks = inputs.labels.blocks(may_be_dense=inputs.ranks is None)
    return Problem(
        a=blocks.rows_in_order(inputs.a),
        b=inputs.b,
        bias_a=None if inputs.bias_a is None else blocks.rows_in_order(inputs.bias_a),
        bias_b=inputs.bias_b,
        scale=inputs.scale,
        eps=inputs.eps,
        blocks=blocks,
        walker=inputs.walker,
        visit=inputs.visit,
        dtype=inputs.dtype,
        columns=inputs.columns,
        differences=inputs.differences,
        ranks=inputs.ranks,
    )
