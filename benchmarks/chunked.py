"""Eager PyTorch in column chunks under activation checkpointing: what people try when memory runs out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_CHUNK = 4096


def walker_visit_loss(a: Tensor, b: Tensor, labels: Tensor, eps: float = 1e-8) -> Tensor:
    """The loss of `benchmarks.eager` over chunks of ``b``; holds the N x N round trips and one N x 4096 chunk."""

    def chunk_logsumexp(a: Tensor, part: Tensor) -> Tensor:
        return torch.logsumexp((a @ part.t()).float(), dim=1)

    def chunk_walks(a: Tensor, part: Tensor, lse_a: Tensor) -> tuple[Tensor, Tensor]:
        match = (a @ part.t()).float()
        p_ab = torch.exp(match - lse_a.unsqueeze(1))
        p_ba = F.softmax(match.t(), dim=1)
        return p_ab @ p_ba, p_ab.mean(dim=0)

    parts = b.split(_CHUNK)
    lse_parts = [checkpoint(chunk_logsumexp, a, part, use_reentrant=False) for part in parts]
    lse_a = torch.logsumexp(torch.stack(lse_parts), dim=0)
    p_aba = torch.zeros(len(a), len(a), dtype=lse_a.dtype, device=a.device)
    visits = []
    for part in parts:
        trips, visit = checkpoint(chunk_walks, a, part, lse_a, use_reentrant=False)
        p_aba = p_aba + trips
        visits.append(visit)
    same = (labels[:, None] == labels[None, :]).to(p_aba.dtype)
    target = same / same.sum(dim=1, keepdim=True)
    walker = F.cross_entropy(torch.log(eps + p_aba), target)
    visit_probability = torch.cat(visits).unsqueeze(0)
    uniform = torch.full_like(visit_probability, 1.0 / len(b))
    return walker + F.cross_entropy(torch.log(eps + visit_probability), uniform)
