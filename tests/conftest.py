"""Settings and fixtures that several test files share."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

# Read when PyTorch is loaded: threads that wait in a loop take the processor from the other workers of ``-n``.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from hypothesis import settings

from fastassoc.backends import cpu
from fastassoc.backends.cpu import labels, memory
from fastassoc.backends.cpu.native import backward, machine, walk
from fastassoc.backends.cpu.operations import tiling

if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10):
    # As the docstring of the loss says of torch.compile.
    import torch._dynamo

    torch._dynamo.config.capture_dynamic_output_shape_ops = True

settings.register_profile("project", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("project")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first: the other workers of ``-n`` take the rest meanwhile."""
    items.sort(key=lambda item: not item.name.startswith("test_kernels_in_the_interpreter"))


OPERATIONS = ["dense", "whole", "small tiles"]
NATIVE = ["native", "native narrow", "native tiles"]


@pytest.fixture(params=[*OPERATIONS, *NATIVE])
def cpu_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way through the CPU backend, whatever the size of the batch.

    "small tiles": 16 columns a tile and room to keep two of them, so that a batch of 100 columns has kept tiles,
    streamed tiles and a ragged last one. "native" is compiled machine code, "native narrow" that for AVX2, "native
    tiles" with small tiles, none of them kept.
    """
    path: str = request.param
    if path in NATIVE:
        return take_native(monkeypatch, path)
    take_path(monkeypatch, path)
    if path == "small tiles":
        use_small_tiles(monkeypatch, kept=2)
    return path


@functools.cache
def narrow_machine() -> machine.Machine:
    """Code for AVX2 runs on processors with AVX-512 as well."""
    return machine.compile_machine(wide=False)


def take_native(monkeypatch: pytest.MonkeyPatch, path: str = "native") -> str:
    """Sends every batch that machine code takes through it, shared by threads however small it is."""
    own = machine.machine()
    if own is None:
        pytest.skip("machine code cannot run here")
    if path == "native narrow":
        monkeypatch.setattr(machine, "machine", narrow_machine)
    monkeypatch.setattr(walk, "_SERIAL", 0)
    if path == "native tiles":
        for name in ("_MIN_COLUMNS", "_TILE_BYTES", "_KEPT_BYTES", "_WORKSPACE_BYTES", "_STRIP_BYTES"):
            monkeypatch.setattr(walk, name, 16 if name == "_MIN_COLUMNS" else 0)
        monkeypatch.setattr(walk, "FLUSHED_COLUMNS", 30)
    # Not what was cached with other bounds, now and after the test.
    sizes = functools.lru_cache(maxsize=8)(walk._sizes.__wrapped__)
    monkeypatch.setattr(walk, "_sizes", sizes)
    monkeypatch.setattr(cpu, "_latest", None)
    return path


@pytest.fixture(params=NATIVE)
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way through machine code."""
    return take_native(monkeypatch, request.param)


def spy_on_gradients(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list with an entry for every backward pass by machine code."""
    used: list[int] = []
    gradients = backward.gradients

    def noting(*arguments):  # type: ignore[no-untyped-def]
        used.append(1)
        return gradients(*arguments)

    monkeypatch.setattr(backward, "gradients", noting)
    return used


def take_path(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Sends every batch through "dense" (one block), "whole" (class blocks) or tiles."""
    monkeypatch.setattr(machine, "machine", lambda: None)
    monkeypatch.setattr(cpu, "_latest", None)
    monkeypatch.setattr(labels, "_DENSE_PRODUCTS", 10**18 if path == "dense" else 0)
    monkeypatch.setattr(cpu, "_WHOLE_BYTES", 10**18 if path in ("dense", "whole") else 0)


def use_small_tiles(monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    """Tiles of 16 columns, ``kept`` of which stay in memory."""
    monkeypatch.setattr(tiling, "_MIN_COLUMNS", 16)
    monkeypatch.setattr(tiling, "_TILE_BYTES", 0)
    monkeypatch.setattr(tiling.Tiling, "keep_limit", lambda self, problem, needs_gradient: kept)


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fresh memory holds NaN, so that an entry nobody wrote shows."""
    monkeypatch.setattr(memory, "_free", {})
    fill = torch.utils.deterministic.fill_uninitialized_memory
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Batches this small gain nothing from a second thread, and lose much where other processes want the core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
