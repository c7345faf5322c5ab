"""Unlabelled batches larger than a network's activations allow, and what splitting a batch does instead.

A batch that is split, for gradient accumulation, has another loss: a walker meets the samples of its part alone. What
takes memory are the activations of the network, so those are computed again in the backward pass, chunk by chunk, and
only the embeddings are kept. The loss is of all of them at once, and the gradient the same. Prints tables in Markdown:
the losses and gradients of a split batch, and the time and peak memory of a step of the paper's MNIST network.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import fastassoc
from benchmarks.environment import environment
from benchmarks.paper.networks import MnistNetwork
from benchmarks.worker import resident

LABELLED, CLASSES = 100, 10
SIZES, CHUNK = (1000, 4000), 500
PARTS = (2, 4, 10)
ROUNDS = 3


def embedded_in_chunks(network: Callable[[Tensor], Tensor], x: Tensor, chunk: int) -> Tensor:
    """The embeddings of ``x``, so many samples at a time, without their activations."""
    return torch.cat([checkpoint(network, part, use_reentrant=False) for part in x.split(chunk)])


def split_losses() -> list[tuple[str, float, float]]:
    """The loss of a batch, the mean of its parts' losses, and the cosine of either's gradient with the batch's."""
    generator = torch.Generator().manual_seed(0)
    centres = 0.4 * torch.randn(CLASSES, 128, generator=generator)
    labels = torch.arange(LABELLED) % CLASSES
    a, b = (
        (centres[which] + 0.4 * torch.randn(len(which), 128, generator=generator)).requires_grad_()
        for which in (labels, torch.randint(CLASSES, (1000,), generator=generator))
    )
    ways = [("the batch", 1, torch.arange(LABELLED))]
    ways += [(f"{number} parts, samples of all classes in each", number, ways[0][2]) for number in PARTS]
    ways.append((f"{CLASSES} parts, samples of one class in each", CLASSES, labels.argsort(stable=True)))
    expected, rows = None, []
    for name, number, order in ways:
        parts = zip(*(x.chunk(number) for x in (a[order], b, labels[order])), strict=True)
        mean = torch.stack([fastassoc.walker_visit_loss(*part) for part in parts]).mean()
        found = torch.cat(torch.autograd.grad(mean, (a, b))).flatten()
        expected = found if expected is None else expected
        rows.append((name, mean.item(), torch.cosine_similarity(found, expected, dim=0).item()))
    return rows


def cost(unlabelled: int, chunk: int | None) -> tuple[float, float]:
    """Seconds of a step, a median, and MiB by which it lets the memory of this process grow."""
    generator = torch.Generator().manual_seed(0)
    network = MnistNetwork(CLASSES, generator)
    x, y = (255 * torch.rand(rows, 1, 28, 28, generator=generator) for rows in (LABELLED, unlabelled))
    labels = torch.arange(LABELLED) % CLASSES

    def step(y: Tensor) -> None:
        b = network(y) if chunk is None else embedded_in_chunks(network, y, chunk)
        fastassoc.walker_visit_loss(network(x), b, labels).backward()

    # Libraries load, and gradients are there.
    step(y[:8])
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        step(y)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), resident("VmHWM") - before


def main() -> None:
    """Prints the tables."""
    print(", ".join(f"{name}: {value}" for name, value in environment(torch.device("cpu")).items()), "\n")
    print("| loss of | value | cosine of its gradient with the batch's |\n|---|---|---|")
    for name, value, cosine in split_losses():
        print(f"| {name} | {value:.3f} | {cosine:.3f} |", flush=True)
    print("\n| unlabelled | whole, s | MiB | in chunks, s | MiB |\n|---|---|---|---|---|")
    for size in SIZES:
        cells = []
        for chunk in (None, CHUNK):
            # In a process of its own, for a peak is never forgotten.
            with ProcessPoolExecutor(1, get_context("spawn")) as executor:
                seconds, mib = executor.submit(cost, size, chunk).result()
            cells += [f"{seconds:.2f}", f"{mib:,.0f}"]
        print(f"| {size:,} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
