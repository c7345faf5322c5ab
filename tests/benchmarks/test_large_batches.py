"""Unlabelled samples embedded in chunks: the same gradients, fewer activations; alone and over ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parallel import DistributedDataParallel

import fastassoc
from benchmarks.large_batches import embedded_in_chunks, split_losses
from tests.processes import Processes


def network_and_batch() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    layers = nn.Linear(5, 64), nn.Tanh(), nn.Dropout(0.2), nn.Linear(64, 7)
    labels = torch.arange(8) % 3
    return nn.Sequential(*layers).double(), torch.randn(8, 5).double(), torch.randn(90, 5).double(), labels


def step(network: Any, x: Tensor, y: Tensor, labels: Tensor, chunk: int | None, **options: Any) -> list[Tensor]:
    """The loss and the gradients of the parameters."""
    torch.manual_seed(1)
    # Whole, it draws what drops out as the chunks do.
    b = embedded_in_chunks(network, y, chunk) if chunk else torch.cat([network(part) for part in y.split(20)])
    loss = fastassoc.walker_visit_loss(network(x), b, labels, **options)
    loss.backward()
    return [loss.detach(), *(p.grad for p in network.parameters())]


def test_gradients_are_those_of_the_whole_batch() -> None:
    network, *batch = network_and_batch()
    whole = [x.clone() for x in step(network, *batch, chunk=None)]
    network.zero_grad()
    for mine, other in zip(step(network, *batch, chunk=20), whole, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-15)


def test_activations_are_not_kept() -> None:
    network, _, y, _ = network_and_batch()

    def kept(chunk: int | None) -> int:
        numbers = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal numbers
            numbers += tensor.numel()
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            b = network(y) if chunk is None else embedded_in_chunks(network, y, chunk)
        del b
        return numbers

    # Beside the samples themselves.
    assert kept(20) <= 2 * y.numel() < 90 * 64 < kept(None)


class Classifier(nn.Module):
    """An embedding of unlabelled samples in chunks, and logits of labelled ones, for DDP to wrap."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, *_ = network_and_batch()
        self.classify = nn.Linear(7, 3).double()

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a = self.embed(x)
        return a, embedded_in_chunks(self.embed, y, 20), self.classify(a)


def trained(module: nn.Module, parameters: list[nn.Parameter], batch: Any, group: Any) -> list[Tensor]:
    """The parameters after two steps."""
    x, y, labels = batch
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        a, b, logits = module(x, y)
        loss = fastassoc.walker_visit_loss(a, b, labels, group=group)
        (loss + nn.functional.cross_entropy(logits, labels)).backward()
        optimizer.step()
    return [p.detach() for p in parameters]


def over_ranks(rank: int) -> list[Tensor]:
    """Half of the samples on each of two ranks."""
    _, *batch = network_and_batch()
    network = Classifier().eval()
    own = [z.chunk(2)[rank] for z in batch]
    return trained(DistributedDataParallel(network), list(network.parameters()), own, "world")


def test_over_ranks() -> None:
    _, *batch = network_and_batch()
    network = Classifier().eval()
    whole = trained(network, list(network.parameters()), batch, None)
    processes = Processes(2)
    try:
        for results in processes(over_ranks):
            for mine, other in zip(results, whole, strict=True):
                torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-14)
    finally:
        processes.stop()


def test_a_split_batch_has_another_loss() -> None:
    (_, whole, cosine), *parts = split_losses()
    assert cosine > 1.0 - 1e-5
    assert all(abs(loss - whole) > 1.0 and cosine < 0.8 for _, loss, cosine in parts)
