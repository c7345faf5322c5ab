"""A loss and its terms: arguments checked, similarities in the form that backends take, and the way they take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from fastassoc import distributed, operators, validation
from fastassoc.autograd import OperatorFunction, RanksFunction, WalkerVisitFunction
from fastassoc.backends import choose_backend
from fastassoc.computation import Call, own_precision
from fastassoc.validation import Backend, GradientReduction, Similarity
from fastassoc.weights import Weight, is_zero

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_TINY_FLOAT32, _TINY_FLOAT64 = torch.finfo(torch.float32).tiny, torch.finfo(torch.float64).tiny


def terms(
    a: Tensor,
    b: Tensor,
    labels: Tensor,
    walker_weight: Weight,
    visit_weight: Weight,
    similarity: Similarity,
    temperature: float | Tensor,
    eps: float,
    ignore_index: int | None,
    return_stats: bool,
    backend: Backend,
    group: ProcessGroup | Literal["world"] | None,
    gradient_reduction: GradientReduction,
    summed: bool = False,
) -> tuple[Any, ...]:
    """``(loss, walker, visit)``, the terms without weights, then, with ``return_stats``, what only statistics want.

    A term of weight 0 is None, unless statistics want it. With ``summed``, where that can be had at once, the loss is
    there in the place of its terms, which are then for statistics alone; else it is None.
    """
    if gradient_reduction != "mean":
        validation.check_gradient_reduction(gradient_reduction)
    if group is not None:
        arguments = (
            a, b, labels, walker_weight, visit_weight, similarity, temperature, eps, ignore_index, return_stats, backend
        )  # fmt: skip
        over_ranks = _opaque_over_ranks if torch.compiler.is_compiling() else _over_ranks
        return over_ranks(arguments, group)
    compiling = torch.compiler.is_compiling()
    by_operators = compiling or operators.needed(a, b, labels, walker_weight, visit_weight, temperature)
    transformed = by_operators and not compiling and torch._C._are_functorch_transforms_active()
    a, b, divisor, chosen, options = _prepared(
        a, b, labels, walker_weight, visit_weight, similarity, temperature, eps, ignore_index, return_stats, backend,
        by_operators=by_operators, transformed=transformed,
    )  # fmt: skip
    walker, visit = options[4:6]
    if not walker and not visit:
        return None, None, None
    if chosen is None:
        operator = OperatorFunction.apply if transformed else operators.losses
        walker_loss, visit_loss, *statistics = operator(a, b, divisor, labels, *options)[: operators.RESULTS]
        return None, walker_loss if walker else None, visit_loss if visit else None, *(x.detach() for x in statistics)
    weights = None
    numbers = not isinstance(walker_weight, Tensor) and not isinstance(visit_weight, Tensor)
    if summed and numbers and (walker_weight or visit_weight):
        weights = float(walker_weight), float(visit_weight)
    call = Call._make((chosen, labels, *options, weights, None))
    outputs: tuple[Any, ...] = WalkerVisitFunction.apply(a, b, divisor, call)
    return outputs


def _prepared(
    a: Tensor,
    b: Tensor,
    labels: Tensor,
    walker_weight: Weight,
    visit_weight: Weight,
    similarity: Similarity,
    temperature: float | Tensor,
    eps: float,
    ignore_index: int | None,
    return_stats: bool,
    backend: Backend,
    *,
    by_operators: bool = False,
    transformed: bool = False,
    over_ranks: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, Any, tuple[Any, ...]]:
    """Checked, and with its similarity in the form that backends take.

    ``a``, ``b``, what divides squared distances, the backend unless operators choose it, and the options of `Call`.
    """
    validation.check_options(
        walker_weight, visit_weight, similarity, temperature, eps, ignore_index, backend, readable=not by_operators
    )
    validation.check_embeddings(a, b, over_ranks)
    validation.check_labels(labels, a)
    if isinstance(temperature, Tensor):
        temperature = temperature.reshape(())
    if ignore_index is not None and ignore_index < 0 and not labels.dtype.is_signed and not over_ranks:
        # Nor may the largest unsigned numbers become it; over ranks labels fit, and others may be signed.
        ignore_index = None
    chosen = None
    if not by_operators:
        chosen = choose_backend(backend, a.device)
        validation.check_memory(a=a, b=b, labels=labels)

    if ignore_index is not None:
        ignore_index = int(ignore_index)  # of NumPy's, too
    dtype = accumulation_dtype(a, b)
    if eps < (_TINY_FLOAT64 if dtype == torch.float64 else _TINY_FLOAT32):
        eps = 0.0
    if a.dtype != b.dtype:
        validation.check_mixed_dtypes(a, b)
        a, b = a.to(dtype), b.to(dtype)
    walker, visit = return_stats or not is_zero(walker_weight), return_stats or not is_zero(visit_weight)
    if not walker and not visit:
        return a, b, None, chosen, (ignore_index, 1.0, False, eps, walker, visit, return_stats, False, backend)
    # Squared distances take a temperature that is learned themselves, for their precision depends on it.
    scale, divisor = 1.0, None
    if similarity == "cosine":
        with own_precision(a):
            a, b = _unit_rows(a, dtype), _unit_rows(b, dtype)
    if not isinstance(temperature, Tensor):
        scale = 1.0 / float(temperature)
    elif similarity == "euclidean":
        divisor = temperature
    else:
        a = a.to(dtype) / temperature
    needs_gradient = torch.is_grad_enabled() and (
        transformed or a.requires_grad or b.requires_grad or (divisor is not None and divisor.requires_grad)
    )
    euclidean = similarity == "euclidean"
    options = ignore_index, scale, euclidean, eps, walker, visit, return_stats, needs_gradient, backend
    return a, b, divisor, chosen, options


def _over_ranks(arguments: tuple[Any, ...], group: ProcessGroup | Literal["world"]) -> tuple[Any, ...]:
    """`terms` of the rows of all ranks of a group, with gradients for their mean over ranks."""
    found = validation.found_group(group)
    if found.size() == 1:
        return terms(*(*arguments, None, "mean"))
    if operators.traced():
        raise RuntimeError("group does not work under transforms of torch.func, tracers and fake tensors")
    ranks, (a, b, divisor, chosen, options) = distributed.meet(found, arguments[0], lambda: _brought(arguments, found))
    if ranks.rows == 0:
        raise ValueError("at least one rank must have a row of a")
    # A gradient of one rank takes all, even those that need none.
    call = Call(chosen, arguments[2], *options)._replace(needs_gradient=ranks.needs_gradient, ranks=ranks)
    if not call.walker and not call.visit:
        return None, None, None
    walker, visit, *statistics = RanksFunction.apply(a, b, divisor, call)
    return None, walker, visit, *statistics


_opaque_over_ranks = torch._disable_dynamo(_over_ranks)  # type: ignore[attr-defined]


def _brought(arguments: tuple[Any, ...], group: ProcessGroup) -> tuple[distributed.Share, tuple[Any, ...]]:
    """What this rank brings to the loss of all, and what it keeps for itself."""
    a, b, labels, walker_weight, visit_weight, similarity, temperature, eps, ignore_index, *_ = arguments
    validation.check_embeddings(a, b, over_ranks=True)
    validation.check_ordinary(a=a, b=b, labels=labels)
    a, b, divisor, chosen, options = prepared = _prepared(*arguments, over_ranks=True)
    validation.check_labels_fit(labels)
    validation.check_exchanged(a, group)
    *_, return_stats, needs_gradient, backend = options
    shared = {
        "the size of embeddings": a.shape[1],
        "the dtype of a and b": a.dtype,
        "the type of device": a.device.type,
        "walker_weight": _described(walker_weight),
        "visit_weight": _described(visit_weight),
        "similarity": similarity,
        "temperature": _described(temperature),
        "eps": float(eps),
        "ignore_index": ignore_index,
        "return_stats": return_stats,
        "backend": backend,
        "what tiles depend on": chosen.agreement(a.device),
    }
    needs = distributed.Needs(*(needs_gradient and x is not None and x.requires_grad for x in (a, b, divisor)))
    options_of_all = {name: str(value) for name, value in shared.items()}
    return distributed.Share(len(labels), len(b), needs, options_of_all), prepared


def _described(number: float | Tensor) -> str:
    return "a tensor" if isinstance(number, Tensor) else str(float(number))


def zero(a: Tensor, b: Tensor, group: ProcessGroup | Literal["world"] | None) -> Tensor:
    """A zero that still knows its inputs: differentiable, and NaN where they are not finite, on any rank."""
    dtype = accumulation_dtype(a, b)
    own: Tensor = (a.sum(dtype=dtype) + b.sum(dtype=dtype)) * 0.0
    if group is None:
        return own
    return (_opaque_zero_of_all if torch.compiler.is_compiling() else _zero_of_all)(own, group)


def _zero_of_all(own: Tensor, group: ProcessGroup | Literal["world"]) -> Tensor:
    return own + distributed.gathered(validation.found_group(group), own.detach()).sum()


_opaque_zero_of_all = torch._disable_dynamo(_zero_of_all)  # type: ignore[attr-defined]


def for_sum(loss: Tensor, group: ProcessGroup | Literal["world"]) -> Tensor:
    """The loss, with gradients that are to be added over ranks where they were to be averaged."""
    return (_opaque_for_sum if torch.compiler.is_compiling() else _for_sum)(loss, group)


def _for_sum(loss: Tensor, group: ProcessGroup | Literal["world"]) -> Tensor:
    if loss.requires_grad:
        factor = 1.0 / validation.found_group(group).size()
        loss.register_hook(lambda gradient: gradient * factor)
    return loss


_opaque_for_sum = torch._disable_dynamo(_for_sum)  # type: ignore[attr-defined]


def accumulation_dtype(a: Tensor, b: Tensor) -> torch.dtype:
    """float64 if either is, else float32."""
    return torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32


def _unit_rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows over their norms; a zero row stays zero, with finite derivatives."""
    x = x.to(dtype)
    # The norm of a zero row has no second derivative.
    present = (x != 0.0).any(1, keepdim=True)
    norm = torch.linalg.vector_norm(x.where(present, 1.0), dim=1, keepdim=True)
    unit: Tensor = x / norm.where(present & (norm > 0.0), 1.0)
    return unit
