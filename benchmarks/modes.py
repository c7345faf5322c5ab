"""What embeddings are stored in and what their products are computed in, under the names that benchmarks use."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch


class Mode(NamedTuple):
    """A dtype of the embeddings, and what float32 products are computed in."""

    dtype: torch.dtype
    precision: str
    """For `torch.set_float32_matmul_precision`: "highest", "high" and "medium" on a GPU are float32, tf32 and bfloat16
    in PyTorch's own products; in those of the kernels three parts in bfloat16, float16 and tf32, and bfloat16."""
    tensor_cores: bool
    """Whether every product belongs on tensor cores."""


MODES = {
    "fp16": Mode(torch.float16, "highest", True),
    "bf16": Mode(torch.bfloat16, "highest", True),
    "fp32-medium": Mode(torch.float32, "medium", True),
    "fp32-high": Mode(torch.float32, "high", True),
    "fp32-highest": Mode(torch.float32, "highest", True),
    "fp64": Mode(torch.float64, "highest", False),
}


def interpret() -> None:
    """Makes Triton interpret kernels on the CPU, which it decides when it is loaded."""
    if "triton" in sys.modules:
        raise SystemExit("Triton is loaded already: --smoke has to choose the interpreter before that")
    os.environ["TRITON_INTERPRET"] = "1"


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """`torch.set_float32_matmul_precision` for a while."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
