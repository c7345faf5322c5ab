"""Scores, weights and sizes up to where machine code gives way, and beyond."""

from __future__ import annotations

import ctypes
import math

import pytest
import torch

import fastassoc
from benchmarks import eager
from fastassoc import reference
from fastassoc.backends.cpu.native import forward, machine
from tests.cases import Case, Result, assert_as_exact_as, evaluate, make_case
from tests.conftest import spy_on_gradients, take_native

pytestmark = pytest.mark.skipif(machine.machine() is None, reason="machine code cannot run here")


# Common offsets of the scores, on both sides of where rows are shifted (about 2^60 = exp(41.6) to a sum).
@pytest.mark.parametrize("offset", [-3000.0, -60.0, -44.0, -36.0, 30.0, 36.0, 38.0, 40.0, 50.0, 80.0, 3000.0])
@pytest.mark.parametrize("weight", [1e-9, 1e-4, 1.0, 1e9])
@pytest.mark.parametrize("flush", [False, True])
def test_offsets_and_weights(monkeypatch: pytest.MonkeyPatch, offset: float, weight: float, flush: bool) -> None:
    take_native(monkeypatch)
    used = spy_on_gradients(monkeypatch)
    case = make_case(80, 60, 16, 4, dtype=torch.float32, scale=0.5)
    case.a[:, 0], case.b[:, 0] = offset, 1.0
    options = {"walker_weight": weight, "visit_weight": weight}
    torch.set_flush_denormal(flush)
    try:
        mine = evaluate(fastassoc.walker_visit_loss, case, **options)
    finally:
        torch.set_flush_denormal(False)
    assert used
    assert_as_exact_as_eager(mine, case, options)


def assert_as_exact_as_eager(mine: Result, case: Case, options: dict[str, float]) -> None:
    """Relative to the norm of each gradient."""
    exact = evaluate(reference.walker_visit_loss, case, torch.float64, **options)
    rival = evaluate(eager.walker_visit_loss, case, **options)
    for x, y, right in zip(mine, rival, exact, strict=True):
        scale = float(right.norm())
        assert float((x - right).norm()) / scale <= 2 * float((y - right).norm()) / scale + 1e-6


# Standard deviations of the logits: unshifted up to about 10, shifted up to about 20, then other ways.
@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("deviation", [5.0, 8.0, 12.0, 16.0, 30.0, 60.0])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1e-6, 1.0), (1.0, 1e-6), (1e6, 1e6), (0.0, 1.0)])
@pytest.mark.parametrize("sizes", ["equal", "of rows", "of columns"])
def test_large_logits(
    monkeypatch: pytest.MonkeyPatch, deviation: float, weights: tuple[float, float], sizes: str
) -> None:
    used = spy_on_gradients(monkeypatch)
    case = make_case(200, 400, 64, 10, dtype=torch.float32, scale=(deviation / 8.0) ** 0.5)
    if sizes == "of rows":
        case.a.mul_(torch.linspace(0.2, 1.2, 200).unsqueeze(1))
    elif sizes == "of columns":
        case.b.mul_(torch.linspace(0.2, 1.2, 400).unsqueeze(1))
    options = {"walker_weight": weights[0], "visit_weight": weights[1]}
    mine = evaluate(fastassoc.walker_visit_loss, case, **options)
    assert bool(used) == (deviation < 20.0)
    assert_as_exact_as_eager(mine, case, options)


# Natural logarithms of the lowest and the highest f, y and u, at eps = 1e-8: 41.6 is the range of sums, 51.6 what an
# exponential may underflow by, 55.5 the range of f u. Each row but the first is at one limit, inside and outside.
@pytest.mark.parametrize(
    ("f", "y", "u", "holds", "columns_hold"),
    [
        ((-5, 5), (-5, 5), (-5, 5), True, True),
        ((-41, 0), (-5, 5), (0, 0), True, True),
        ((-42, 0), (-5, 5), (0, 0), False, True),
        ((0, 41), (-5, 5), (0, 0), True, True),
        ((0, 42), (-5, 5), (0, 0), False, True),
        ((-5, 5), (-20.5, 5), (0, 0), True, True),
        ((-5, 5), (-21, 5), (0, 0), False, False),
        ((-5, 5), (-5, 20.5), (0, 0), True, True),
        ((-5, 5), (-5, 21), (0, 0), False, False),
        # Of p_ba: u y^2.
        ((-5, 5), (-5, 20), (0, 11), True, True),
        ((-5, 5), (-5, 20), (0, 12), False, False),
        # Of p_ab: f / y.
        ((0, 33), (-18, 5), (0, 0), True, True),
        ((0, 34), (-18, 5), (0, 0), False, True),
        # Of p_aba: f u.
        ((0, 20), (-5, 5), (0, 21), True, True),
        ((0, 20), (-5, 5), (0, 22), False, True),
        ((-30, 0), (-5, 5), (-25, 0), True, True),
        ((-30, 0), (-5, 5), (-26, 0), False, True),
        ((float("nan"), 0), (-5, 5), (0, 0), False, False),
        ((-5, float("inf")), (-5, 5), (0, 0), False, False),
        ((-5, 5), (-5, float("inf")), (0, 0), False, False),
        ((-5, 5), (-5, 5), (float("nan"), 0), False, True),
    ],
)
def test_limits_of_the_form(
    f: tuple[float, float], y: tuple[float, float], u: tuple[float, float], holds: bool, columns_hold: bool
) -> None:
    (f_low, f_high), (y_low, y_high), u_limits = (tuple(math.exp(x) for x in limits) for limits in (f, y, u))
    found = (ctypes.c_float * 6)(f_low, f_high, f_low + f_high, y_low, y_high, y_low + y_high)
    assert forward._holds(1e-8, found, u_limits, all_columns=True) == holds
    assert forward._holds(1e-8, found, u_limits, all_columns=False) == columns_hold


def test_few_columns_are_for_other_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    take_native(monkeypatch)
    used = spy_on_gradients(monkeypatch)
    for columns, native in ((15, False), (16, True)):
        case = make_case(300, columns, 8, 4, dtype=torch.float32)
        exact = evaluate(reference.walker_visit_loss, case, torch.float64)
        mine = evaluate(fastassoc.walker_visit_loss, case)
        assert bool(used) == native
        assert_as_exact_as(mine, evaluate(eager.walker_visit_loss, case), exact, case)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("scale", [0.05, 0.2, 0.35])
def test_distances_by_machine_code(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    used = spy_on_gradients(monkeypatch)
    case = make_case(150, 300, 64, 5, dtype=torch.float32, scale=scale)
    mine = evaluate(fastassoc.walker_visit_loss, case, similarity="euclidean")
    assert used
    exact = evaluate(reference.walker_visit_loss, case, torch.float64, similarity="euclidean")
    theirs = evaluate(reference.walker_visit_loss, case, torch.float32, similarity="euclidean")
    assert_as_exact_as(mine, theirs, exact, case)
