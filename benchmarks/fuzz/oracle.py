"""What is right, in float64, and how far off a result may be.

A result may be off by twice what eager code is off, and by the rounding of the terms that it is a sum of. Both are
computed, not chosen:

- eager code is `fastassoc.reference` in the dtype of accumulation. On a small batch its error may be small by luck, so
  losses are computed again, exactly but for scores that are each rounded otherwise, and the largest error counts;
- a gradient is a sum of terms that may be far larger than itself, as where walks are one-hot and it vanishes.
  `absolute_terms` sums their absolute values; the band is eight roundings of that sum.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.fuzz.cases import Case
from benchmarks.fuzz.inputs import Inputs
from fastassoc import reference

_ROUNDED_OTHERWISE = 4
"""So many times."""
_LANES = 16
"""Of a vector: the partial sums of a product."""
LOSSES = ("walker", "visit")
STATISTICS = (*LOSSES, "p_correct", "accuracy_estimate", "visit_probability")
INPUTS = ("a", "b", "temperature", "walker_weight", "visit_weight")


class Truth(NamedTuple):
    """What is right for a batch."""

    exact: dict[str, Tensor]
    """Loss, statistics, and gradients ("d" and the name of the input), at an upstream gradient of 1."""
    eager: list[dict[str, Tensor]]
    """The same by eager code, all in float64."""
    terms: dict[str, Tensor]
    """The absolute values of the terms of each, summed: of its shape."""
    scores_resolved: bool
    """Whether the dtype of accumulation tells products apart that differ by one, or holds squared distances: beyond,
    anything may come out. Distances are made of differences, and as exact as eager code's however large."""
    underflows: bool
    """Without ``eps``: whether a probability below a logarithm is too small for the dtype of accumulation."""
    largest: float
    """Of the entries of both embeddings and of what a gradient is multiplied by after the backend; at least 1."""
    normaliser: float
    """The largest ``lse_a`` or ``lse_b``; of squared distances their mean weighted by the gradients of the scores, to
    which a stray row adds nothing however far away."""
    lost: dict[str, Tensor]
    """What is known to be lost beside the band: by name, absolute."""


def find_truth(case: Case, inputs: Inputs) -> Truth:
    """By the specification, on the float64 of the inputs as they were rounded."""
    dtype = getattr(torch, case.accumulation)
    # What the dtype cannot hold as a normal number counts as 0.
    eps = case.eps if case.eps >= torch.finfo(dtype).tiny else 0.0
    kept, classes = _kept(inputs)
    exact = _evaluate(case, inputs, kept, classes, eps, torch.float64, None)
    eager = [_evaluate(case, inputs, kept, classes, eps, dtype, None)]
    for seed in range(_ROUNDED_OTHERWISE):
        noise = torch.Generator().manual_seed(seed)
        eager.append(_evaluate(case, inputs, kept, classes, eps, torch.float64, noise))
    return Truth(exact, eager, *_absolute_terms(case, inputs, kept, classes, eps, exact))


