"""The loss over the ranks of a process group, against that of all their rows in one process."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import fastassoc
from fastassoc import reference
from tests.cases import Case, assert_as_exact_as, assert_close, evaluate, make_case
from tests.ranks.support import SHAPES, THREE, TWO, D, Shape, joined, own_case, step

OPTIONS: list[dict[str, Any]] = [
    {},
    {"similarity": "cosine", "temperature": 0.1, "visit_weight": 0.3},
    {"similarity": "euclidean", "temperature": 2.0, "walker_weight": 0.5},
    {"ignore_index": 2},
    {"ignore_index": -1, "eps": 0.0},
    {"walker_weight": 0.0},
    {"visit_weight": 0.0, "temperature": 0.5},
]


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_and_gradients_are_those_of_one_process(
    ranks: Any, shape: Shape, options: dict[str, Any], backend: str
) -> None:
    case = make_case(sum(shape.rows), sum(shape.columns), D, 4)
    case.labels[:2] = torch.tensor([-1, 2])
    steps = ranks(shape.ranks, step, shape, case, options | {"backend": backend}, backend=backend)
    assert_close(joined(steps), evaluate(reference.walker_visit_loss, case, **options), 1e-12)
    exact = fastassoc.walker_visit_loss(*case, return_stats=True, **options)[1]
    for mine, other in zip(steps[0].statistics[:4], exact[:4], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-14)
    visits = torch.cat([x.statistics[4] for x in steps])
    torch.testing.assert_close(visits, exact.visit_probability, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_classes_larger_than_a_tile(ranks: Any, backend: str) -> None:
    shape = Shape((90, 70), (40, 33))
    case = make_case(160, 73, D, 2, scale=0.7)
    mine = joined(ranks(2, step, shape, case, {"backend": backend}, backend=backend))
    assert_close(mine, evaluate(reference.walker_visit_loss, case), 1e-12)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("scale", [0.5, 3.0, 12.0])
def test_float32_is_as_exact_as_eager_code(ranks: Any, scale: float, backend: str) -> None:
    case = make_case(sum(THREE.rows), sum(THREE.columns), D, 4, scale=scale, dtype=torch.float32)
    exact = evaluate(reference.walker_visit_loss, case, torch.float64)
    mine = joined(ranks(3, step, THREE, case, {"backend": backend}, backend=backend))
    assert_as_exact_as(mine, evaluate(reference.walker_visit_loss, case), exact, case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_that_of_one_process(ranks: Any, dtype: torch.dtype) -> None:
    case = make_case(sum(THREE.rows), sum(THREE.columns), D, 4, dtype=dtype)
    mine = joined(ranks(3, step, THREE, case, {}))
    # Gradients are rounded to the dtype once on either side.
    assert_close(mine, evaluate(fastassoc.walker_visit_loss, case), torch.finfo(dtype).eps)


# Scores of one rank are so far from those of the others that its steps take another form on the CPU.
@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [0, 1, 2])
def test_ranks_with_scores_far_apart(ranks: Any, far: int, dtype: torch.dtype, backend: str) -> None:
    case = make_case(sum(THREE.rows), sum(THREE.columns), D, 4, dtype=dtype)
    case.b.split(THREE.columns)[far].mul_(60.0)
    exact = evaluate(reference.walker_visit_loss, case, torch.float64)
    mine = joined(ranks(3, step, THREE, case, {"backend": backend}, backend=backend))
    if dtype == torch.float64:
        assert_close(mine, exact, 1e-12)
    else:
        assert_as_exact_as(mine, evaluate(reference.walker_visit_loss, case), exact, case)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("name", ["a", "b"])
def test_nan_on_one_rank_is_seen_by_all(ranks: Any, name: str, backend: str) -> None:
    case = make_case(sum(TWO.rows), sum(TWO.columns), D, 4)
    getattr(case, name)[-1, 0] = math.nan
    assert all(x.loss.isnan() for x in ranks(2, step, TWO, case, {"backend": backend}, backend=backend))


@pytest.mark.parametrize("similarity", ["dot", "cosine", "euclidean"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_parameters_that_ranks_share(ranks: Any, similarity: str, reduction: str) -> None:
    case = make_case(sum(THREE.rows), sum(THREE.columns), D, 4)
    numbers = {"walker_weight": 0.7, "visit_weight": 0.3, "temperature": 2.0}
    options = {name: torch.tensor(x, dtype=torch.float64) for name, x in numbers.items()}
    steps = ranks(3, step, THREE, case, {**options, "similarity": similarity, "gradient_reduction": reduction})
    learned = {name: x.clone().requires_grad_() for name, x in options.items()}
    exact = evaluate(reference.walker_visit_loss, case, similarity=similarity, **learned)
    assert_close(joined(steps, reduction), exact, 1e-12)
    for mine, x in zip(zip(*(s.learned for s in steps), strict=True), learned.values(), strict=True):
        total = torch.stack(mine).mean(0) if reduction == "mean" else torch.stack(mine).sum(0)
        torch.testing.assert_close(total, x.grad, rtol=1e-12, atol=1e-14)


def with_own_labels(rank: int, dtypes: list[torch.dtype], case: Case) -> Tensor:
    """Labels of a dtype of their own; -1 marks rows that take no part, where a dtype has it."""
    shape = Shape((5, 4), (6, 7))
    a, b, labels = own_case(rank, shape, case)
    labels = labels.to(dtypes[rank])
    return fastassoc.walker_visit_loss(a, b, labels, ignore_index=-1, group="world").detach()


@pytest.mark.parametrize("dtypes", [[torch.int64, torch.uint8], [torch.int16, torch.uint64], [torch.int32, torch.bool]])
def test_ranks_with_labels_of_different_dtypes(ranks: Any, dtypes: list[torch.dtype]) -> None:
    case = make_case(9, 13, D, 2)
    case.labels[1] = -1
    exact = reference.walker_visit_loss(*case, ignore_index=-1)
    for loss in ranks(2, with_own_labels, dtypes, case):
        torch.testing.assert_close(loss, exact, rtol=1e-13, atol=0.0)


@pytest.mark.parametrize(("dtype", "roundings"), [(torch.float64, 8), (torch.float32, 8), (torch.bfloat16, 1)])
def test_a_single_labelled_row(ranks: Any, dtype: torch.dtype, roundings: int) -> None:
    shape = Shape((0, 1), (4, 5))
    case = make_case(1, 9, D, 1, dtype=dtype)
    mine = joined(ranks(2, step, shape, case, {}))
    assert_close(mine, evaluate(fastassoc.walker_visit_loss, case), roundings * torch.finfo(dtype).eps)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("apart", [30.0, 3e4])
def test_squared_distances_of_clusters_far_apart(ranks: Any, apart: float, backend: str) -> None:
    # Products are not exact enough in float32, then not in float64 either: of one rank's rows, and all take that form.
    case = make_case(sum(TWO.rows), sum(TWO.columns), D, 2, dtype=torch.float32, scale=0.4)
    for x, counts in ((case.a, TWO.rows), (case.b, TWO.columns)):
        x[-counts[1] :] += apart
    options = {"similarity": "euclidean"}
    exact = evaluate(reference.walker_visit_loss, case, torch.float64, **options)
    mine = joined(ranks(2, step, TWO, case, {**options, "backend": backend}, backend=backend))
    assert_close(mine, exact, 4 * torch.finfo(torch.float32).eps)
