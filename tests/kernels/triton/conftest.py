"""Runs only where kernels can run; every test has fresh memory full of NaN and a list of the launches it made."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from tests.kernels.triton.support import Trace

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def _poisoned(poisoned_memory: None) -> None:
    """Whatever no kernel wrote is NaN or the largest integer."""


@pytest.fixture(autouse=True)
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The "general" passes, for small batches too; as a parameter, those of "small batches", or of "several tiles".

    The last are the same, but one tile never has all rows and columns.
    """
    which = str(getattr(request, "param", "general"))
    from fastassoc.backends.triton import dense

    dense.forget()
    if which == "general":
        monkeypatch.setattr(dense, "is_small", lambda *_: False)
    elif which == "several tiles":
        monkeypatch.setattr(dense, "choose_one_tile", lambda *_: None)
    return which


@pytest.fixture(params=["small tiles", "one tile"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Tiles of 32 rows and columns and 64 of the embedding, so that all is looped over; and tiles that hold more."""
    size, depth = (32, 64) if request.param == "small tiles" else (64, 256)
    _use_tiles(monkeypatch, size, depth)
    return str(request.param)


@pytest.fixture
def tiles_of_64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 64 columns of the embedding."""
    _use_tiles(monkeypatch, 32, 64)


def _use_tiles(monkeypatch: pytest.MonkeyPatch, size: int, depth: int) -> None:
    from fastassoc.backends.triton import dense, plan
    from fastassoc.kernels.triton.configs import Config, Tile

    dense.forget()
    tile = Tile(rows=size, columns=size, depth=depth, warps=4, stages=2)
    monkeypatch.setattr(plan, "choose_config", lambda *_: Config(*[tile] * 8))
    monkeypatch.setattr(dense, "choose_dense_tile", lambda *_: tile)


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch) -> Trace:
    """Kernel launches of the test, in order, with their arguments."""
    from fastassoc.backends.triton import forward, plan
    from fastassoc.backends.triton import launch as launching

    launches = Trace()
    launch = launching.launch

    def traced(kernel: Any, grid: tuple[int, ...], *tile: Any, **arguments: Any) -> Any:
        compiled = launch(kernel, grid, *tile, **arguments)
        launches.append((kernel.__name__, arguments))
        return compiled

    for module in (forward, plan, launching):
        monkeypatch.setattr(module, "launch", traced)
    return launches
