"""The losses as operators that torch.compile takes into its graph whole: ``fastassoc::losses`` and its derivative.

Outside of torch.compile nothing passes through here (an operator's own overhead is a good part of a small batch).
What the forward operator saves comes out of it as flat tensors, empty for None, for a graph has only tensors to carry.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from fastassoc.backends import Backend, Inputs, choose_backend, own_precision

RESULTS = 5


def _inputs(
    a: Tensor,
    b: Tensor,
    bias_a: Tensor | None,
    bias_b: Tensor | None,
    labels: Tensor,
    ignore_index: int | None,
    scale: float,
    eps: float,
    walker: bool,
    visit: bool,
    backend: str,
) -> tuple[Backend, Inputs]:
    chosen = choose_backend(backend, a.device)
    dtype = accumulation_dtype(a)
    own_labels = chosen.prepare_labels(labels, ignore_index, b, dtype)
    return chosen, Inputs(a, b, bias_a, bias_b, own_labels, scale, eps, walker, visit, dtype)


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any of the tensors is, else float32."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


@torch.library.custom_op("fastassoc::losses", mutates_args=())
def losses(
    a: Tensor,
    b: Tensor,
    bias_a: Tensor | None,
    bias_b: Tensor | None,
    labels: Tensor,
    ignore_index: int | None,
    scale: float,
    eps: float,
    walker: bool,
    visit: bool,
    statistics: bool,
    needs_gradient: bool,
    backend: str,
) -> list[Tensor]:
    """Walker, visit, p_correct, accuracy estimate (0-d), visit probabilities, then what is saved.

    What is not wanted is 0, or empty; arguments as in `fastassoc.backends.Inputs`.
    """
    chosen, inputs = _inputs(a, b, bias_a, bias_b, labels, ignore_index, scale, eps, walker, visit, backend)
    with own_precision(a):
        *scalars, visit_probability, saved = chosen.losses(inputs, needs_gradient, statistics)
    new = a.new_zeros
    results = [new((), dtype=inputs.dtype) if x is None else x for x in scalars]
    results.append(new(0, dtype=inputs.dtype) if visit_probability is None else visit_probability)
    if needs_gradient:
        dtypes = chosen.saved_dtypes(a, inputs.dtype)
        for x, saved_dtype in zip_longest(saved, dtypes):
            flat = new(0, dtype=saved_dtype) if x is None else x.reshape(-1)
            # The visit probabilities may be both a result and saved; an operator's outputs share no memory.
            results.append(flat.clone() if x is visit_probability else flat)
    return results


@losses.register_fake
def _(a: Tensor, b: Tensor, *rest: Any) -> list[Tensor]:
    *_, visit, statistics, needs_gradient, backend = rest
    dtype = accumulation_dtype(a)
    results = [a.new_empty((), dtype=dtype) for _ in range(4)]
    results.append(a.new_empty(b.shape[0] if statistics and visit else 0, dtype=dtype))
    if needs_gradient:
        # Their sizes depend on the classes, and on the numbers.
        size = torch.library.get_ctx().new_dynamic_size
        chosen = choose_backend(backend, a.device)
        results += [a.new_empty(size(), dtype=saved) for saved in chosen.saved_dtypes(a, dtype)]
    return results


@torch.library.custom_op("fastassoc::losses_backward", mutates_args=())
def losses_backward(
    a: Tensor,
    b: Tensor,
    bias_a: Tensor | None,
    bias_b: Tensor | None,
    labels: Tensor,
    ignore_index: int | None,
    scale: float,
    eps: float,
    walker: bool,
    visit: bool,
    backend: str,
    saved: list[Tensor],
    grad_walker: Tensor | None,
    grad_visit: Tensor | None,
    needs: list[bool],
) -> list[Tensor]:
    """Gradients of ``a``, ``b`` and the biases; those not in ``needs`` are empty."""
    chosen, inputs = _inputs(a, b, bias_a, bias_b, labels, ignore_index, scale, eps, walker, visit, backend)
    restored = tuple(x if x.numel() else None for x in saved)
    with own_precision(a):
        gradients = chosen.gradients(
            inputs, restored, grad_walker, grad_visit, (needs[0], needs[1], needs[2], needs[3])
        )
    sources = (a, b, bias_a, bias_b)
    return [
        a.new_empty(0) if x is None or source is None else x.to(source.dtype).contiguous()
        for x, source in zip(gradients, sources, strict=True)
    ]


@losses_backward.register_fake
def _(a: Tensor, b: Tensor, bias_a: Tensor | None, bias_b: Tensor | None, *rest: Any) -> list[Tensor]:
    needs = rest[-1]
    return [
        x.new_empty(x.shape) if x is not None and need else a.new_empty(0)
        for x, need in zip((a, b, bias_a, bias_b), needs, strict=True)
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    a, b, bias_a, bias_b, labels, *options = inputs
    ignore_index, scale, eps, walker, visit, _, _, backend = options
    ctx.options = ignore_index, scale, eps, walker, visit, backend
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(a, b, bias_a, bias_b, labels, *output[RESULTS:])


def _backward(ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:
    a, b, bias_a, bias_b, labels, *saved = ctx.saved_tensors
    *_, walker, visit, _ = ctx.options
    grad_walker = gradients[0] if walker else None
    grad_visit = gradients[1] if visit else None
    needs = list(ctx.needs_input_grad[:4])
    results: tuple[Tensor | None, ...] = (None,) * 4
    if grad_walker is not None or grad_visit is not None:
        computed = losses_backward(a, b, bias_a, bias_b, labels, *ctx.options, saved, grad_walker, grad_visit, needs)
        results = tuple(x if need else None for x, need in zip(computed, needs, strict=True))
    return *results, *(None,) * 9


losses.register_autograd(_backward, setup_context=_setup_context)
