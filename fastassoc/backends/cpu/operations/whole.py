"""Small batches: whole matrices, in as few operations as possible.

A batch of 100 x 100 is bound by the launch of operations, not by arithmetic or memory, so they are few, and of those
that do the same the quicker: a sum and a factor for a mean, an upstream gradient as a factor of a matrix product. For
``x = p_aba + eps``, ``v = visit + eps``, the target of eq 7 over N, and the upstream gradients w and u:

    walker = log(1 + N eps) - target . log x         G = dL/dp_aba = -w target / x
    visit  = log(1 + M eps) - mean log v             h_j = dL/dp_ab_ij = -u / (N M v_j)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastassoc.backends.cpu.memory import large_result
from fastassoc.backends.cpu.operations.class_blocks import ClassBlocks
from fastassoc.backends.cpu.operations.products import apply_kernels, round_trips
from fastassoc.backends.cpu.operations.terms import walk_statistics, weighted_log
from fastassoc.backends.protocol import Gradients, Inputs, Losses, Needs, Saved

_ADDED = 256, 4096
"""The library's softmax adds one row after another over the first dimension, and groups of 8 or 16 columns over the
second. Beyond these lengths that loses bits, which a sum, by halves, does not."""


class _Constants(NamedTuple):
    """Numbers as tensors, which an operation reads in half the time."""

    eps: Tensor
    walker: Tensor
    """log(1 + N eps)."""
    visit: Tensor
    """log(1 + M eps)."""
    rows: Tensor
    """N."""


_latest: tuple[tuple[int, int, float, torch.dtype], _Constants] | None = None


def _constants(n: int, m: int, eps: float, dtype: torch.dtype) -> _Constants:
    """Those of the call before, if it was of the same size."""
    global _latest
    key, latest = (n, m, eps, dtype), _latest
    if latest is not None and latest[0] == key:
        return latest[1]
    numbers = eps, math.log1p(n * eps), math.log1p(m * eps), float(n)
    constants = _Constants(*(torch.tensor(x, dtype=dtype, device="cpu") for x in numbers))
    if type(constants.eps) is Tensor:
        # Not a fake one, of which later calls could make nothing.
        _latest = key, constants
    return constants


def losses(inputs: Inputs, needs_gradient: bool, statistics: bool) -> Losses:
    """See `fastassoc.backends.protocol.Backend`; for batches with a walker term."""
    blocks: ClassBlocks = inputs.labels.blocks()
    eps, columns = inputs.eps, inputs.b.shape[0]
    constants = _constants(blocks.rows, columns, eps, inputs.dtype)
    a, b = _operands(inputs, blocks)
    s = _scores(inputs, blocks, a, b)
    p_ab, q = _softmax(s, 1), _softmax(s, 0)
    p_aba = round_trips(blocks, p_ab, q)
    x = p_aba + constants.eps if statistics else p_aba.add_(constants.eps)
    walker = weighted_log(x, blocks.minus_target, eps).add_(constants.walker)
    visit = visit_probability = v = None
    if inputs.visit:
        # Not a product with a vector of weights, which adds one term after another.
        visit_probability = p_ab.sum(0).div_(constants.rows)
        v = visit_probability + constants.eps if statistics else visit_probability.add_(constants.eps)
        visit = torch.add(constants.visit, torch.log(v).sum(), alpha=-1.0 / columns)
    if needs_gradient and eps == 0.0:
        # Off-class pairs are then 0 / tiny in the gradient, not 0 / 0.
        for denominator in (x, v):
            if denominator is not None:
                denominator.clamp_min_(torch.finfo(inputs.dtype).tiny)
    p_correct = accuracy_estimate = None
    if statistics:
        p_correct, accuracy_estimate = walk_statistics(p_aba, blocks)
    saved = (x, v, None if a is inputs.a else a, p_ab, q) if needs_gradient else ()
    return Losses(None, walker, visit, p_correct, accuracy_estimate, visit_probability if statistics else None, saved)


def gradients(
    inputs: Inputs, saved: Saved, upstream_walker: float | None, upstream_visit: float | None, needs: Needs
) -> Gradients:
    """See `fastassoc.backends.protocol.Backend`."""
    blocks: ClassBlocks = inputs.labels.blocks()
    x, v, a, p_ab, q, *_ = saved
    p_ab, q = _matrix(p_ab, blocks.rows), _matrix(q, blocks.rows)
    h, visit_factor = None, 0.0
    if upstream_visit is not None:
        assert v is not None
        # A factor of what it is added to: an operation less.
        h, visit_factor = v.reciprocal(), -upstream_visit / (blocks.rows * inputs.b.shape[0])
    if upstream_walker is None:
        assert h is not None
        ds = _softmax_backward(h.mul_(visit_factor).expand_as(p_ab), p_ab, 1)
    else:
        assert x is not None
        g = blocks.minus_target / x
        if upstream_walker != 1.0:
            g *= upstream_walker
        kernels = blocks.views(g)
        out = large_result(p_ab.shape, p_ab.dtype)
        dp_ab = apply_kernels(blocks, kernels, q, out=out)
        if h is not None:
            dp_ab.add_(h, alpha=visit_factor)
        ds = _softmax_backward(dp_ab, p_ab, 1)
        dq = apply_kernels(blocks, [kernel.mT for kernel in kernels], p_ab, out=out)
        ds += _softmax_backward(dq, q, 0)
    da = db = None
    if needs[0]:
        da = torch.mm(ds, inputs.b if inputs.b.dtype == inputs.dtype else inputs.b.to(inputs.dtype))
        if inputs.scale != 1.0:
            da *= inputs.scale
        da = blocks.rows_back(da, inputs.a.shape[0])
    if needs[1]:
        db = torch.mm(ds.t(), inputs.a if a is None else _matrix(a, blocks.rows))
    dbias_a = blocks.rows_back(ds.sum(1), inputs.a.shape[0]) if needs[2] else None
    return Gradients(da, db, dbias_a, ds.sum(0) if needs[3] else None)


def _softmax(s: Tensor, dim: int) -> Tensor:
    if s.shape[dim] <= _ADDED[dim]:
        return torch.softmax(s, dim)
    e = torch.sub(s, s.amax(dim, keepdim=True), out=large_result(s.shape, s.dtype)).exp_()
    return e.div_(e.sum(dim, keepdim=True))


def _softmax_backward(gradient: Tensor, probability: Tensor, dim: int) -> Tensor:
    """``p (x - sum p x)`` for a gradient x of the probabilities p: the operation behind the derivative of softmax."""
    if gradient.shape[dim] <= _ADDED[dim]:
        return torch._softmax_backward_data(gradient, probability, dim, probability.dtype)
    return (gradient - (gradient * probability).sum(dim, keepdim=True)).mul_(probability)


def _scores(inputs: Inputs, blocks: ClassBlocks, a: Tensor, b: Tensor) -> Tensor:
    s = torch.mm(a, b.t(), out=large_result((a.shape[0], b.shape[0]), inputs.dtype))
    if inputs.bias_a is not None:
        s += blocks.rows_in_order(inputs.bias_a).unsqueeze(1)
    if inputs.bias_b is not None:
        s += inputs.bias_b
    return s


def _matrix(x: Tensor | None, rows: int) -> Tensor:
    """What was saved, which may come back flat."""
    assert x is not None
    return x if x.ndim == 2 else x.view(rows, -1)


def _operands(inputs: Inputs, blocks: ClassBlocks) -> tuple[Tensor, Tensor]:
    """``a``, its rows in the order of the blocks, and ``b``, whose product is the scores but for the biases."""
    a, b, dtype = blocks.rows_in_order(inputs.a), inputs.b, inputs.dtype
    # Even a conversion to what a tensor is takes as long as a small operation.
    if a.dtype != dtype:
        a = a.to(dtype)
    if b.dtype != dtype:
        b = b.to(dtype)
    return a if inputs.scale == 1.0 else a * inputs.scale, b
