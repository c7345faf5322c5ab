"""Memory beside inputs and gradients, from the allocations of a call; nothing is run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton")

from fastassoc.backends import triton
from fastassoc.backends.protocol import Inputs
from fastassoc.backends.triton.labels import Labels
from fastassoc.backends.triton.launch import Machine, recording

MIB = 2**20


class Allocations(TorchDispatchMode):
    """Bytes of all that is allocated within, none of it given back: no less than the peak."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        # Whatever returns no view and nothing that it was given.
        if all(x.alias_info is None for x in func._schema.returns):
            self.bytes += size(*tree_leaves(result))
        return result


def size(*tensors: Tensor | None) -> int:
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)


def used(
    columns: int,
    dtype: torch.dtype,
    counts: tuple[int, ...],
    products: str = "highest",
    rows: int = 4096,
    ignore_index: int | None = None,
) -> tuple[float, float]:
    """MiB that the forward and the backward pass take."""

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    labels = Labels(empty(rows, dtype=torch.int64), ignore_index, products)
    inputs = Inputs(
        empty(rows, 128, dtype=dtype), empty(columns, 128, dtype=dtype), None, None, labels, 1.0, 1e-8, True, True,
        torch.float32,
    )  # fmt: skip
    one = empty()
    with recording(Machine("sm_90", 132), counts):
        with Allocations() as forward:
            losses = triton.losses(inputs, needs_gradient=True, statistics=False)
        with Allocations() as backward:
            gradients = triton.gradients(inputs, losses.saved, one, one, (True, True, False, False))
    saved = size(*losses.saved)
    return forward.bytes / MIB, (backward.bytes + saved - size(gradients.a, gradients.b)) / MIB


ONE_TILE, SEVERAL = (4096, 34, 34, 0), (4096, 40, 160, 0)
"""What there is of 100 classes of 41 rows and of 10 classes of 410."""


# An N x M matrix would be 16 GiB in float32.
@pytest.mark.parametrize(
    ("dtype", "products", "counts"),
    [
        (torch.bfloat16, "highest", ONE_TILE),
        (torch.float16, "highest", ONE_TILE),
        (torch.float32, "high", ONE_TILE),
        (torch.float32, "highest", ONE_TILE),
        (torch.bfloat16, "highest", SEVERAL),
        (torch.float32, "high", SEVERAL),
    ],
)
def test_4096_rows_and_a_million_columns(dtype: torch.dtype, products: str, counts: tuple[int, ...]) -> None:
    assert max(used(2**20, dtype, counts, products)) <= 64.0
    assert max(used(2**20, dtype, counts, products, ignore_index=-1)) <= 64.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_largest_small_batch(dtype: torch.dtype) -> None:
    assert max(used(2048, dtype, ONE_TILE, rows=1024)) <= 36.0


def test_three_parts_of_large_classes() -> None:
    # The gradient of their round trips alone is 15 MiB.
    assert max(used(2**20, torch.float32, SEVERAL)) <= 72.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("counts", [ONE_TILE, SEVERAL, (4096, 40, 160, 1)])
def test_only_vectors_grow_with_the_columns(dtype: torch.dtype, counts: tuple[int, ...]) -> None:
    small, large = (used(columns, dtype, counts) for columns in (2**19, 2**20))
    # Four numbers of a column are kept; three of some 64 columns on the way.
    for before, after in zip(small, large, strict=True):
        assert after - before <= 2**19 * (4 + 3 / 64) * 4 / MIB
