"""The backend protocol, the passes behind the loss, and the choice of a backend by device."""

from __future__ import annotations

import functools
import importlib.util
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fastassoc.backends.cpu_functions import resolve_vector_functions
from fastassoc.classes import ClassBlocks

resolve_vector_functions()

Saved = tuple[Tensor | None, ...]
Needs = tuple[bool, bool, bool, bool]


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


class Losses(NamedTuple):
    """What the forward passes give; what is not wanted is None. All but ``saved`` is in the accumulation dtype."""

    walker: Tensor | None
    visit: Tensor | None
    p_correct: Tensor | None
    accuracy_estimate: Tensor | None
    visit_probability: Tensor | None
    """[M]."""
    saved: Saved
    """Tensors that the backend wants back in `Backend.gradients`; empty where no gradient is needed."""


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


class LossGradient(NamedTuple):
    """The loss differentiated by ``p_aba`` and by the visits' share of ``p_ab``, and what that was computed from."""

    p_aba: Tensor | None
    g: Tensor | None
    """Flat class blocks of dL/dp_aba; None without a walker gradient."""
    h: Tensor | None
    """[M], dL/dp_ab_ij of the visit loss, the same for every row i; None without a visit gradient."""
    grad_visit: Tensor | None
    """0-d: the upstream gradient of the visit loss, already in ``h``."""

    def rho(self, blocks: ClassBlocks, rho_visit: Tensor | None) -> Tensor:
        """[N]: ``sum_j p_ab_ij dL/dp_ab_ij``, ``rho_visit_i = sum_j p_ab_ij h_j`` at an upstream gradient of 1."""
        rho = None if self.g is None or self.p_aba is None else blocks.row_sums(self.g * self.p_aba)
        if self.grad_visit is None or rho_visit is None:
            assert rho is not None
            return rho
        return rho_visit * self.grad_visit if rho is None else rho.addcmul_(rho_visit, self.grad_visit)


class Gradients(NamedTuple):
    """Gradients, ``a`` and ``bias_a`` with rows in the order of what was given; None where not asked for."""

    a: Tensor | None
    b: Tensor | None
    bias_a: Tensor | None
    bias_b: Tensor | None


class Passes(Protocol):
    """The passes over class blocks, in order.

    Where ``b`` is split over ranks, what crosses ranks never grows with M.
    """

    def walks(self, problem: Problem, needs_gradient: bool) -> Walks:
        """Row and column normalisers, visits and round trips."""

    def gradients(self, problem: Problem, saved: Saved, gradient: LossGradient, needs: Needs) -> Gradients:
        """``da = scale ds b``, ``db = scale ds' a``, the row and the column sums of ``ds``: those asked for."""


class Backend(Protocol):
    """The losses and their gradients; a backend is a module or an object with these functions."""

    def prepare_labels(self, labels: Tensor, ignore_index: int | None, b: Tensor, dtype: torch.dtype) -> Any:
        """Labels in the form that the backend works on; rows labelled ``ignore_index`` take no part."""

    def losses(self, inputs: Inputs, needs_gradient: bool, statistics: bool) -> Losses:
        """Losses, and what only statistics want."""

    def gradients(
        self, inputs: Inputs, saved: Saved, grad_walker: Tensor | None, grad_visit: Tensor | None, needs: Needs
    ) -> Gradients:
        """Gradients by ``a``, ``b`` and the biases: those asked for. ``saved`` may come back flat, with more None."""

    def saved_dtypes(self, a: Tensor, dtype: torch.dtype) -> list[torch.dtype]:
        """Dtypes of the tensors in `Losses.saved`, as many as there can be, for an accumulation in ``dtype``."""


_CPU = torch.device("cpu")


def choose_backend(name: str, device: torch.device) -> Backend:
    """The backend of that name, or by device for "auto"; RuntimeError where it cannot run."""
    if device == _CPU and name != "triton":
        return _cpu_backend()
    if name == "auto":
        name = "triton" if device.type == "cuda" else "cpu"
    if name == "triton":
        if importlib.util.find_spec("triton") is None:
            raise RuntimeError("backend 'triton' cannot run: the package triton is not installed")
        from fastassoc.backends import triton

        triton.check_can_run(device)
        return triton
    if device.type != "cpu":
        raise RuntimeError(f"backend {name!r} cannot run on {device}: it takes tensors on the CPU only")
    return _cpu_backend()


@functools.cache
def _cpu_backend() -> Backend:
    from fastassoc.backends import cpu

    return cpu


def visit_gradient(visit_probability: Tensor, eps: float, rows: int, columns: int) -> Tensor:
    """``h_j = -1 / (N M (eps + visit_j))``: d visit / d p_ab_ij for any row i."""
    denominator = visit_probability + eps
    if eps == 0.0:
        denominator.clamp_min_(torch.finfo(visit_probability.dtype).tiny)
    return torch.div(-1.0 / (rows * columns), denominator, out=denominator)


_UNCHANGED = nullcontext()


def own_precision(a: Tensor) -> AbstractContextManager[Any]:
    """Switches autocast off: the library chooses its own precision."""
    # Naming a device's type costs as much as a small operation.
    device = "cpu" if a.is_cpu else a.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else _UNCHANGED
