"""The passes on whole matrices: both softmaxes kept, and derived by the operation behind softmax's own derivative.

A batch of 100 x 100 is bound by the launch of operations, not by arithmetic or memory, and these are few:

    p_ab = softmax over j of s        q_ij = p_ba_ji = softmax over i of s        p_aba = p_ab q'
    dL/dp_ab = G q + h                dL/dq = G' p_ab                             G = dL/dp_aba
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastassoc.backends.cpu.memory import borrow
from fastassoc.backends.cpu.operations.passes import Problem, TermGradients, Walks
from fastassoc.backends.cpu.operations.products import apply_kernels, round_trips
from fastassoc.backends.protocol import Gradients, Needs, Saved


def walks(problem: Problem, needs_gradient: bool) -> Walks:
    """See `fastassoc.backends.cpu.operations.passes.Passes`; for batches with a walker term."""
    s = _scores(problem)
    p_ab, q = torch.softmax(s, 1), torch.softmax(s, 0)
    # Not a product with a vector of weights, which adds one term after another.
    visit = p_ab.sum(0).div_(problem.blocks.rows) if problem.visit else None
    return Walks(round_trips(problem.blocks, p_ab, q), visit, (p_ab, q) if needs_gradient else ())


def gradients(problem: Problem, saved: Saved, gradient: TermGradients, needs: Needs) -> Gradients:
    """See `fastassoc.backends.cpu.operations.passes.Passes`."""
    blocks, dtype = problem.blocks, problem.dtype
    p_ab, q = (_matrix(x, blocks.rows) for x in saved[:2])
    if gradient.g is None:
        assert gradient.h is not None
        ds = _softmax_backward(gradient.h.expand_as(p_ab), p_ab, 1)
    else:
        kernels = blocks.views(gradient.g)
        out = borrow(p_ab.shape, dtype)
        dp_ab = apply_kernels(blocks, kernels, q, out=out)
        if gradient.h is not None:
            dp_ab += gradient.h
        ds = _softmax_backward(dp_ab, p_ab, 1)
        dq = apply_kernels(blocks, [kernel.mT for kernel in kernels], p_ab, out=out)
        ds += _softmax_backward(dq, q, 0)
    da = db = None
    if needs[0]:
        da = torch.mm(ds, _converted(problem.b, dtype))
        if problem.scale != 1.0:
            da *= problem.scale
    if needs[1]:
        db = torch.mm(ds.t(), _scaled_rows(problem))
    return Gradients(da, db, ds.sum(1) if needs[2] else None, ds.sum(0) if needs[3] else None)


def _scores(problem: Problem) -> Tensor:
    out = borrow((problem.a.shape[0], problem.b.shape[0]), problem.dtype)
    s = torch.mm(_scaled_rows(problem), _converted(problem.b, problem.dtype).t(), out=out)
    if problem.bias_a is not None:
        s += problem.bias_a.unsqueeze(1)
    if problem.bias_b is not None:
        s += problem.bias_b
    return s


def _scaled_rows(problem: Problem) -> Tensor:
    """``scale a``, whose product with ``b`` is the scores but for the biases."""
    a = _converted(problem.a, problem.dtype)
    return a if problem.scale == 1.0 else a * problem.scale


def _converted(x: Tensor, dtype: torch.dtype) -> Tensor:
    # Even a conversion to what a tensor is takes as long as a small operation.
    return x if x.dtype == dtype else x.to(dtype)


def _softmax_backward(gradient: Tensor, probability: Tensor, dim: int) -> Tensor:
    """``p (x - sum p x)`` for a gradient x of the probabilities p: the operation behind the derivative of softmax."""
    return torch._softmax_backward_data(gradient, probability, dim, probability.dtype)


def _matrix(x: Tensor | None, rows: int) -> Tensor:
    """What was saved, which may come back flat."""
    assert x is not None
    return x.view(rows, -1)
