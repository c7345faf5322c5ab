"""The compiled kernels of `fastassoc.kernels.cpu`, where they can run, on the threads of torch's own operations."""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import platform
import struct
import threading
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastassoc.kernels.cpu.machine_code import NEWEST


class Machine(NamedTuple):
    """Machine code, and OpenMP's functions by address."""

    addresses: dict[str, int]
    sequence: Any
    """Runs a program on this thread."""
    parallel: Any
    """Runs a program on several."""
    thread: int
    threads: int
    barrier: int
    lanes: int
    """Entries of a vector."""
    rows: int
    """Rows of a block of a product."""
    width: int
    """Its columns."""
    code: Any
    """Kept alive."""


class UnavailableError(RuntimeError):
    """Machine code cannot run here; the message says why."""


_found: tuple[Machine | None, str] | None = None
"""What `machine` and `why_not` give, once that is known."""
_lock = threading.Lock()


def _renew_lock() -> None:
    """In a forked child: another thread of the parent may hold it, and will not release it there."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def machine() -> Machine | None:
    """Compiled for this processor at the first call, in about a second; None where that is not possible.

    It takes Linux on x86-64 with AVX2 or AVX-512, the LLVM inside Triton, and a torch with GNU OpenMP; `why_not` says
    what is missing. Where memory is short, a later call tries again. Threads that call meanwhile wait for the first.
    """
    global _found
    if _found is None:
        with _lock:
            if _found is None:
                try:
                    _found = _compile_for_processor(), ""
                except UnavailableError as error:
                    _found = None, str(error)
                except MemoryError:
                    return None
    return _found[0]


def why_not() -> str:
    """Why `machine` gives None, as a sentence for users; empty where it does not."""
    if machine() is not None:
        return ""
    return "there is not enough memory now" if _found is None else _found[1]


def _compile_for_processor() -> Machine:
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise UnavailableError(f"it needs Linux on x86-64; this is {platform.system()} on {platform.machine()}")
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in ("AVX512", "AVX2"):
        raise UnavailableError(f"it needs AVX2 or AVX-512; PyTorch reports the processor as {capability}")
    return compile_machine(wide=capability == "AVX512")


def compile_machine(wide: bool) -> Machine:
    """Machine code for AVX-512, or for AVX2. `UnavailableError` where it cannot run, MemoryError for want of memory."""
    libraries = sorted(Path(torch.__file__).parent.glob("lib/libgomp*"))
    if not libraries:
        raise UnavailableError("it needs a PyTorch with GNU OpenMP; that from PyPI has it")
    if importlib.util.find_spec("triton") is None:
        major, minor = NEWEST
        raise UnavailableError(f"it could run here, but Triton is missing: pip install 'triton<{major}.{minor + 1}'")
    try:
        from fastassoc.kernels.cpu import compile_kernels

        code, shape = compile_kernels(wide)
        openmp = ctypes.CDLL(str(libraries[0]))
    except (ImportError, AttributeError, TypeError, ValueError, RuntimeError, OSError, struct.error) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            raise MemoryError(str(error)) from error
        # Another Triton's LLVM, or a system that executes nothing from memory that was written.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UnavailableError(f"it could not be compiled or loaded ({reason})") from error
    parallel = openmp.GOMP_parallel
    parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    parallel.restype = None
    thread, threads, barrier = (
        ctypes.cast(getattr(openmp, name), ctypes.c_void_p).value or 0
        for name in ("omp_get_thread_num", "omp_get_num_threads", "GOMP_barrier")
    )
    sequence = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(code.addresses["sequence"])
    width = shape.lanes * shape.vectors
    return Machine(code.addresses, sequence, parallel, thread, threads, barrier, shape.lanes, shape.rows, width, code)


class Program:
    """Passes in a row, each for all parts of its work before the next."""

    def __init__(self, own: Machine, parts: int) -> None:
        self.own = own
        self.parts = parts
        self._steps: list[tuple[int, tuple[int, ...]]] = []

    def add(self, name: str, *arguments: int) -> None:
        """A pass; addresses, sizes, and `double` numbers."""
        self._steps.append((self.own.addresses[name], arguments))

    def run(self) -> None:
        """Runs the passes, and forgets them."""
        own, steps = self.own, self._steps
        length = 2 + sum(5 + len(arguments) for _, arguments in steps)
        block: Any = (ctypes.c_int64 * length)()
        at = ctypes.addressof(block) + 8 * (2 + 2 * len(steps))
        alone = self.parts == 1
        # Alone there is nobody to wait for: any function that does nothing.
        numbers = [own.threads if alone else own.barrier, len(steps)]
        tail: list[int] = []
        for address, arguments in steps:
            numbers += (address, at + 8 * len(tail))
            tail += (own.thread, own.threads, self.parts, *arguments)
        block[:] = numbers + tail
        if alone:
            own.sequence(block)
        else:
            own.parallel(own.addresses["sequence"], block, self.parts, 0)
        self._steps = []


def double(x: float) -> int:
    """Its bits."""
    return int(struct.unpack("q", struct.pack("d", x))[0])
