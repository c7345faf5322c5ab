"""Kernel launches: on a device, or recorded as data that can be compiled for a device that is not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.runtime import JITFunction

from fastassoc.kernels.triton.class_sizes import class_sizes
from fastassoc.kernels.triton.configs import Tile

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

    def specialisation(self) -> tuple[dict[str, str], dict[tuple[int], Any], dict[tuple[int], Any]]:
        """``(signature, constexprs, attrs)`` of `triton.compiler.ASTSource`, as a launch would specialise them."""
        signature: dict[str, str] = {}
        constants: dict[tuple[int], Any] = {}
        attributes: dict[tuple[int], Any] = {}
        for index, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            kind = "constexpr"
            if isinstance(value, Tensor):
                kind = _POINTERS[value.dtype]
                attributes[(index,)] = [["tt.divisibility", 16]]
            elif value is not None and not parameter.is_constexpr:
                if parameter.annotation_type:
                    kind = parameter.annotation_type
                elif value != 1:
                    kind = "i32" if -(2**31) <= value < 2**31 else "i64"
                    if value % 16 == 0:
                        attributes[(index,)] = [["tt.divisibility", 16]]
            signature[parameter.name] = kind
            if kind == "constexpr":
                constants[(index,)] = value
        return signature, constants, attributes


class _Recording(NamedTuple):
    machine: Machine
    launches: list[Launch]


_recording: _Recording | None = None


@contextmanager
def recording(machine: Machine) -> Iterator[list[Launch]]:
    """Within, launches become data instead of running, chosen for that machine; tensors may be on "meta"."""
    global _recording
    before, _recording = _recording, _Recording(machine, [])
    try:
        yield _recording.launches
    finally:
        _recording = before


def launch(kernel: Any, grid: tuple[int, ...], tile: Tile | None = None, **arguments: Any) -> None:
    """``kernel[grid](**arguments)`` with the warps and stages of the tile."""
    warps, stages = (4, 3) if tile is None else (tile.warps, tile.stages)
    if _recording is not None:
        _recording.launches.append(Launch(kernel, grid, arguments, warps, stages))
    else:
        kernel[grid](**arguments, num_warps=warps, num_stages=stages)


def machine(device: torch.device) -> Machine:
    """The machine behind a device, or the one that launches are recorded for."""
    return _device_machine(device) if _recording is None else _recording.machine


def interpreted() -> bool:
    """Whether Triton was told to interpret kernels when it made them."""
    return not isinstance(class_sizes, JITFunction)


@cache
def _device_machine(device: torch.device) -> Machine:
    if device.type != "cuda" or interpreted():
        return Machine("interpreter", 4)
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return Machine(properties.gcnArchName.partition(":")[0], properties.multi_processor_count)
    return Machine(f"sm_{properties.major}{properties.minor}", properties.multi_processor_count)
