"""Values and gradients of the original TensorFlow implementation, computed in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import benchmarks.eager
import fastassoc
from fastassoc import reference
from tests.cases import Case, Result, assert_as_exact_as, assert_close, evaluate

ARCHIVE = Path(__file__).parent / "gold" / "official_cases.npz"
CASES = ("case1", "case2", "case4", "case5", "case9")


def load(name: str) -> tuple[Case, Result, dict[str, float]]:
    with np.load(ARCHIVE) as archive:
        fields = {key.removeprefix(f"{name}_"): archive[key] for key in archive.files if key.startswith(f"{name}_")}
    case = Case(*(torch.from_numpy(fields[key]) for key in ("a", "b", "labels")))
    gold = Result(*(torch.from_numpy(np.asarray(fields[f"x64_{key}"])) for key in ("total", "ga", "gb")))
    return case, gold, {key: float(value) for key, value in fields.items() if value.ndim == 0}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("cpu_path")
def test_float64_loss_and_gradients(name: str) -> None:
    case, gold, numbers = load(name)
    weights = {"walker_weight": numbers["ww"], "visit_weight": numbers["vw"]}
    assert_close(evaluate(fastassoc.walker_visit_loss, case, **weights), gold, 1e-12)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("cpu_path")
def test_float64_terms_and_statistics(name: str) -> None:
    case, gold, numbers = load(name)
    loss, statistics = fastassoc.walker_visit_loss(*case, return_stats=True)
    assert statistics.walker.item() == pytest.approx(numbers["x64_walker_unw"], rel=1e-12, abs=1e-15)
    assert statistics.visit.item() == pytest.approx(numbers["x64_visit_unw"], rel=1e-12, abs=1e-15)
    assert statistics.accuracy_estimate.item() == pytest.approx(numbers["x64_esterr"], rel=1e-12)
    assert loss.item() == pytest.approx(gold.loss.item(), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("name", CASES)
def test_the_specification_agrees_with_the_original(name: str) -> None:
    case, gold, _ = load(name)
    assert_close(evaluate(reference.walker_visit_loss, case), gold, 1e-12)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("cpu_path")
def test_float32_is_as_exact_as_eager(name: str) -> None:
    case, gold, _ = load(name)
    mine = evaluate(fastassoc.walker_visit_loss, case, torch.float32)
    eager = evaluate(benchmarks.eager.walker_visit_loss, case, torch.float32)
    assert_as_exact_as(mine, eager, gold, case)
