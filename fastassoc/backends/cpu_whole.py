"""The passes for small batches: both probability matrices whole, in as few operations as possible.

A batch of 100 x 100 is bound by the launch of operations, not by arithmetic or memory.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastassoc.backends import Gradients, LossGradient, Needs, Problem, Saved, Walks
from fastassoc.backends.cpu_memory import borrow
from fastassoc.backends.cpu_products import add_round_trips, apply_kernels
from fastassoc.classes import ClassBlocks

_ALLOCATED = 2**14
"""Results of up to so many entries come from memory that the allocator has at hand."""


def walks(problem: Problem, needs_gradient: bool) -> Walks:
    """See `fastassoc.backends.Passes`; saves ``p_ab`` and ``q_ij = p_ba_ji``."""
    a, b = _operands(problem)
    shape = a.shape[0], b.shape[0]
    s = torch.mm(a, b.t(), out=_memory(shape, problem.dtype))
    if problem.bias_a is not None:
        s += problem.bias_a.unsqueeze(1)
    if problem.bias_b is not None:
        s += problem.bias_b
    p_ab = torch.softmax(s, 1, out=_memory(shape, problem.dtype))
    q = torch.softmax(s, 0, out=_memory(shape, problem.dtype))
    if problem.blocks.dense:
        p_aba = torch.mm(p_ab, q.t()).view(-1)
    else:
        p_aba = torch.zeros_like(problem.blocks.target)
        add_round_trips(problem.blocks, problem.blocks.views(p_aba), p_ab, q)
    visit = p_ab.mean(0) if problem.visit else None
    return Walks(p_aba, visit, (p_ab, q) if needs_gradient else ())


def gradients(problem: Problem, saved: Saved, gradient: LossGradient, needs: Needs) -> Gradients:
    """See `fastassoc.backends.Passes`."""
    p_ab, q, *_ = saved
    assert p_ab is not None
    assert q is not None
    shape = problem.a.shape[0], problem.b.shape[0]
    p_ab, q = p_ab.view(shape), q.view(shape)
    if gradient.g is None:
        assert gradient.h is not None
        ds = _softmax_backward(gradient.h.expand_as(p_ab), p_ab, 1)
    else:
        dp_ab = _kernel_product(problem.blocks, gradient.g, q)
        if gradient.h is not None:
            dp_ab += gradient.h
        ds = _softmax_backward(dp_ab, p_ab, 1)
        ds += _softmax_backward(_kernel_product(problem.blocks, gradient.g, p_ab, transposed=True), q, 0)
    a, b = _operands(problem)
    da = torch.mm(ds, b) if needs[0] else None
    if da is not None and problem.scale != 1.0:
        da *= problem.scale
    db = torch.mm(ds.t(), a) if needs[1] else None
    return Gradients(da, db, ds.sum(1) if needs[2] else None, ds.sum(0) if needs[3] else None)


def _softmax_backward(gradient: Tensor, probability: Tensor, dim: int) -> Tensor:
    """``p (x - sum p x)`` for a gradient x of the probabilities p: the operation behind the derivative of softmax."""
    out = _memory(probability.shape, probability.dtype)
    return torch._softmax_backward_data(gradient, probability, dim, probability.dtype, grad_input=out)


def _kernel_product(blocks: ClassBlocks, g: Tensor, p: Tensor, transposed: bool = False) -> Tensor:
    """``sum_k G_ik p_kj`` within the blocks; ``G_ki`` if transposed."""
    if blocks.dense:
        kernel = g.view(blocks.rows, blocks.rows)
        return torch.mm(kernel.t() if transposed else kernel, p, out=_memory(p.shape, p.dtype))
    kernels = blocks.views(g)
    if transposed:
        kernels = [kernel.transpose(1, 2) for kernel in kernels]
    return apply_kernels(blocks, kernels, p, out=borrow(p.shape, p.dtype))


def _memory(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    """Borrowed memory for a result; None, which lets the operation allocate, where that is quicker."""
    return borrow(shape, dtype) if math.prod(shape) > _ALLOCATED else None


def _operands(problem: Problem) -> tuple[Tensor, Tensor]:
    a, b = problem.a.to(problem.dtype), problem.b.to(problem.dtype)
    return a if problem.scale == 1.0 else a * problem.scale, b
