"""Precision and range: low precision, large logits, eps of zero, inputs that are not finite, determinism."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import benchmarks.eager
import fastassoc
from fastassoc import reference
from fastassoc.backends.cpu.operations import sweeps
from fastassoc.backends.cpu.operations.class_blocks import class_blocks
from fastassoc.backends.cpu.operations.terms import weighted_log
from fastassoc.backends.cpu.operations.tiling import Problem
from tests.cases import Case, assert_as_exact_as, assert_close, evaluate, make_case, relative_error, seeded

pytestmark = pytest.mark.usefixtures("cpu_path")

FLOAT32_BAND = 8 * torch.finfo(torch.float32).eps


# scale^2 sqrt(64) is the spread of the logits: flat (0.1), ordinary (2), peaked (30), one-hot (800 and 10,000).
@pytest.mark.parametrize("scale", [0.1, 0.5, 2.0, 10.0, 35.0])
@pytest.mark.parametrize("classes", [1, 5, 0])
def test_float32_is_as_exact_as_eager(scale: float, classes: int) -> None:
    case = make_case(60, 130, 64, classes, scale=scale)
    case = Case(case.a.float(), case.b.float(), case.labels)
    exact = evaluate(reference.walker_visit_loss, case, torch.float64)
    mine = evaluate(fastassoc.walker_visit_loss, case)
    eager = evaluate(benchmarks.eager.walker_visit_loss, case)
    assert_as_exact_as(mine, eager, exact, case)


# Nearly uniform walks over many columns: a gradient is then a small difference of long sums.
@pytest.mark.parametrize("classes", [4, 40])
def test_float32_is_as_exact_as_eager_over_many_columns(classes: int) -> None:
    case = make_case(200, 6000, 64, classes, scale=0.3, dtype=torch.float32)
    exact = evaluate(reference.walker_visit_loss, case, torch.float64)
    mine = evaluate(fastassoc.walker_visit_loss, case)
    eager = evaluate(benchmarks.eager.walker_visit_loss, case)
    for name, x, y, true in zip(exact._fields, mine, eager, exact, strict=True):
        assert relative_error(x, true) <= 2 * relative_error(y, true) + FLOAT32_BAND, name


# Sums over a hundred thousand columns for each round trip, by a dot product or by a matrix product.
@pytest.mark.parametrize("eps", [1e-8, 0.0])
@pytest.mark.parametrize("classes", [10, 5, 2])
def test_float32_is_as_exact_as_eager_with_few_rows(classes: int, eps: float) -> None:
    case = make_case(10, 100_000, 64, 0, scale=0.6, dtype=torch.float32)
    case = case._replace(labels=torch.arange(10) % classes)
    exact = evaluate(reference.walker_visit_loss, case, torch.float64, eps=eps)
    mine = evaluate(fastassoc.walker_visit_loss, case, eps=eps)
    eager = evaluate(benchmarks.eager.walker_visit_loss, case, eps=eps)
    for name, x, y, true in zip(exact._fields, mine, eager, exact, strict=True):
        assert relative_error(x, true) <= 2 * relative_error(y, true) + FLOAT32_BAND, name


# Equal rows: sums whose terms are all the same, where adding one after another always rounds the same way.
@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
@pytest.mark.parametrize(("n", "m"), [(255, 9), (1000, 1), (1, 1000), (600, 20), (1, 1)])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)], ids=["walker", "visit"])
def test_the_loss_of_equal_rows_is_as_exact_as_eager(
    similarity: str, n: int, m: int, weights: tuple[float, float]
) -> None:
    a, b = torch.full((n, 2), 0.1), torch.zeros(m, 2)
    b[:, 0] = torch.linspace(0.0, 30.0 if similarity == "dot" else 3.0, m)
    labels = torch.zeros(n, dtype=torch.int64)
    options: dict[str, Any] = {"walker_weight": weights[0], "visit_weight": weights[1], "similarity": similarity}
    exact = float(reference.walker_visit_loss(a.double(), b.double(), labels, **options))
    eager = float(reference.walker_visit_loss(a, b, labels, **options))
    mine = float(fastassoc.walker_visit_loss(a, b, labels, **options))
    # A probability near one is rounded to an eps of itself, whatever its logarithm.
    assert abs(mine - exact) <= 2 * abs(eager - exact) + 3 * torch.finfo(torch.float32).eps * max(1.0, abs(exact))


# Between walks that are nearly all the same, each gradient is a small difference of sums of nearly equal terms.
@pytest.mark.parametrize(("n", "m"), [(10, 100_000), (1000, 300)])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)], ids=["walker", "visit"])
def test_gradients_by_sums_of_nearly_equal_terms(n: int, m: int, weights: tuple[float, float]) -> None:
    case = make_case(n, m, 4, 4, scale=0.01, dtype=torch.float32)
    case.a[:, 0] += 1.0
    case.b[:, 0] += 1.0
    options = {"walker_weight": weights[0], "visit_weight": weights[1]}
    exact = evaluate(reference.walker_visit_loss, case, torch.float64, **options)
    eager = evaluate(benchmarks.eager.walker_visit_loss, case, **options)
    assert_as_exact_as(evaluate(fastassoc.walker_visit_loss, case, **options), eager, exact, case)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_low_precision_is_float32_arithmetic_on_rounded_inputs(dtype: torch.dtype, scale: float) -> None:
    case = make_case(50, 90, 33, 4, scale=scale)
    rounded = Case(case.a.to(dtype).double(), case.b.to(dtype).double(), case.labels)
    a, b = case.a.to(dtype).requires_grad_(), case.b.to(dtype).requires_grad_()
    loss = fastassoc.walker_visit_loss(a, b, case.labels)
    loss.backward()
    assert loss.dtype == torch.float32
    assert a.grad is not None
    assert b.grad is not None
    assert a.grad.dtype == b.grad.dtype == dtype
    exact = evaluate(reference.walker_visit_loss, rounded)
    eager = evaluate(benchmarks.eager.walker_visit_loss, rounded, torch.float32)
    assert relative_error(loss.double(), exact.loss) <= 2 * relative_error(eager.loss, exact.loss) + FLOAT32_BAND
    # Gradients are rounded once, when they are stored (below the normal numbers of float16, to its smallest step).
    for gradient, theirs, true in ((a.grad, eager.da, exact.da), (b.grad, eager.db, exact.db)):
        step = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        rounding = torch.finfo(dtype).eps / 2 + step * math.sqrt(true.numel()) / float(true.norm())
        assert relative_error(gradient.double(), true) <= rounding + 2 * relative_error(theirs, true) + FLOAT32_BAND


@pytest.mark.parametrize("magnitude", [1e2, 1e3, 1e4, 1e6])
def test_large_logits_stay_finite_and_agree_in_float64(magnitude: float) -> None:
    case = make_case(40, 75, 16, 4)
    top = float((case.a @ case.b.T).abs().max())
    case = case._replace(a=case.a * (magnitude / top))
    result = evaluate(fastassoc.walker_visit_loss, case)
    assert all(bool(x.isfinite().all()) for x in result)
    # Scores of that size are rounded to an eps of themselves, which exponentials turn into a relative error.
    assert_close(result, evaluate(reference.walker_visit_loss, case), 1e-12 + 10 * magnitude * 2.2e-16)


@pytest.mark.parametrize("magnitude", [1e2, 1e4, 1e6])
def test_large_logits_stay_finite_in_float32(magnitude: float) -> None:
    case = make_case(40, 75, 16, 4, dtype=torch.float32)
    top = float((case.a @ case.b.T).abs().max())
    case = case._replace(a=case.a * (magnitude / top))
    result = evaluate(fastassoc.walker_visit_loss, case)
    assert all(bool(x.isfinite().all()) for x in result)
    exact = evaluate(reference.walker_visit_loss, case, torch.float64)
    eager = evaluate(benchmarks.eager.walker_visit_loss, case)
    assert_as_exact_as(result, eager, exact, case)


# Row normalisers inside one class that differ by 0 to 1,000: exp of half the difference leaves float32 beyond 176, and
# the merged round trip has to give way to the plain one before that.
@pytest.mark.parametrize("spread", [0.0, 40.0, 80.0, 100.0, 110.0, 200.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unequal_rows_within_a_class(spread: float, dtype: torch.dtype) -> None:
    # The first coordinate is constant in b, so a_i0 shifts all scores of a row: p_ab stays, lse_a moves by it.
    case = make_case(30, 60, 9, 3)
    a, b = case.a.clone(), case.b.clone()
    a[:, 0] = torch.linspace(-spread / 2, spread / 2, 30, dtype=torch.float64)
    b[:, 0] = 1.0
    case = Case(a.to(dtype), b.to(dtype), case.labels)
    exact = evaluate(reference.walker_visit_loss, case, torch.float64)
    result = evaluate(fastassoc.walker_visit_loss, case)
    if dtype == torch.float64:
        assert_close(result, exact, 1e-11)
    else:
        assert_as_exact_as(result, evaluate(benchmarks.eager.walker_visit_loss, case), exact, case)


# The merged form is the fast one. It has to hold for ordinary embeddings, and to give way before it loses anything.
@pytest.mark.parametrize(("spread", "holds"), [(0.0, True), (40.0, True), (80.0, True), (130.0, False), (400.0, False)])
def test_merged_form_holds_within_its_range(spread: float, holds: bool) -> None:
    case = make_case(30, 60, 9, 3, dtype=torch.float32)
    case.a[:, 0] = torch.linspace(-spread / 2, spread / 2, 30)
    case.b[:, 0] = 1.0
    blocks = class_blocks(case.labels, torch.float32)
    assert blocks.order is not None
    problem = Problem(
        case.a[blocks.order], case.b, None, None, 1.0, 1e-8, blocks, True, True, torch.float32, len(case.b)
    )
    assert (sweeps.merged_walks(problem, True, sweeps.RowSums(None)) is not None) == holds


def test_scores_that_grow_from_tile_to_tile() -> None:
    # Every column outgrows the row maxima of the first tile by far more than an exponential can hold.
    n, m = 12, 100
    a = torch.ones(n, 1) + torch.arange(n)[:, None] / 50
    b = torch.linspace(-400.0, 400.0, m)[:, None]
    case = Case(a, b, torch.arange(n) % 3)
    exact = evaluate(reference.walker_visit_loss, case, torch.float64)
    result = evaluate(fastassoc.walker_visit_loss, case)
    assert_as_exact_as(result, evaluate(benchmarks.eager.walker_visit_loss, case), exact, case)


def test_rows_far_below_the_others_that_outgrow_their_first_tile() -> None:
    # In the first columns the odd rows lie 110 below the even ones, so their weight in the column sums underflows. In
    # the later columns they alone matter, with exponentials of e^70 relative to their first maxima.
    n, m = 128, 400
    labels = torch.arange(n) % 2
    a = torch.nn.functional.one_hot(labels).float()
    b = torch.zeros(m, 2)
    b[:200, 1] = -110.0
    b[200:] = torch.tensor([-55.0, -40.0])
    b += torch.linspace(0.0, 1.0, m).unsqueeze(1)
    case = Case(a, b, labels)
    exact = evaluate(reference.walker_visit_loss, case, torch.float64)
    result = evaluate(fastassoc.walker_visit_loss, case)
    assert_as_exact_as(result, evaluate(benchmarks.eager.walker_visit_loss, case), exact, case)


# Sweeps must agree on every score, and products of so few rows take paths of their own in the library.
@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_few_rows_with_large_logits(n: int) -> None:
    case = make_case(n, 3000, 128, 1, scale=8.0, dtype=torch.float32)
    exact = evaluate(reference.walker_visit_loss, case, torch.float64)
    eager = evaluate(benchmarks.eager.walker_visit_loss, case)
    assert_as_exact_as(evaluate(fastassoc.walker_visit_loss, case), eager, exact, case)
    _, statistics = fastassoc.walker_visit_loss(*case, return_stats=True)
    assert abs(float(statistics.visit_probability.double().sum()) - 1.0) < 1e-5


@pytest.mark.parametrize("lowest", [-14.0, -40.0], ids=["within the limits of whole matrices", "beyond"])
def test_rows_of_very_different_size(lowest: float) -> None:
    """Scores with an offset for each row, up to 60: unshifted exponentials from far below 1 to 1e26."""
    a, b, labels = make_case(60, 90, 20, 5, scale=0.3, dtype=torch.float32)
    offsets = torch.linspace(lowest, 60.0, 60)[torch.randperm(60, generator=torch.Generator().manual_seed(2))]
    case = Case(torch.cat([a, offsets[:, None]], 1), torch.cat([b, torch.ones(90, 1)], 1), labels)
    exact = evaluate(reference.walker_visit_loss, case, torch.float64)
    eager = evaluate(benchmarks.eager.walker_visit_loss, case)
    assert_as_exact_as(evaluate(fastassoc.walker_visit_loss, case), eager, exact, case)


@pytest.mark.parametrize("score", [-95.0, 89.0])
def test_scores_whose_exponentials_leave_float32(score: float) -> None:
    case = Case(torch.full((10, 1), score), torch.ones(10, 1), torch.arange(10) % 2)
    exact = evaluate(reference.walker_visit_loss, case, torch.float64)
    eager = evaluate(benchmarks.eager.walker_visit_loss, case)
    assert_as_exact_as(evaluate(fastassoc.walker_visit_loss, case), eager, exact, case)


# Factors of a loss, of which gradients are multiples: what is made of them on the way may neither under- nor overflow.
@pytest.mark.parametrize("factor", [1e-35, 1e-30, 1e-25, 1e-12, 1e12, 1e20])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1e-10), (1e-10, 1.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_upstream_gradients_are_factors(factor: float, weights: tuple[float, float], dtype: torch.dtype) -> None:
    case = make_case(60, 100, 8, 5, scale=0.7, dtype=dtype)
    walker_weight, visit_weight = weights
    a, b = case.a.requires_grad_(), case.b.requires_grad_()
    loss = fastassoc.walker_visit_loss(a, b, case.labels, walker_weight=walker_weight, visit_weight=visit_weight)
    plain = torch.autograd.grad(loss, (a, b), retain_graph=True)
    scaled = torch.autograd.grad(loss, (a, b), torch.full_like(loss, factor))
    for x, y in zip(scaled, plain, strict=True):
        # Gradients are float32 until they are stored, and the factor itself is rounded as the loss is.
        rounding = torch.finfo(dtype).eps + 4 * torch.finfo(loss.dtype).eps
        assert relative_error(x.double() / factor, y.double()) <= rounding


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("weights", [(1.0, 1e-30), (1e-30, 1.0)])
def test_upstream_gradients_that_are_not_finite(value: float, weights: tuple[float, float]) -> None:
    case = make_case(20, 40, 8, 5, dtype=torch.float32)
    a, b = case.a.requires_grad_(), case.b.requires_grad_()
    walker_weight, visit_weight = (torch.tensor(weight, requires_grad=True) for weight in weights)
    loss = fastassoc.walker_visit_loss(a, b, case.labels, walker_weight=walker_weight, visit_weight=visit_weight)
    for x in torch.autograd.grad(loss * value, (a, b)):
        assert not x.isfinite().any()


def test_a_large_upstream_gradient() -> None:
    """Loss scaling by 1e10, where the intermediate terms of unshifted exponentials would be 1e29 without it."""
    a = torch.tensor([[-18.0, -60.0], [-17.0, 68.5]], requires_grad=True)
    loss = fastassoc.walker_visit_loss(a, torch.eye(2), torch.tensor([0, 0]))
    (scaled,) = torch.autograd.grad(loss * 1e10, a, retain_graph=True)
    (plain,) = torch.autograd.grad(loss, a)
    torch.testing.assert_close(scaled / 1e10, plain, rtol=1e-5, atol=1e-6)


def test_eps_of_zero_with_round_trips_that_hardly_exist() -> None:
    """Both rows of the class are e^82 below the other row: their round trips are 1e-36, which float32 still holds."""
    case = Case(torch.tensor([[65.0], [-17.5], [-17.5]]), torch.ones(1, 1), torch.tensor([0, 1, 1]))
    loss = fastassoc.walker_visit_loss(*case, eps=0.0)
    a, b, labels = case
    assert relative_error(loss.double(), reference.walker_visit_loss(a.double(), b.double(), labels, eps=0.0)) < 1e-6


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
@pytest.mark.parametrize("offset", [0.0, 30.0, 1000.0])
def test_other_similarities_are_as_exact_as_the_specification_in_float32(similarity: str, offset: float) -> None:
    case = make_case(60, 130, 16, 4)
    case = Case((case.a + offset).float(), (case.b + offset).float(), case.labels)
    options = {"similarity": similarity, "temperature": 0.1 if similarity == "cosine" else 8.0}
    exact = evaluate(reference.walker_visit_loss, case, torch.float64, **options)
    rival = evaluate(reference.walker_visit_loss, case, **options)
    mine = evaluate(fastassoc.walker_visit_loss, case, **options)
    assert_as_exact_as(mine, rival, exact, case)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_eps_of_zero_with_round_trips_and_visits_that_do_not_exist(weights: tuple[float, float]) -> None:
    """No walk from -100 to 100 and back, none to -3: their probabilities are 0, and nothing is NaN for it."""
    a = torch.tensor([[100.0], [-100.0], [101.0]], requires_grad=True)
    b = torch.tensor([[1.0], [-1.0], [-3.0], [-100.0]], requires_grad=True)
    walker_weight, visit_weight = weights
    options: dict[str, Any] = {"walker_weight": walker_weight, "visit_weight": visit_weight, "eps": 0.0}
    loss = fastassoc.walker_visit_loss(a, b, torch.tensor([0, 1, 0]), **options)
    exact = reference.walker_visit_loss(a.double(), b.double(), torch.tensor([0, 1, 0]), **options)
    if visit_weight:
        assert float(loss.detach()) == math.inf
    else:
        assert relative_error(loss.double(), exact) < 1e-6
    assert all(bool(x.isfinite().all()) for x in torch.autograd.grad(loss, (a, b)))


@pytest.mark.parametrize("count", [2**16, 2**16 + 1])
@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_a_weighted_logarithm_of_many_terms(count: int, eps: float) -> None:
    x, weights = torch.rand(2, count, generator=seeded(), dtype=torch.float64)
    expected = float((weights * x.log()).sum())
    for out in (None, x):
        assert float(weighted_log(x, weights, eps, out=out)) == pytest.approx(expected, rel=1e-12)


def test_an_eps_too_small_for_the_dtype_is_zero() -> None:
    case = make_case(25, 60, 8, 3, scale=3.0, dtype=torch.float32)
    tiny, zero = (evaluate(fastassoc.walker_visit_loss, case, eps=eps) for eps in (1e-50, 0.0))
    for x, y in zip(tiny, zero, strict=True):
        torch.testing.assert_close(x, y, rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("scale", [0.3, 2.0])
def test_eps_of_zero_is_the_plain_cross_entropy(scale: float) -> None:
    case = make_case(25, 60, 8, 3, scale=scale)
    result = evaluate(fastassoc.walker_visit_loss, case, eps=0.0)
    assert_close(result, evaluate(reference.walker_visit_loss, case, eps=0.0), 1e-10)
    in_float32 = evaluate(fastassoc.walker_visit_loss, case, torch.float32, eps=0.0)
    assert relative_error(in_float32.loss, result.loss) < 1e-4


def test_renormalisation_by_eps_is_the_originals() -> None:
    # At eps = 1e-2 and M = 90 the constant log(1 + M eps) is 0.64: dropping it would show.
    case = make_case(20, 90, 5, 3)
    result = evaluate(fastassoc.walker_visit_loss, case, eps=1e-2)
    assert_close(result, evaluate(reference.walker_visit_loss, case, eps=1e-2), 1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["a", "b"])
@pytest.mark.parametrize("column", [0, 59])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_inputs_that_are_not_finite_give_nan(
    value: float, where: str, column: int, weights: tuple[float, float]
) -> None:
    # Positive embeddings: an infinity then makes a whole row or column of scores infinite with one sign.
    case = make_case(10, 60, 3, 2, dtype=torch.float32)
    a, b = case.a.abs(), case.b.abs()
    (a if where == "a" else b)[column if where == "b" else 7, 1] = value
    options: dict[str, Any] = {"walker_weight": weights[0], "visit_weight": weights[1]}
    assert fastassoc.walker_visit_loss(a, b, case.labels, **options).isnan()
    loss, _ = fastassoc.walker_visit_loss(a, b, case.labels, **options, return_stats=True)
    assert loss.isnan()


def test_identical_rows() -> None:
    case = Case(torch.ones(20, 4), torch.ones(50, 4), torch.arange(20) % 4)
    result = evaluate(fastassoc.walker_visit_loss, case)
    # Uniform walks: log N + log M, and no direction to go.
    torch.testing.assert_close(float(result.loss), math.log(20 * 50), rtol=1e-6, atol=0.0)
    assert float(result.da.abs().max()) < 1e-7
    assert float(result.db.abs().max()) < 1e-7


def test_same_bits_on_every_run() -> None:
    case = make_case(300, 700, 16, 7, dtype=torch.float32)
    first = evaluate(fastassoc.walker_visit_loss, case)
    for _ in range(5):
        assert all(torch.equal(x, y) for x, y in zip(evaluate(fastassoc.walker_visit_loss, case), first, strict=True))


# Equal scores whose logarithm of a sum has no digit left for the number of them.
@pytest.mark.parametrize("size", [1e3, 1e8, 1e12])
def test_equal_scores_however_large(size: float) -> None:
    generator = seeded()
    # Of one dimension, so that no order of summation rounds them differently.
    b = torch.randn(1, 1, generator=generator, dtype=torch.float64).repeat(60, 1)
    case = Case(torch.randn(40, 1, generator=generator, dtype=torch.float64) * size, b, torch.arange(40) % 4)
    _, statistics = fastassoc.walker_visit_loss(*case, return_stats=True)
    torch.testing.assert_close(statistics.visit_probability, torch.full_like(b[:, 0], 1 / 60), rtol=1e-12, atol=0.0)