def _kept(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Rows that take part, and their classes from 0, by Python's own comparison of whole numbers."""
    values = [int(x) for x in inputs.labels.tolist()]
    kept = [i for i, x in enumerate(values) if x != inputs.ignore_index]
    numbers = {x: i for i, x in enumerate(dict.fromkeys(values))}
    return torch.tensor(kept), torch.tensor([numbers[values[i]] for i in kept])


def _evaluate(
    case: Case,
    inputs: Inputs,
    kept: Tensor,
    classes: Tensor,
    eps: float,
    dtype: torch.dtype,
    noise: torch.Generator | None,
) -> dict[str, Tensor]:
    numbers = {name: _leaf(getattr(inputs, name), dtype) for name in INPUTS}
    a, b, temperature = numbers["a"], numbers["b"], numbers["temperature"]
    # As it lies, which a library's product may round by.
    rows = a if len(kept) == len(a) else a[kept]
    if noise is not None and case.similarity != "euclidean":
        # Eager code may as well divide embeddings by the temperature, which rounds all scores of a row alike.
        unit = torch.finfo(getattr(torch, case.accumulation)).eps / 2.0
        rows = rows * (1.0 + unit * (2.0 * torch.randint(2, rows.shape, generator=noise) - 1.0))
    s = _similarities(rows, b, case.similarity, temperature)
    if noise is not None:
        rounding = _score_rounding(rows.detach(), b.detach(), s.detach(), case)
        s = s + rounding * (2.0 * torch.randint(2, s.shape, generator=noise) - 1.0)
    found = reference.walker_visit_terms(s, classes, eps)
    # A term whose weight is the float 0 is left out, infinite or not.
    weighted = [numbers[f"{x}_weight"] * found[x] for x in LOSSES if not getattr(case, f"{x}_weight").skips]
    loss = sum(weighted, torch.zeros((), dtype=dtype))
    found["loss"] = loss
    wanted = list(numbers)
    gradients: list[Tensor | None] = [None] * len(wanted)
    if loss.requires_grad:
        gradients = list(torch.autograd.grad(loss, [numbers[x] for x in wanted], allow_unused=True))
    for name, gradient in zip(wanted, gradients, strict=True):
        found[f"d{name}"] = torch.zeros_like(numbers[name]) if gradient is None else gradient
    return {name: x.detach().double() for name, x in found.items()}


def _leaf(x: float | Tensor, dtype: torch.dtype) -> Tensor:
    double = x.detach().double() if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64)
    return double.to(dtype).clone().requires_grad_()


def _similarities(a: Tensor, b: Tensor, similarity: str, temperature: Tensor) -> Tensor:
    """Those of the specification, but for zero rows, which it leaves undefined: their cosine is 0."""
    if similarity == "cosine" and not all(bool(x.detach().any(1).all()) for x in (a, b)):
        return reference.similarity_matrix(_unit_rows(a), _unit_rows(b), "dot", temperature)
    return reference.similarity_matrix(a, b, similarity, temperature)


def _unit_rows(x: Tensor) -> Tensor:
    return x / _safe_norms(x)


def _score_rounding(a: Tensor, b: Tensor, s: Tensor, case: Case) -> Tensor:
    """One rounding of each product in a score, which add up as random ones do, and one of the score itself."""
    return torch.finfo(getattr(torch, case.accumulation)).eps / 2.0 * _score_terms(a, b, s, case)


def _score_terms(a: Tensor, b: Tensor, s: Tensor, case: Case) -> Tensor:
    """``|s_ij| + sqrt(sum_k x_k^2)`` for a score that sums the x; for squared differences at most twice that score.

    A product adds its terms one after another in up to 16 lanes, and rounds each time: ``sqrt(D / 16)`` roundings.
    """
    if case.similarity == "euclidean":
        return 2.0 * s.abs()
    if case.similarity == "cosine":
        a, b = _unit_rows(a), _unit_rows(b)
    additions = max(1.0, math.sqrt(case.d / _LANES))
    return s.abs() * additions + (a.square() @ b.square().T).sqrt() / case.temperature.value


