"""Random problems, and losses with gradients as plain numbers to compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


def seeded(seed: int = 0) -> torch.Generator:
    """A generator with that seed."""
    return torch.Generator().manual_seed(seed)


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
    generator = seeded(seed)
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


def relative_error(x: Tensor, reference: Tensor, floor: float = 0.0) -> float:
    """``|x - reference| / max(|reference|, floor)``, Frobenius norms; absolute where that is 0; inf for any NaN."""
    scale = max(float(reference.detach().norm()), floor) or 1.0
    error = float((x.detach() - reference.detach()).norm()) / scale
    return error if error == error else float("inf")


def assert_close(result: Result, reference: Result, tolerance: float) -> None:
    """Loss and both gradients within a relative tolerance.

    A gradient that vanishes is the difference of terms of order one: below 0.01 the error is taken relative to that.
    """
    errors = {
        name: relative_error(x, y, floor=0.01) for name, x, y in zip(Result._fields, result, reference, strict=True)
    }
    assert max(errors.values()) <= tolerance, errors


def assert_as_exact_as(result: Result, rival: Result, reference: Result, case: Case) -> None:
    """Errors in float32 against float64 are at most twice eager's plus a band for the rounding of the terms summed.

    A gradient is the difference of terms of order ``|b| / N`` for each of N rows, and ``|a| / N`` for the up to N
    columns that one-hot walks meet. Such walks make it vanish, exactly so in eager code; the band, eight roundings, is
    relative to those terms or to the gradient itself (to a loss of one where the loss is smaller).
    """
    a, b = case.a.double(), case.b.double()
    columns = min(len(a), len(b))
    terms = (1.0, float(b.norm(dim=1).max()) / len(a) ** 0.5, float(a.norm(dim=1).max()) / columns**0.5)
    band = 8 * torch.finfo(torch.float32).eps
    for name, x, y, exact, term in zip(Result._fields, result, rival, reference, terms, strict=True):
        mine, theirs = (float((z - exact).norm()) for z in (x, y))
        allowed = 2 * theirs + band * max(float(exact.norm()), term)
        assert mine <= allowed, f"{name}: error {mine:.1e}, eager {theirs:.1e}, of {float(exact.norm()):.1e}"
