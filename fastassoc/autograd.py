"""What a backend computes, as a loss or its two terms, which can be differentiated any number of times.

First derivatives are the backend's. Second ones, which few need, are those of the dense specification.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastassoc import computation, operators, validation
from fastassoc.computation import Call, own_precision

_NONE = (None, None, None, None)
_DIFFERENTIABLE = 3
"""Of the results of `WalkerVisitFunction`: the loss and both terms, or those that are wanted."""


class _ReverseOnly(torch.autograd.Function):
    """Says that it has no forward-mode derivative."""

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        """Raises."""
        raise RuntimeError(
            "fastassoc's loss has no forward-mode derivative (jvp, jacfwd, hessian); "
            "torch.func.jacrev, and jacrev of jacrev for second derivatives, give the same"
        )


class WalkerVisitFunction(_ReverseOnly):
    """``(a, b, temperature, call) -> (loss, walker, visit, p_correct, accuracy_estimate, visit_probability)``.

    With ``call.weights`` the loss is differentiable, else it is None and both terms are. The others are there for
    statistics only, and carry no gradient. All are 0-d but the last, which is [M]. What is not wanted is None.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, temperature: Tensor | None, call: Call) -> tuple[Tensor | None, ...]:
        """Losses, and statistics where wanted."""
        ctx.set_materialize_grads(False)
        (*results, saved), precision, labels, _ = computation.losses(call, a, b, temperature)
        if call.needs_gradient:
            tensors = (a, b, temperature, *saved)
            labels_version = None if call.labels.is_inference() else call.labels._version
            ctx.made = call, precision, labels, labels_version, validation.forms(tensors)
            ctx.save_for_backward(*tensors)
        if not call.statistics:
            return tuple(results[:_DIFFERENTIABLE])
        for_statistics = results[_DIFFERENTIABLE if call.weights is None else 1 :]
        ctx.mark_non_differentiable(*(x for x in for_statistics if x is not None))
        return tuple(results)

    @staticmethod
    def backward(
        ctx: Any, grad_loss: Tensor | None, grad_walker: Tensor | None, grad_visit: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of ``a``, ``b`` and the temperature."""
        # Compiled autograd traces this function: what it computes must not be taken apart.
        backward = _opaque_backward if torch.compiler.is_compiling() else _backward
        return backward(ctx, grad_loss, grad_walker, grad_visit)


def _backward(
    ctx: Any, grad_loss: Tensor | None, grad_walker: Tensor | None, grad_visit: Tensor | None
) -> tuple[Tensor | None, ...]:
    call, precision, labels, labels_version, forms = ctx.made
    if call.weights is not None:
        grad_walker = grad_loss if call.walker and call.weights[0] else None
        grad_visit = grad_loss if call.visit and call.weights[1] else None
    if grad_walker is None and grad_visit is None:
        return _NONE
    tensors = ctx.saved_tensors
    validation.check_unchanged(forms, tensors)
    a, b, temperature, *saved = tensors
    needs = ctx.needs_input_grad[:3]
    _check_not_batched(grad_walker, grad_visit)
    again, watched = torch.is_grad_enabled(), operators.needed(grad_walker, grad_visit)
    if not again and not watched:
        # Autograd itself brings gradients to the dtype of what they are gradients of.
        return *computation.gradients(
            call, precision, labels, a, b, temperature, tuple(saved), grad_walker, grad_visit, needs
        ), None
    if labels_version is None or call.labels._version != labels_version:
        raise RuntimeError(
            "labels were changed in place between the forward pass of fastassoc's loss and a backward pass "
            "with create_graph=True or under a transform, or were made under inference_mode: pass a copy of them"
        )
    if call.weights is not None:
        grad_walker, grad_visit = (
            None if grad is None else grad * weight
            for grad, weight in zip((grad_walker, grad_visit), call.weights, strict=True)
        )
        call = call._replace(weights=None)
    options = call.ignore_index, call.scale, call.euclidean, call.eps, call.walker, call.visit

    def compute(*sources: Tensor | None) -> tuple[Tensor | None, ...]:
        if not watched:
            return computation.gradients(
                call, precision, labels, a, b, temperature, tuple(saved), grad_walker, grad_visit, needs
            )
        computed = operators.losses_backward(*sources, *options, call.backend_name, [], list(needs))
        return tuple(x if need else None for x, need in zip(computed, needs, strict=True))

    sources = a, b, temperature, grad_walker, grad_visit, call.labels
    gradients = LossGradients.apply(compute, Specification(*options), *sources) if again else compute(*sources)
    return *gradients, None


def _check_not_batched(*grads: Tensor | None) -> None:
    for x in grads:
        if x is not None and torch._C._functorch.is_legacy_batchedtensor(x):
            raise RuntimeError(
                "fastassoc's loss does not support is_grads_batched=True, nor vectorize=True in "
                "torch.autograd.functional: torch.func.jacrev and torch.func.vmap do the same, but for group"
            )


_opaque_backward = torch._disable_dynamo(_backward)  # type: ignore[attr-defined]


class RanksFunction(_ReverseOnly):
    """`WalkerVisitFunction` over the ranks of ``call``: the losses of all their rows, and gradients of this rank's.

    Gradients are as many times those of the losses as there are ranks, so that their mean over ranks, of parameters
    that all ranks share, is the gradient of the losses.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, temperature: Tensor | None, call: Call) -> tuple[Tensor | None, ...]:
        """Losses, and statistics where wanted."""
        ctx.set_materialize_grads(False)
        (_, walker, visit, *statistics, saved), precision, labels, all_a = computation.losses(call, a, b, temperature)
        tensors: tuple[Tensor | None, ...] = all_a, b, temperature, *saved
        ctx.made = call, precision, labels
        assert call.ranks is not None
        if call.ranks.at_once:
            # Some rank will not be there for the backward pass: its part of both terms' gradients is added now.
            one = b.new_ones((), dtype=precision.dtype)
            only_da = True, False, False
            by_walker = None if walker is None else _own_gradients(ctx.made, tensors, one, None, only_da)[0]
            by_visit = None if visit is None else _own_gradients(ctx.made, tensors, None, one, only_da)[0]
            tensors = *tensors, by_walker, by_visit
        ctx.forms = validation.forms(tensors)
        ctx.save_for_backward(*tensors)
        if not call.statistics:
            return walker, visit
        ctx.mark_non_differentiable(*(x for x in statistics if x is not None))
        return walker, visit, *statistics

    @staticmethod
    def backward(
        ctx: Any, grad_walker: Tensor | None, grad_visit: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of ``a``, ``b`` and the temperature."""
        backward = _opaque_backward_over_ranks if torch.compiler.is_compiling() else _backward_over_ranks
        return backward(ctx, grad_walker, grad_visit)


def _backward_over_ranks(ctx: Any, grad_walker: Tensor | None, grad_visit: Tensor | None) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        raise RuntimeError("fastassoc's loss has no second derivatives over ranks: no create_graph=True with group")
    if grad_walker is None and grad_visit is None:
        return _NONE
    _check_not_batched(grad_walker, grad_visit)
    tensors = ctx.saved_tensors
    validation.check_unchanged(ctx.forms, tensors)
    ranks = ctx.made[0].ranks
    walker, visit = (None if x is None else x * ranks.size for x in (grad_walker, grad_visit))
    needs_da, *others = ctx.needs_input_grad[:3]
    if not ranks.at_once:
        da, db, dtemperature = _own_gradients(ctx.made, tensors, walker, visit, (ranks.needs_da, *others))
        return da if needs_da else None, db, dtemperature, None
    *tensors, by_walker, by_visit = tensors
    da = None
    for gradient, grad in ((by_walker, walker), (by_visit, visit)):
        if needs_da and gradient is not None and grad is not None:
            da = gradient * grad if da is None else da.addcmul_(gradient, grad)
    db = dtemperature = None
    if any(others):
        _, db, dtemperature = _own_gradients(ctx.made, tensors, walker, visit, (False, *others))
    return da, db, dtemperature, None


_opaque_backward_over_ranks = torch._disable_dynamo(_backward_over_ranks)  # type: ignore[attr-defined]


def _own_gradients(
    made: tuple[Call, computation.Precision, Any],
    tensors: Sequence[Tensor | None],
    grad_walker: Tensor | None,
    grad_visit: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of this rank's inputs; those of ``a``, which all ranks have a part in, cross ranks."""
    call, precision, labels = made
    a, b, temperature, *saved = tensors
    assert a is not None
    assert b is not None
    assert call.ranks is not None
    da, db, dtemperature = computation.gradients(
        call, precision, labels, a, b, temperature, tuple(saved), grad_walker, grad_visit, needs
    )
    return None if da is None else call.ranks.own_rows(da), db, dtemperature


class Specification(NamedTuple):
    """What `dense_losses` takes beside tensors; see `fastassoc.computation.Call`."""

    ignore_index: int | None
    scale: float
    euclidean: bool
    eps: float
    walker: bool
    visit: bool


def dense_losses(
    specification: Specification, a: Tensor, b: Tensor, temperature: Tensor | None, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Walker and visit by `fastassoc.reference`, in the accumulation dtype; 0 where not wanted."""
    from fastassoc.reference import similarity_matrix, walker_visit_terms

    ignore_index, scale, euclidean, eps, walker, visit = specification
    dtype = computation.accumulation_dtype(a)
    if ignore_index is not None:
        a, labels = a[labels != ignore_index], labels[labels != ignore_index]
    similarity = "euclidean" if euclidean else "dot"
    s = similarity_matrix(a.to(dtype), b.to(dtype), similarity, 1.0 if temperature is None else temperature) * scale
    terms = walker_visit_terms(s, labels, eps)
    nothing = s.new_zeros(())
    return terms["walker"] if walker else nothing, terms["visit"] if visit else nothing


class LossGradients(_ReverseOnly):
    """``(compute, specification, a, b, temperature, grad_walker, grad_visit, labels, *saved) -> gradients``.

    The gradients of ``a``, ``b`` and the temperature are ``compute`` of all tensors; their own derivatives, by the
    first five tensors, those of the dense specification.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        compute: Callable[..., tuple[Tensor | None, ...]], specification: Specification, *tensors: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """First derivatives."""
        return tuple(compute(*tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        """Keeps what the gradients are functions of."""
        _, ctx.specification, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors[:6])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        """Second derivatives."""
        *sources, labels = ctx.saved_tensors
        needs = ctx.needs_input_grad[2:]
        results: list[Tensor | None] = [None] * len(needs)
        if any(x is not None for x in upstream):
            with own_precision(labels):
                results[: len(sources)] = _second_derivatives(ctx.specification, sources, labels, upstream)
        return None, None, *(x if need else None for x, need in zip(results, needs, strict=True))


def _second_derivatives(
    specification: Specification, sources: list[Tensor | None], labels: Tensor, upstream: tuple[Tensor | None, ...]
) -> list[Tensor | None]:
    """Of what ``upstream`` weighs, by each of the sources that is there."""
    places = [place for place, x in enumerate(sources) if x is not None]
    present = [x for x in sources if x is not None]
    wanted = [number for number, x in enumerate(upstream) if x is not None]

    def first_derivatives(*tensors: Tensor) -> tuple[Tensor, ...]:
        a, b, temperature, *grads = _scattered(len(sources), places, tensors)
        inputs = [x for x in (a, b, temperature) if x is not None]
        input_places = places[: len(inputs)]

        def losses(*inputs: Tensor) -> tuple[Tensor, Tensor]:
            a, b, temperature = _scattered(3, input_places, inputs)
            return dense_losses(specification, a, b, temperature, labels)

        values, derive, *_ = torch.func.vjp(losses, *inputs)
        filled = (torch.zeros_like(v) if x is None else x for v, x in zip(values, grads, strict=True))
        gradients = _scattered(3, input_places, derive(tuple(filled)))
        return tuple(gradients[number] for number in wanted)

    derive: Any = torch.func.vjp(first_derivatives, *present)[1]
    return _scattered(len(sources), places, derive(tuple(upstream[number] for number in wanted)))


def _scattered(length: int, places: list[int], values: Iterable[Any]) -> list[Any]:
    """Values at their places, None elsewhere."""
    result: list[Any] = [None] * length
    for place, value in zip(places, values, strict=True):
        result[place] = value
    return result


def _setup_operator(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    a, b, temperature, labels, *options = inputs
    ctx.options = options
    ctx.set_materialize_grads(False)
    saved = output[operators.RESULTS :]
    ctx.save_for_backward(a, b, temperature, labels, *saved)


def _operator_backward(ctx: Any, gradients: Any) -> tuple[Any, ...]:
    a, b, temperature, labels, *saved = ctx.saved_tensors
    ignore_index, scale, euclidean, eps, walker, visit, _, _, backend = ctx.options
    grad_walker = gradients[0] if walker else None
    grad_visit = gradients[1] if visit else None
    needs = list(ctx.needs_input_grad[:3])
    results: Any = (None,) * 3
    if grad_walker is not None or grad_visit is not None:
        sources = a, b, temperature, grad_walker, grad_visit, labels

        def compute(*tensors: Any) -> tuple[Tensor | None, ...]:
            *sources, saved = *tensors[:6], list(tensors[6:])
            computed = operators.losses_backward(
                *sources, ignore_index, scale, euclidean, eps, walker, visit, backend, saved, needs
            )
            return tuple(x if need else None for x, need in zip(computed, needs, strict=True))

        if torch.is_grad_enabled():
            specification = Specification(ignore_index, scale, euclidean, eps, walker, visit)
            results = LossGradients.apply(compute, specification, *sources, *saved)
        else:
            results = compute(*sources, *saved)
    return *results, *(None,) * 10


operators.losses.register_autograd(_operator_backward, setup_context=_setup_operator)


class OperatorFunction(_ReverseOnly):
    """``fastassoc::losses`` for torch.func, which does not take what operators register for autograd."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        """As the operator."""
        return tuple(operators.losses(*arguments))

    setup_context = staticmethod(_setup_operator)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        """As the operator's."""
        return _operator_backward(ctx, gradients)
