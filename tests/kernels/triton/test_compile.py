"""torch.compile over the kernels: what they save comes out of an operator flat, and goes back in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastassoc
from fastassoc import operators
from tests.cases import make_case
from tests.kernels.triton.support import DEVICE, multiply_as_at_high


@pytest.mark.parametrize(
    "options",
    [{}, {"visit_weight": 0.0}, {"walker_weight": 0.0}, {"similarity": "euclidean", "ignore_index": 1}],
    ids=str,
)
@pytest.mark.parametrize(("high", "compiler"), [(False, "aot_eager"), (True, "inductor")])
def test_compiled_step_is_the_eager_one(
    options: dict[str, Any], high: bool, compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if high:
        multiply_as_at_high(monkeypatch)
    case = make_case(20, 33, 5, 3, scale=0.5, dtype=torch.float32)
    labels = case.labels.to(DEVICE)

    def step(a: Tensor, b: Tensor) -> Tensor:
        return fastassoc.walker_visit_loss(a * 1.5, b, labels, backend="triton", **options)

    torch._dynamo.reset()
    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend=compiler)):
        a, b = (x.to(DEVICE).requires_grad_() for x in case[:2])
        loss = function(a, b)
        loss.backward()
        results.append((loss.detach(), a.grad, b.grad))
    for eager, compiled in zip(*results, strict=True):
        assert torch.equal(eager, compiled)


@pytest.mark.parametrize("high", [False, True])
def test_operator_registration(high: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if high:
        multiply_as_at_high(monkeypatch)
    case = make_case(9, 20, 5, 3, dtype=torch.float32)
    a, b = (x.to(DEVICE).requires_grad_() for x in case[:2])
    arguments = (a, b, None, case.labels.to(DEVICE), None, 0.7, False, 1e-8, True, True, True, True, "triton")
    # Not of numbers at "high": largest values are saved with places that nobody writes.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    options = {"test_utils": checks} if high else {}
    torch.library.opcheck(operators.losses, arguments, **options)
