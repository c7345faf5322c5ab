"""The losses and their gradients as operators of PyTorch: ``fastassoc::losses`` and ``fastassoc::losses_backward``.

What works on operators sees them as two: torch.compile, make_fx, torch.jit.trace, FakeTensor, dispatch modes, tensor
subclasses, vmap. Ordinary calls do not pass through here (an operator's own overhead is a good part of a small batch).
What the forward operator saves comes out of it as flat tensors, empty for None, for a graph has only tensors to carry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from fastassoc import computation, validation
from fastassoc.backends import choose_backend
from fastassoc.computation import Call

_USUAL_TYPES = frozenset((*validation.ORDINARY, float, int, type(None)))
"""Types of most arguments: they are looked up in less time than `isinstance` takes."""
RESULTS = 5
"""Walker, visit, p_correct, accuracy estimate, visit probabilities; behind them comes what is saved."""


def needed(*tensors: Any) -> bool:
    """Whether a call has to take the operators, for something looks on, or a tensor is more than its memory."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or any([type(x) not in _USUAL_TYPES and isinstance(x, Tensor) for x in tensors])
    )


def traced() -> bool:
    """Whether tensors may have no numbers: transforms, tracers, fake tensors."""
    keys = torch._C._TorchDispatchModeKey
    return (
        torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or any(torch._C._get_dispatch_mode(key) is not None for key in (keys.FAKE, keys.PROXY))
    )


def _saved_dtypes(a: Tensor, euclidean: bool, backend: str) -> list[torch.dtype]:
    """Of what the backend saves for inputs like ``a``, in its usual precision."""
    dtype = computation.accumulation_dtype(a)
    met = a.new_empty(0, dtype=dtype) if euclidean else a
    return choose_backend(backend, a.device).saved_dtypes(met, dtype)


@torch.library.custom_op("fastassoc::losses", mutates_args=())
def losses(
    a: Tensor,
    b: Tensor,
    temperature: Tensor | None,
    labels: Tensor,
    ignore_index: int | None,
    scale: float,
    euclidean: bool,
    eps: float,
    walker: bool,
    visit: bool,
    statistics: bool,
    needs_gradient: bool,
    backend: str,
) -> list[Tensor]:
    """Walker, visit, p_correct, accuracy estimate (0-d), visit probabilities, then what is saved.

    What is not wanted is 0, or empty; arguments as in `fastassoc.computation.Call`.
    """
    options = ignore_index, scale, euclidean, eps, walker, visit, statistics, needs_gradient, backend
    forward = computation.losses(Call(choose_backend(backend, a.device), labels, *options), a, b, temperature)
    _, *scalars, visit_probability, saved = forward.losses
    dtype = computation.accumulation_dtype(a)
    new = a.new_zeros
    results = [new((), dtype=dtype) if x is None else x for x in scalars]
    results.append(new(0, dtype=dtype) if visit_probability is None else visit_probability)
    if needs_gradient:
        dtypes = _saved_dtypes(a, euclidean, backend)
        if forward.precision != (dtype, False):
            # Of other dtypes than a graph expects: the backward operator begins anew.
            saved = ()
        for x, saved_dtype in zip_longest(saved, dtypes):
            flat = new(0, dtype=saved_dtype) if x is None else x.reshape(-1)
            # The visit probabilities may be both a result and saved; an operator's outputs share no memory.
            results.append(flat.clone() if x is visit_probability else flat)
    return results


@losses.register_fake
def _(a: Tensor, b: Tensor, temperature: Tensor | None, labels: Tensor, *options: Any) -> list[Tensor]:
    _, _, euclidean, _, _, visit, statistics, needs_gradient, backend = options
    dtype = computation.accumulation_dtype(a)
    results = [a.new_empty((), dtype=dtype) for _ in range(4)]
    results.append(a.new_empty(b.shape[0] if statistics and visit else 0, dtype=dtype))
    if needs_gradient:
        dtypes = _saved_dtypes(a, euclidean, backend)
        # Squared distances may be computed in another precision, and then nothing is saved.
        sizes = None if euclidean else choose_backend(backend, a.device).saved_sizes(a, b)
        if sizes is None:
            sizes = [_unknown_size(a) for _ in dtypes]
        sizes += [0] * (len(dtypes) - len(sizes))
        results += [a.new_empty(size, dtype=saved) for size, saved in zip(sizes, dtypes, strict=True)]
    return results


