"""Squared distances keep their digits where tight clusters lie far apart."""

from __future__ import annotations

import pytest
import torch

import fastassoc
from fastassoc import computation, reference
from fastassoc.backends import choose_backend
from fastassoc.backends.protocol import Inputs
from fastassoc.computation import Call, Precision
from tests.cases import Case, evaluate, relative_error, seeded

BAND = 8 * torch.finfo(torch.float32).eps


def clusters(
    spread: float, noise: float = 1.0, depth: int = 8, rows: int = 200, columns: int = 600, seed: int = 0
) -> Case:
    """Ten classes around centres of that spread."""
    generator = seeded(seed)
    centres = torch.randn(10, depth, generator=generator) * spread
    labels = torch.arange(rows) % 10
    a = centres[labels] + noise * torch.randn(rows, depth, generator=generator)
    b = centres[torch.randint(0, 10, (columns,), generator=generator)]
    return Case(a, b + noise * torch.randn(columns, depth, generator=generator), labels)


def assert_exact(case: Case, temperature: float = 1.0) -> None:
    """At most twice the error of eager code, which subtracts, up to eight roundings."""
    options = {"similarity": "euclidean", "temperature": temperature}
    exact = evaluate(reference.walker_visit_loss, case, torch.float64, **options)
    eager = evaluate(reference.walker_visit_loss, case, **options)
    mine = evaluate(fastassoc.walker_visit_loss, case, **options)
    for name, x, y, true in zip(exact._fields, mine, eager, exact, strict=True):
        assert relative_error(x, true) <= 2 * relative_error(y, true) + BAND, name


# From distances that products have all digits of, to where float64 has none.
@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6, 1e7])
@pytest.mark.parametrize("depth", [2, 8, 128])
def test_clusters_far_apart(spread: float, depth: int) -> None:
    assert_exact(clusters(spread, depth=depth))


@pytest.mark.parametrize("spread", [0.3, 1.0, 30.0])
@pytest.mark.parametrize("noise", [0.03, 0.1])
def test_clusters_closer_than_the_temperature(spread: float, noise: float) -> None:
    assert_exact(clusters(spread, noise=noise), temperature=0.5)


# Both sides apart: every distance is large, and a rounding of a row's norm is one of all its scores.
@pytest.mark.parametrize("offset", [3.0, 10.0, 30.0, 100.0])
@pytest.mark.parametrize(("depth", "noise"), [(8, 0.3), (8, 1.0), (32, 0.3), (128, 1.0), (256, 0.3)])
def test_sides_far_apart(depth: int, noise: float, offset: float) -> None:
    case = clusters(0.0, noise=noise, depth=depth)
    assert_exact(case._replace(a=case.a + offset / depth**0.5))


# Each row of a has its own neighbours, nowhere near those of the other rows.
def test_pairs_without_clusters() -> None:
    generator = seeded(1)
    a = torch.randn(100, 8, generator=generator) * 1e4
    b = a.repeat(3, 1) + torch.randn(300, 8, generator=generator)
    assert_exact(Case(a, b, torch.arange(100) % 10))


@pytest.mark.parametrize("spread", [1.0, 100.0, 1e4])
def test_a_learned_temperature(spread: float) -> None:
    case = clusters(spread)
    gradients = []
    for function, dtype in (
        (reference.walker_visit_loss, torch.float64),
        (reference.walker_visit_loss, torch.float32),
        (fastassoc.walker_visit_loss, torch.float32),
    ):
        a, b = (x.to(dtype).clone().requires_grad_() for x in case[:2])
        temperature = torch.tensor(1.7, dtype=dtype, requires_grad=True)
        loss = function(a, b, case.labels, similarity="euclidean", temperature=temperature)
        gradients.append([x.double() for x in torch.autograd.grad(loss, (a, b, temperature))])
    for exact, eager, mine in zip(*gradients, strict=True):
        assert relative_error(mine, exact) <= 2 * relative_error(eager, exact) + BAND


def precision(case: Case) -> Precision:
    call = Call(
        choose_backend("cpu", case.a.device), case.labels, None, 1.0, True, 1e-8, True, True, False, True, "cpu"
    )
    form = computation._distance_form(call, case.a, case.b, None)
    return Precision(form.dtype, form.differences)


def test_products_stay_where_they_are_exact_enough() -> None:
    quick = Precision(torch.float32, False)
    # Of norms about 1 and 3, with no clusters, and with clusters as tight as they are far from the origin.
    assert precision(clusters(0.0, noise=0.3)) == quick
    assert precision(clusters(0.0, noise=0.25, depth=128)) == quick
    assert precision(clusters(0.1, noise=0.1, depth=128)) == quick
    assert precision(clusters(0.0, depth=128)) == Precision(torch.float64, False)
    assert precision(clusters(30.0)) == Precision(torch.float64, False)
    assert precision(clusters(1e6)) == Precision(torch.float64, True)
    doubles = Case(*(x.double() for x in clusters(30.0)[:2]), clusters(30.0).labels)
    assert precision(doubles) == Precision(torch.float64, True)


