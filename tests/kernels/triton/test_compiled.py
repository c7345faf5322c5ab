"""Under torch.compile: shapes decide what a small batch saves, so that graphs around the loss are of known sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastassoc
from fastassoc import operators
from tests.cases import make_case
from tests.kernels.triton.support import on_device

pytestmark = pytest.mark.parametrize("passes", ["small batches"], indirect=True)


def test_the_operator_says_what_it_gives() -> None:
    for n, m in ((20, 30), (130, 9), (40, 2100)):
        a, b, labels = on_device(make_case(n, m, 5, 4))
        options = None, 1.0, False, 1e-8, True, True, False, True, "triton"
        arguments = a.requires_grad_(), b.requires_grad_(), None, labels, *options
        # Not of numbers: what is saved has places that nobody writes.
        checks = "test_schema", "test_autograd_registration", "test_faketensor"
        torch.library.opcheck(operators.losses, arguments, test_utils=checks)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("n", "m", "similarity", "known"), [
    (20, 30, "dot", True), (130, 9, "cosine", True), (20, 30, "euclidean", False), (20, 2100, "dot", False),
])  # fmt: skip
def test_sizes_in_the_graph(n: int, m: int, similarity: Any, known: bool, dynamic: bool) -> None:
    sizes: list[Any] = []

    def compiler(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        for node in graph.graph.nodes:
            value = node.meta.get("example_value")
            if isinstance(value, (list, tuple)):
                sizes.extend(size for x in value if isinstance(x, Tensor) for size in x.shape)
        return graph.forward

    def step(a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
        return fastassoc.walker_visit_loss(a, b, labels, similarity=similarity, backend="triton")

    torch._dynamo.reset()
    a, b, labels = on_device(make_case(n, m, 5, 4))
    loss = torch.compile(step, fullgraph=True, backend=compiler, dynamic=dynamic)(a.requires_grad_(), b, labels)
    assert torch.equal(loss, step(a, b, labels))
    found = [str(size) for size in sizes]
    assert len(found) > operators.RESULTS
    # A symbol named u is a number that only running tells.
    assert any(size.startswith("u") for size in found) != known
