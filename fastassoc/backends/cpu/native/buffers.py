"""Memory for machine code, which writes to it by address."""

from __future__ import annotations

import torch
from torch import Tensor

from fastassoc.backends.cpu.memory import borrow

_ALLOCATED_BYTES = 2**19
"""Memory of up to this size the allocator has at hand."""


def floats(length: int) -> Tensor:
    """Memory of the allocator."""
    return torch.empty(length, dtype=torch.float32, device="cpu")


def large(length: int) -> Tensor:
    """Memory that is used again, unless the allocator has as much at hand."""
    return floats(length) if 4 * length <= _ALLOCATED_BYTES else borrow((length,), torch.float32)
