"""Borrowed memory returns, is bounded, and is never lent twice."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from types import FrameType
from typing import Any

import pytest
import torch

from fastassoc.backends.cpu import memory


@pytest.fixture(autouse=True)
def _no_free_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_free", {})


def test_memory_is_used_again_once_returned() -> None:
    first = memory.borrow((256, 256), torch.float32)
    address = first.data_ptr()
    second = memory.borrow((256, 256), torch.float32)
    assert second.data_ptr() != address
    view = first[3]
    del first
    third = memory.borrow((256, 256), torch.float32)
    assert third.data_ptr() != address, "a view still uses it"
    del view
    assert memory.borrow((300, 256), torch.float32).data_ptr() != address, "too small"
    assert memory.borrow((100, 256), torch.float32).data_ptr() != address, "more than half would lie idle"
    assert memory.borrow((250, 256), torch.float32).data_ptr() == address
    assert address % 64 == 0


def test_what_autograd_saves_stays_lent_until_it_is_freed() -> None:
    kept = memory.borrow((128, 256), torch.float32).fill_(2.0)
    x = torch.ones(128, 256, requires_grad=True)
    loss = (x * kept).sum()
    address = kept.data_ptr()
    del kept
    assert memory.borrow((128, 256), torch.float32).data_ptr() != address
    loss.backward()
    assert x.grad is not None
    assert bool((x.grad == 2.0).all())
    del loss
    addresses = [memory.borrow((128, 256), torch.float32) for _ in range(2)]
    assert address in [tensor.data_ptr() for tensor in addresses]


def test_free_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_FREE_BYTES", 32 * 2**20)
    borrowed = [memory.borrow((2**20,), torch.float32) for _ in range(12)]
    assert not memory._free
    borrowed.clear()
    assert sum(buffer.nbytes for buffer in memory._free.values()) == memory._FREE_BYTES


def borrow_and_return() -> None:
    """Two loans that end here, the second of which has something to take."""
    for _ in range(2):
        memory.borrow((256, 256), torch.float32)


def assert_it_lends() -> None:
    memory._free.clear()
    address = memory.borrow((256, 256), torch.float32).data_ptr()
    assert len(memory._free) == 1
    loan = memory.borrow((256, 256), torch.float32)
    assert loan.data_ptr() == address
    assert not memory._free


def test_an_interrupt_anywhere_leaves_memory_to_borrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_FREE_BYTES", 3 * 2**18)
    count = 0

    def interrupting(after: int) -> bool:
        """Whether a KeyboardInterrupt came at that instruction."""
        nonlocal count
        count = 0

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal count
            if frame.f_code.co_filename != memory.__file__:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                count += 1
                if count == after:
                    raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            borrow_and_return()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        return count >= after

    # What a loan's end raises is reported there and then.
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    after = 1
    while interrupting(after):
        assert sum(buffer.nbytes for buffer in memory._free.values()) <= memory._FREE_BYTES + 2**18
        assert_it_lends()
        after += 1
    assert after > 100


def test_threads_never_share_a_loan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_FREE_BYTES", 5 * 2**18)
    errors = []

    def work(number: int) -> None:
        try:
            for turn in range(300):
                mine = [memory.borrow((2**16 + turn % 7,), torch.float32) for _ in range(3)]
                for x in mine:
                    x[:8] = number
                time.sleep(0.0)
                for x in mine:
                    assert bool((x[:8] == number).all())
        except BaseException as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not errors
    del threads
    borrow_and_return()
    assert sum(buffer.nbytes for buffer in memory._free.values()) <= memory._FREE_BYTES


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_fork_while_another_thread_borrows_leaves_memory_to_borrow() -> None:
    """In a process of its own, as forking this one would copy its threads' state."""
    program = """
import os, threading, torch
from fastassoc.backends.cpu import memory
stop = threading.Event()
def work():
    while not stop.is_set():
        memory.borrow((256, 256), torch.float32)
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
for _ in range(30):
    child = os.fork()
    if child == 0:
        memory._free.clear()
        memory.borrow((256, 256), torch.float32)
        os._exit(len(memory._free) != 1)
    if os.waitpid(child, 0)[1]:
        print("failed")
        break
stop.set()
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == ["done"]


def test_small_tensors_are_not_lent() -> None:
    del_me = memory.borrow((10,), torch.float32)
    del del_me
    assert not memory._free
