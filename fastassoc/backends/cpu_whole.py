"""Small batches on the CPU: matrices whole, in as few operations as possible.

A batch of 100 x 100 is bound by the launch of operations, not by arithmetic or memory, so they are few, and of those
that do the same the quicker: a sum and a factor for a mean, an upstream gradient as a factor of a matrix product. For
``x = p_aba + eps``, ``v = visit + eps``, the target of eq 7 over N, and the upstream gradients w and u:

    walker = log(1 + N eps) - target . log x         G = dL/dp_aba = -w target / x
    visit  = log(1 + M eps) - mean log v             h_j = dL/dp_ab_ij = -u / (N M v_j)

Below `_MERGED_SCORES` the form is plain: both matrices of probabilities are kept, both softmaxes derived. From there on
it is merged: one exponential for both, and as the round trips are a symmetric product, so is their gradient: one with
``K = G' + G''`` in place of two with ``G``.

    e_ij = exp(s_ij)             R_i = sum_j e_ij               C_j = sum_i e_ij
    t_ij = e_ij / y_j            f_i = 1 / R_i                  y_j = sqrt(C_j)
    p_ab_ij = t_ij f_i y_j       q_ij = p_ba_ji = t_ij / y_j    p_aba_ik = f_i (t t')_ik

With ``K_ik = f_i G_ik + G_ki f_k``:

    rho_i   = sum_j p_ab_ij dL/dp_ab_ij = sum_k G_ik p_aba_ik + f_i sum_j t_ij y_j h_j
    sigma_j = sum_i q_ij dL/dq_ij       = sum_i t_ij (K t)_ij / 2
    ds_ij   = t_ij ((K t)_ij + f_i (h_j - rho_i) y_j - sigma_j / y_j)

No score is shifted in the merged form, so it holds while R and C stay within limits, and for an ``eps`` not too near 0;
beyond, the form is plain, or, for more scores than `_PLAIN_SCORES`, tiles take over.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastassoc.backends import Gradients, Inputs, Losses, Needs, Saved
from fastassoc.backends.block_losses import rows_back, rows_in_order, walk_statistics, weighted_log
from fastassoc.backends.cpu_memory import borrow
from fastassoc.backends.cpu_products import SymmetricTrips, apply_kernels, round_trips
from fastassoc.classes import ClassBlocks

_ALLOCATED = 2**17
"""Results of up to so many entries come from memory that the allocator has at hand."""
_MERGED_SCORES = 2**17
"""From so many scores on the merged form is quicker; below, the plain one has fewer operations."""
_PLAIN_SCORES = 2**18
"""Beyond so many scores the plain form gives way to tiles, which flush what underflows: subnormal numbers are slow."""
_SMALLEST_SUM, _LARGEST_SUM = 1e-6, 1e20
"""Of R and C, in the merged form. Nothing overflows: ``t <= 1e10`` and ``K <= 2e6 / eps``, so ``K t`` is below 1e27 for
each row, which leaves an upstream gradient of 1e10. And ``t t'`` may underflow: ``p_aba`` is 1e6 times that at most."""
_ROWS_LOOKED_AT = 16
"""Enough to show most batches whose scores are too large."""
_SMALLEST_EPS = 1e-10
"""Added to ``p_aba``, it makes nothing of what underflows (at most 1e-32), and bounds K."""

_Walks = tuple[Tensor, Tensor | None, tuple[Tensor, ...]]
"""Flat class blocks of the round trips, visit probabilities [M] if wanted, and what the gradient needs of both."""


class _Constants(NamedTuple):
    """Numbers as tensors, which an operation reads in half the time."""

    eps: Tensor
    walker: Tensor
    """log(1 + N eps)."""
    visit: Tensor
    """log(1 + M eps)."""
    rows: Tensor
    """N."""


class _Upstream(NamedTuple):
    """The losses differentiated by ``p_aba``, G of the equations, and by the visits' share of ``p_ab``, h there."""

    g: Tensor | None
    """G is ``walker_factor g``, flat class blocks; None without a walker gradient."""
    walker_factor: float
    h: Tensor | None
    """h of the equations is ``visit_factor h``, [M]; None without a visit gradient."""
    visit_factor: float


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


