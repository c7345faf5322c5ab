"""The choice of a backend."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

import fastassoc
from fastassoc.backends import choose_backend

A, B, LABELS = torch.randn(4, 3), torch.randn(5, 3), torch.arange(4)


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    choose_backend.cache_clear()
    yield
    choose_backend.cache_clear()


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match="package triton is not installed"):
        fastassoc.walker_visit_loss(A, B, LABELS, backend="triton")
    with pytest.raises(RuntimeError, match="package triton is not installed"):
        choose_backend("auto", torch.device("cuda"))


def test_with_a_triton_that_lacks_what_kernels_need() -> None:
    """In a process of its own: kernels are made once."""
    pytest.importorskip("triton")
    script = """
import torch, triton, fastassoc
del triton.constexpr_function
x, labels = torch.eye(4), torch.arange(4)
for backend in ("triton", "triton", "auto"):
    try:
        fastassoc.walker_visit_loss(x, x, labels, backend=backend)
    except RuntimeError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all("'triton' cannot run" in line and "Triton 3.6 to 3.9" in line for line in lines)
    assert all("constexpr_function" in line for line in lines)


def test_without_a_gpu_or_the_interpreter() -> None:
    pytest.importorskip("triton")
    with pytest.raises(RuntimeError, match=r"'triton' cannot run on cpu.*TRITON_INTERPRET=1"):
        fastassoc.walker_visit_loss(A, B, LABELS, backend="triton")


def test_on_an_old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (6, 1))
    with pytest.raises(RuntimeError, match="sm_70 or newer; cuda:0 is sm_61"):
        choose_backend("triton", torch.device("cuda", 0))
