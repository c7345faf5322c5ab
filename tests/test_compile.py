"""torch.compile sees the loss as operators: no graph break, the same numbers, correct registration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastassoc
from fastassoc import operators
from fastassoc.backends.cpu import labels
from tests.cases import make_case
from tests.conftest import take_path


def gradients(step: Any, a: Tensor, b: Tensor, labels: Tensor, *parameters: Tensor) -> list[Tensor]:
    inputs = [x.detach().clone().requires_grad_() for x in (a, b, *parameters)]
    results = step(*inputs[:2], labels, *inputs[2:])
    loss = results[0] if isinstance(results, tuple) else results
    (3.0 * loss).backward()
    statistics = list(results[1]) if isinstance(results, tuple) else []
    assert not any(x.requires_grad for x in statistics)
    return [loss.detach(), *statistics, *(x.grad for x in inputs if x.grad is not None)]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"visit_weight": 0.0},
    {"walker_weight": 0.0, "return_stats": True},
    {"similarity": "cosine", "temperature": 0.2},
    {"similarity": "euclidean", "ignore_index": 2, "return_stats": True},
    {"walker_weight": 0.0, "visit_weight": 0.0},
]


# Whole matrices and tiles; logits beyond the range of the merged form, whose saved tensors are others.
@pytest.mark.parametrize(("path", "scale"), [("dense", 1.0), ("whole", 1.0), ("tiles", 1.0), ("tiles", 12.0)])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_compiled_step_is_the_eager_one(
    path: str, scale: float, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    take_path(monkeypatch, path)
    case = make_case(24, 50, 7, 4, scale=scale, dtype=torch.float32)

    def step(a: Tensor, b: Tensor, labels: Tensor) -> Any:
        return fastassoc.walker_visit_loss(a * 1.5, b, labels, **options)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for mine, eager in zip(gradients(compiled, *case), gradients(step, *case), strict=True):
        torch.testing.assert_close(mine, eager, rtol=0.0, atol=0.0)


def test_tensors_as_weights_and_temperature_get_gradients() -> None:
    case = make_case(24, 50, 7, 4)
    parameters = [torch.tensor(x, dtype=torch.float64) for x in (0.7, 0.3, 2.0)]

    def step(a: Tensor, b: Tensor, labels: Tensor, walker: Tensor, visit: Tensor, temperature: Tensor) -> Tensor:
        return fastassoc.walker_visit_loss(
            a, b, labels, walker_weight=walker, visit_weight=visit, temperature=temperature
        )

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    mine, eager = (gradients(x, *case, *parameters) for x in (compiled, step))
    assert len(mine) == 6
    for x, y in zip(mine, eager, strict=True):
        torch.testing.assert_close(x, y)


def test_compiled_under_autocast_and_with_changing_sizes() -> None:
    def step(a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return fastassoc.walker_visit_loss(a @ a.new_ones(7, 7), b, labels)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for n, m in ((20, 30), (20, 40), (33, 50)):
        case = make_case(n, m, 7, 3, scale=0.3, dtype=torch.float32)
        for mine, eager in zip(gradients(compiled, *case), gradients(step, *case), strict=True):
            torch.testing.assert_close(mine, eager, rtol=2e-2, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_a_whole_training_step_compiles_to_machine_code() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.ELU(), torch.nn.Linear(16, 8))
    x, y, labels = torch.randn(20, 12), torch.randn(45, 12), torch.arange(20) % 4
    criterion = fastassoc.WalkerVisitLoss(visit_weight=0.5)

    def step(x: Tensor, y: Tensor) -> Tensor:
        return criterion(network(x), network(y), labels)

    torch._dynamo.reset()
    results = []
    for function in (step, torch.compile(step, fullgraph=True)):
        network.zero_grad()
        loss = function(x, y)
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("path", ["whole", "tiles"])
@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize("euclidean", [False, True])
def test_operator_registrations(path: str, statistics: bool, euclidean: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    take_path(monkeypatch, path)
    case = make_case(9, 20, 5, 3)
    a, b = case.a.requires_grad_(), case.b.requires_grad_()
    temperature = torch.tensor(5.0, dtype=torch.float64, requires_grad=True) if euclidean else None
    arguments = (a, b, temperature, case.labels, None, 0.7, euclidean, 1e-8, True, True, statistics, True, "cpu")
    torch.library.opcheck(operators.losses, arguments)


def test_operator_of_the_derivative_is_registered() -> None:
    case = make_case(9, 20, 5, 3)
    options = (case.labels, None, 1.0, False, 1e-8, True, True)
    _, _, _, _, _, *saved = operators.losses(*case[:2], None, *options, False, True, "cpu")
    ones = torch.ones((), dtype=torch.float64)
    arguments = (*case[:2], None, ones, ones, *options, "cpu", saved, [True, True, False])
    torch.library.opcheck(operators.losses_backward, arguments)


def test_weights_and_temperatures_that_change_from_step_to_step() -> None:
    case = make_case(12, 20, 7, 3)

    def step(a: Tensor, b: Tensor, walker: float, visit: float, temperature: float) -> Tensor:
        return fastassoc.walker_visit_loss(
            a, b, case.labels, walker_weight=walker, visit_weight=visit, temperature=temperature
        )

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    # More steps than torch.compile would compile anew.
    ramp = ((1.0, 0.01 * step, 1.0) for step in range(1, 12))
    for options in ((1.0, 1.0, 1.0), (1.0, 0.5, 1.0), (0.7, 0.3, 2.0), (0.7, 0.0, 0.5), (0.1, 0.2, 0.25), *ramp):
        torch.testing.assert_close(compiled(*case[:2], *options), step(*case[:2], *options))


def test_compiled_with_transposed_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    take_path(monkeypatch, "tiles")
    monkeypatch.setattr(labels, "_DENSE_PRODUCTS", 10**18)
    case = make_case(9, 20, 5, 3)
    a, b = (x.t().contiguous().t() for x in case[:2])
    options = (case.labels, None, 1.0, False, 1e-8, False, True)
    _, _, _, _, _, *saved = operators.losses(a, b, None, *options, False, True, "cpu")
    one = torch.ones((), dtype=torch.float64)
    arguments = (a, b, None, None, one, *options, "cpu", saved, [True, True, False])
    torch.library.opcheck(operators.losses_backward, arguments)


def test_second_derivative_of_a_compiled_step_raises() -> None:
    case = make_case(9, 20, 5, 3)
    a = case.a.requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(fastassoc.walker_visit_loss, fullgraph=True, backend="aot_eager")
    loss = compiled(a, case.b, case.labels)
    # torch.compile frees what a backward pass that is not to be differentiated no longer needs.
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(loss, a, create_graph=True)
