"""Borrowed memory returns, is bounded, and is never lent twice."""

from __future__ import annotations

import pytest
import torch

from fastassoc.backends import cpu_memory


@pytest.fixture(autouse=True)
def _no_free_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_memory, "_free", [])


def test_memory_is_used_again_once_returned() -> None:
    first = cpu_memory.borrow((256, 256), torch.float32)
    address = first.data_ptr()
    second = cpu_memory.borrow((256, 256), torch.float32)
    assert second.data_ptr() != address
    view = first[3]
    del first
    third = cpu_memory.borrow((256, 256), torch.float32)
    assert third.data_ptr() != address, "a view still uses it"
    del view
    assert cpu_memory.borrow((300, 256), torch.float32).data_ptr() != address, "too small"
    assert cpu_memory.borrow((100, 256), torch.float32).data_ptr() != address, "more than half would lie idle"
    assert cpu_memory.borrow((250, 256), torch.float32).data_ptr() == address
    assert address % 64 == 0


def test_what_autograd_saves_stays_lent_until_it_is_freed() -> None:
    kept = cpu_memory.borrow((128, 256), torch.float32).fill_(2.0)
    x = torch.ones(128, 256, requires_grad=True)
    loss = (x * kept).sum()
    address = kept.data_ptr()
    del kept
    assert cpu_memory.borrow((128, 256), torch.float32).data_ptr() != address
    loss.backward()
    assert x.grad is not None
    assert bool((x.grad == 2.0).all())
    del loss
    addresses = [cpu_memory.borrow((128, 256), torch.float32) for _ in range(2)]
    assert address in [tensor.data_ptr() for tensor in addresses]


def test_free_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_memory, "_FREE_BYTES", 32 * 2**20)
    borrowed = [cpu_memory.borrow((2**20,), torch.float32) for _ in range(12)]
    assert not cpu_memory._free
    borrowed.clear()
    assert sum(buffer.nbytes for buffer in cpu_memory._free) == cpu_memory._FREE_BYTES


def test_a_loan_may_end_while_the_lock_is_held() -> None:
    loan = cpu_memory.borrow((256, 256), torch.float32)
    with cpu_memory._lock:
        del loan
        other = cpu_memory.borrow((256, 256), torch.float32)
    assert not cpu_memory._free
    assert other.shape == (256, 256)


def test_small_tensors_are_not_lent() -> None:
    del_me = cpu_memory.borrow((10,), torch.float32)
    del del_me
    assert not cpu_memory._free
