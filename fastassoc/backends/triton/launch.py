"""Kernel launches: on a device, or recorded as data that can be compiled for a device that is not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from triton.runtime import JITFunction

from fastassoc.kernels.triton.class_sizes import class_sizes
from fastassoc.kernels.triton.configs import Tile

_ON_DEVICE = nullcontext()
_POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bool: "*i1",
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


class Machine(NamedTuple):
    """What the choice of tiles and grids depends on."""

    architecture: str
    """"sm_90" for example, or "interpreter"."""
    processors: int


class Launch(NamedTuple):
    """A kernel launch."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    """Every parameter of the kernel by name: tensors, numbers, constants."""
    warps: int
    stages: int

    def specialisation(self) -> tuple[dict[str, Any], dict[tuple[int, ...], Any], dict[tuple[int, ...], Any]]:
        """``(signature, constexprs, attrs)`` of `triton.compiler.ASTSource`, as a launch would specialise them.

        The kind of a tuple is a tuple of kinds; paths to its fields are ``(parameter, field)``.
        """
        signature: dict[str, Any] = {}
        constants: dict[tuple[int, ...], Any] = {}
        attributes: dict[tuple[int, ...], Any] = {}

        def kind_of(path: tuple[int, ...], value: Any, annotation: str | None) -> Any:
            if isinstance(value, tuple):
                return type(value)(*(kind_of((*path, k), x, None) for k, x in enumerate(value)))
            if isinstance(value, Tensor):
                attributes[path] = [["tt.divisibility", 16]]
                return _POINTERS[value.dtype]
            if annotation is not None and value is not None:
                return annotation
            if value is None or value == 1:
                constants[path] = value
                return "constexpr"
            if value % 16 == 0:
                attributes[path] = [["tt.divisibility", 16]]
            return "i32" if -(2**31) <= value < 2**31 else "i64"

        for index, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            if parameter.is_constexpr:
                constants[(index,)] = value
                signature[parameter.name] = "constexpr"
            else:
                signature[parameter.name] = kind_of((index,), value, parameter.annotation_type or None)
        return signature, constants, attributes


class _Recording(NamedTuple):
    machine: Machine
    launches: list[Launch]
    counts: tuple[int, ...] | None


_recording: _Recording | None = None


@contextmanager
def recording(machine: Machine, counts: tuple[int, ...] | None = None) -> Iterator[list[Launch]]:
    """Within, launches become data instead of running, chosen for that machine; tensors may be on "meta".

    ``counts`` are what `read_back` is to find, which fails without.
    """
    global _recording
    before, _recording = _recording, _Recording(machine, [], counts)
    try:
        yield _recording.launches
    finally:
        _recording = before


def launch(kernel: Any, grid: tuple[int, ...], tile: Tile | None = None, **arguments: Any) -> Any:
    """``kernel[grid](**arguments)`` with the warps and stages of the tile; the compiled kernel, if one ran."""
    warps, stages = (4, 3) if tile is None else (tile.warps, tile.stages)
    if _recording is not None:
        _recording.launches.append(Launch(kernel, grid, arguments, warps, stages))
        return None
    return kernel[grid](**arguments, num_warps=warps, num_stages=stages)


How = Literal["once", "first", "again"]


class Repeated:
    """Launches of a kernel that differ in nothing it is compiled for: integers, dtypes and alignment stay as they are.

    The "first" finds the compiled kernel, and "again" goes to it past what Triton's own launch does in Python, with
    addresses in the place of tensors and plain tuples in that of named ones. "once" is for tensors that are aligned
    otherwise.
    """

    def __init__(self, kernel: Any, grid: tuple[int, ...], tile: Tile, constants: dict[str, Any]) -> None:
        self._kernel, self._grid, self._tile, self._constants = kernel, grid, tile, constants
        names = kernel.arg_names
        # Constants come last, and are passed for their places.
        self._last = tuple(constants[name] for name in names[len(names) - len(constants) :])
        self._run: Any = None

    def __call__(self, how: How, *arguments: Any) -> None:
        """A launch with the arguments that are no constants, in order."""
        if how == "again":
            self._run(*arguments, *self._last)
            return
        named = dict(zip(self._kernel.arg_names, arguments, strict=False))
        compiled = launch(self._kernel, self._grid, self._tile, **named, **self._constants)
        if how == "first":
            self._run = compiled[(*self._grid, 1, 1)[:3]]


class OverRanges:
    """Launches for one range of columns after the other.

    Those of one kernel and way (`fastassoc.kernels.triton.steps`) differ in nothing it is compiled for: in the grid,
    and in the first column of the range, a multiple of 16. After the first range they go to the compiled kernel, past
    what Triton's own launch does in Python, which takes several times as long.
    """

    def __init__(self) -> None:
        self._compiled: dict[tuple[str, str | None], Any] = {}

    def __call__(self, kernel: Any, grid: tuple[int, ...], tile: Tile | None = None, **arguments: Any) -> None:
        """`launch`."""
        key = kernel.__name__, arguments.get("WAY")
        compiled = self._compiled.get(key)
        if compiled is None:
            self._compiled[key] = launch(kernel, grid, tile, **arguments)
        else:
            compiled[(*grid, 1, 1)[:3]](*[arguments[name] for name in kernel.arg_names])


def recorded() -> bool:
    """Whether launches leave nothing to repeat: they become data, or are interpreted."""
    return _recording is not None or interpreted()


def read_back(counts: Tensor) -> tuple[int, ...]:
    """What kernels counted: waits for the device."""
    if _recording is not None and _recording.counts is not None:
        return _recording.counts
    return tuple(counts.tolist())


def machine(device: torch.device) -> Machine:
    """The machine behind a device, or the one that launches are recorded for."""
    return _device_machine(device) if _recording is None else _recording.machine


def interpreted() -> bool:
    """Whether Triton was told to interpret kernels when it made them."""
    return not isinstance(class_sizes, JITFunction)


def device_guard(x: Tensor) -> AbstractContextManager[Any]:
    """The device of a tensor, which Triton launches on."""
    if not x.is_cuda or torch.cuda.current_device() == x.device.index:
        return _ON_DEVICE
    return torch.cuda.device_of(x)


@cache
def _device_machine(device: torch.device) -> Machine:
    if device.type != "cuda" or interpreted():
        return Machine("interpreter", 4)
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return Machine(properties.gcnArchName.partition(":")[0], properties.multi_processor_count)
    return Machine(f"sm_{properties.major}{properties.minor}", properties.multi_processor_count)
