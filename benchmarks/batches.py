"""Batches to measure: their sizes, their inputs and the useful work in them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """N labelled and M unlabelled embeddings of D columns."""

    n: int
    m: int
    d: int = 128
    classes: int = 10
    unbalanced: bool = False
    """Class sizes fall by half from class to class instead of being equal."""
    scale: float = 0.55
    """Standard deviation of the embeddings; that of the logits is its square times sqrt(D), 3.4 at D = 128."""
    new_labels: bool = False
    """Labels come in another order at each step, as from a loader that shuffles, instead of being the same."""

    @property
    def label(self) -> str:
        """For tables."""
        kind = "classes, sizes by halves" if self.unbalanced else "classes"
        label = f"{self.n} x {self.m}, D {self.d}, {self.classes} {kind}"
        if self.scale != Batch(1, 1).scale:
            label += f", logits of {self.scale**2 * self.d**0.5:.0f}"
        return f"{label}, new labels each step" if self.new_labels else label


def make_labels(batch: Batch) -> Tensor:
    """[N], shuffled, from a fixed seed."""
    index = torch.arange(batch.n)
    if batch.unbalanced:
        # Row i of n lies in class c where the rest is between 2^-(c + 1) and 2^-c of all rows.
        labels = torch.log2(batch.n / (batch.n - index)).floor().clamp(max=batch.classes - 1).long()
    else:
        labels = index % batch.classes
    return labels[torch.randperm(batch.n, generator=torch.Generator().manual_seed(1))]


def make_inputs(batch: Batch, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings that need gradients, and labels."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(rows, batch.d, generator=generator).mul_(batch.scale) for rows in (batch.n, batch.m))
    inputs = [x.to(device=device, dtype=dtype).requires_grad_() for x in (a, b)]
    return inputs[0], inputs[1], make_labels(batch).to(device)


def useful_operations(batch: Batch, walker: bool = True) -> int:
    """Floating-point operations of ``6 N M D + 3 M sum_c n_c^2``: the second part is the walker term's.

    Scores once, da, db; the symmetric round trip once and one product back.
    """
    scores = 6 * batch.n * batch.m * batch.d
    return scores + 3 * batch.m * int(make_labels(batch).bincount().square().sum()) if walker else scores


PAPER = (
    Batch(8, 8, classes=2),
    Batch(100, 100),
    Batch(100, 1000),
    Batch(1000, 1000),
    Batch(100, 100, new_labels=True),
    Batch(100, 1000, classes=7, unbalanced=True, new_labels=True),
    Batch(500, 2000, scale=1.2),
)
LARGE = (
    Batch(2048, 16384),
    Batch(2048, 16384, classes=100),
    Batch(2048, 16384, classes=2048),
    Batch(2048, 16384, unbalanced=True),
    Batch(4096, 16384, classes=100),
    *(Batch(1024, 8192, d=d, classes=100) for d in (64, 128, 256, 512, 1024)),
    *(Batch(1024, m, classes=100) for m in (1024, 4096, 16384, 65536)),
    *(Batch(n, 8192, classes=100) for n in (128, 256, 512, 2048, 4096)),
    Batch(512, 1_000_000),
    Batch(4096, 65536, classes=100),
)
CLASSES = tuple(Batch(2048, 8192, classes=classes) for classes in (1, 2, 10, 32, 100, 512, 2048))
MEMORY = (
    Batch(2048, 16384),
    Batch(4096, 16384),
    Batch(2048, 65536),
    *(Batch(1024, m, classes=100) for m in (4096, 16384, 32768, 65536, 131072, 262144)),
)
GROWTH = tuple(Batch(256, m, d=64) for m in (62_500, 250_000, 1_000_000, 4_000_000))
RANKS = tuple(Batch(1024, m) for m in (16384, 65536))
