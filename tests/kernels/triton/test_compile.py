"""torch.compile over the kernels: what they save comes out of an operator flat, and goes back in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastassoc
from fastassoc import operators
from tests.cases import make_case
from tests.kernels.triton.support import DEVICE


@pytest.mark.parametrize(
    "options",
    [{}, {"visit_weight": 0.0}, {"walker_weight": 0.0}, {"similarity": "euclidean", "ignore_index": 1}],
    ids=str,
)
def test_compiled_step_is_the_eager_one(options: dict[str, Any]) -> None:
    case = make_case(20, 33, 5, 3, scale=0.5, dtype=torch.float32)
    labels = case.labels.to(DEVICE)

    def step(a: Tensor, b: Tensor) -> Tensor:
        return fastassoc.walker_visit_loss(a * 1.5, b, labels, backend="triton", **options)

    torch._dynamo.reset()
    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        a, b = (x.to(DEVICE).requires_grad_() for x in case[:2])
        loss = function(a, b)
        loss.backward()
        results.append((loss.detach(), a.grad, b.grad))
    for eager, compiled in zip(*results, strict=True):
        assert torch.equal(eager, compiled)


def test_operator_registration() -> None:
    case = make_case(9, 20, 5, 3, dtype=torch.float32)
    a, b = (x.to(DEVICE).requires_grad_() for x in case[:2])
    arguments = (a, b, None, case.labels.to(DEVICE), None, 0.7, False, 1e-8, True, True, True, True, "triton")
    torch.library.opcheck(operators.losses, arguments)
