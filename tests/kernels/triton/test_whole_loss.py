"""The loss by kernels: against float64, at the edges, and in what it leaves undone."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastassoc
from fastassoc import reference
from fastassoc.backends import triton
from fastassoc.backends.protocol import Inputs
from fastassoc.backends.triton import forward, launch, plan
from fastassoc.backends.triton.labels import Labels
from fastassoc.backends.triton.precision import Precision
from fastassoc.kernels.triton.buffers import FACTOR, Results
from fastassoc.kernels.triton.forms import forms
from fastassoc.kernels.triton.losses import losses
from fastassoc.kernels.triton.walker import RHO_SHARES
from tests.cases import Case, Result, assert_as_exact_as, assert_close, evaluate, make_case, relative_error
from tests.kernels.triton.support import DEVICE, FLOAT64, Trace, multiply_as_at_high, on_device, run, sized_classes

BOTH_PASSES = pytest.mark.parametrize("passes", ["general", "small batches"], indirect=True)
ALL_PASSES = pytest.mark.parametrize("passes", ["general", "small batches", "several tiles"], indirect=True)


# Ragged sizes; D below, off and above a tile of 64 and of 256 columns; one class, a few, all distinct.
@ALL_PASSES
@pytest.mark.parametrize(
    ("n", "m", "d", "classes"),
    [
        *((1, 1, 1, 1), (33, 19, 3, 4), (20, 70, 65, 0), (61, 35, 128, 1), (40, 35, 200, 5), (9, 21, 300, 2)),
        # More column tiles than shares of them divide; several tiles of both.
        *((20, 300, 4, 3), (130, 200, 4, 5)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.usefixtures("tiles")
def test_loss(n: int, m: int, d: int, classes: int, dtype: torch.dtype) -> None:
    case = make_case(n, m, d, classes, scale=2.0 / d**0.5, dtype=dtype)
    exact = evaluate(reference.walker_visit_loss, case, torch.float64)
    if dtype == torch.float64:
        assert_close(run(case), exact, FLOAT64)
    else:
        assert_as_exact_as(run(case), evaluate(reference.walker_visit_loss, case), exact, case)


def test_rows_of_flat_probabilities_sum_to_one() -> None:
    # With a column of ones in b, the gradient by that of a_i is the sum of ds_ij over j: 0, but for how far a row of
    # p_ab is from a sum of 1. Logarithms of sums are 11 here, and rounded they would be two units in the last place.
    case = make_case(100, 2500, 20, 3, scale=0.1, dtype=torch.float32)
    case.b[:, -1] = 1.0
    da = run(case, walker_weight=0.0).da
    assert da is not None
    assert (da[:, -1] * 100).square().mean().sqrt() <= 1.25 * torch.finfo(torch.float32).eps


# About powers of two in units of log 2, where what is taken off a score may cost it its last digit: those of seed 4.
@pytest.mark.parametrize("seed", [0, 4])
@pytest.mark.parametrize("power", [16, 256, 1024])
def test_rows_of_large_scores_sum_to_one(power: int, seed: int) -> None:
    # With a column of 32 in b, that of the gradient by a is 32 times the sums of ds_ij over j, which are 0.
    case = make_case(24, 70, 8, 4, seed=seed, dtype=torch.float32)
    case.b[:, 0] = 32.0
    case.a[:, 1:] *= 0.3
    case.a[:, 0] = (power * math.log(2) + 4.0 * case.a[:, 0] - 2.0) / 32.0
    da = run(case, walker_weight=0.0).da
    assert da is not None
    assert da[:, 0].norm() / 32.0 <= 1.5e-6 * da[:, 1:].norm()


@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
def test_shifts_of_columns_with_their_factors(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # As with bf16: half a column's normaliser as one number, which in float64 is as exact as an integer and a factor.
    launch, factors = forward.launch, []

    def launched(kernel: Any, *arguments: Any, **options: Any) -> Any:
        if kernel is not forms:
            return launch(kernel, *arguments, **options)
        launch(kernel, *arguments, **options | {"KEEP_FACTOR": False})
        factors.append(options["columns_ptr"][FACTOR.value])

    monkeypatch.setattr(forward, "launch", launched)
    case = make_case(40, 70, 20, 4, scale=scale)
    assert_close(run(case), evaluate(reference.walker_visit_loss, case), FLOAT64)
    assert all(bool((x == 1.0).all()) for x in factors) == (scale < 8.0)


# Rows with a mask and without; whole tiles, and parts of one. A very large temperature makes all probabilities equal.
@pytest.mark.parametrize("options", [{}, {"ignore_index": 1}, {"temperature": 0.3}, {"temperature": 1e60}], ids=str)
@pytest.mark.usefixtures("tiles")
def test_scores_that_are_scaled_after_their_maximum(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # As with every precision but float32 and float64; the interpreter multiplies float16 rightly, and not bfloat16.
    monkeypatch.setattr(plan, "choose_precision", lambda *_: Precision("fp16", "ieee"))
    case = make_case(70, 150, 20, 3, scale=2.0, dtype=torch.float16)
    result = run(case, **options)
    exact = evaluate(reference.walker_visit_loss, case, torch.float64, **options)
    # Of float32, but that gradients are rounded to float16.
    assert relative_error(result.loss, exact.loss) <= 2e-6
    assert_close(result, exact, 2.0**-11)


# As float32 products at "high", whatever the range, and whatever ignored rows hold.
@pytest.mark.parametrize("power", [-40, 0, 40])
@pytest.mark.parametrize("options", [{}, {"ignore_index": 1}], ids=str)
@pytest.mark.parametrize("limit", [0, 2048])
def test_scores_of_float32_in_float16(
    power: int, options: dict[str, Any], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiply_as_at_high(monkeypatch)
    monkeypatch.setattr(plan, "MAX_ROWS_WITHOUT_SYNC", limit)
    case = make_case(70, 150, 20, 3, scale=0.5, dtype=torch.float32)
    # 11 digits, which float16 has too where the range is not in the way.
    case = case._replace(a=case.a.half().float(), b=case.b.half().float())
    case.a.mul_(2.0**power)
    case.b.mul_(2.0**-power)
    plain = evaluate(reference.walker_visit_loss, case, **options)
    exact = evaluate(reference.walker_visit_loss, case, torch.float64, **options)
    if "ignore_index" in options:
        case.a[case.labels == 1] = torch.finfo(torch.float32).max
    assert_as_exact_as(run(case, **options), plain, exact, case)


def test_squared_distances_of_float32_in_float16(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    multiply_as_at_high(monkeypatch)
    case = make_case(70, 150, 20, 3, dtype=torch.float32)
    options = {"similarity": "euclidean", "temperature": 4.0, "ignore_index": 1}
    exact = evaluate(reference.walker_visit_loss, case, torch.float64, **options)
    # Both operands are rounded to 11 digits; biases are added after the product, as they are.
    assert_close(run(case, **options), exact, 2.0**-10)
    arguments = trace.arguments("row_normalisers")
    assert arguments["PRECISION"] == "fp16"
    assert arguments["b"].bias_ptr is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["a", "b"])
def test_scores_in_float16_of_what_is_not_finite(value: float, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    multiply_as_at_high(monkeypatch)
    case = make_case(5, 6, 3, 2, dtype=torch.float32)
    getattr(case, side)[1, 1] = value
    assert run(case).loss.isnan()


@BOTH_PASSES
def test_classes_of_1_to_300_rows() -> None:
    labels = sized_classes([1, 2, 63, 64, 65, 300])
    case = make_case(len(labels), 70, 20, 1, scale=0.7)._replace(labels=labels)
    assert_close(run(case), evaluate(reference.walker_visit_loss, case), FLOAT64)


def test_more_shares_than_the_walker_adds_up_at_a_time(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":
        monkeypatch.setattr(launch, "_device_machine", lambda device: launch.Machine("interpreter", 200))
    case = make_case(20, 2600, 3, 4)
    assert_close(run(case), evaluate(reference.walker_visit_loss, case), FLOAT64)
    assert len(trace.arguments("walker")["rho_ptr"]) > RHO_SHARES.value


@pytest.mark.parametrize("walker", [math.nan, math.inf, 3.0])
def test_what_a_term_without_weight_adds(walker: float) -> None:
    parts, loss = torch.tensor([walker, 0.0, 0.0], device=DEVICE), torch.empty(1, device=DEVICE)
    counts = torch.tensor([4, 1, 1, 0], dtype=torch.int32, device=DEVICE)
    losses[(1,)](
        results=Results(loss, *[None] * 5),
        walker_parts_ptr=parts,
        visit_parts_ptr=torch.full((1,), 7.0, device=DEVICE),
        counts_ptr=counts,
        M=7,
        WALKER_PARTS=1,
        VISIT_PARTS=1,
        eps=0.0,
        walker_weight=0.0,
        visit_weight=2.0,
        WALKER=True,
        VISIT=True,
        BLOCK=16,
    )
    assert loss.isnan() if math.isnan(walker) else loss == 2.0


def test_more_rows_than_go_without_reading_a_size_back(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MAX_ROWS_WITHOUT_SYNC", 129)
    case = make_case(130, 9, 2, 7)
    assert_close(run(case), evaluate(reference.walker_visit_loss, case), FLOAT64)
    # Buffers hold what exists, and the form is known.
    arguments = trace.arguments("walker")
    tiles, pairs = arguments["tables"].counts_ptr.tolist()[1:3]
    assert tiles == pairs
    assert arguments["g_ptr"].shape[:2] == (1, pairs)
    assert trace.arguments("round_trips")["SIDES"] == 1
    assert "steps" not in trace.names


@ALL_PASSES
@pytest.mark.parametrize(
    "options",
    [
        {"similarity": "cosine", "temperature": 0.1},
        {"similarity": "euclidean", "temperature": 2.0},
        {"eps": 0.0},
        {"eps": 1e-3},
        {"ignore_index": 1},
        {"walker_weight": 0.0, "ignore_index": 1},
        {"walker_weight": 0.3, "visit_weight": 2.0},
        {"visit_weight": 0.0},
    ],
    ids=str,
)
@pytest.mark.usefixtures("tiles")
def test_options(options: dict[str, Any]) -> None:
    case = make_case(37, 50, 9, 4)
    assert_close(run(case, **options), evaluate(reference.walker_visit_loss, case, **options), FLOAT64)


@BOTH_PASSES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    case = make_case(40, 50, 65, 4, scale=0.3, dtype=dtype)
    exact = evaluate(reference.walker_visit_loss, case, torch.float64)
    rival = evaluate(reference.walker_visit_loss, case, torch.float32)
    result = run(case)
    for name, x, y, z in zip(Result._fields, result, rival, exact, strict=True):
        # Accumulated in float32, the gradients rounded once: half a unit, and half of the smallest number.
        rounding = torch.finfo(dtype).eps / 2 * float(z.norm()) + torch.finfo(dtype).smallest_normal * z.numel() ** 0.5
        allowed = 2 * float((y - z).norm()) + (0.0 if name == "loss" else rounding) + 1e-6 * float(z.norm())
        assert float((x - z).norm()) <= allowed, name


# Logits to 1e4: walks become one-hot, and most exponentials underflow.
@ALL_PASSES
@pytest.mark.parametrize("scale", [3.0, 10.0, 30.0])
@pytest.mark.usefixtures("tiles")
def test_large_logits(scale: float) -> None:
    case = make_case(30, 41, 65, 4, scale=scale, dtype=torch.float32)
    result = run(case)
    exact = evaluate(reference.walker_visit_loss, case, torch.float64)
    assert all(x.isfinite().all() for x in result)
    assert_as_exact_as(result, evaluate(reference.walker_visit_loss, case), exact, case)


@BOTH_PASSES
def test_logits_far_apart_from_row_to_row() -> None:
    case = make_case(30, 41, 8, 4, scale=3.0, dtype=torch.float32)
    case.a.mul_(torch.linspace(0.01, 20.0, 30)[:, None])
    exact = evaluate(reference.walker_visit_loss, case, torch.float64)
    assert_as_exact_as(run(case), evaluate(reference.walker_visit_loss, case), exact, case)


@BOTH_PASSES
def test_identical_rows() -> None:
    case = Case(torch.ones(20, 4), torch.ones(33, 4), torch.arange(20) % 3)
    exact = evaluate(reference.walker_visit_loss, case, torch.float64)
    assert_as_exact_as(run(case), evaluate(reference.walker_visit_loss, case), exact, case)


@ALL_PASSES
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", ["a", "b"])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0)], ids=["both", "visit", "walker"])
def test_what_is_not_finite_gives_nan(value: float, side: str, weights: tuple[float, float]) -> None:
    case = on_device(make_case(5, 6, 3, 2))
    getattr(case, side)[1, 1] = value
    loss = fastassoc.walker_visit_loss(*case, walker_weight=weights[0], visit_weight=weights[1], backend="triton")
    assert loss.isnan()


@BOTH_PASSES
@pytest.mark.parametrize("weights", [(0.3, -2.0), (1.0, 1.0), (0.0, 0.7), (-0.7, 0.0)], ids=str)
def test_the_loss_is_the_weighted_sum_of_what_statistics_have(weights: tuple[float, float]) -> None:
    case = make_case(40, 70, 5, 3, dtype=torch.float32)
    options = {"walker_weight": weights[0], "visit_weight": weights[1]}
    loss, statistics = fastassoc.walker_visit_loss(*on_device(case), return_stats=True, backend="triton", **options)
    parts = [weight * term.double() for weight, term in zip(weights, statistics[:2], strict=True)]
    assert abs(float(loss.double() - sum(parts))) <= float(loss.abs()) * torch.finfo(torch.float32).eps
    # The terms are those without weights.
    terms = fastassoc.walker_visit_losses(*on_device(case), backend="triton")
    assert all(torch.equal(x, y) for x, y in zip(statistics[:2], terms, strict=True))
    mine, exact = run(case, **options), evaluate(reference.walker_visit_loss, case, torch.float64, **options)
    assert_as_exact_as(mine, evaluate(reference.walker_visit_loss, case, torch.float32, **options), exact, case)


@BOTH_PASSES
def test_a_term_without_weight_counts_where_it_is_nan() -> None:
    # Rows of one class that no walk connects.
    a = torch.eye(2)
    case = on_device(Case(a, 1000.0 * a, torch.zeros(2, dtype=torch.int64)))
    loss, statistics = fastassoc.walker_visit_loss(
        *case, walker_weight=0.0, eps=0.0, return_stats=True, backend="triton"
    )
    assert statistics.walker.isinf()
    assert torch.equal(loss, statistics.visit)
    case.b[0, 0] = float("nan")
    loss, _ = fastassoc.walker_visit_loss(*case, walker_weight=0.0, return_stats=True, backend="triton")
    assert loss.isnan()


@BOTH_PASSES
def test_gradcheck() -> None:
    case = on_device(make_case(4, 5, 2, 2))
    a, b = case.a.requires_grad_(), case.b.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: fastassoc.walker_visit_loss(a, b, case.labels, backend="triton"), (a, b)
    )


@BOTH_PASSES
def test_upstream_gradients() -> None:
    case = make_case(20, 30, 5, 3)
    gradients = []
    for loss, on in ((fastassoc.walker_visit_loss, DEVICE), (reference.walker_visit_loss, "cpu")):
        a, b, labels = (x.to(on) for x in case)
        a.requires_grad_()
        weights = [torch.tensor(w, dtype=a.dtype, device=on, requires_grad=True) for w in (0.3, -1.7)]
        options = {"backend": "triton"} if loss is fastassoc.walker_visit_loss else {}
        value = loss(a, b, labels, walker_weight=weights[0], visit_weight=weights[1], **options)
        (value * 1e3).backward()
        gradients.append([x.grad.cpu() for x in (a, *weights)])
    for x, y in zip(*gradients, strict=True):
        torch.testing.assert_close(x, y, rtol=FLOAT64, atol=0.0)


# Gradients are linear in what comes from above: it enters last, into numbers with the range of float32.
@BOTH_PASSES
@pytest.mark.parametrize("upstream", [1e-30, 1e-20, 1e10, 1e20])
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_tiny_and_huge_upstream_gradients(upstream: float, scale: float) -> None:
    case = make_case(40, 50, 33, 4, scale=scale, dtype=torch.float32)

    def scaled(loss: Callable[..., Tensor], *dtype: torch.dtype) -> Result:
        result = evaluate(lambda *x: loss(*x) * upstream, on_device(case), *dtype)
        return Result(*(x.cpu() / upstream for x in result))

    kernels = functools.partial(fastassoc.walker_visit_loss, backend="triton")
    eager = reference.walker_visit_loss
    assert_as_exact_as(scaled(kernels), scaled(eager), scaled(eager, torch.float64), case)


# As far as float16 itself holds them: what a scaler of gradients multiplies by, and 1 over that.
@BOTH_PASSES
@pytest.mark.parametrize("upstream", [2.0**-10, 2.0**14])
def test_upstream_gradients_in_half_precision(upstream: float) -> None:
    case = make_case(40, 50, 33, 4, scale=0.5, dtype=torch.float16)
    plain, scaled = (run(case, walker_weight=weight, visit_weight=weight) for weight in (1.0, upstream))
    finfo = torch.finfo(torch.float16)
    for x, y in zip(scaled[1:], plain[1:], strict=True):
        # Both rounded once.
        assert (
            (x - y * upstream).abs() <= finfo.eps * x.abs() + finfo.smallest_normal * finfo.eps * (1 + upstream)
        ).all()


@BOTH_PASSES
def test_backward_twice() -> None:
    case = on_device(make_case(20, 30, 5, 3))
    a = case.a.requires_grad_()
    loss = fastassoc.walker_visit_loss(a, case.b, case.labels, backend="triton")
    first, second = (torch.autograd.grad(loss, a, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@BOTH_PASSES
@pytest.mark.parametrize("chosen", ["walker", "visit"])
def test_a_term_alone(chosen: str) -> None:
    case = make_case(37, 50, 9, 4)

    def term(*arguments: Tensor) -> Tensor:
        value: Tensor = getattr(fastassoc.walker_visit_losses(*arguments, backend="triton"), chosen)
        return value

    weights = {"walker_weight": float(chosen == "walker"), "visit_weight": float(chosen == "visit")}
    mine = Result(*(x.cpu() for x in evaluate(term, on_device(case))))
    assert_close(mine, evaluate(reference.walker_visit_loss, case, **weights), FLOAT64)


@ALL_PASSES
def test_statistics() -> None:
    case = make_case(37, 50, 9, 4)
    for options in ({}, {"ignore_index": 1}, {"walker_weight": 0.0}):
        loss, statistics = fastassoc.walker_visit_loss(*on_device(case), return_stats=True, backend="triton", **options)
        exact, expected = fastassoc.walker_visit_loss(*case, return_stats=True, backend="cpu", **options)
        torch.testing.assert_close(
            (loss.cpu(), *(x.cpu() for x in statistics)), (exact, *expected), rtol=1e-12, atol=0.0
        )


# Expanded, transposed, every other: any strides, also of the labels.
@ALL_PASSES
@pytest.mark.usefixtures("tiles")
def test_strides_and_nothing_read_outside() -> None:
    case = make_case(37, 50, 20, 4)
    plain = run(case)

    def banded(x: Tensor, fill: float) -> Tensor:
        out = torch.full([2 * size + 40 for size in x.shape], fill, dtype=x.dtype, device=DEVICE)
        view = out[tuple(slice(20, 20 + 2 * size, 2) for size in x.shape)]
        return view.copy_(x)

    band = Case(banded(case.a, float("nan")), banded(case.b, float("nan")), banded(case.labels, 1))
    transposed = Case(case.a.T.contiguous().T, case.b.T.contiguous().T, case.labels)
    for strided in (band, transposed):
        a, b = strided.a.to(DEVICE).requires_grad_(), strided.b.to(DEVICE).requires_grad_()
        loss = fastassoc.walker_visit_loss(a, b, strided.labels.to(DEVICE), backend="triton")
        da, db = torch.autograd.grad(loss, (a, b))
        for x, y in zip((loss, da, db), plain, strict=True):
            assert torch.equal(x.detach().cpu(), y)
    expanded = case._replace(b=case.b[:1].expand(6, -1))
    assert_close(run(expanded), evaluate(reference.walker_visit_loss, expanded), FLOAT64)


@BOTH_PASSES
def test_same_to_the_bit() -> None:
    case = make_case(70, 130, 20, 3, dtype=torch.float32)
    for x, y in zip(run(case), run(case), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize(
    ("needs_a", "needs_b", "options", "absent"),
    [
        (False, True, {}, {"row_gradients"}),
        (True, False, {}, {"column_gradients"}),
        (True, True, {"walker_weight": 0.0}, {"kappa"}),
        (False, False, {}, {"kappa", "terms", "column_gradients", "row_gradients", "add_row_shares"}),
        (False, False, {"walker_weight": 0.0}, {"round_trips", "walker", "kappa", "column_gradients"}),
    ],
)
def test_what_is_not_needed_is_not_done(
    needs_a: bool, needs_b: bool, options: dict[str, Any], absent: set[str], trace: Trace
) -> None:
    case = make_case(20, 70, 5, 3)
    a, b, labels = on_device(case)
    a.requires_grad_(needs_a)
    b.requires_grad_(needs_b)
    loss = fastassoc.walker_visit_loss(a, b, labels, backend="triton", **options)
    if needs_a or needs_b:
        loss.backward()
        assert (a.grad is not None, b.grad is not None) == (needs_a, needs_b)
    assert not absent & set(trace.names)
    if "walker" in trace.names:
        arguments = trace.arguments("walker")
        assert (arguments["g_ptr"] is None) == ("walker_weight" in options or not (needs_a or needs_b))
        assert (arguments["rho_ptr"] is None) == ("visit_weight" in options or not (needs_a or needs_b))
        assert (arguments["trips_ptr"] is None) == ("walker_weight" in options)
    assert trace.arguments("column_normalisers")["VISIT"] == ("visit_weight" not in options)


def test_launches(trace: Trace) -> None:
    a, b, labels = on_device(make_case(100, 300, 20, 10))
    loss = fastassoc.walker_visit_loss(a.requires_grad_(), b.requires_grad_(), labels, backend="triton")
    forward = len(trace)
    loss.backward()
    assert forward <= 10
    assert len(trace) - forward <= 10


@BOTH_PASSES
def test_no_row_left_on_a_device_gives_nan() -> None:
    a = torch.ones(3, 2, device=DEVICE)
    labels = Labels(torch.zeros(3, dtype=torch.int64, device=DEVICE), 0)
    result = triton.losses(Inputs(a, a, None, None, labels, 1.0, 1e-8, True, True, a.dtype), True, False)
    assert result.walker is not None
    assert result.visit is not None
    assert result.walker.isnan()
    assert result.visit.isnan()


@BOTH_PASSES
@pytest.mark.parametrize("limit", [2, 2048])
def test_gradients_without_any_row(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MAX_ROWS_WITHOUT_SYNC", limit)
    a = torch.ones(3, 2, device=DEVICE)
    inputs = Inputs(
        a,
        a,
        None,
        None,
        Labels(torch.zeros(3, dtype=torch.int64, device=DEVICE), 0),
        1.0,
        1e-8,
        True,
        True,
        a.dtype,
    )
    saved = triton.losses(inputs, True, False).saved
    one = torch.ones((), device=DEVICE)
    gradients = triton.gradients(inputs, saved, one, one, (True, True, False, False))
    assert gradients.a is not None
    assert (gradients.a == 0).all()


@BOTH_PASSES
def test_ignored_rows_may_hold_any_finite_number() -> None:
    case = make_case(20, 30, 4, 3, dtype=torch.float32)
    small = run(case, ignore_index=1)
    case.a[case.labels == 1] = torch.finfo(torch.float32).max
    large = run(case, ignore_index=1)
    for x, y in zip(small, large, strict=True):
        assert torch.equal(x, y)
