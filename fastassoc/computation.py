"""A call between the public function and a backend: its similarity in the form that backends take, and back.

Backends take scores ``s_ij = scale a_i . b_j + bias_a_i + bias_b_j``. That is a dot product as it stands. Squared
distances become it with embeddings around the middle of both, for they do not see a common offset but products do:

    s_ij = -|a_i - b_j|^2 / T = 2/T a_i . b_j - |a_i|^2 / T - |b_j|^2 / T
    da_i = 2/T (sum_j ds_ij b_j - a_i sum_j ds_ij)            dT = -1 / (2 T) (sum_i a_i . da_i + sum_j b_j . db_j)

the last because ``T s`` is of second degree in all embeddings together. Products lose digits where terms are much
larger than the distance of neighbours: tight clusters far apart. `_distance_form` looks; then they are computed in
float64, and where that does not do, backends take distances from differences.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastassoc.backends.protocol import Backend, Inputs, Losses, Saved
from fastassoc.distributed import GroupRanks

_NEAR, _ROUNDINGS, _LARGEST = 1.5, 3.0, 16.0
"""Products are exact enough where the squared norm of a row, over T, is at most the first times its least squared
distance, over T, plus the second: gradients have then at most twice the error of eager code, up to eight roundings.
And at most the third: a norm is rounded once for all scores of its row, where eager code's errors average out, and half
the step of float32 below 16 is four roundings."""
_FLOAT64 = 2.0**29
"""How many times more exact float64 is than float32."""
_TILE_SCORES = 2**20
"""Scores that `_digits_needed` looks at together."""
_UNCHANGED = nullcontext()


class Call(NamedTuple):
    """Everything about a call that is not a differentiable tensor."""

    backend: Backend
    labels: Tensor
    """[N], as they were given."""
    ignore_index: int | None
    scale: float
    """Factor of dot products; of negative squared distances where ``euclidean``."""
    euclidean: bool
    eps: float
    walker: bool
    """Whether the walker term is wanted."""
    visit: bool
    """Whether the visit term is wanted."""
    statistics: bool
    """Whether what only statistics want is wanted."""
    needs_gradient: bool
    backend_name: str
    """As the caller gave it."""
    weights: tuple[float, float] | None = None
    """See `fastassoc.backends.protocol.Inputs`."""
    ranks: GroupRanks | None = None
    """Those that compute the loss together, each with rows of its own."""


class Precision(NamedTuple):
    """How scores are computed."""

    dtype: torch.dtype
    """Accumulation dtype of the backend."""
    differences: bool
    """See `fastassoc.backends.protocol.Inputs`."""


_USUAL = {dtype: Precision(dtype, False) for dtype in (torch.float32, torch.float64)}


class Forward(NamedTuple):
    """The losses, and what their gradients need beside what they save."""

    losses: Losses
    precision: Precision
    labels: Any
    """What `Backend.prepare_labels` made of the labels."""
    a: Tensor
    """The rows of ``a``, of all ranks where there are several."""


class CallGradients(NamedTuple):
    """Gradients in a precision of at least that of their inputs; None where not asked for."""

    a: Tensor | None
    b: Tensor | None
    temperature: Tensor | None


def own_precision(a: Tensor) -> AbstractContextManager[Any]:
    """Switches autocast off: the library chooses its own precision."""
    # Naming a device's type costs as much as a small operation.
    device = "cpu" if a.is_cpu else a.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else _UNCHANGED


def accumulation_dtype(a: Tensor) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.float64 if a.dtype == torch.float64 else torch.float32


def losses(call: Call, a: Tensor, b: Tensor, temperature: Tensor | None) -> Forward:
    """Losses in the accumulation dtype of ``a``; ``temperature``, 0-d, divides squared distances."""
    dtype = accumulation_dtype(a)
    given = call.labels
    if call.ranks is not None:
        a, given = call.ranks.all_rows(a, given)
    with own_precision(a):
        form, precision = None, _USUAL[dtype]
        if call.euclidean:
            form = _distance_form(call, a, b, temperature)
            precision = Precision(form.dtype, form.differences)
        labels = call.backend.prepare_labels(given, call.ignore_index, b, precision.dtype)
        inputs = _form(call, precision, a, b, None, labels) if form is None else form._replace(labels=labels)
        results = call.backend.losses(inputs, call.needs_gradient, call.statistics)
        if call.ranks is not None:
            results = Losses._make([*call.ranks.of_first(results[:5]), *results[5:]])
    if precision.dtype != dtype:
        results = Losses._make([*(None if x is None else x.to(dtype) for x in results[:-1]), results.saved])
    return Forward(results, precision, labels, a)


def gradients(
    call: Call,
    precision: Precision,
    labels: Any,
    a: Tensor,
    b: Tensor,
    temperature: Tensor | None,
    saved: Saved,
    grad_walker: Tensor | None,
    grad_visit: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> CallGradients:
    """Gradients by ``a``, ``b`` and the temperature: those asked for.

    Over ranks ``a`` is that of all, and gradients are this rank's part of the sum over ranks.
    """
    with own_precision(a):
        inputs = _form(call, precision, a, b, temperature, labels)
        if precision.dtype != accumulation_dtype(a):
            grad_walker, grad_visit = (None if x is None else x.to(precision.dtype) for x in (grad_walker, grad_visit))
        if not call.euclidean:
            results = call.backend.gradients(inputs, saved, grad_walker, grad_visit, (needs[0], needs[1], False, False))
            return CallGradients(results.a, results.b, None)
        by_a, by_b = needs[0] or needs[2], needs[1] or needs[2]
        results = call.backend.gradients(inputs, saved, grad_walker, grad_visit, (by_a, by_b, by_a, by_b))
        da = _with_norms(results.a, inputs.a, results.bias_a, inputs.scale)
        db = _with_norms(results.b, inputs.b, results.bias_b, inputs.scale)
        if temperature is None:
            return CallGradients(da, db, None)
        dtemperature = None
        if needs[2]:
            assert da is not None
            assert db is not None
            degree = sum((x * dx).sum(dtype=torch.float64) for x, dx in ((inputs.a, da), (inputs.b, db)))
            dtemperature = degree / temperature.double().mul(-2.0)
        if not precision.differences:
            root = _root(temperature, precision.dtype)
            da, db = (None if x is None else x * root for x in (da, db))
        return CallGradients(da if needs[0] else None, db if needs[1] else None, dtemperature)


def _form(
    call: Call, precision: Precision, a: Tensor, b: Tensor, temperature: Tensor | None, labels: Any = None
) -> Inputs:
    """What the backend takes."""
    bias_a = bias_b = None
    scale = call.scale
    if call.euclidean:
        a, b = a.to(precision.dtype), b.to(precision.dtype)
        if not precision.differences:
            # Half way, so that neither side's norms outweigh the other's where the two lie apart.
            centre = (a.mean(0) + b.mean(0)).mul_(0.5)
            a, b = a - centre, b - centre
        if temperature is not None and precision.differences:
            # Embeddings times anything are rounded, and their differences with them.
            scale /= float(temperature)
        elif temperature is not None:
            root = _root(temperature, precision.dtype)
            a, b = a * root, b * root
        bias_a, bias_b = (x.square().sum(1).mul_(-scale) for x in (a, b))
        scale *= 2.0
    return Inputs(
        a, b, bias_a, bias_b, labels, scale, call.eps, call.walker, call.visit, precision.dtype, precision.differences,
        call.ranks, call.weights,
    )  # fmt: skip


def _root(temperature: Tensor, dtype: torch.dtype) -> Tensor:
    """Embeddings times it have the squared distances over the temperature."""
    return temperature.to(dtype).rsqrt()


def _with_norms(dx: Tensor | None, x: Tensor, dbias: Tensor | None, scale: float) -> Tensor | None:
    """A gradient with the part that went through the squared norms, where the backend does not give it whole."""
    if dx is None or dbias is None:
        return dx
    return dx.addcmul(x, dbias.unsqueeze(1), value=-scale)


def _distance_form(call: Call, a: Tensor, b: Tensor, temperature: Tensor | None) -> Inputs:
    """Squared distances as exact as they have to be. Reads one number, for which it waits for the device."""
    dtype = accumulation_dtype(a)
    quick = _form(call, Precision(dtype, False), a, b, temperature)
    needed = _digits_needed(quick)
    if call.ranks is not None:
        # NaN, if it is any rank's.
        needed = float(call.ranks.gather(a.new_tensor(needed, dtype=torch.float64)).max())
    if needed <= 1.0:
        return quick
    # NaN, where products overflow, is not below anything.
    differences = not (dtype == torch.float32 and needed <= _FLOAT64)
    return _form(call, Precision(torch.float64, differences), a, b, temperature)


def _digits_needed(x: Inputs) -> float:
    """The largest squared norm of a row, over what products in its dtype are exact enough for."""
    assert x.bias_a is not None
    assert x.bias_b is not None
    # Biases are minus squared norms over T, scores minus squared distances over T, up to rounding.
    columns = max(1, _TILE_SCORES // len(x.a))
    nearest_a = torch.full_like(x.bias_a, -torch.inf)
    excess = nearest_a.new_zeros(())
    for b_tile, bias_tile in zip(x.b.split(columns), x.bias_b.split(columns), strict=True):
        scores = torch.addmm(bias_tile, x.a, b_tile.t(), alpha=x.scale).add_(x.bias_a.unsqueeze(1))
        torch.maximum(nearest_a, scores.amax(1), out=nearest_a)
        excess = torch.maximum(excess, _excess(bias_tile, scores.amax(0)))
    return float(torch.maximum(excess, _excess(x.bias_a, nearest_a)))


def _excess(bias: Tensor, nearest: Tensor) -> Tensor:
    """The largest squared norm over what products are exact enough for."""
    return (bias / (nearest.clamp_max(0.0) * _NEAR - _ROUNDINGS).clamp_min(-_LARGEST)).amax()
