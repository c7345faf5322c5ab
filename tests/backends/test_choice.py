"""The choice of a backend."""

from __future__ import annotations

import importlib.util

import pytest
import torch

import fastassoc
from fastassoc.backends import choose_backend

A, B, LABELS = torch.randn(4, 3), torch.randn(5, 3), torch.arange(4)


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match="package triton is not installed"):
        fastassoc.walker_visit_loss(A, B, LABELS, backend="triton")
    with pytest.raises(RuntimeError, match="package triton is not installed"):
        choose_backend("auto", torch.device("cuda"))


def test_without_a_gpu_or_the_interpreter() -> None:
    pytest.importorskip("triton")
    with pytest.raises(RuntimeError, match=r"'triton' cannot run on cpu.*TRITON_INTERPRET=1"):
        fastassoc.walker_visit_loss(A, B, LABELS, backend="triton")


def test_on_an_old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (6, 1))
    with pytest.raises(RuntimeError, match="sm_70 or newer; cuda:0 is sm_61"):
        choose_backend("triton", torch.device("cuda", 0))
