"""Sends batches where they would not go by themselves, by setting names of the backends' modules for a while.

All that is known of the inside of the backends stands in `_SET`, `_CLEAN` and the functions below them.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from fastassoc.backends.cpu.native import machine

_ALWAYS = 10**18


class _Replaced:
    """A value that is made from the one it replaces."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self.make = make


def _constant(value: Any) -> _Replaced:
    """A function that gives the same whatever it is asked."""
    return _Replaced(lambda _: lambda *_arguments, **_options: value)


@functools.cache
def _narrow_machine() -> Any:
    """Code for AVX2 runs on processors with AVX-512 as well."""
    return machine.compile_machine(wide=False)


def _only_shifted(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The pass without shifts gives way at once."""

    def shifted_forward(*arguments: Any, shifted: bool, **options: Any) -> Any:
        return forward(*arguments, shifted=True, **options) if shifted else None

    return shifted_forward


_FRESH_CACHE = _Replaced(lambda cached: functools.lru_cache(maxsize=8)(cached.__wrapped__))
_NO_MACHINE_CODE = {"native.machine.machine": _constant(None)}
_TILES = {
    **_NO_MACHINE_CODE,
    "labels._DENSE_PRODUCTS": 0,
    "_WHOLE_BYTES": 0,
}
_SMALL_TILES = {
    "operations.tiling._MIN_COLUMNS": 16,
    "operations.tiling._TILE_BYTES": 0,
    "operations.tiling.Tiling.keep_limit": _constant(2),
}
_WHOLE = {
    **_NO_MACHINE_CODE,
    "labels._DENSE_PRODUCTS": 0,
    "_WHOLE_BYTES": _ALWAYS,
}
_NATIVE = {"native.walk._SERIAL": 0}

_SET: dict[str, dict[str, Any]] = {
    "auto": {},
    "native": _NATIVE,
    "native narrow": {**_NATIVE, "native.machine.machine": _Replaced(lambda _: _narrow_machine)},
    # Small tiles, none of them kept, and sums that are flushed after 30 columns.
    "native tiles": {
        **_NATIVE,
        "native.walk._MIN_COLUMNS": 16,
        "native.walk._TILE_BYTES": 0,
        "native.walk._KEPT_BYTES": 0,
        "native.walk._WORKSPACE_BYTES": 0,
        "native.walk._STRIP_BYTES": 0,
        "native.walk.FLUSHED_COLUMNS": 30,
    },
    "native shifted": {**_NATIVE, "native.forward._forward": _Replaced(_only_shifted)},
    "dense": {**_WHOLE, "labels._DENSE_PRODUCTS": _ALWAYS},
    "whole": _WHOLE,
    "tiles": _TILES,
    # 16 columns a tile and room to keep two of them: kept tiles, others, and a ragged last one.
    "small tiles": {**_TILES, **_SMALL_TILES},
    "plain tiles": {**_TILES, **_SMALL_TILES, "operations.sweeps.merged_walks": _constant(None)},
    "triton": {},
}
"""What each way sets, by "module.name" of `fastassoc.backends.cpu`."""
_CLEAN: dict[str, Any] = {"_latest": None, "native.walk._sizes": _FRESH_CACHE}
"""What was remembered with other bounds, for every way."""
_POISONED: dict[str, Any] = {"memory._free": _Replaced(lambda _: {})}
"""Memory that is used again would not be filled."""


@contextmanager
def taking(way: str) -> Iterator[None]:
    """Batches go that way."""
    # Ways share names with what is always set: that of the way is set last.
    with _setting({**_CLEAN, **_SET[way]}):
        yield


def backend(way: str) -> str:
    """The argument ``backend`` for it."""
    return "triton" if way == "triton" else "auto"


def missing(way: str) -> str | None:
    """What the way needs and this machine, or the code as it is now, does not have; None where it can be taken."""
    for name in {**_CLEAN, **_POISONED, **_SET[way]}:
        if not _is_there(name):
            return f"fastassoc.backends.cpu.{name} is not there: adapt benchmarks/fuzz/ways.py"
    if way.startswith("native") and machine.machine() is None:
        return "machine code cannot run here"
    return None


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh memory holds NaN, so that an entry nobody wrote shows."""
    settings: Any = torch.utils.deterministic
    fill, deterministic = settings.fill_uninitialized_memory, torch.are_deterministic_algorithms_enabled()
    settings.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        with _setting(_POISONED):
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        settings.fill_uninitialized_memory = fill


@contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """Of torch's operations, and so of machine code."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def counting_machine_code() -> Iterator[list[int]]:
    """A list with an entry for every loss that machine code gave."""
    given: list[int] = []

    def noting(losses: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            result = losses(*arguments)
            if result is not None:
                given.append(1)
            return result

        return noted

    with _setting({"native.forward.losses": _Replaced(noting)}):
        yield given


@contextmanager
def _setting(values: dict[str, Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for name, value in values.items():
            owner, attribute = _find(name)
            before = getattr(owner, attribute)
            stack.callback(setattr, owner, attribute, before)
            setattr(owner, attribute, value.make(before) if isinstance(value, _Replaced) else value)
        yield


def _is_there(name: str) -> bool:
    try:
        _find(name)
    except AttributeError:
        return False
    return True


def _find(name: str) -> tuple[Any, str]:
    """The module or class, and the name in it; AttributeError where there is none."""
    *path, attribute = name.split(".")
    owner: Any = importlib.import_module("fastassoc.backends.cpu")
    for part in path:
        owner = getattr(owner, part)
    getattr(owner, attribute)
    return owner, attribute
