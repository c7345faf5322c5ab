"""What the walker and the visit term are made of."""

from __future__ import annotations

import torch
from torch import Tensor

from fastassoc.backends.cpu.operations.class_blocks import ClassBlocks


def weighted_log(x: Tensor, weights: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """``sum_i weights_i log x_i`` of vectors, with memory for the logarithms in ``out``.

    Where ``eps`` is 0, the logarithm of an off-class round trip may be -inf, and 0 times that must stay 0.
    """
    terms = torch.xlogy(weights, x) if eps == 0.0 else torch.log(x, out=out).mul_(weights)
    # Not a dot product, which adds one term after another: of 2^16 equal ones it loses eight bits.
    return terms.sum()


def visit_gradient(visit_probability: Tensor, eps: float, rows: int, columns: int, upstream: float = 1.0) -> Tensor:
    """``h_j = -u / (N M (eps + visit_j))``: d (u visit) / d p_ab_ij for any row i; of some or all columns."""
    denominator = visit_probability + eps
    if eps == 0.0:
        denominator.clamp_min_(torch.finfo(visit_probability.dtype).tiny)
    return denominator.reciprocal_().mul_(-upstream / (rows * columns))


def walk_statistics(p_aba: Tensor, blocks: ClassBlocks) -> tuple[Tensor, Tensor]:
    """``p_correct``, the mean probability of a return to the class, and ``accuracy_estimate``, that of its root."""
    correct = blocks.row_sums(p_aba * (blocks.minus_target < 0))
    return correct.mean(), correct.sqrt().mean()
