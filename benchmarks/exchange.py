"""Ways to compute the loss of rows that lie on several ranks, and what a rank sends for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

import fastassoc

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Contender(NamedTuple):
    """The loss of the rows of all ranks, each of which passes its share."""

    name: str
    label: str
    """For tables and plots."""
    loss: Loss
    times_ranks: bool
    """Whether gradients are as many times the derivatives as there are ranks."""


class _AllRows(torch.autograd.Function):
    """Rows of all ranks, each of which brings as many."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, exchanges_gradients: bool) -> Tensor:
        """[ranks rows, D]."""
        ctx.exchanges_gradients = exchanges_gradients
        out = x.new_empty(dist.get_world_size() * x.shape[0], *x.shape[1:])
        dist.all_gather(list(out.chunk(dist.get_world_size())), x.contiguous())
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Of this rank's rows: the sum over ranks, or this rank's part."""
        parts = gradients[0].contiguous().view(dist.get_world_size(), -1, *gradients[0].shape[1:])
        if not ctx.exchanges_gradients:
            return parts[dist.get_rank()], None
        received = torch.empty_like(parts)
        dist.all_to_all_single(received, parts)
        return received.sum(0), None


def _gathered(a: Tensor, b: Tensor, labels: Tensor, exchanges_gradients: bool) -> Tensor:
    all_labels: Tensor = _AllRows.apply(labels, False)
    all_a, all_b = (_AllRows.apply(x, exchanges_gradients) for x in (a, b))
    return fastassoc.walker_visit_loss(all_a, all_b, all_labels)


def _group(a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
    return fastassoc.walker_visit_loss(a, b, labels, group="world")


def _gathered_without(a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
    return _gathered(a, b, labels, False)


def _gathered_with(a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
    return _gathered(a, b, labels, True)


CONTENDERS = (
    Contender("fastassoc", "fastassoc with a group", _group, True),
    Contender("gathered", "gathering everything", _gathered_without, False),
    Contender("gathered_with_gradients", "gathering everything, gradients too", _gathered_with, True),
)
"""Those that gather are open_clip's, without and with its ``gather_with_grad``. Every rank computes the whole loss in
them, so that the gradient of its own rows is exact without those of the others."""


@dataclass
class Traffic:
    """What this rank sends to others, whatever the algorithm: payload in bytes, and how many collectives."""

    sent: int = 0
    collectives: int = 0

    def add(self, sent: int) -> None:
        """One more collective."""
        self.sent += sent
        self.collectives += 1


@contextmanager
def counted() -> Iterator[Traffic]:
    """Counts in all collectives that `CONTENDERS` take."""
    traffic = Traffic()
    gather, exchange = dist.all_gather, dist.all_to_all_single
    others, rank = dist.get_world_size() - 1, dist.get_rank()

    def noting_gather(out: list[Tensor], x: Tensor, **options: Any) -> None:
        traffic.add(others * x.nbytes)
        gather(out, x, **options)

    def noting_exchange(
        out: Tensor, x: Tensor, received: list[int] | None = None, sent: list[int] | None = None, **options: Any
    ) -> None:
        kept = x.nbytes // (others + 1) if sent is None else sent[rank] * x[:1].nbytes
        traffic.add(x.nbytes - kept)
        exchange(out, x, received, sent, **options)

    module: Any = dist
    module.all_gather, module.all_to_all_single = noting_gather, noting_exchange
    try:
        yield traffic
    finally:
        module.all_gather, module.all_to_all_single = gather, exchange
