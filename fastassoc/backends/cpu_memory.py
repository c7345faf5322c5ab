"""Large temporaries that use the same memory again from call to call.

The C library hands freed memory back to the system, and memory fresh from it costs a page fault for every 4 KiB: a
small batch then spends more time on faults than on arithmetic. A borrowed tensor returns by itself when its last
reference goes, be it at the end of a pass or when autograd frees what it saved.
"""

from __future__ import annotations

import math
import threading

import numpy as np
import torch
from torch import Tensor

_SMALLEST_BYTES = 64 * 2**10
_FREE_BYTES = 288 * 2**20
"""What is kept for later calls, at most: the largest matrix that lives from forward to backward, and some tiles."""

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
