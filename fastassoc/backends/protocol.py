"""What a backend gets and gives: types and protocols alone."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

Saved = tuple[Tensor | None, ...]
Needs = tuple[bool, bool, bool, bool]


class Ranks(Protocol):
    """The ranks of a process group, each with columns of its own, that compute a loss together."""

    columns: int
    """M of all ranks."""

    def gather(self, x: Tensor) -> Tensor:
        """[ranks, ...]: ``x`` of every rank, of one shape and dtype."""

    def sum(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Sums over ranks of tensors of one dtype, of the same shapes on every rank; the same to the bit on each."""


class Inputs(NamedTuple):
    """A call as a backend meets it. Scores are ``s_ij = scale a_i . b_j + bias_a_i + bias_b_j``."""

    a: Tensor
    """[N, D], rows as the caller gave them."""
    b: Tensor
    """[M, D]."""
    bias_a: Tensor | None
    """[N] in the accumulation dtype."""
    bias_b: Tensor | None
    """[M] in the accumulation dtype."""
    labels: Any
    """What `Backend.prepare_labels` made of the labels."""
    scale: float
    eps: float
    walker: bool
    """Whether the walker term is wanted."""
    visit: bool
    """Whether the visit term is wanted."""
    dtype: torch.dtype
    """Accumulation dtype: float64 for float64, else float32."""
    differences: bool = False
    """Whether scores are computed as ``-scale / 2 |a_i - b_j|^2``: the same number, biases being ``-scale / 2 |a_i|^2``
    and ``-scale / 2 |b_j|^2``, but exact for neighbours far from the origin. Gradients of ``a`` and ``b`` may then be
    whole, with None for those of the biases."""
    ranks: Ranks | None = None
    """Those whose rows ``a`` and the labels have, where ``b`` has this rank's alone. Losses are then those of all, and
    gradients this rank's part of the sum over ranks."""
    weights: tuple[float, float] | None = None
    """Of the walker and the visit term, where their weighted sum is wanted in their place; upstream gradients are then
    its own. A term of weight 0 counts only where it is NaN."""

    @property
    def columns(self) -> int:
        """M, of all ranks."""
        return self.b.shape[0] if self.ranks is None else self.ranks.columns


class Losses(NamedTuple):
    """What the forward passes give; what is not wanted is None. All but ``saved`` is in the accumulation dtype."""

    loss: Tensor | None
    """The weighted sum of both terms, where `Inputs.weights` are given. Either term is then for statistics alone."""
    walker: Tensor | None
    visit: Tensor | None
    p_correct: Tensor | None
    accuracy_estimate: Tensor | None
    visit_probability: Tensor | None
    """[M]."""
    saved: Saved
    """Tensors that the backend wants back in `Backend.gradients`; empty where no gradient is needed."""


class Gradients(NamedTuple):
    """Gradients, ``a`` and ``bias_a`` with rows in the order of what was given; None where not asked for."""

    a: Tensor | None
    b: Tensor | None
    bias_a: Tensor | None
    bias_b: Tensor | None


class Backend(Protocol):
    """The losses and their gradients; a backend is a module or an object with these functions."""

    def prepare_labels(self, labels: Tensor, ignore_index: int | None, b: Tensor, dtype: torch.dtype) -> Any:
        """Labels in the form that the backend works on; rows labelled ``ignore_index`` take no part."""

    def losses(self, inputs: Inputs, needs_gradient: bool, statistics: bool) -> Losses:
        """Losses, and what only statistics want."""

    def gradients(
        self, inputs: Inputs, saved: Saved, grad_walker: Tensor | None, grad_visit: Tensor | None, needs: Needs
    ) -> Gradients:
        """Gradients by ``a``, ``b`` and the biases: those asked for. ``saved`` may come back flat, with more None.

        With `Inputs.weights` either upstream gradient is that of the loss, or None to leave the term out.
        """

    def agreement(self, device: torch.device) -> str:
        """What decides the sizes of what crosses ranks, so that it must be the same on all; empty if nothing does."""

    def saved_sizes(self, a: Tensor, b: Tensor) -> list[int] | None:
        """How many numbers the tensors in `Losses.saved` have, where the shapes of the embeddings decide that."""

    def saved_dtypes(self, a: Tensor, dtype: torch.dtype) -> list[torch.dtype]:
        """Dtypes of the tensors in `Losses.saved`, as many as there can be, for an accumulation in ``dtype``."""
