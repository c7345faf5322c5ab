"""Tensors that are no longer what they were when an address is taken from them: an error, never a crash."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fastassoc
from tests.cases import make_case

pytestmark = pytest.mark.usefixtures("cpu_path")


def leaves(n: int = 64, m: int = 128) -> tuple[Tensor, Tensor, Tensor]:
    case = make_case(n, m, 16, 4, dtype=torch.float32)
    return case.a.requires_grad_(), case.b.requires_grad_(), case.labels


@pytest.mark.parametrize(
    ("rows", "change"),
    [
        (64, lambda a, b: setattr(b, "data", torch.randn(100_000, 16))),
        (640, lambda a, b: setattr(a, "data", torch.randn(3, 16))),
        (64, lambda a, b: setattr(a, "data", a.data.double())),
    ],
    ids=["larger", "smaller", "dtype"],
)
def test_data_replaced_before_the_backward_pass(rows: int, change: Callable[[Tensor, Tensor], None]) -> None:
    a, b, labels = leaves(rows)
    loss = fastassoc.walker_visit_loss(a, b, labels)
    change(a, b)
    with pytest.raises(RuntimeError, match="changed between the forward and the backward pass"):
        loss.backward()


@pytest.mark.parametrize("name", ["a", "b", "labels"])
def test_memory_released_before_the_forward_pass(name: str) -> None:
    tensors = dict(zip(("a", "b", "labels"), leaves(), strict=True))
    tensors[name].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=f"the memory of {name} was released"):
        fastassoc.walker_visit_loss(**tensors)


@pytest.mark.parametrize("name", ["a", "b"])
def test_memory_released_before_the_backward_pass(name: str) -> None:
    a, b, labels = leaves()
    loss = fastassoc.walker_visit_loss(a, b, labels)
    {"a": a, "b": b}[name].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=f"the memory of {name} was released"):
        loss.backward()


def test_memory_too_small_for_strided_rows() -> None:
    a, _, labels = leaves()
    wide = torch.randn(128, 40)
    view = wide[:, 3:19]
    fastassoc.walker_visit_loss(a, view, labels)
    wide.untyped_storage().resize_((127 * 40 + 18) * 4)
    with pytest.raises(RuntimeError, match="needs 20396"):
        fastassoc.walker_visit_loss(a, view, labels)


# What hooks on saved tensors give back: the same elsewhere is well, other numbers are not read as these.
def test_saved_tensors_brought_back_by_hooks() -> None:
    a, b, labels = leaves()
    expected = torch.autograd.grad(fastassoc.walker_visit_loss(a, b, labels), (a, b))
    with torch.autograd.graph.save_on_cpu():
        loss = fastassoc.walker_visit_loss(a, b, labels)
    for mine, other in zip(torch.autograd.grad(loss, (a, b)), expected, strict=True):
        assert torch.equal(mine, other)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.half(), lambda x: x):
        loss = fastassoc.walker_visit_loss(a, b, labels)
    with pytest.raises(RuntimeError, match=r"a changed .*torch.float32.*torch.float16"):
        loss.backward()


def test_labels_may_change_after_the_forward_pass() -> None:
    a, b, labels = leaves()
    expected = torch.autograd.grad(fastassoc.walker_visit_loss(a, b, labels), a)[0]
    loss = fastassoc.walker_visit_loss(a, b, labels)
    labels.zero_()
    assert torch.equal(torch.autograd.grad(loss, a)[0], expected)


# 2^64 - 1 becomes -1 as a signed number; it is not the label to ignore.
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64])
def test_unsigned_labels_are_never_a_negative_number(dtype: torch.dtype) -> None:
    a, b, _ = (x.detach() for x in leaves())
    largest = torch.full((32,), -1).to(dtype)
    unsigned = torch.cat([largest, torch.zeros(32, dtype=dtype)])
    expected = fastassoc.walker_visit_loss(a, b, torch.arange(64) < 32)
    # Classes may be summed in another order.
    torch.testing.assert_close(fastassoc.walker_visit_loss(a, b, unsigned, ignore_index=-1), expected)
