"""What passes over class blocks get and give.

Both ways through operations are such passes: `whole` on matrices that fit a cache, `tiles` on any.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fastassoc.backends.cpu.operations.class_blocks import ClassBlocks
from fastassoc.backends.protocol import Gradients, Needs, Saved


class Problem(NamedTuple):
    """What every pass over class blocks reads. Scores are ``s_ij = scale a_i . b_j + bias_a_i + bias_b_j``."""

    a: Tensor
    """[N, D], rows in the order of ``blocks``."""
    b: Tensor
    """[M, D]."""
    bias_a: Tensor | None
    """[N] in the accumulation dtype, rows in the order of ``blocks``."""
    bias_b: Tensor | None
    """[M] in the accumulation dtype."""
    scale: float
    eps: float
    blocks: ClassBlocks
    walker: bool
    """Whether the round trips are wanted."""
    visit: bool
    """Whether the visits are wanted."""
    dtype: torch.dtype
    """Accumulation dtype: float64 for float64, else float32."""
    differences: bool = False
    """See `Inputs`."""


class Walks(NamedTuple):
    """What the forward passes over class blocks leave behind."""

    p_aba: Tensor | None
    """Flat class blocks (`ClassBlocks.views`) of the round trips, or None where they are not wanted."""
    visit_probability: Tensor | None
    """[M], or None where it is not wanted."""
    saved: Saved
    """Tensors that the passes want back in `Passes.gradients`; empty where no gradient is needed."""


class TermGradients(NamedTuple):
    """The terms differentiated by ``p_aba`` and by the visits' share of ``p_ab``, and what that was computed from."""

    p_aba: Tensor | None
    g: Tensor | None
    """Flat class blocks of dL/dp_aba; None without a walker gradient."""
    h: Tensor | None
    """[M], dL/dp_ab_ij of the visit loss, the same for every row i; None without a visit gradient."""
    upstream_visit: float | None
    """The upstream gradient of the visit loss, already in ``h``."""

    def rho(self, blocks: ClassBlocks, rho_visit: Tensor | None) -> Tensor:
        """[N]: ``sum_j p_ab_ij dL/dp_ab_ij``, ``rho_visit_i = sum_j p_ab_ij h_j`` at an upstream gradient of 1."""
        rho = None if self.g is None or self.p_aba is None else blocks.row_sums(self.g * self.p_aba)
        if self.upstream_visit is None or rho_visit is None:
            assert rho is not None
            return rho
        of_visits = rho_visit * self.upstream_visit
        return of_visits if rho is None else rho.add_(of_visits)


class Passes(Protocol):
    """The passes over class blocks, in order."""

    def walks(self, problem: Problem, needs_gradient: bool) -> Walks:
        """Row and column normalisers, visits and round trips."""

    def gradients(self, problem: Problem, saved: Saved, gradient: TermGradients, needs: Needs) -> Gradients:
        """``da = scale ds b``, ``db = scale ds' a``, the row and the column sums of ``ds``: those asked for."""


def visit_gradient(visit_probability: Tensor, eps: float, rows: int, columns: int) -> Tensor:
    """``h_j = -1 / (N M (eps + visit_j))``: d visit / d p_ab_ij for any row i."""
    denominator = visit_probability + eps
    if eps == 0.0:
        denominator.clamp_min_(torch.finfo(visit_probability.dtype).tiny)
    return torch.div(-1.0 / (rows * columns), denominator, out=denominator)
