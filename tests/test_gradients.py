"""Analytic gradients against finite differences, and against the specification for every subset of inputs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import fastassoc
from fastassoc import reference
from tests.cases import make_case, relative_error
from tests.conftest import OPERATIONS

SIMILARITIES = ("dot", "cosine", "euclidean")
# In float64, which machine code does not take.
pytestmark = [
    pytest.mark.usefixtures("cpu_path"),
    pytest.mark.parametrize("cpu_path", OPERATIONS, indirect=True),
]


def weights() -> list[torch.Tensor]:
    return [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.7, 1.3, 1.9)]


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("eps", [1e-8, 0.0])
def test_gradcheck_of_inputs_weights_and_temperature(similarity: str, eps: float) -> None:
    # 37 columns: three tiles of 16 with a ragged last one where tiles are small.
    case = make_case(7, 37, 3, 3)

    def loss(a: torch.Tensor, b: torch.Tensor, walker: torch.Tensor, visit: torch.Tensor, t: torch.Tensor) -> object:
        return fastassoc.walker_visit_loss(
            a, b, case.labels, walker_weight=walker, visit_weight=visit, similarity=similarity, temperature=t, eps=eps
        )

    assert torch.autograd.gradcheck(loss, (case.a.requires_grad_(), case.b.requires_grad_(), *weights()))


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.3, 2.0)])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_gradcheck_of_each_term(similarity: str, weights: tuple[float, float]) -> None:
    case = make_case(6, 20, 3, 2, seed=1)

    def loss(a: torch.Tensor, b: torch.Tensor) -> object:
        return fastassoc.walker_visit_loss(
            a, b, case.labels, walker_weight=weights[0], visit_weight=weights[1], similarity=similarity, temperature=0.6
        )

    assert torch.autograd.gradcheck(loss, (case.a.requires_grad_(), case.b.requires_grad_()))


@pytest.mark.parametrize("needed", [s for s in itertools.product((True, False), repeat=5) if any(s)])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_every_subset_of_inputs(similarity: str, needed: tuple[bool, ...]) -> None:
    case = make_case(30, 70, 5, 4)
    leaves = [case.a, case.b, *weights()]
    gradients = []
    for function in (fastassoc.walker_visit_loss, reference.walker_visit_loss):
        a, b, walker, visit, t = (
            leaf.detach().clone().requires_grad_(need) for leaf, need in zip(leaves, needed, strict=True)
        )
        loss = function(
            a, b, case.labels, walker_weight=walker, visit_weight=visit, similarity=similarity, temperature=t
        )
        wanted = [leaf for leaf in (a, b, walker, visit, t) if leaf.requires_grad]
        gradients.append(torch.autograd.grad(loss, wanted))
    for mine, exact in zip(*gradients, strict=True):
        assert relative_error(mine, exact) < 1e-11


def test_upstream_gradient_scales_both_terms() -> None:
    case = make_case(12, 40, 4, 3)
    a = case.a.requires_grad_()
    loss = fastassoc.walker_visit_loss(a, case.b, case.labels)
    (once,) = torch.autograd.grad(loss, a, retain_graph=True)
    (scaled,) = torch.autograd.grad(loss, a, torch.tensor(-3.5, dtype=torch.float64))
    assert relative_error(scaled, -3.5 * once) < 1e-14


def test_second_backward_with_retained_graph_gives_the_same_bits() -> None:
    case = make_case(20, 100, 4, 3, dtype=torch.float32)
    a, b = case.a.requires_grad_(), case.b.requires_grad_()
    loss = fastassoc.walker_visit_loss(a, b, case.labels)
    first = torch.autograd.grad(loss, (a, b), retain_graph=True)
    second = torch.autograd.grad(loss, (a, b))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


# Exact to float64: the first derivative is the backend's, the second that of the dense specification.
@pytest.mark.parametrize("options", [{}, {"walker_weight": 0.0}, {"visit_weight": 0.0}, {"ignore_index": 1}], ids=str)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_gradgradcheck(similarity: str, options: dict[str, Any]) -> None:
    case = make_case(6, 9, 3, 2, seed=2)
    leaves = [case.a, case.b, torch.tensor(1.3, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)]

    def loss(a: torch.Tensor, b: torch.Tensor, temperature: torch.Tensor, weight: torch.Tensor) -> object:
        weights = {"visit_weight": weight} if "walker_weight" in options else {"walker_weight": weight}
        return fastassoc.walker_visit_loss(
            a, b, case.labels, similarity=similarity, temperature=temperature, **(weights | options)
        )

    assert torch.autograd.gradgradcheck(loss, [leaf.requires_grad_() for leaf in leaves])


def test_gradient_penalty_trains_like_the_specification() -> None:
    case = make_case(12, 20, 5, 3)
    gradients = []
    for function in (fastassoc.walker_visit_loss, reference.walker_visit_loss):
        a, b = (x.clone().requires_grad_() for x in case[:2])
        loss = function(a, b, case.labels)
        da, db = torch.autograd.grad(loss, (a, b), create_graph=True)
        gradients.append(torch.autograd.grad(loss + da.square().sum() + db.norm(), (a, b)))
    for mine, exact in zip(*gradients, strict=True):
        assert relative_error(mine, exact) < 1e-11


def test_labels_changed_before_a_second_derivative_are_an_error() -> None:
    case = make_case(5, 9, 3, 2)
    a = case.a.requires_grad_()
    loss = fastassoc.walker_visit_loss(a, case.b, case.labels)
    case.labels.zero_()
    with pytest.raises(RuntimeError, match="labels were changed"):
        torch.autograd.grad(loss, a, create_graph=True)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_second_derivatives_under_autocast_are_not_of_its_precision(similarity: str) -> None:
    case = make_case(12, 20, 5, 3, dtype=torch.float32)
    gradients = []
    for enabled in (False, True):
        a = case.a.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = fastassoc.walker_visit_loss(a, case.b, case.labels, similarity=similarity)
            (da,) = torch.autograd.grad(loss, a, create_graph=True)
            gradients.append(torch.autograd.grad(da.square().sum(), a)[0])
    assert relative_error(*gradients) < 1e-5


def test_cosine_of_a_zero_row_has_finite_second_derivatives() -> None:
    case = make_case(12, 20, 5, 3)
    a = case.a.clone()
    a[0] = 0.0
    a.requires_grad_()
    loss = fastassoc.walker_visit_loss(a, case.b, case.labels, similarity="cosine")
    (da,) = torch.autograd.grad(loss, a, create_graph=True)
    assert torch.autograd.grad(da.square().sum(), a)[0].isfinite().all()
