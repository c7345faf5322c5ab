"""The loss as it is written in eager PyTorch: what fastassoc replaces and what it is measured against.

The original TensorFlow code line by line, as PyTorch ports have it: both softmaxes, the N x N round trips, and cross
entropy between the logarithm of the probabilities and soft targets.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def walker_visit_loss(
    a: Tensor, b: Tensor, labels: Tensor, walker_weight: float = 1.0, visit_weight: float = 1.0, eps: float = 1e-8
) -> Tensor:
    """``walker_weight * walker + visit_weight * visit`` for ``a`` [N, D], ``b`` [M, D], ``labels`` [N]."""
    match_ab = a @ b.t()
    p_ab = F.softmax(match_ab, dim=1)
    p_ba = F.softmax(match_ab.t(), dim=1)
    p_aba = p_ab @ p_ba
    same = (labels[:, None] == labels[None, :]).to(a.dtype)
    target = same / same.sum(dim=1, keepdim=True)
    walker = F.cross_entropy(torch.log(eps + p_aba), target)
    visit_probability = p_ab.mean(dim=0, keepdim=True)
    uniform = torch.full_like(visit_probability, 1.0 / b.shape[0])
    visit = F.cross_entropy(torch.log(eps + visit_probability), uniform)
    return walker_weight * walker + visit_weight * visit
