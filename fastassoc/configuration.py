"""What runs where: versions, processor, machine code, GPUs, threads. A bug report should carry it."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch

from fastassoc.backends import choose_backend
from fastassoc.backends.cpu.native import machine
from fastassoc.version import __version__

_TRITON_SAYS_YES = ("1", "true", "yes", "on", "y")
"""Values of its variables that Triton takes for a yes, in small letters."""


def show_config() -> None:
    """Prints what runs where, and nothing else: add it to a bug report.

    Versions of fastassoc, Python, PyTorch and Triton; the processor, and whether its compiled machine code is used, or
    why not; each GPU with its backend, or why there is none; threads. Machine code is compiled for it, which takes
    about a second where that was not done before.
    """
    print(config_text())


def config_text() -> str:
    """What `show_config` prints: a line ``name: what`` for each part."""
    return "\n".join(f"{name + ':':<14}{what}" for name, what in _parts())


def _parts() -> Iterator[tuple[str, str]]:
    yield "fastassoc", __version__
    yield "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield "PyTorch", str(torch.__version__)
    yield "Triton", _triton()
    yield "processor", processor()
    yield "machine code", _machine_code()
    yield from _gpus()
    yield "threads", f"{torch.get_num_threads()} of PyTorch, {_processors()} processors"


def processor() -> str:
    """The processor's own name where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _processors() -> int | None:
    """Those that this process may use, where the system tells them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _triton() -> str:
    if importlib.util.find_spec("triton") is None:
        return "not installed"
    # Builds for other processors and nightly builds have another name, and import as triton all the same.
    names = metadata.packages_distributions().get("triton", [])
    version = metadata.version(names[0]) if names else "of unknown version"
    interpreted = os.environ.get("TRITON_INTERPRET", "").lower() in _TRITON_SAYS_YES
    return version + (", kernels interpreted because TRITON_INTERPRET is set" if interpreted else "")


def _machine_code() -> str:
    found, reason = machine.machine(), machine.why_not()
    if found is None:
        return f"not used for the CPU, PyTorch operations are: {reason}"
    return f"used for float32 on the CPU, compiled for {'AVX-512' if found.lanes == 16 else 'AVX2'}"


def _gpus() -> Iterator[tuple[str, str]]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        yield "GPU", f"none with CUDA or ROCm ({_gpu_build()})"
    for index in range(count):
        try:
            name = torch.cuda.get_device_name(index)
        except Exception as error:  # whatever it is, the report has to come out
            yield f"GPU {index}", f"cannot be used ({_gpu_build()}): {error}"
            continue
        try:
            choose_backend("triton", torch.device("cuda", index))
            backend = "Triton kernels"
        except Exception as error:
            backend = f"cannot be used: {error}"
        yield f"GPU {index}", f"{name} ({_gpu_build()}), {backend}"


def _gpu_build() -> str:
    if torch.version.hip is not None:
        return f"PyTorch for ROCm {torch.version.hip}"
    return "PyTorch for CPUs" if torch.version.cuda is None else f"PyTorch for CUDA {torch.version.cuda}"
