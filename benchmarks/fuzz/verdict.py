"""A batch run through the backend and judged: its numbers, and what else is promised of a call."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.fuzz import ways
from benchmarks.fuzz.cases import Case
from benchmarks.fuzz.inputs import Inputs, make_inputs, raw_bytes
from benchmarks.fuzz.oracle import INPUTS, STATISTICS, Truth, find_truth

BAND = 8
"""Roundings, each of an eps, of the terms that make up a result: of the exponential, the two sums that normalise, the
two products, the factor, the sum over terms, and the store. As in the tests and the README."""
SMALLEST_ROW = 1e-3
"""A row is judged by its own terms; one with less than this share of the largest row's as if it had that share, for
what underflows is only small beside them."""

SINGLE, PEAKED = 2.0, 64.0
"""A row may hang on how a single score was rounded, which can be twice as far off as the worst that eager code met. So
may everything with normalisers beyond the second, where walks are nearly certain."""

STRAY = 2
"""So many rows may stray: by what eager code loses in them, or by their gradients, no others are measured."""

Loss = Callable[..., Any]


class Problem(NamedTuple):
    """Something that is not as promised."""

    what: str
    error: float = math.inf
    eager: float = 0.0
    allowed: float = 0.0

    def __str__(self) -> str:
        if math.isinf(self.error):
            return self.what
        return f"{self.what}: error {self.error:.1e}, eager's {self.eager:.1e}, allowed {self.allowed:.1e}"


class Outcome(NamedTuple):
    """What came of a batch."""

    case: Case
    problems: tuple[Problem, ...]
    ratio: float
    """The largest error over what is allowed."""
    machine_code: bool
    """Whether machine code gave the loss."""

    @property
    def line(self) -> str:
        """What repeats it, and what was off."""
        by = " (machine code)" if self.machine_code else ""
        return f"{self.case.command}   # {self.case.words}{by}: " + "; ".join(map(str, self.problems))


class Results(NamedTuple):
    """What a call and its backward pass gave."""

    loss: Tensor
    statistics: dict[str, Tensor]
    gradients: dict[str, Tensor | None]

    def tensors(self) -> dict[str, Tensor]:
        """All that there are, by name."""
        gradients = {f"d{name}": x for name, x in self.gradients.items() if x is not None}
        return {"loss": self.loss, **self.statistics, **gradients}


def judge(case: Case, loss: Loss) -> Outcome:
    """Runs the batch through ``loss`` twice, and says what is not as promised."""
    inputs = make_inputs(case)
    before = inputs.content()
    with ExitStack() as stack:
        stack.enter_context(ways.thread_count(case.threads))
        stack.enter_context(ways.taking(case.way))
        given = stack.enter_context(ways.counting_machine_code())
        if case.poisoned:
            stack.enter_context(ways.poisoned_memory())
        try:
            first, second = (_run(case, inputs, loss) for _ in range(2))
        except Exception as error:  # whatever it is, the campaign goes on
            return Outcome(case, (Problem(f"raised {type(error).__name__}: {error}"),), math.inf, bool(given))
    problems = _promises(case, inputs, first)
    for name, x in first.tensors().items():
        if not _same_bits(x, second.tensors()[name]):
            problems.append(Problem(f"{name} is not the same to the bit when run again"))
    if not all(torch.equal(x, y) for x, y in zip(before, inputs.content(), strict=True)):
        problems.append(Problem("an input was written to"))
    with ways.thread_count(1):
        more, ratio = _errors(case, inputs, first, find_truth(case, inputs))
    problems += more
    return Outcome(
        case, tuple(problems), math.inf if any(math.isinf(x.error) for x in problems) else ratio, bool(given)
    )


def _run(case: Case, inputs: Inputs, loss: Loss) -> Results:
    needed = {"a": case.needs in ("a", "both", "frozen"), "b": case.needs in ("b", "both", "frozen")}
    a, b = (getattr(inputs, name).detach().requires_grad_(needed[name]) for name in "ab")
    own = inputs._replace(a=a, b=b)
    leaves = {name: getattr(own, name) for name in INPUTS if isinstance(getattr(own, name), Tensor)}
    for leaf in leaves.values():
        leaf.grad = None
    with torch.set_grad_enabled(case.needs != "frozen"):
        found = loss(a, b, inputs.labels, **own.options(case), backend=ways.backend(case.way))
    value, statistics = found if case.statistics else (found, None)
    if value.requires_grad:
        value.backward(torch.tensor(case.upstream, dtype=value.dtype))
    gradients = {name: leaf.grad for name, leaf in leaves.items()}
    return Results(value.detach(), {} if statistics is None else statistics._asdict(), gradients)


def _promises(case: Case, inputs: Inputs, results: Results) -> list[Problem]:
    """Dtypes, shapes, and which gradients there are."""
    problems = []
    accumulation = getattr(torch, case.accumulation)
    shapes = {name: (case.m,) if name == "visit_probability" else () for name in ("loss", *STATISTICS)}
    for name, x in results.tensors().items():
        source = getattr(inputs, name[1:]) if name[1:] in results.gradients else None
        dtype, shape = (accumulation, shapes[name]) if source is None else (source.dtype, tuple(source.shape))
        if x.dtype != dtype or tuple(x.shape) != shape:
            problems.append(Problem(f"{name} is {x.dtype} {tuple(x.shape)}, not {dtype} {shape}"))
    zero = {"walker_weight": case.walker_weight.skips, "visit_weight": case.visit_weight.skips}
    for name, gradient in results.gradients.items():
        wanted = case.needs in (name, "both") if name in "ab" else case.needs != "frozen"
        # A temperature plays no part where neither term is wanted.
        unused = name == "temperature" and all(zero.values())
        if (gradient is not None) != wanted and not unused:
            problems.append(Problem(f"d{name} is {'there' if gradient is not None else 'None'}"))
    return problems


def _errors(case: Case, inputs: Inputs, results: Results, truth: Truth) -> tuple[list[Problem], float]:
    """Results that are further off than is allowed, and the largest error over what is allowed."""
    problems: list[Problem] = []
    largest = 0.0
    if not truth.scores_resolved:
        return problems, largest
    for name, x in results.tensors().items():
        exact, terms = truth.exact[name], truth.terms[name]
        if x.shape != exact.shape:
            continue
        samples = [found[name] for found in truth.eager]
        if name[1:] in results.gradients:
            # Gradients are linear: eager code's are taken at an upstream gradient of 1, where nothing overflows.
            factor = float(torch.tensor(case.upstream, dtype=results.loss.dtype))
            exact, terms, samples = exact * factor, terms * abs(factor), [y * factor for y in samples]
        if truth.underflows or not bool(exact.isfinite().all()):
            problems += _where_it_underflows(case, name, x, truth)
            continue
        lost = float(truth.lost.get(name, 0.0)) * abs(case.upstream)
        problem, ratio = _compare(case, name, x, exact, terms, samples, truth, lost)
        largest = max(largest, ratio)
        if problem is not None:
            problems.append(problem)
    return problems, largest


def _where_it_underflows(case: Case, name: str, x: Tensor, truth: Truth) -> list[Problem]:
    """Without ``eps`` the loss may then be infinite, and the specification's own gradient NaN; but not ours.

    A gradient holds 1 over the smallest normal number, a quarter of the largest: beyond factors of 1 it may overflow.
    """
    positive = min(case.walker_weight.value, case.visit_weight.value) > 0.0
    if name in ("loss", *STATISTICS[:2]):
        if positive and bool(x.isnan().any()):
            return [Problem(f"{name} is NaN")]
    elif name in ("da", "db") and case.similarity == "dot":
        weight = abs(case.upstream) * max(abs(case.walker_weight.value), abs(case.visit_weight.value))
        if weight * max(1.0, truth.largest) <= 1.0 and not bool(x.isfinite().all()):
            return [Problem(f"{name} is not finite")]
    return []


def _compare(
    case: Case, name: str, x: Tensor, exact: Tensor, terms: Tensor, samples: list[Tensor], truth: Truth, lost: float
) -> tuple[Problem | None, float]:
    """Its norm, and the row that is worst relative to its terms, are each off by no more than is allowed.

    For both: twice eager code's error, and eight roundings of the terms. A single row, or a probability, may see those
    of a long sum, which add up as random ones do.
    """
    error = _beyond_storage(case, x, exact, truth)
    if not bool(error.isfinite().all()):
        return Problem(f"{name} is not finite"), math.inf
    unit = torch.finfo(getattr(torch, case.accumulation)).eps
    longest = math.sqrt(max(case.n, case.m))
    band = unit * (max(BAND, longest) if name in STATISTICS[2:] else BAND)
    sides = 1.0
    if case.accumulation == "float64":
        # Eager code is the exact side here, which rounds as well: nothing tells what its long sums lost, at worst half
        # a rounding for each term. Normalisers, which are float64 for float32 too, lose digits to their size.
        sides = 2.0
        band = sides * unit * (BAND + max(case.n, case.m) / 2.0 + truth.normaliser)
    # Eager code without eps may be NaN off the classes.
    theirs = [(y - exact).abs() for y in samples if bool(y.isfinite().all())]
    absolute = _absolute_error(case, name) + lost

    eager = max((float(y.norm()) for y in theirs), default=0.0)
    luck = SINGLE if truth.normaliser > PEAKED else 1.0
    allowed = sides * 2.0 * luck * eager + band * float(terms.norm()) + absolute * math.sqrt(x.numel())
    problem, ratio = _problem(name, float(error.norm()), eager, allowed)
    if x.ndim == 0:
        return problem, ratio

    sizes = _row_norms(terms)
    # Nothing is measured by the gradients of a row that strays. By products, which float32 may take, a row of squared
    # distances is as exact as the largest of the others is.
    euclidean = case.similarity == "euclidean"
    largest = _usual_largest(sizes) if euclidean else float(sizes.max())
    floor = 1.0 if euclidean and case.accumulation == "float32" else SMALLEST_ROW
    sizes = sizes.clamp_min(max(floor * largest, torch.finfo(torch.float64).tiny))
    rows = torch.stack([_row_norms(y) / sizes for y in theirs] or [torch.zeros_like(sizes)]).amax(0)
    # Nor by what eager code loses in it.
    rows = rows.clamp_min(_usual_largest(rows))
    errors = (_row_norms(error) - absolute * math.sqrt(x[0].numel())) / sizes
    allowances = sides * 2.0 * SINGLE * rows + band * longest
    worst = int((errors / allowances).argmax())
    of_rows, ratio_of_rows = _problem(
        f"{name}, worst row over its terms", *(float(y[worst]) for y in (errors, rows, allowances))
    )
    return problem or of_rows, max(ratio, ratio_of_rows)


def _problem(name: str, error: float, eager: float, allowed: float) -> tuple[Problem | None, float]:
    ratio = error / allowed if allowed > 0.0 else (math.inf if error > 0.0 else 0.0)
    return (Problem(name, error, eager, allowed) if not error <= allowed else None), ratio


def _usual_largest(rows: Tensor) -> float:
    """The largest number but for a few that may stray."""
    return float(rows.sort(descending=True).values[min(STRAY, len(rows) // 3)])


def _row_norms(x: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x.reshape(len(x), -1), dim=1)
    return norms


def _absolute_error(case: Case, name: str) -> float:
    """What underflows changes a probability by less than ``eps`` times the roundoff, its root by the root of that."""
    lost = case.eps * torch.finfo(getattr(torch, case.accumulation)).eps
    return {"p_correct": lost, "visit_probability": lost, "accuracy_estimate": math.sqrt(lost)}.get(name, 0.0)


def _beyond_storage(case: Case, x: Tensor, exact: Tensor, truth: Truth) -> Tensor:
    """The error but for what storing the result, once, in a dtype below that of accumulation takes: half a step.

    In that of accumulation it is a rounding of the band, but below the normal numbers, where steps have one size; what
    is multiplied after the backend has stored its gradient takes that step along.
    """
    limits = torch.finfo(x.dtype)
    accumulation = torch.finfo(getattr(torch, case.accumulation))
    if limits.eps < accumulation.eps:
        limits = accumulation
    # Beyond the largest number of the dtype infinity is right.
    got, exact = (y.clamp(-limits.max, limits.max) for y in (x.detach().double(), exact))
    error = (got - exact).abs()
    stored = torch.full_like(error, accumulation.smallest_normal * accumulation.eps / 2.0 * truth.largest)
    if limits.eps > accumulation.eps:
        binade = torch.frexp(torch.maximum(got.abs().nan_to_num(0.0, 0.0, 0.0), exact.abs())).exponent - 1
        step = torch.ldexp(torch.full_like(error, limits.eps), binade).clamp_min(limits.smallest_normal * limits.eps)
        stored += step / 2.0
    return (error - stored).clamp_min(0.0).where(error.isfinite(), error)


def _same_bits(x: Tensor, y: Tensor) -> bool:
    return x.dtype == y.dtype and torch.equal(raw_bytes(x), raw_bytes(y))
