"""Large temporaries that use the same memory again from call to call.

The C library hands freed memory back to the system, and memory fresh from it costs a page fault for every 4 KiB: a
small batch then spends more time on faults than on arithmetic. A borrowed tensor returns by itself when its last
reference goes, be it at the end of a pass or when autograd frees what it saved.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_SMALLEST_BYTES = 64 * 2**10
_SMALLEST_RESULT = 256 * 2**10
_FREE_BYTES = 288 * 2**20
"""What is kept for later calls, at most: the largest matrix that lives from forward to backward, and some tiles."""

_free: dict[int, np.ndarray] = {}
"""By `id`, the one given back first at the front. Every access is a single operation on the dictionary, which no other
thread, fork, garbage collection or interrupt divides: there is no lock that could be left held."""


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


def large_result(shape: tuple[int, int] | torch.Size, dtype: torch.dtype) -> Tensor | None:
    """Borrowed memory for the matrix that an operation gives; None where its own allocation is quicker."""
    rows, columns = shape
    return borrow(shape, dtype) if rows * columns * dtype.itemsize >= _SMALLEST_RESULT else None


class _Loan(np.ndarray):
    """A view of a buffer that gives the buffer back when it dies."""

    buffer: np.ndarray | None = None

    def __del__(self) -> None:
        if self.buffer is not None:
            _give_back(self.buffer)


# A loan may end anywhere, even between two lines of these functions (the garbage collector runs when it likes). What
# one of them has seen may be gone by the time it takes it, which `pop` tells. An interrupt loses a buffer at worst,
# which is only fresh memory later.


def _take(size: int) -> np.ndarray | None:
    """The smallest free buffer that holds ``size`` bytes without wasting more than as many again."""
    fitting = [buffer for buffer in _seen() if size <= buffer.nbytes <= 2 * size]
    for buffer in sorted(fitting, key=lambda fit: fit.nbytes):
        if _free.pop(id(buffer), None) is not None:
            return buffer
    return None


def _give_back(buffer: np.ndarray) -> None:
    _free[id(buffer)] = buffer
    seen = _seen()
    excess = sum(free.nbytes for free in seen) - _FREE_BYTES
    for oldest in seen:
        if excess <= 0:
            break
        _free.pop(id(oldest), None)
        excess -= oldest.nbytes


def _seen() -> list[np.ndarray]:
    # Not a list of values: where it grows, a collection may set in and end a loan.
    return [buffer for key in list(_free) if (buffer := _free.get(key)) is not None]