def _absolute_terms(
    case: Case, inputs: Inputs, kept: Tensor, classes: Tensor, eps: float, exact: dict[str, Tensor]
) -> tuple[dict[str, Tensor], bool, bool, float, float, dict[str, Tensor]]:
    """What `Truth` has but for exact and eager results.

    The gradient of a score is ``p_ab_ij (U_ij + h_j - rho_i) + q_ij (W_ij - kappa_j)``, where U and W are the round
    trips' part, h the visits'; here all of these are added.
    """
    a, b = inputs.a.detach().double()[kept], inputs.b.detach().double()
    n, m = len(a), len(b)
    temperature, *weights = (_leaf(getattr(inputs, x), torch.float64).detach().abs() for x in INPUTS[2:])
    s = _similarities(a, b, case.similarity, temperature)
    p, q = s.softmax(1), s.softmax(0)
    p_aba, visit = p @ q.T, p.mean(0)
    same = classes[:, None] == classes[None, :]
    # A term of weight 0 adds nothing, underflow or not.
    least = torch.finfo(torch.float64).tiny
    g = (weights[0] * same / (n * same.sum(1, keepdim=True) * (eps + p_aba).clamp_min(least))).where(same, 0.0)
    h = weights[1] / (n * m * (eps + visit).clamp_min(least))
    u, w = g @ q, g.T @ p
    rho, kappa = (p * (u + h)).sum(1, keepdim=True), (p * u).sum(0)
    ds = (p * (u + h + rho) + q * (w + kappa)) / temperature

    limits = torch.finfo(getattr(torch, case.accumulation))
    # Where it is a sum of as many terms as there are columns or rows, each of which may lose its last digits sooner.
    lowest = limits.tiny / limits.eps * max(n, m)
    walker, visits = (case.statistics or not x.skips for x in (case.walker_weight, case.visit_weight))
    underflows = eps == 0.0 and bool(
        (walker and float(p_aba[same].min()) < lowest) or (visits and float(visit.min()) < lowest)
    )

    terms: dict[str, Tensor] = {}
    factors = [1.0, float(a.abs().max()), float(b.abs().max())]
    if case.similarity == "euclidean":
        # Equal rows have no terms, but taken from a centre that is itself rounded they are off by a rounding.
        sizes = a.abs()[:, None, :] + b.abs()[None, :, :]
        difference = (a[:, None, :] - b[None, :, :]).abs() + limits.eps * sizes
        of_rows = 2.0 * torch.einsum("nm,nmd->nd", ds, difference)
        terms["db"] = 2.0 * torch.einsum("nm,nmd->md", ds, difference)
    elif case.similarity == "cosine":
        units, norms = zip(*((_unit_rows(x).abs(), _safe_norms(x)) for x in (a, b)), strict=True)
        of_rows, terms["db"] = (
            (t + unit * (unit * t).sum(1, keepdim=True)) / norm
            for t, unit, norm in zip((ds @ units[1], ds.T @ units[0]), units, norms, strict=True)
        )
        factors += [1.0 / float(x.min()) for x in norms]
    else:
        of_rows, terms["db"] = ds @ b.abs(), ds.T @ a.abs()
    terms["da"] = torch.zeros_like(exact["da"]).index_copy_(0, kept, of_rows)
    of_scores = _score_terms(a, b, s, case)
    finite = float(s.abs().max()) < 1.0 / limits.eps
    normaliser = max(float(s.logsumexp(dim).abs().max()) for dim in (0, 1))
    lost: dict[str, Tensor] = {}
    if case.similarity == "euclidean":
        of_scores = 2.0 * difference.square().sum(2) / temperature
        finite = float(s.abs().max()) * max(1.0, float(temperature)) < limits.max / 4.0
        net = (p * (u + h - rho) + q * (w - kappa)).abs()
        normaliser = float((net * s.abs()).sum() / net.sum().clamp_min(torch.finfo(torch.float64).tiny))
        # From the gradients of embeddings, around their middle, in float64.
        centre = (a.mean(0) + b.mean(0)) / 2.0
        norms_a, norms_b = ((x - centre).norm(dim=1) for x in (a, b))
        squares = (norms_a[:, None] + norms_b[None, :]).square() / temperature
        lost["dtemperature"] = torch.finfo(torch.float64).eps * (ds * squares).sum()
    terms["dtemperature"] = (ds * of_scores).sum()
    # A loss is a mean of logarithms of probabilities, each of which is off by a rounding of 1 at least.
    for name in LOSSES:
        terms[name] = terms[f"d{name}_weight"] = exact[name].abs().clamp_min(1.0)
    terms["loss"] = sum(
        (weight * terms[name] for weight, name in zip(weights, LOSSES, strict=True) if weight != 0.0),
        torch.zeros(()).double(),
    )
    for name in STATISTICS[2:]:
        terms[name] = exact[name]
    return terms, finite, underflows, max(*factors, 1.0 / float(temperature)), normaliser, lost


def _safe_norms(x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    safe: Tensor = norm.where(norm > 0.0, 1.0)
    return safe
