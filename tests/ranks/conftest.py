"""Ranks that stay for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.processes import Processes


@pytest.fixture(scope="package")
def processes() -> Iterator[dict[tuple[int, str], Processes]]:
    """By number of ranks and backend; started when they are first asked for."""
    started: dict[tuple[int, str], Processes] = {}
    yield started
    for x in started.values():
        x.stop()


@pytest.fixture
def ranks(processes: dict[tuple[int, str], Processes], request: pytest.FixtureRequest) -> Any:
    """Runs a function on so many ranks: ``ranks(number, function, *arguments)``."""

    def run(number: int, function: Any, *arguments: Any, backend: str = "cpu", check: bool = True) -> list[Any]:
        if backend == "triton":
            try:
                import fastassoc.backends.triton  # noqa: F401
            except (ImportError, AttributeError):
                pytest.skip("needs a Triton that the kernels run with")
        key = number, backend
        if key not in processes or not processes[key].alive:
            processes[key] = Processes(number, interpreted=backend == "triton")
        return processes[key](function, *arguments) if check else processes[key].run(function, *arguments)

    return run
