"""The autograd function: the mathematics of the losses around the passes of a backend."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastassoc.backends import Backend, LossGradient, Problem, visit_gradient
from fastassoc.classes import ClassBlocks


class Options(NamedTuple):
    """Everything about a call that is not a differentiable tensor; see `Problem`."""

    backend: Backend
    blocks: ClassBlocks
    scale: float
    eps: float
    walker: bool
    visit: bool
    dtype: torch.dtype
    needs_gradient: bool
    statistics: bool
    """Whether the two outputs for statistics are wanted."""


class WalkerVisitFunction(torch.autograd.Function):
    """``(a, b, bias_a, bias_b, options) -> (walker, visit, correct, visit_probability)``.

    The first two are 0-d and differentiable once. ``correct`` [N] is ``sum_{k~i} p_aba_ik``, rows in the order of the
    class blocks, and ``visit_probability`` is [M]; neither carries a gradient. What is not wanted is None.
    """

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, bias_a: Tensor | None, bias_b: Tensor | None, options: Options
    ) -> tuple[Tensor | None, ...]:
        """Losses, and statistics where wanted."""
        ctx.set_materialize_grads(False)
        blocks, eps = options.blocks, options.eps
        with own_precision(a):
            p_aba, visit_probability, saved = options.backend.walks(
                _problem(a, b, bias_a, bias_b, options), options.needs_gradient
            )
        walker = visit = correct = None
        if p_aba is not None:
            x = p_aba + eps
            # Without eps the logarithm of an off-class round trip may be -inf, and 0 times that must stay 0.
            log_target = x.log_().mul_(blocks.target) if eps > 0.0 else torch.xlogy(blocks.target, x)
            walker = math.log1p(blocks.rows * eps) - log_target.sum()
            if options.statistics:
                correct = blocks.row_sums(p_aba * (blocks.target > 0))
        if visit_probability is not None:
            visit = math.log1p(b.shape[0] * eps) - (visit_probability + eps).log_().mean()
        if options.needs_gradient:
            ctx.options = options
            ctx.save_for_backward(a, b, bias_a, bias_b, p_aba, visit_probability, *saved)
        if not options.statistics:
            return walker, visit, None, None
        ctx.mark_non_differentiable(*(x for x in (correct, visit_probability) if x is not None))
        return walker, visit, correct, visit_probability

    @staticmethod
    def backward(
        ctx: Any, grad_walker: Tensor | None, grad_visit: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of ``a``, ``b`` and the biases."""
        if grad_walker is None and grad_visit is None:
            return None, None, None, None, None
        with torch.no_grad():
            gradients = WalkerVisitFunction._first_derivative(ctx, grad_walker, grad_visit)
        if torch.is_grad_enabled():
            sources = (*ctx.saved_tensors[:4], grad_walker, grad_visit)
            gradients = tuple(None if x is None else _NoSecondDerivative.apply(x, *sources) for x in gradients)
        return *gradients, None

    @staticmethod
    def _first_derivative(ctx: Any, grad_walker: Tensor | None, grad_visit: Tensor | None) -> tuple[Tensor | None, ...]:
        a, b, bias_a, bias_b, p_aba, visit_probability, *saved = ctx.saved_tensors
        options: Options = ctx.options
        blocks, eps = options.blocks, options.eps
        g = h = None
        if grad_walker is not None:
            denominator = p_aba + eps
            if eps == 0.0:
                # Off-class pairs are 0 / tiny, not 0 / 0.
                denominator.clamp_min_(torch.finfo(p_aba.dtype).tiny)
            g = torch.div(blocks.target, denominator, out=denominator).mul_(-grad_walker)
        if grad_visit is not None:
            h = visit_gradient(visit_probability, eps, blocks.rows, b.shape[0]).mul_(grad_visit)
        needs = ctx.needs_input_grad[:4]
        with own_precision(a):
            da, db, dbias_a, dbias_b = options.backend.gradients(
                _problem(a, b, bias_a, bias_b, options), tuple(saved), LossGradient(p_aba, g, h, grad_visit), needs
            )
        if da is not None:
            da = _rows_back(da, blocks, a.shape[0]).to(a.dtype)
        if db is not None:
            db = db.to(b.dtype)
        if dbias_a is not None:
            dbias_a = _rows_back(dbias_a, blocks, a.shape[0])
        return da, db, dbias_a, dbias_b


class _NoSecondDerivative(torch.autograd.Function):
    """``(gradient, *sources) -> gradient``, tied to its sources so that deriving it fails instead of giving 0."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *sources: Tensor | None) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Tensor:
        raise RuntimeError(
            "the gradient of fastassoc.walker_visit_loss cannot be differentiated again; "
            "fastassoc.reference.walker_visit_loss can, for small batches"
        )


def _problem(a: Tensor, b: Tensor, bias_a: Tensor | None, bias_b: Tensor | None, options: Options) -> Problem:
    order = options.blocks.order
    if order is not None:
        a = a.index_select(0, order)
        bias_a = None if bias_a is None else bias_a.index_select(0, order)
    return Problem(
        a=a,
        b=b,
        bias_a=bias_a,
        bias_b=bias_b,
        scale=options.scale,
        eps=options.eps,
        blocks=options.blocks,
        walker=options.walker,
        visit=options.visit,
        dtype=options.dtype,
    )


def _rows_back(x: Tensor, blocks: ClassBlocks, rows: int) -> Tensor:
    """Rows to where they came from; those that took no part are zero."""
    if blocks.order is None:
        return x
    allocate = x.new_empty if rows == blocks.rows else x.new_zeros
    return allocate((rows, *x.shape[1:])).index_copy_(0, blocks.order, x)


def own_precision(a: Tensor) -> AbstractContextManager[Any]:
    """Switches autocast off: the library chooses its own precision."""
    device = a.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
