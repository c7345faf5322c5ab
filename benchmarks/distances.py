"""What squared distances cost: by products, by products in float64, from differences, and in eager code.

Prints a table in Markdown: milliseconds of a forward and backward pass, medians over rounds in which the contenders
take turns. The same clusters for each, far enough apart for what is timed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fastassoc
from benchmarks.environment import environment
from fastassoc import reference

SIZES = ((200, 600, 8), (1000, 1000, 128), (2048, 16384, 128))
ROUNDS = 5
EAGER_DIFFERENCES = 2**28
"""N M D up to which eager code runs: it holds several times as many numbers."""
SPREADS = {"products": 0.1, "products in float64": 30.0, "differences": 1e6}
"""How far apart the clusters lie, by how distances between them are then computed."""


def clusters(n: int, m: int, d: int, spread: float) -> tuple[Tensor, Tensor, Tensor]:
    """Ten classes with noise of a norm of 1."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, d, generator=generator) * spread
    labels = torch.arange(n) % 10
    a, b = (
        centres[which] + torch.randn(len(which), d, generator=generator) / d**0.5
        for which in (labels, torch.randint(0, 10, (m,), generator=generator))
    )
    return a.requires_grad_(), b.requires_grad_(), labels


def step(loss: Callable[..., Any], similarity: str, spread: float, size: tuple[int, int, int]) -> Callable[[], None]:
    """A forward and a backward pass."""
    a, b, labels = clusters(*size, spread)

    def run() -> None:
        a.grad = b.grad = None
        loss(a, b, labels, similarity=similarity).backward()

    return run


def main() -> None:
    """Prints the table."""
    contenders: dict[str, tuple[Callable[..., Any], str, float]] = {
        "dot": (fastassoc.walker_visit_loss, "dot", 0.1),
        **{name: (fastassoc.walker_visit_loss, "euclidean", spread) for name, spread in SPREADS.items()},
        "eager": (reference.walker_visit_loss, "euclidean", 0.1),
    }
    print(", ".join(f"{name}: {value}" for name, value in environment(torch.device("cpu")).items()), "\n")
    print("| N x M, D |", " | ".join(contenders), "|")
    print("|---" * (len(contenders) + 1) + "|")
    for size in SIZES:
        n, m, d = size
        steps = {
            name: step(*contender, size)
            for name, contender in contenders.items()
            if name != "eager" or n * m * d <= EAGER_DIFFERENCES
        }
        times: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(ROUNDS + 1):
            for name, run in steps.items():
                start = time.perf_counter()
                run()
                if number:
                    times[name].append(1e3 * (time.perf_counter() - start))
        row = (f"{statistics.median(times[name]):.3g}" if name in times else "" for name in contenders)
        print(f"| {n} x {m}, {d} |", " | ".join(row), "|")


if __name__ == "__main__":
    main()
