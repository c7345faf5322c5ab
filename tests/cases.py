"""Random problems, and losses with gradients as plain numbers to compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Case(NamedTuple):
    """Inputs of the loss."""

    a: Tensor
    b: Tensor
    labels: Tensor


class Result(NamedTuple):
    """A loss and both gradients, in float64."""

    loss: Tensor
    da: Tensor
    db: Tensor


def make_case(
    n: int, m: int, d: int, classes: int, *, scale: float = 1.0, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Case:
    """Normal embeddings; logits have a standard deviation of ``scale^2 sqrt(d)``. ``classes`` 0: all distinct."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, d, generator=generator, dtype=torch.float64) * scale
    b = torch.randn(m, d, generator=generator, dtype=torch.float64) * scale
    labels = torch.randint(0, classes, (n,), generator=generator) if classes else torch.randperm(n, generator=generator)
    return Case(a.to(dtype), b.to(dtype), labels)


def evaluate(loss: Callable[..., Tensor], case: Case, dtype: torch.dtype | None = None, **options: object) -> Result:
    """The loss of a case and its gradients, computed in ``dtype``."""
    a, b = (x.detach().to(dtype or x.dtype).requires_grad_() for x in (case.a, case.b))
    value = loss(a, b, case.labels, **options)
    value.backward()
    assert a.grad is not None
    assert b.grad is not None
    return Result(value.detach().double(), a.grad.double(), b.grad.double())


def relative_error(x: Tensor, reference: Tensor) -> float:
    """``|x - reference| / |reference|``, Frobenius norms; absolute where the reference is zero; inf for any NaN."""
    scale = float(reference.norm()) or 1.0
    error = float((x - reference).norm()) / scale
    return error if error == error else float("inf")


def assert_close(result: Result, reference: Result, tolerance: float) -> None:
    """Loss and both gradients within a relative tolerance."""
    errors = {name: relative_error(x, y) for name, x, y in zip(Result._fields, result, reference, strict=True)}
    assert max(errors.values()) <= tolerance, errors


def assert_as_exact_as(result: Result, rival: Result, reference: Result, band: float) -> None:
    """Errors against the float64 reference at most twice the rival's plus a rounding band (DESIGN of the project)."""
    for name, x, y, exact in zip(Result._fields, result, rival, reference, strict=True):
        mine, theirs = relative_error(x, exact), relative_error(y, exact)
        assert mine <= 2 * theirs + band, f"{name}: error {mine:.1e}, eager {theirs:.1e}, band {band:.1e}"
