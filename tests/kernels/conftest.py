"""Runs only where kernels can run; every test has fresh memory full of NaN and a list of the launches it made."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from tests.kernels.support import Trace

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def _poisoned(poisoned_memory: None) -> None:
    """Whatever no kernel wrote is NaN or the largest integer."""


@pytest.fixture(params=["small tiles", "one tile"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Tiles of 32 rows and columns and 64 of the embedding, so that all is looped over; and tiles that hold more."""
    from fastassoc.backends import triton
    from fastassoc.kernels.configs import Config, Tile

    size, depth = (32, 64) if request.param == "small tiles" else (64, 256)
    tile = Tile(rows=size, columns=size, depth=depth, warps=4, stages=2)
    config = Config(*[tile] * 6)
    monkeypatch.setattr(triton, "choose_config", lambda *_: config)
    return str(request.param)


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch) -> Trace:
    """Kernel launches of the test, in order, with their arguments."""
    from fastassoc.backends import triton

    launches = Trace()
    launch = triton.launch

    def traced(kernel: Any, grid: tuple[int, ...], *tile: Any, **arguments: Any) -> None:
        launch(kernel, grid, *tile, **arguments)
        launches.append((kernel.__name__, arguments))

    monkeypatch.setattr(triton, "launch", traced)
    return launches
