"""What the products of the kernels are computed in."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastassoc.backends.triton.launch import Machine


class Precision(NamedTuple):
    """Operands of the products; see `fastassoc.kernels.triton.primitives`."""

    scores: str
    """Also "differences"; see `fastassoc.kernels.triton.primitives.raw_scores`."""
    others: str
    """Products of steps and of gradients."""
    scaled: bool = False
    """Whether products of scores take float32 in float16, times a power of two that brings it into the range."""

    @property
    def parts(self) -> int:
        """Parts in which steps and gradients of scores are kept."""
        return 3 if self.others == "bf16x3" else 1

    @property
    def prepares_rows(self) -> bool:
        """Whether the products of scores take ``a`` from memory of their own even in its own order."""
        return self.scaled or self.scores == "bf16x3"

    def operand_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Of a part of embeddings in ``dtype``, where products of scores take them from memory of their own."""
        if self.scaled:
            return torch.float16
        return torch.bfloat16 if self.scores.startswith("bf16") else dtype

    def step_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Of a part of the steps, for an accumulation in ``dtype``."""
        return torch.bfloat16 if self.others.startswith("bf16") else dtype

    def exact_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Of gradients of scores before they are rounded to one of the steps, for an accumulation in ``dtype``."""
        return torch.float16 if self.others == "bf16" else dtype

    def tiles(self, dtype: torch.dtype) -> str:
        """What `fastassoc.kernels.triton.configs.choose_config` calls these products, of embeddings in ``dtype``."""
        if dtype == torch.float64:
            return "fp64"
        # Float32 fills twice the memory before it is rounded to bf16.
        return "fp32-bf16" if dtype == torch.float32 and self.others == "bf16" else self.others


def choose_precision(dtype: torch.dtype, machine: Machine, float32_products: str) -> Precision:
    """Of embeddings in ``dtype``; see `float32_products`."""
    exact = Precision("ieee", "ieee")
    if machine.architecture == "interpreter" or dtype == torch.float64:
        # The interpreter multiplies bfloat16 wrongly.
        return exact
    if machine.architecture in ("sm_70", "sm_72", "sm_75"):
        # Tensor cores for float16 alone.
        return Precision("fp16", "ieee") if dtype == torch.float16 else exact
    # AMD's have tf32 on one architecture.
    tf32 = "ieee" if machine.architecture.startswith("gfx") and machine.architecture != "gfx942" else "tf32"
    if dtype == torch.bfloat16:
        return Precision("bf16", "bf16")
    if dtype == torch.float16:
        # Steps and gradients underflow in float16; tf32 has its digits, and the range of float32.
        return Precision("fp16", tf32)
    if float32_products == "high":
        # Float16 has the digits of tf32 in half the memory, and embeddings do not need its range.
        return Precision("fp16", tf32, scaled=True)
    products = {"medium": "bf16", "highest": "bf16x3"}[float32_products]
    return Precision(products, products)


def float32_products() -> str:
    """What PyTorch's own float32 products on a GPU are set to: "highest", "high" or "medium"."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        # Set by PyTorch's newer switch, after which the older one refuses to answer.
        return "high" if getattr(torch.backends.cuda.matmul, "fp32_precision", "ieee") == "tf32" else "highest"
