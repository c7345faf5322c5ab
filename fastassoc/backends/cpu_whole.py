"""The passes for small batches: matrices whole, in as few operations as possible.

A batch of 100 x 100 is bound by the launch of operations, not by arithmetic or memory. One exponential serves both
softmaxes, and as the round trips of the merged form are a symmetric product, so is their gradient: one product with
``K = G' + G''`` in place of two with ``G``.

    e_ij = exp(s_ij)             R_i = sum_j e_ij               C_j = sum_i e_ij
    t_ij = e_ij / y_j            f_i = 1 / R_i                  y_j = sqrt(C_j)
    p_ab_ij = t_ij f_i y_j       q_ij = p_ba_ji = t_ij / y_j    p_aba_ik = f_i (t t')_ik

With ``G = dL/dp_aba``, ``h_j = dL/dp_ab_ij`` of the visit loss, and ``K_ik = f_i G_ik + G_ki f_k``:

    rho_i   = sum_j p_ab_ij dL/dp_ab_ij = sum_k G_ik p_aba_ik + f_i sum_j t_ij y_j h_j
    sigma_j = sum_i q_ij dL/dq_ij       = sum_i t_ij (K t)_ij / 2
    ds_ij   = t_ij ((K t)_ij + f_i (h_j - rho_i) y_j - sigma_j / y_j)

No score is shifted, so this holds while R and C stay within limits. Beyond, for an ``eps`` near 0, and for the smallest
batches, the form is plain: both matrices of probabilities by two softmaxes.
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
_MERGED_SCORES = 2**15
"""From so many scores on the merged form is quicker; below, the plain one has fewer operations."""
_SMALLEST_SUM, _LARGEST_SUM = 1e-6, 1e20
"""Of R and C, in the merged form. Nothing overflows: ``t <= 1e10`` and ``K <= 2e6 / eps``, so ``K t`` is below 1e27 for
each row, which leaves an upstream gradient of 1e10. And ``t t'`` may underflow: ``p_aba`` is 1e6 times that at most."""
_SMALLEST_EPS = 1e-10
"""Added to ``p_aba``, it makes nothing of what underflows (at most 1e-32), and bounds K."""


def walks(problem: Problem, needs_gradient: bool) -> Walks:
    """See `fastassoc.backends.Passes`."""
    large = problem.a.shape[0] * problem.b.shape[0] >= _MERGED_SCORES
    merged = _merged_walks(problem, needs_gradient) if large and problem.eps >= _SMALLEST_EPS else None
    return _plain_walks(problem, needs_gradient) if merged is None else merged


def gradients(problem: Problem, saved: Saved, gradient: LossGradient, needs: Needs) -> Gradients:
    """See `fastassoc.backends.Passes`."""
    # The plain form saves two tensors, the merged one three; either may come back with more None.
    merged = len(saved) > 2 and saved[2] is not None
    ds = (_merged_gradient if merged else _plain_gradient)(problem, saved, gradient)
    a, b = _operands(problem)
    da = torch.mm(ds, b) if needs[0] else None
    if da is not None and problem.scale != 1.0:
        da *= problem.scale
    db = torch.mm(ds.t(), a) if needs[1] else None
    return Gradients(da, db, ds.sum(1) if needs[2] else None, ds.sum(0) if needs[3] else None)


def _merged_walks(problem: Problem, needs_gradient: bool) -> Walks | None:
    """The merged form, or None where it does not hold; saves ``t``, ``f`` and ``y``."""
    t = _scores(problem).exp_()
    f, y = t.sum(1), t.sum(0)
    for sums in (f.numpy(), y.numpy()):
        # False for NaN too.
        if not (sums.min() >= _SMALLEST_SUM and sums.max() <= _LARGEST_SUM):
            return None
    f.reciprocal_()
    y.sqrt_()
    visit = torch.mv(t.t(), f).div_(problem.blocks.rows) if problem.visit else None
    t /= y
    p_aba = _products(problem.blocks, t, t)
    for product, factor in zip(problem.blocks.views(p_aba), _row_factors(problem.blocks, f), strict=True):
        product *= factor
    return Walks(p_aba, visit, (t, f, y) if needs_gradient else ())


