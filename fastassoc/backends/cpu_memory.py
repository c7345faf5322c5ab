"""Large temporaries that use the same memory again from call to call.

The C library hands freed memory back to the system, and memory fresh from it costs a page fault for every 4 KiB: a
small batch then spends more time on faults than on arithmetic. A borrowed tensor returns by itself when its last
reference goes, be it at the end of a pass or when autograd frees what it saved.
"""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

_SMALLEST_BYTES = 64 * 2**10
_FREE_BYTES = 288 * 2**20
"""What is kept for later calls, at most: the largest matrix that lives from forward to backward, and some tiles."""

_HUGE_BYTES = 2**25
"""From this size on the C library takes memory from the system for each tensor, and gives it back with it."""

_free: list[np.ndarray] = []
_lock = threading.Lock()


def borrow(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A contiguous tensor of undefined content."""
    size = math.prod(shape) * dtype.itemsize
    if size < _SMALLEST_BYTES:
        return torch.empty(shape, dtype=dtype, device="cpu")
    buffer = _take(size)
    if buffer is None:
        # torch aligns its memory for vector instructions; NumPy does not.
        buffer = torch.empty(size, dtype=torch.uint8, device="cpu").numpy()
    loan = buffer[:size].view(_Loan)
    loan.buffer = buffer
    # The tensor's storage holds the loan.
    return torch.from_numpy(loan).view(dtype).view(shape)


def fresh(length: int) -> Tensor:
    """float32 of undefined content, for a result that the caller keeps.

    A large one is asked for in huge pages, which Linux gives where it is set up for that: page faults for every 4 KiB
    of the gradient of a million embeddings take a tenth of the step that computes it.
    """
    x = torch.empty(length, dtype=torch.float32, device="cpu")
    advise = _madvise() if x.nbytes >= _HUGE_BYTES else None
    if advise is not None:
        first = -(-x.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        # Advice: where it is not taken, nothing is lost.
        advise(first, (x.data_ptr() + x.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE, mmap.MADV_HUGEPAGE)
    return x


@functools.cache
def _madvise() -> Any:
    """The C library's function, or None elsewhere than on Linux."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return advise


class _Loan(np.ndarray):
    """A view of a buffer that gives the buffer back when it dies."""

    buffer: np.ndarray | None = None

    def __del__(self) -> None:
        if self.buffer is not None:
            _give_back(self.buffer)


# A loan may end anywhere, even while this thread holds the lock (the garbage collector runs when it likes) or a forked
# child inherits it held. Neither function therefore waits: a missed buffer is only fresh memory later.


def _take(size: int) -> np.ndarray | None:
    """The smallest free buffer that holds ``size`` bytes without wasting more than as many again."""
    if not _lock.acquire(blocking=False):
        return None
    try:
        fitting = [(buffer.nbytes, index) for index, buffer in enumerate(_free) if size <= buffer.nbytes <= 2 * size]
        return _free.pop(min(fitting)[1]) if fitting else None
    finally:
        _lock.release()


def _give_back(buffer: np.ndarray) -> None:
    if not _lock.acquire(blocking=False):
        return
    try:
        _free.append(buffer)
        while sum(kept.nbytes for kept in _free) > _FREE_BYTES:
            del _free[0]
    finally:
        _lock.release()
