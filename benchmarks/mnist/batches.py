"""Which samples carry labels, and endless batches of labelled and of unlabelled images."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.mnist.data import DataError, Digits


def choose_per_class(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` different random indices into ``labels`` for each class in it, as [classes, count].

    Raises `DataError` where a class has fewer samples.
    """
    chosen = []
    for label in labels.unique().tolist():
        indices = (labels == label).nonzero().squeeze(1)
        if len(indices) < count:
            raise DataError(f"class {label} has {len(indices):,} training images where {count:,} are needed")
        chosen.append(indices[torch.randperm(len(indices), generator=generator)[:count]])
    return torch.stack(chosen)


def labelled_batches(digits: Digits, labelled: Tensor, per_class: int, generator: torch.Generator) -> Iterator[Digits]:
    """``per_class`` samples of every class, drawn without replacement from ``labelled`` [C, L]."""
    classes, available = labelled.shape
    while True:
        drawn = torch.rand(classes, available, generator=generator).argsort(1)[:, :per_class]
        yield digits[labelled.gather(1, drawn).flatten()]


def unlabelled_batches(images: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """``size`` images at a time in a new random order every epoch, which ends when what is left fills no batch."""
    while True:
        for indices in torch.randperm(len(images), generator=generator).split(size):
            if len(indices) == size:
                yield images[indices]
