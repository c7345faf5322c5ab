"""The loss by every way through: forms of the steps, classes within a tile and larger, steps kept and computed anew.

What decides is a bound on normalisers, the sizes of classes, and whether more rows than
`fastassoc.backends.triton.plan.MAX_ROWS_WITHOUT_SYNC` have them read back; else the device, between two launches.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fastassoc import reference
from fastassoc.backends.triton import plan
from fastassoc.backends.triton.precision import Precision
from tests.cases import Case, assert_as_exact_as, assert_close, evaluate, make_case
from tests.kernels.triton.support import FLOAT64, Trace, run, sized_classes

ONE_TILE = [20, 13, 30, 1]
LARGER = [70, 1, 40]


def case_of(sizes: list[int], far: bool = False, d: int = 20, dtype: torch.dtype = torch.float64) -> Case:
    """Columns off every tile; ``far`` makes normalisers of rows about 200 units of log 2 apart."""
    labels = sized_classes(sizes)
    case = make_case(len(labels), 130, d, 1, scale=0.5, dtype=dtype)._replace(labels=labels)
    if far:
        case.a.mul_(torch.linspace(0.1, 40.0, len(labels))[:, None].to(dtype))
    return case


def ways(trace: Trace) -> set[tuple[Any, Any]]:
    """Sides of the steps, and how passes take them, as the launches have it."""
    return {(x["SIDES"], x["WAY"]) for _, x in trace if "WAY" in x and "SIDES" in x}


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize(
    ("sizes", "read_back", "d"),
    [(ONE_TILE, False, 20), (ONE_TILE, True, 20), (LARGER, False, 20), (LARGER, True, 20), (LARGER, False, 65)],
)
@pytest.mark.parametrize(
    ("options", "bytes_"),
    [
        ({}, 1),
        ({}, 2**25),
        ({"visit_weight": 0.0}, 1),
        ({"walker_weight": 0.0}, 1),
        ({"ignore_index": 4, "similarity": "euclidean"}, 2**25),
    ],
    ids=str,
)
def test_every_way(
    far: bool,
    sizes: list[int],
    read_back: bool,
    d: int,
    options: dict[str, Any],
    bytes_: int,
    tiles_of_64: None,
    trace: Trace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "WORKSPACE_BYTES", bytes_)
    monkeypatch.setattr(plan, "MAX_ROWS_WITHOUT_SYNC", 0 if read_back else 2048)
    case = case_of(sizes, far, d)
    assert_close(run(case, **options), evaluate(reference.walker_visit_loss, case, **options), FLOAT64)
    plain = trace.arguments("forms")["counts_ptr"][3].item()
    assert plain == far
    walker = "walker_weight" not in options
    # Far from one another, euclidean scores in float64 are differences of every column of the embedding.
    if d > 64 or (far and "similarity" in options) or (read_back and (far or (walker and sizes is LARGER))):
        expected = {"stored"}
    else:
        expected = {"computed"} if read_back else {"computed", "recomputed"}
    sides = {"computed": 1, "recomputed": 2, "stored": 1 if read_back and not far else 2}
    assert ways(trace) == {(sides[way], way) for way in expected}
    assert ("steps" in trace.names) == (expected == {"stored"})
    # 130 columns are two times 128.
    assert trace.names.count("column_gradients") == (2 if bytes_ == 1 else 1) * len(expected)


# What products in bf16 keep in float16 (`test_passes.py`), over several ranges and in both forms.
@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("options", [{}, {"visit_weight": 0.0}, {"ignore_index": 4}], ids=str)
def test_gradients_of_scores_in_units(
    far: bool, options: dict[str, Any], tiles_of_64: None, trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "WORKSPACE_BYTES", 1)
    monkeypatch.setattr(plan, "MAX_ROWS_WITHOUT_SYNC", 0)
    monkeypatch.setattr(Precision, "exact_dtype", lambda self, dtype: torch.float16)
    case = case_of(LARGER, far)
    assert_close(run(case, **options), evaluate(reference.walker_visit_loss, case, **options), 2**-10)
    assert ways(trace) == {(1 + far, "stored")}
    assert trace.names.count("take_off_kappa") == 2


# In float32 scores are products, and have biases.
@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("sizes", [ONE_TILE, LARGER], ids=str)
def test_biases_where_the_device_chooses(sizes: list[int], far: bool, tiles_of_64: None, trace: Trace) -> None:
    case = case_of(sizes, far, dtype=torch.float32)
    options = {"ignore_index": 4, "similarity": "euclidean"}
    exact = evaluate(reference.walker_visit_loss, case, torch.float64, **options)
    assert_as_exact_as(run(case, **options), evaluate(reference.walker_visit_loss, case, **options), exact, case)
    assert ways(trace) == {(1, "computed"), (2, "recomputed")}
    assert all(x["dbias_a_parts_ptr"] is not None for name, x in trace if name == "row_gradients")


# Embeddings too wide for a tile of 64 columns go through the workspace, for scores are computed in one product.
@pytest.mark.parametrize(("d", "way"), [(64, "computed"), (65, "stored")])
def test_steps_are_computed_from_whole_rows(
    d: int, way: str, tiles_of_64: None, trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "MAX_ROWS_WITHOUT_SYNC", 0)
    case = make_case(40, 30, d, 4, scale=0.2)
    assert_close(run(case), evaluate(reference.walker_visit_loss, case), FLOAT64)
    assert ways(trace) == {(1, way)}


# Both sides of the bound, 144 in units of log 2. Scores are 0 but in the last row, so that normalisers of columns are
# those of that row, and those of rows log2(30) and as much more as they are apart.
@pytest.mark.parametrize(("apart", "plain"), [(143.9, 0), (144.1, 1), (1e3, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bound(apart: float, plain: int, dtype: torch.dtype, trace: Trace) -> None:
    a, b = torch.zeros(40, 1, dtype=dtype), torch.linspace(0.999, 1.0, 30)[:, None].to(dtype)
    a[-1] = apart * math.log(2)
    case = Case(a, b, torch.arange(40) % 3)
    result = run(case)
    lowest, highest = math.log2(30), math.log2(float((a[-1] * b).double().exp().sum())) if apart < 999 else math.inf
    assert plain == (highest - lowest > 144.0)
    assert trace.arguments("forms")["counts_ptr"][3].item() == plain
    exact = evaluate(reference.walker_visit_loss, case, torch.float64)
    if dtype == torch.float64:
        assert_close(result, exact, 1e-11)
    else:
        assert_as_exact_as(result, evaluate(reference.walker_visit_loss, case), exact, case)


@pytest.mark.parametrize(("eps", "plain"), [(0.0, 1), (0.9e-10, 1), (1e-10, 0), (1e-3, 0)])
def test_least_eps(eps: float, plain: int, trace: Trace) -> None:
    case = case_of(ONE_TILE)
    assert_close(run(case, eps=eps), evaluate(reference.walker_visit_loss, case, eps=eps), FLOAT64)
    assert trace.arguments("forms")["counts_ptr"][3].item() == plain
