"""What is measured: fastassoc, and what its users would use instead."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import benchmarks.chunked
import benchmarks.eager
import fastassoc

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class MissingProviderError(Exception):
    """The provider cannot run here; the message says why."""


class Provider(NamedTuple):
    """A way to compute the loss."""

    name: str
    label: str
    """For tables and plots."""
    load: Callable[[], Loss]
    """The loss, or `MissingProviderError`."""
    walker: bool = True
    """Whether it computes the walker term; the visit term is computed by all."""


def _fastassoc() -> Loss:
    return fastassoc.walker_visit_loss


def _fastassoc_visit() -> Loss:
    return lambda a, b, labels: fastassoc.walker_visit_loss(a, b, labels, walker_weight=0.0)


def _eager() -> Loss:
    return benchmarks.eager.walker_visit_loss


def _compiled() -> Loss:
    torch._dynamo.reset()
    compiled: Loss = torch.compile(benchmarks.eager.walker_visit_loss, dynamic=False)
    return compiled


def _chunked() -> Loss:
    return benchmarks.chunked.walker_visit_loss


def _keops_visit() -> Loss:
    if importlib.util.find_spec("pykeops") is None:
        raise MissingProviderError("pykeops is not installed")
    lazy = importlib.import_module("pykeops.torch").LazyTensor

    def loss(a: Tensor, b: Tensor, labels: Tensor, eps: float = 1e-8) -> Tensor:
        match = (lazy(a[:, None, :]) * lazy(b[None, :, :])).sum(-1)
        lse_a = match.logsumexp(dim=1)
        visit = (match - lazy(lse_a[:, None, :])).exp().sum(dim=0).view(-1) / len(a)
        m = len(b)
        return float(torch.log1p(torch.tensor(m * eps))) - torch.log(eps + visit).mean()

    return loss


PROVIDERS = (
    Provider("fastassoc", "fastassoc", _fastassoc),
    Provider("eager", "eager PyTorch", _eager),
    Provider("compiled", "torch.compile of eager", _compiled),
    Provider("chunked", "eager, checkpointed chunks", _chunked),
    Provider("fastassoc_visit", "fastassoc, visit term only", _fastassoc_visit, walker=False),
    Provider("keops_visit", "KeOps, visit term only", _keops_visit, walker=False),
)
"""KeOps reduces over one index of pairs; same-class round trips, a sum over j for pairs of rows, are beyond it."""


def provider_named(name: str) -> Provider:
    """The provider of that name."""
    for provider in PROVIDERS:
        if provider.name == name:
            return provider
    raise ValueError(f"unknown provider {name!r}; expected one of {', '.join(x.name for x in PROVIDERS)}")
