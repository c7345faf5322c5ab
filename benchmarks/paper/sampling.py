"""Which samples carry labels, and endless batches of labelled and of unlabelled images that can be continued later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from benchmarks.paper.data import DataError, Images

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


class Stream(IntEnum):
    """One random stream for each purpose, so that trainings that differ in one thing draw alike in all others."""

    SETUP = 0  # which samples are used
    LABELLED = 1
    UNLABELLED = 2
    WEIGHTS = 3
    AUGMENTATION = 4  # of labelled images
    UNLABELLED_AUGMENTATION = 5


# Fixed, so that a new stream leaves the draws of the others as they are: each five have a range of seeds to themselves,
# of which seeds below 2**32 reach no more than 5 * 2**32.
STREAMS_OF_A_RANGE, RANGE = 5, 2**40


def random_stream(seed: int, stream: Stream) -> torch.Generator:
    """The generator of ``stream``; no two of a seed, or of two seeds below 2**32, are the same."""
    which, position = divmod(stream, STREAMS_OF_A_RANGE)
    return torch.Generator().manual_seed(which * RANGE + STREAMS_OF_A_RANGE * seed + position)


def choose_per_class(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` different random indices into ``labels`` for each class in it, as [classes, count].

    Raises `DataError` where a class has fewer samples.
    """
    chosen = []
    for label, indices in zip(labels.unique().tolist(), all_per_class(labels), strict=True):
        if len(indices) < count:
            raise DataError(f"class {label} has {len(indices):,} training images where {count:,} are needed")
        chosen.append(indices[torch.randperm(len(indices), generator=generator)[:count]])
    return torch.stack(chosen)


def all_per_class(labels: Tensor) -> list[Tensor]:
    """The indices of each class in ``labels``."""
    return [(labels == label).nonzero().squeeze(1) for label in labels.unique().tolist()]


class LabelledBatches:
    """``per_class`` samples of every class, drawn without replacement from the indices ``labelled`` of each class."""

    def __init__(
        self, images: Images, labelled: Sequence[Tensor] | Tensor, per_class: int, generator: torch.Generator
    ) -> None:
        self._images, self._labelled, self._per_class = images, list(labelled), per_class
        self._generator = generator

    def __next__(self) -> Images:
        drawn = []
        for indices in self._labelled:
            keys = torch.rand(len(indices), generator=self._generator)
            count = min(self._per_class, len(indices))
            drawn.append(indices[keys.topk(count, largest=False).indices])
        return self._images[torch.cat(drawn)]

    def state(self) -> dict[str, Any]:
        """What `restore` needs to draw on from here."""
        return {"generator": self._generator.get_state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Draw on from where `state` was taken."""
        self._generator.set_state(state["generator"])


class UnlabelledBatches:
    """``size`` images at a time in a new random order every epoch, which ends when what is left fills no batch.

    With ``chosen`` indices only these images are used. Raises `DataError` where there are fewer than ``size``.
    """

    def __init__(self, images: Tensor, size: int, generator: torch.Generator, chosen: Tensor | None = None) -> None:
        self._images, self._size, self._generator, self._chosen = images, size, generator, chosen
        self._count = len(images) if chosen is None else len(chosen)
        if size > self._count:
            raise DataError(f"batches of {size:,} unlabelled images need more than the {self._count:,} there are")
        self._order = torch.empty(0, dtype=torch.int64)
        self._position = 0

    def __next__(self) -> Tensor:
        if self._position + self._size > len(self._order):
            self._order = torch.randperm(self._count, generator=self._generator)
            self._position = 0
        indices = self._order[self._position : self._position + self._size]
        self._position += self._size
        return self._images[indices if self._chosen is None else self._chosen[indices]]

    def state(self) -> dict[str, Any]:
        """What `restore` needs to draw on from here."""
        return {"generator": self._generator.get_state(), "order": self._order, "position": self._position}

    def restore(self, state: dict[str, Any]) -> None:
        """Draw on from where `state` was taken."""
        self._generator.set_state(state["generator"])
        self._order, self._position = state["order"], state["position"]


class Batches:
    """What one training draws from: labelled images, perhaps unlabelled ones, perhaps an augmentation of both.

    Batches come on ``device``, wherever the images are, and are augmented there. ``generators`` are the augmentation's,
    one for the labelled and one for the unlabelled images, so that the former do not depend on the latter.
    """

    def __init__(
        self,
        labelled: LabelledBatches,
        unlabelled: UnlabelledBatches | None,
        device: torch.device | str = "cpu",
        augmentation: Augmentation | None = None,
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        self._labelled, self._unlabelled, self._device = labelled, unlabelled, device
        self._augmentation, self._generators = augmentation, generators

    def draw(self) -> tuple[Images, Tensor | None]:
        """The next labelled batch, and the next unlabelled one where there is one."""
        labelled = next(self._labelled).to(self._device)
        unlabelled = None if self._unlabelled is None else next(self._unlabelled).to(self._device)
        if self._augmentation is not None:
            for_labelled, for_unlabelled = self._generators
            labelled = Images(self._augmentation(labelled.images, for_labelled), labelled.labels)
            if unlabelled is not None:
                unlabelled = self._augmentation(unlabelled, for_unlabelled)
        return labelled, unlabelled

    def state(self) -> dict[str, Any]:
        """What `restore` needs to draw on from here."""
        return {
            "labelled": self._labelled.state(),
            "unlabelled": self._unlabelled and self._unlabelled.state(),
            "augmentation": [generator.get_state() for generator in self._generators],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Draw on from where `state` was taken."""
        self._labelled.restore(state["labelled"])
        if self._unlabelled is not None:
            self._unlabelled.restore(state["unlabelled"])
        for generator, saved in zip(self._generators, state["augmentation"], strict=False):
            generator.set_state(saved)