def _merged_gradient(problem: Problem, saved: Saved, gradient: LossGradient) -> Tensor:
    t, f, y, *_ = saved
    assert t is not None
    assert f is not None
    assert y is not None
    blocks, h = problem.blocks, gradient.h
    t = t.view(blocks.rows, -1)
    rho = None
    if h is not None:
        h = h * y
        rho = torch.mv(t, h).mul_(f)
    if gradient.g is None:
        ds = torch.zeros_like(t)
    else:
        assert gradient.p_aba is not None
        trips = blocks.row_sums(gradient.g * gradient.p_aba)
        rho = trips if rho is None else rho.add_(trips)
        kernels = [
            kernel + kernel.transpose(1, 2)
            for kernel in map(torch.mul, blocks.views(gradient.g), _row_factors(blocks, f))
        ]
        ds = _apply(blocks, kernels, t)
        sigma = torch.mul(t, ds, out=_memory(t.shape, t.dtype)).sum(0).div_(y)
        ds.sub_(sigma, alpha=0.5)
    if h is not None:
        ds.addr_(f, h)
    assert rho is not None
    return ds.addr_(rho.mul_(f), y, alpha=-1.0).mul_(t)


def _plain_walks(problem: Problem, needs_gradient: bool) -> Walks:
    """Saves ``p_ab`` and ``q``."""
    s = _scores(problem)
    p_ab = torch.softmax(s, 1, out=_memory(s.shape, s.dtype))
    q = torch.softmax(s, 0, out=_memory(s.shape, s.dtype))
    visit = p_ab.mean(0) if problem.visit else None
    return Walks(_products(problem.blocks, p_ab, q), visit, (p_ab, q) if needs_gradient else ())


def _plain_gradient(problem: Problem, saved: Saved, gradient: LossGradient) -> Tensor:
    p_ab, q, *_ = saved
    assert p_ab is not None
    assert q is not None
    shape = problem.a.shape[0], problem.b.shape[0]
    p_ab, q = p_ab.view(shape), q.view(shape)
    if gradient.g is None:
        assert gradient.h is not None
        return _softmax_backward(gradient.h.expand_as(p_ab), p_ab, 1)
    kernels = problem.blocks.views(gradient.g)
    dp_ab = _apply(problem.blocks, kernels, q)
    if gradient.h is not None:
        dp_ab += gradient.h
    ds = _softmax_backward(dp_ab, p_ab, 1)
    dq = _apply(problem.blocks, [kernel.transpose(1, 2) for kernel in kernels], p_ab)
    ds += _softmax_backward(dq, q, 0)
    return ds


def _softmax_backward(gradient: Tensor, probability: Tensor, dim: int) -> Tensor:
    """``p (x - sum p x)`` for a gradient x of the probabilities p: the operation behind the derivative of softmax."""
    out = _memory(probability.shape, probability.dtype)
    return torch._softmax_backward_data(gradient, probability, dim, probability.dtype, grad_input=out)


def _scores(problem: Problem) -> Tensor:
    a, b = _operands(problem)
    s = torch.mm(a, b.t(), out=_memory((a.shape[0], b.shape[0]), problem.dtype))
    if problem.bias_a is not None:
        s += problem.bias_a.unsqueeze(1)
    if problem.bias_b is not None:
        s += problem.bias_b
    return s


def _products(blocks: ClassBlocks, left: Tensor, right: Tensor) -> Tensor:
    """Flat ``sum_j left_ij right_kj`` within the blocks."""
    if blocks.dense:
        return torch.mm(left, right.t()).view(-1)
    products = torch.zeros_like(blocks.target)
    add_round_trips(blocks, blocks.views(products), left, right)
    return products


def _apply(blocks: ClassBlocks, kernels: list[Tensor], p: Tensor) -> Tensor:
    """``sum_k kernel_ik p_kj`` within the blocks."""
    if blocks.dense:
        return torch.mm(kernels[0][0], p, out=_memory(p.shape, p.dtype))
    return apply_kernels(blocks, kernels, p, out=borrow(p.shape, p.dtype))


def _row_factors(blocks: ClassBlocks, factor: Tensor) -> list[Tensor]:
    """A factor for each row, to go with the blocks of every bucket."""
    return [bucket.rows(factor).unsqueeze(2) for bucket in blocks.buckets]


def _memory(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    """Borrowed memory for a result; None, which lets the operation allocate, where that is quicker."""
    return borrow(shape, dtype) if math.prod(shape) > _ALLOCATED else None


def _operands(problem: Problem) -> tuple[Tensor, Tensor]:
    a, b = problem.a.to(problem.dtype), problem.b.to(problem.dtype)
    return a if problem.scale == 1.0 else a * problem.scale, b
