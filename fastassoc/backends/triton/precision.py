"""What the products of the kernels are computed in."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastassoc.backends.triton.launch import Machine


class Precision(NamedTuple):
    """Operands of the products; see `fastassoc.kernels.triton.primitives.product`."""

    scores: str
    """Also "differences"; see `fastassoc.kernels.triton.primitives.scores`."""
    others: str
    """Products of probabilities and of gradients."""

    def tiles(self, dtype: torch.dtype) -> str:
        """What `fastassoc.kernels.triton.configs.choose_config` calls these products, of embeddings in ``dtype``."""
        if dtype == torch.float64:
            return "fp64"
        # Float32 fills twice the registers before it is rounded to bf16.
        return "fp32-bf16" if dtype == torch.float32 and self.others == "bf16" else self.others

    def g_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Of ``g``, as the products round it, for an accumulation in ``dtype``."""
        return torch.bfloat16 if self.others == "bf16" else dtype


def choose_precision(dtype: torch.dtype, machine: Machine, float32_products: str) -> Precision:
    """Of embeddings in ``dtype``; see `float32_products`."""
    exact = Precision("ieee", "ieee")
    if machine.architecture == "interpreter" or dtype == torch.float64:
        # The interpreter multiplies bfloat16 wrongly.
        return exact
    if machine.architecture in ("sm_70", "sm_72", "sm_75"):
        # Tensor cores for float16 alone.
        return Precision("fp16", "ieee") if dtype == torch.float16 else exact
    if dtype == torch.bfloat16:
        return Precision("bf16", "bf16")
    if dtype == torch.float16:
        # Probabilities and gradients underflow in float16; tf32 has its digits and the range of float32.
        return Precision("fp16", "tf32")
    return Precision(float32_products, float32_products)


def float32_products() -> str:
    """What PyTorch's own float32 products on a GPU are set to: "ieee", "tf32" or "bf16"."""
    try:
        return {"highest": "ieee", "high": "tf32", "medium": "bf16"}[torch.get_float32_matmul_precision()]
    except RuntimeError:
        # Set by PyTorch's newer switch, after which the older one refuses to answer.
        return "tf32" if getattr(torch.backends.cuda.matmul, "fp32_precision", "ieee") == "tf32" else "ieee"
