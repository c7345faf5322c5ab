"""The passes for small batches: both probability matrices whole, in as few operations as possible.

A batch of 100 x 100 is bound by the launch of operations, not by arithmetic or memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastassoc.backends import Gradients, LossGradient, Needs, Problem, Saved, Walks
from fastassoc.backends.cpu_products import add_round_trips, apply_kernels


def walks(problem: Problem, needs_gradient: bool) -> Walks:
    """See `fastassoc.backends.Backend`; saves ``p_ab`` and ``p_ba``, both indexed like the scores."""
    a, b = _operands(problem)
    s = torch.mm(a, b.t())
    if problem.bias_a is not None:
        s += problem.bias_a.unsqueeze(1)
    if problem.bias_b is not None:
        s += problem.bias_b
    p_ab = s.softmax(1)
    p_ba = s.softmax(0)
    if problem.blocks.dense:
        p_aba = torch.mm(p_ab, p_ba.t()).view(-1)
    else:
        p_aba = torch.zeros_like(problem.blocks.target)
        add_round_trips(problem.blocks, problem.blocks.views(p_aba), p_ab, p_ba)
    visit = p_ab.mean(0) if problem.visit else None
    return Walks(p_aba, visit, (p_ab, p_ba) if needs_gradient else ())


def gradients(problem: Problem, saved: Saved, gradient: LossGradient, needs: Needs) -> Gradients:
    """See `fastassoc.backends.Backend`."""
    p_ab, p_ba = saved
    assert p_ab is not None
    assert p_ba is not None
    blocks = problem.blocks
    kernels = [] if gradient.g is None else blocks.views(gradient.g)
    # dL/dp_ab, then through the softmax over columns: p_ab (x - sum_j p_ab x).
    if kernels:
        x = apply_kernels(blocks, kernels, p_ba, out=torch.empty_like(p_ba))
        if gradient.h is not None:
            x += gradient.h
        x *= p_ab
    else:
        assert gradient.h is not None
        x = p_ab * gradient.h
    ds = x.addcmul_(p_ab, x.sum(1, keepdim=True), value=-1)
    if kernels:
        transposed = [kernel.transpose(1, 2) for kernel in kernels]
        y = apply_kernels(blocks, transposed, p_ab, out=torch.empty_like(p_ab)).mul_(p_ba)
        ds += y.addcmul_(p_ba, y.sum(0), value=-1)
    a, b = _operands(problem)
    da = torch.mm(ds, b) if needs[0] else None
    if da is not None and problem.scale != 1.0:
        da *= problem.scale
    db = torch.mm(ds.t(), a) if needs[1] else None
    return Gradients(da, db, ds.sum(1) if needs[2] else None, ds.sum(0) if needs[3] else None)


def _operands(problem: Problem) -> tuple[Tensor, Tensor]:
    a, b = problem.a.to(problem.dtype), problem.b.to(problem.dtype)
    return a if problem.scale == 1.0 else a * problem.scale, b
