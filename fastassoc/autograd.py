"""The autograd function: what a backend computes, as two differentiable losses."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastassoc.backends import Backend, Gradients, Inputs, own_precision


class Options(NamedTuple):
    """Everything about a call that is not a differentiable tensor; see `fastassoc.backends.Inputs`."""

    backend: Backend
    labels: Any
    scale: float
    eps: float
    walker: bool
    visit: bool
    dtype: torch.dtype
    needs_gradient: bool
    statistics: bool
    """Whether the outputs for statistics are wanted."""

    def inputs(self, a: Tensor, b: Tensor, bias_a: Tensor | None, bias_b: Tensor | None) -> Inputs:
        """The call as the backend meets it."""
        return Inputs(a, b, bias_a, bias_b, self.labels, self.scale, self.eps, self.walker, self.visit, self.dtype)


class WalkerVisitFunction(torch.autograd.Function):
    """``(a, b, bias_a, bias_b, options) -> (walker, visit, p_correct, accuracy_estimate, visit_probability)``.

    The first two are differentiable once; the others are there for statistics only, and carry no gradient. All are 0-d
    but the last, which is [M]. A term that is not wanted is None.
    """

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, bias_a: Tensor | None, bias_b: Tensor | None, options: Options
    ) -> tuple[Tensor | None, ...]:
        """Losses, and statistics where wanted."""
        ctx.set_materialize_grads(False)
        with own_precision(a):
            walker, visit, *statistics, saved = options.backend.losses(
                options.inputs(a, b, bias_a, bias_b), options.needs_gradient, options.statistics
            )
        if options.needs_gradient:
            ctx.options = options
            ctx.save_for_backward(a, b, bias_a, bias_b, *saved)
        if not options.statistics:
            return walker, visit
        ctx.mark_non_differentiable(*(x for x in statistics if x is not None))
        return walker, visit, *statistics

    @staticmethod
    def backward(
        ctx: Any, grad_walker: Tensor | None, grad_visit: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of ``a``, ``b`` and the biases."""
        if grad_walker is None and grad_visit is None:
            return None, None, None, None, None
        if not torch.is_grad_enabled():
            return *_first_derivative(ctx, grad_walker, grad_visit), None
        with torch.no_grad():
            gradients = _first_derivative(ctx, grad_walker, grad_visit)
        sources = (*ctx.saved_tensors[:4], grad_walker, grad_visit)
        return *(None if x is None else _NoSecondDerivative.apply(x, *sources) for x in gradients), None


def _first_derivative(ctx: Any, grad_walker: Tensor | None, grad_visit: Tensor | None) -> Gradients:
    a, b, bias_a, bias_b, *saved = ctx.saved_tensors
    options: Options = ctx.options
    with own_precision(a):
        # Autograd itself brings them to the dtype of what they are gradients of.
        return options.backend.gradients(
            options.inputs(a, b, bias_a, bias_b), tuple(saved), grad_walker, grad_visit, ctx.needs_input_grad[:4]
        )


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