def test_without_the_bound_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(computation, "_digits_needed", lambda form: 0.0)
    with pytest.raises(AssertionError):
        assert_exact(clusters(100.0))


# In float64 nothing is more exact than eager code: they agree.
@pytest.mark.parametrize("spread", [1.0, 1e2, 1e4, 1e6])
def test_float64(spread: float) -> None:
    case = clusters(spread)
    case = Case(case.a.double(), case.b.double(), case.labels)
    exact = evaluate(reference.walker_visit_loss, case, similarity="euclidean")
    for x, true in zip(evaluate(fastassoc.walker_visit_loss, case, similarity="euclidean"), exact, strict=True):
        assert relative_error(x, true) <= 1e-13


# Far from all others: neither the middle of both sides nor the largest norm may cost the others their digits.
# (A row of a still farther tells no columns apart, in float64 either.)
@pytest.mark.parametrize(("side", "size"), [("a", 1e8), ("b", 1e8), ("b", 1e16), ("b", 1e18)])
def test_a_row_far_from_all_others(side: str, size: float) -> None:
    case = clusters(0.0, rows=40, columns=60, depth=4)
    {"a": case.a, "b": case.b}[side][7] = size
    assert_exact(case)


def test_two_clusters_as_far_apart_as_float32_holds() -> None:
    for distance in (1e12, 1e15, 1e18):
        case = clusters(0.0, rows=40, columns=60, depth=4)
        case.a[::2] += distance
        case.b[::2] += distance
        assert_exact(case._replace(labels=torch.arange(40) % 2))


# Finite, and otherwise as if they were not there.
@pytest.mark.parametrize("size", [1e3, 1e16, 1e25])
def test_ignored_rows_of_any_size(size: float) -> None:
    case = clusters(0.0, rows=40, columns=60, depth=4)
    kept = case.labels != 3
    expected = evaluate(
        reference.walker_visit_loss,
        Case(case.a[kept], case.b, case.labels[kept]),
        torch.float64,
        similarity="euclidean",
    )
    case.a[~kept] = size
    mine = evaluate(fastassoc.walker_visit_loss, case, similarity="euclidean", ignore_index=3)
    assert torch.equal(mine.da[~kept], torch.zeros_like(mine.da[~kept]))
    for x, true in zip(mine._replace(da=mine.da[kept]), expected, strict=True):
        assert relative_error(x, true) <= BAND


def test_a_temperature_whose_inverse_overflows() -> None:
    with pytest.raises(ValueError, match=r"temperature must be at least 1\.18e-38"):
        fastassoc.walker_visit_loss(
            torch.eye(3), torch.eye(3), torch.arange(3), similarity="euclidean", temperature=1e-42
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision(dtype: torch.dtype) -> None:
    case = clusters(100.0)
    case = Case(case.a.to(dtype), case.b.to(dtype), case.labels)
    exact = evaluate(reference.walker_visit_loss, case, torch.float64, similarity="euclidean")
    mine = evaluate(fastassoc.walker_visit_loss, case, similarity="euclidean")
    for x, true in zip(mine[1:], exact[1:], strict=True):
        assert relative_error(x, true) <= torch.finfo(dtype).eps
    assert abs(mine.loss - exact.loss) <= BAND * exact.loss


def test_inputs_carry_no_bias_for_products() -> None:
    call = Call(
        choose_backend("cpu", torch.device("cpu")),
        torch.zeros(2),
        None,
        0.5,
        False,
        1e-8,
        True,
        True,
        False,
        True,
        "cpu",
    )
    x = computation._form(call, Precision(torch.float32, False), torch.eye(2), torch.eye(2), None)
    assert isinstance(x, Inputs)
    assert x.bias_a is None
    assert x.scale == 0.5


# Unit directions of 2 to 4 dimensions in bfloat16: the gradient is rounded once, when it is stored.
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_cosine_rounds_gradients_once(dtype: torch.dtype, depth: int) -> None:
    case = clusters(3.0, depth=depth, rows=50, columns=90)
    case = Case(case.a.to(dtype), case.b.to(dtype), case.labels)
    exact = evaluate(reference.walker_visit_loss, case, torch.float64, similarity="cosine")
    mine = evaluate(fastassoc.walker_visit_loss, case, similarity="cosine")
    for x, true in zip(mine[1:], exact[1:], strict=True):
        # The steps of float16 below its normal numbers.
        step = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps * true.numel() ** 0.5 / float(true.norm())
        assert relative_error(x, true) <= torch.finfo(dtype).eps / 2 + step + BAND