def losses(inputs: Inputs, needs_gradient: bool, statistics: bool) -> Losses | None:
    """See `fastassoc.backends.Backend`; for batches with a walker term. None where tiles are quicker."""
    blocks: ClassBlocks = inputs.labels
    eps, columns = inputs.eps, inputs.b.shape[0]
    constants = _constants(blocks.rows, columns, eps, inputs.dtype)
    scores = blocks.rows * columns
    a, b = _operands(inputs)
    walks = _merged_walks(inputs, a, b, constants) if scores >= _MERGED_SCORES and eps >= _SMALLEST_EPS else None
    if walks is None and scores > _PLAIN_SCORES:
        return None
    p_aba, visit_probability, saved = _plain_walks(inputs, a, b, constants) if walks is None else walks
    # The merged form saves the round trips themselves.
    in_place = walks is None and not statistics
    x = p_aba.add_(constants.eps) if in_place else p_aba + constants.eps
    walker = weighted_log(x, blocks.minus_target, eps).add_(constants.walker)
    visit = v = None
    if visit_probability is not None:
        v = visit_probability.add_(constants.eps) if in_place else visit_probability + constants.eps
        visit = torch.add(constants.visit, torch.log(v).sum(), alpha=-1.0 / columns)
    if needs_gradient and eps == 0.0:
        # Off-class pairs are then 0 / tiny in the gradient, not 0 / 0.
        for denominator in (x, v):
            if denominator is not None:
                denominator.clamp_min_(torch.finfo(inputs.dtype).tiny)
    p_correct = accuracy_estimate = None
    if statistics:
        p_correct, accuracy_estimate = walk_statistics(p_aba, blocks)
    else:
        visit_probability = None
    kept = (x, v, None if a is inputs.a else a, *saved) if needs_gradient else ()
    return Losses(walker, visit, p_correct, accuracy_estimate, visit_probability, kept)


def gradients(
    inputs: Inputs, saved: Saved, upstream_walker: float | None, upstream_visit: float | None, needs: Needs
) -> Gradients:
    """See `fastassoc.backends.Backend`."""
    blocks: ClassBlocks = inputs.labels
    x, v, a, *kept = saved
    g = h = None
    walker_factor = visit_factor = 0.0
    if upstream_walker is not None:
        assert x is not None
        g, walker_factor = blocks.minus_target / x, upstream_walker
    if upstream_visit is not None:
        assert v is not None
        h, visit_factor = v.reciprocal(), -upstream_visit / (blocks.rows * inputs.b.shape[0])
    # The plain form keeps two tensors, the merged one four; either may come back with more None.
    merged = len(kept) > 2 and kept[2] is not None
    ds = (_merged_gradient if merged else _plain_gradient)(blocks, kept, _Upstream(g, walker_factor, h, visit_factor))
    da = db = None
    if needs[0]:
        da = torch.mm(ds, inputs.b if inputs.b.dtype == inputs.dtype else inputs.b.to(inputs.dtype))
        if inputs.scale != 1.0:
            da *= inputs.scale
        da = rows_back(da, blocks, inputs.a.shape[0])
    if needs[1]:
        db = torch.mm(ds.t(), inputs.a if a is None else _matrix(a, blocks.rows))
    dbias_a = rows_back(ds.sum(1), blocks, inputs.a.shape[0]) if needs[2] else None
    return Gradients(da, db, dbias_a, ds.sum(0) if needs[3] else None)


def _plain_walks(inputs: Inputs, a: Tensor, b: Tensor, constants: _Constants) -> _Walks:
    """Saved are ``p_ab`` and ``q``."""
    s = _scores(inputs, a, b)
    p_ab, q = torch.softmax(s, 1), torch.softmax(s, 0)
    # Not a product with a vector of weights, which adds one term after another.
    visit = p_ab.sum(0).div_(constants.rows) if inputs.visit else None
    return _products(inputs.labels, p_ab, q), visit, (p_ab, q)


def _plain_gradient(blocks: ClassBlocks, saved: list[Tensor | None], upstream: _Upstream) -> Tensor:
    g, walker_factor, h, visit_factor = upstream
    p_ab, q = _matrix(saved[0], blocks.rows), _matrix(saved[1], blocks.rows)
    if g is None:
        assert h is not None
        return _softmax_backward(h.mul_(visit_factor).expand_as(p_ab), p_ab, 1)
    if blocks.dense and h is not None:
        # The same in fewer calls, which are 2% of a step at 100 x 100; a factor after the products overflows later.
        kernel = g.view(blocks.rows, blocks.rows)
        dp_ab = torch.mm(kernel, q)
        if walker_factor != 1.0:
            dp_ab *= walker_factor
        ds = _softmax_backward(dp_ab.add_(h, alpha=visit_factor), p_ab, 1)
        dq = torch.mm(kernel.t(), p_ab)
        return ds.add_(_softmax_backward(dq, q, 0), alpha=walker_factor)
    kernels = _kernels(blocks, g.mul_(walker_factor))
    dp_ab = _apply(blocks, kernels, q)
    if h is not None:
        dp_ab.add_(h, alpha=visit_factor)
    ds = _softmax_backward(dp_ab, p_ab, 1)
    dq = _apply(blocks, [kernel.mT for kernel in kernels], p_ab)
    return ds.add_(_softmax_backward(dq, q, 0))