def _unknown_size(a: Tensor) -> Any:
    """Where it depends on the classes and on the numbers: a symbol, or 0 where there are none."""
    mode = getattr(a, "fake_mode", None)
    return torch.library.get_ctx().new_dynamic_size() if mode is None or mode.shape_env is not None else 0


@torch.library.custom_op("fastassoc::losses_backward", mutates_args=())
def losses_backward(
    a: Tensor,
    b: Tensor,
    temperature: Tensor | None,
    grad_walker: Tensor | None,
    grad_visit: Tensor | None,
    labels: Tensor,
    ignore_index: int | None,
    scale: float,
    euclidean: bool,
    eps: float,
    walker: bool,
    visit: bool,
    backend: str,
    saved: list[Tensor],
    needs: list[bool],
) -> list[Tensor]:
    """Gradients of ``a``, ``b`` and the temperature; those not in ``needs`` are empty.

    Where nothing was saved, the forward pass is repeated.
    """
    options = ignore_index, scale, euclidean, eps, walker, visit, False, True, backend
    call = Call(choose_backend(backend, a.device), labels, *options)
    restored = tuple(x if x.numel() else None for x in saved)
    precision = computation.Precision(computation.accumulation_dtype(a), False)
    if any(x is not None for x in restored):
        own_labels = call.backend.prepare_labels(labels, ignore_index, b, precision.dtype)
    else:
        results, precision, own_labels, _ = computation.losses(call, a, b, temperature)
        restored = results.saved
    gradients = computation.gradients(
        call,
        precision,
        own_labels,
        a,
        b,
        temperature,
        restored,
        grad_walker,
        grad_visit,
        (needs[0], needs[1], needs[2]),
    )
    return [
        a.new_empty(0) if x is None or source is None else x.to(source.dtype).contiguous()
        for x, source in zip(gradients, (a, b, temperature), strict=True)
    ]


@losses_backward.register_fake
def _(a: Tensor, b: Tensor, temperature: Tensor | None, *rest: Any) -> list[Tensor]:
    needs = rest[-1]
    return [
        x.new_empty(x.shape) if x is not None and need else a.new_empty(0)
        for x, need in zip((a, b, temperature), needs, strict=True)
    ]


def _for_each(
    operator: Callable[..., list[Tensor]], batch: int, in_dims: Sequence[Any], arguments: Sequence[Any]
) -> list[Tensor]:
    """The operator for each problem of a batch, results stacked along a first dimension."""
    if batch == 0:
        raise RuntimeError("fastassoc's loss does not support vmap over an empty batch")
    results = []
    for index in range(batch):
        # A list of tensors has a list of dimensions.
        chosen = [
            [_one(y, d, index) for y, d in zip(x, dim, strict=True)] if isinstance(dim, list) else _one(x, dim, index)
            for x, dim in zip(arguments, in_dims, strict=True)
        ]
        results.append(operator(*chosen))
    return [torch.stack(parts) for parts in zip(*results, strict=True)]


def _one(x: Any, dim: int | None, index: int) -> Any:
    return x if dim is None else x.select(dim, index)


@losses.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], a: Tensor, *rest: Any) -> tuple[list[Tensor], list[int]]:
    *options, needs_gradient, backend = rest
    results = _for_each(losses, info.batch_size, in_dims, (a, *options, False, backend))
    if needs_gradient:
        # What is saved may be of another size for each problem: the backward operator begins anew.
        dtypes = _saved_dtypes(a, options[5], backend)
        results += [a.new_empty((info.batch_size, 0), dtype=dtype) for dtype in dtypes]
    return results, [0] * len(results)


@losses_backward.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[list[Tensor], list[int]]:
    results = _for_each(losses_backward, info.batch_size, in_dims, arguments)
    return results, [0] * len(results)
