"""Both terms apart: the values and gradients of each, and no work for a term that receives no gradient."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastassoc
from fastassoc import reference
from fastassoc.backends import cpu
from fastassoc.backends.cpu.native import machine
from tests.cases import Case, assert_as_exact_as, evaluate, make_case, relative_error
from tests.conftest import take_path

TERMS = ("walker", "visit")
SIMILARITIES = ("dot", "cosine", "euclidean")


def term_of(name: str) -> Callable[..., Tensor]:
    def term(*arguments: Any, **options: Any) -> Tensor:
        value: Tensor = getattr(fastassoc.walker_visit_losses(*arguments, **options), name)
        return value

    return term


def only(name: str) -> dict[str, float]:
    return {f"{term}_weight": float(term == name) for term in TERMS}


@pytest.mark.usefixtures("cpu_path")
@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_each_term_is_the_specifications(name: str, similarity: str) -> None:
    case = make_case(40, 90, 6, 4)
    mine = evaluate(term_of(name), case, similarity=similarity, temperature=0.8)
    exact = evaluate(reference.walker_visit_loss, case, similarity=similarity, temperature=0.8, **only(name))
    assert all(relative_error(x, y) < 1e-11 for x, y in zip(mine, exact, strict=True))


# Classes whose kernels take wide strips, those that do not, and rows that are alone; off every block.
@pytest.mark.usefixtures("native", "poisoned_memory")
@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("sizes", [(300, 65, 1, 1), (17, 9, 4, 1, 1, 1), (33,), (1,) * 19])
@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_each_term_by_machine_code(name: str, sizes: tuple[int, ...], similarity: str) -> None:
    labels = torch.cat([torch.full((size,), number) for number, size in enumerate(sizes)])
    scale = 0.2 if similarity == "euclidean" else 0.5
    case = make_case(len(labels), 131, 21, 1, scale=scale, dtype=torch.float32)
    case = case._replace(labels=labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))])
    mine = evaluate(term_of(name), case, similarity=similarity)
    eager, exact = (
        evaluate(reference.walker_visit_loss, case, dtype, similarity=similarity, **only(name))
        for dtype in (torch.float32, torch.float64)
    )
    assert_as_exact_as(mine, eager, exact, case)


@pytest.mark.usefixtures("cpu_path")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_is_their_weighted_sum(dtype: torch.dtype) -> None:
    case = make_case(40, 90, 6, 4, dtype=dtype)

    def weighted(*arguments: Tensor) -> Tensor:
        walker, visit = fastassoc.walker_visit_losses(*arguments)
        return 0.3 * walker + 2.0 * visit

    mine = evaluate(weighted, case)
    loss = evaluate(fastassoc.walker_visit_loss, case, walker_weight=0.3, visit_weight=2.0)
    assert all(torch.equal(x, y) for x, y in zip(mine, loss, strict=True))


def test_options_are_those_of_the_loss_without_weights() -> None:
    loss, losses = (
        inspect.signature(x).parameters for x in (fastassoc.walker_visit_loss, fastassoc.walker_visit_losses)
    )
    assert list(losses) == [name for name in loss if name not in only("")]
    assert all(losses[name].default == loss[name].default for name in losses)


@pytest.mark.usefixtures("cpu_path")
def test_statistics_come_beside_them() -> None:
    case = make_case(40, 90, 6, 4)
    a = case.a.requires_grad_()
    options: dict[str, Any] = {"similarity": "cosine", "temperature": 0.2, "ignore_index": 1}
    losses, statistics = fastassoc.walker_visit_losses(a, *case[1:], return_stats=True, **options)
    _, expected = fastassoc.walker_visit_loss(a, *case[1:], return_stats=True, **options)
    assert all(torch.equal(x, y) for x, y in zip(statistics, expected, strict=True))
    assert torch.equal(losses.walker, statistics.walker)
    assert torch.equal(losses.visit, statistics.visit)
    assert all(x.requires_grad for x in losses)
    assert not any(x.requires_grad for x in statistics)


@pytest.mark.parametrize("name", TERMS)
def test_the_backend_is_asked_for_one_term_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream: list[list[str]] = []
    gradients = cpu.gradients

    def noting(inputs: Any, saved: Any, grad_walker: Tensor | None, grad_visit: Tensor | None, needs: Any) -> Any:
        upstream.append([term for term, x in zip(TERMS, (grad_walker, grad_visit), strict=True) if x is not None])
        return gradients(inputs, saved, grad_walker, grad_visit, needs)

    monkeypatch.setattr(cpu, "gradients", noting)
    case = make_case(40, 90, 6, 4)
    evaluate(term_of(name), case)
    torch.func.grad(term_of(name))(*case)
    assert upstream == [[name], [name]]


@pytest.mark.usefixtures("native")
def test_machine_code_walks_no_round_trips_for_visits_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(40, 90, 6, 4, dtype=torch.float32)
    passes: list[str] = []
    add = machine.Program.add

    def noting(self: machine.Program, name: str, *arguments: int) -> None:
        passes.append(name)
        add(self, name, *arguments)

    monkeypatch.setattr(machine.Program, "add", noting)
    for name in TERMS:
        passes.clear()
        evaluate(term_of(name), case)
        assert "brackets" in passes
        assert ("kernels" in passes) == (name == "walker")


@pytest.mark.usefixtures("cpu_path")
@pytest.mark.parametrize("name", TERMS)
def test_what_is_not_finite_shows_in_one_term_at_least(name: str) -> None:
    for value in (float("nan"), float("inf"), -float("inf")):
        case = make_case(20, 50, 6, 3)
        case.a.abs_()
        case.b[3] = value
        assert any(x.isnan() for x in fastassoc.walker_visit_losses(*case))


def gradients_of(function: Callable[..., Any], case: Case) -> list[Tensor]:
    """Of each term in turn, then of a weighted sum; behind the terms."""
    found: list[Tensor] = []
    for weights in ((1.0, None), (None, 1.0), (0.5, 3.0)):
        a, b = (x.detach().clone().requires_grad_() for x in case[:2])
        terms = function(a, b, case.labels)
        wanted = [term * weight for term, weight in zip(terms, weights, strict=True) if weight is not None]
        found += [*(x.detach() for x in terms), *torch.autograd.grad(sum(wanted), (a, b))]
    return found


@pytest.mark.parametrize("path", ["dense", "whole", "tiles"])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_compiled(path: str, similarity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take_path(monkeypatch, path)
    case = make_case(24, 50, 7, 4, scale=0.5, dtype=torch.float32)

    def terms(a: Tensor, b: Tensor, labels: Tensor) -> fastassoc.WalkerVisitLosses:
        return fastassoc.walker_visit_losses(a * 1.5, b, labels, similarity=similarity)

    torch._dynamo.reset()
    compiled = torch.compile(terms, fullgraph=True, backend="aot_eager")
    for mine, eager in zip(gradients_of(compiled, case), gradients_of(terms, case), strict=True):
        # A graph that returns both takes their gradients together, 0 for one that is not asked for.
        torch.testing.assert_close(mine, eager, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_transforms(similarity: str) -> None:
    case = make_case(12, 30, 5, 3)

    def terms(a: Tensor, b: Tensor) -> fastassoc.WalkerVisitLosses:
        return fastassoc.walker_visit_losses(a, b, case.labels, similarity=similarity)

    jacobians = torch.func.jacrev(terms, argnums=(0, 1))(case.a, case.b)
    for name, jacobian in zip(TERMS, jacobians, strict=True):
        exact = evaluate(reference.walker_visit_loss, case, similarity=similarity, **only(name))
        for mine, true in zip(jacobian, exact[1:], strict=True):
            assert relative_error(mine, true) < 1e-11
    a = torch.stack([case.a, case.a * 0.5])
    walker, visit = torch.func.vmap(terms, in_dims=(0, None))(a, case.b)
    for number in range(2):
        expected = terms(a[number], case.b)
        assert torch.equal(walker[number], expected.walker)
        assert torch.equal(visit[number], expected.visit)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_second_derivatives(similarity: str) -> None:
    case = make_case(6, 9, 3, 2, seed=2)
    temperature = torch.tensor(1.3, dtype=torch.float64)

    def terms(a: Tensor, b: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(fastassoc.walker_visit_losses(a, b, case.labels, similarity=similarity, temperature=temperature))  # type: ignore[return-value]

    leaves = [x.requires_grad_() for x in (case.a, case.b, temperature)]
    assert torch.autograd.gradcheck(terms, leaves)
    assert torch.autograd.gradgradcheck(terms, leaves)


@pytest.mark.parametrize("name", TERMS)
def test_autocast_changes_nothing(name: str) -> None:
    case = make_case(20, 50, 6, 3, dtype=torch.float32)
    plain = evaluate(term_of(name), case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = evaluate(term_of(name), case)
    assert all(torch.equal(x, y) for x, y in zip(inside, plain, strict=True))


def test_bad_input_is_named() -> None:
    case = make_case(4, 5, 3, 2)
    with pytest.raises(ValueError, match="unknown similarity 'euclid'"):
        fastassoc.walker_visit_losses(*case, similarity="euclid")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="labels must hold one label per row of a"):
        fastassoc.walker_visit_losses(case.a, case.b, case.labels[:3])