def _merged_walks(inputs: Inputs, a: Tensor, b: Tensor, constants: _Constants) -> _Walks | None:
    """None where the merged form does not hold; saved are ``p_aba``, ``t``, ``f`` and ``y``."""
    blocks: ClassBlocks = inputs.labels
    t = _scores(inputs, a, b)
    # A score whose exponential alone exceeds the largest sum: found before exponentials that underflow take time.
    if t.numpy()[:_ROWS_LOOKED_AT].max() > math.log(_LARGEST_SUM):
        return None
    t.exp_()
    f, y = t.sum(1), t.sum(0)
    for sums in (f.numpy(), y.numpy()):
        # False for NaN too.
        if not (sums.min() >= _SMALLEST_SUM and sums.max() <= _LARGEST_SUM):
            return None
    f.reciprocal_()
    y.sqrt_()
    visit = None
    if inputs.visit:
        weights = torch.div(f, constants.rows).unsqueeze(1)
        visit = torch.mul(t, weights, out=_memory(t.shape, t.dtype)).sum(0)
    t /= y
    trips = SymmetricTrips(blocks, t.shape[1])
    trips.add(t)
    p_aba = trips.result()
    for product, factor in zip(_kernels(blocks, p_aba), _row_factors(blocks, f), strict=True):
        product *= factor
    return p_aba, visit, (p_aba, t, f, y)


def _merged_gradient(blocks: ClassBlocks, saved: list[Tensor | None], upstream: _Upstream) -> Tensor:
    g, walker_factor, h, visit_factor = upstream
    p_aba, t, f, y, *_ = saved
    assert p_aba is not None
    assert f is not None
    assert y is not None
    t = _matrix(t, blocks.rows)
    rho = None
    if h is not None:
        h = torch.mul(h, y, out=h).mul_(visit_factor)
        rho = torch.mul(t, h, out=_memory(t.shape, t.dtype)).sum(1).mul_(f)
    if g is not None:
        g.mul_(walker_factor)
        trips = blocks.row_sums(g * p_aba)
        rho = trips if rho is None else rho.add_(trips)
        kernels = [kernel + kernel.mT for kernel in map(torch.mul, _kernels(blocks, g), _row_factors(blocks, f))]
        ds = _apply(blocks, kernels, t)
        sigma = torch.mul(t, ds, out=_memory(t.shape, t.dtype)).sum(0).div_(y)
    assert rho is not None
    left, right = [rho.mul_(f)], [-y]
    if h is not None:
        left.append(f)
        right.append(h)
    if g is None:
        ds = torch.mm(torch.stack(left, 1), torch.stack(right), out=_memory(t.shape, t.dtype))
    else:
        left.append(torch.full_like(f, -0.5))
        right.append(sigma)
        ds.addmm_(torch.stack(left, 1), torch.stack(right))
    return ds.mul_(t)


def _softmax_backward(gradient: Tensor, probability: Tensor, dim: int) -> Tensor:
    """``p (x - sum p x)`` for a gradient x of the probabilities p: the operation behind the derivative of softmax."""
    return torch._softmax_backward_data(gradient, probability, dim, probability.dtype)


def _scores(inputs: Inputs, a: Tensor, b: Tensor) -> Tensor:
    s = torch.mm(a, b.t(), out=_memory((a.shape[0], b.shape[0]), inputs.dtype))
    if inputs.bias_a is not None:
        s += rows_in_order(inputs.bias_a, inputs.labels).unsqueeze(1)
    if inputs.bias_b is not None:
        s += inputs.bias_b
    return s


def _products(blocks: ClassBlocks, left: Tensor, right: Tensor) -> Tensor:
    """Flat ``sum_j left_ij right_kj`` within the blocks."""
    if blocks.dense:
        return torch.mm(left, right.t()).view(-1)
    return round_trips(blocks, left, right)


def _apply(blocks: ClassBlocks, kernels: list[Tensor], p: Tensor) -> Tensor:
    """``sum_k kernel_ik p_kj`` within the blocks."""
    out = _memory(p.shape, p.dtype)
    if blocks.dense:
        return torch.mm(kernels[0], p, out=out)
    return apply_kernels(blocks, kernels, p, out=torch.empty_like(p) if out is None else out)


def _kernels(blocks: ClassBlocks, flat: Tensor) -> list[Tensor]:
    """The blocks of every bucket [blocks, size, size]; a dense block is one matrix [N, N]."""
    return [flat.view(blocks.rows, blocks.rows)] if blocks.dense else blocks.views(flat)


def _row_factors(blocks: ClassBlocks, factor: Tensor) -> list[Tensor]:
    """A factor for each row, to go with `_kernels`."""
    if blocks.dense:
        return [factor.unsqueeze(1)]
    return [bucket.rows(factor).unsqueeze(2) for bucket in blocks.buckets]


def _matrix(x: Tensor | None, rows: int) -> Tensor:
    """What was saved, which may come back flat."""
    assert x is not None
    return x if x.ndim == 2 else x.view(rows, -1)


def _memory(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    """Borrowed memory for a matrix; None, which lets the operation allocate, where that is quicker."""
    rows, columns = shape
    return borrow(shape, dtype) if rows * columns > _ALLOCATED else None


def _operands(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """``a``, its rows in the order of the blocks, and ``b``, whose product is the scores but for the biases."""
    a, b, dtype = rows_in_order(inputs.a, inputs.labels), inputs.b, inputs.dtype
    # Even a conversion to what a tensor is takes as long as a small operation.
    if a.dtype != dtype:
        a = a.to(dtype)
    if b.dtype != dtype:
        b = b.to(dtype)
    return a if inputs.scale == 1.0 else a * inputs.scale, b
