"""Batches with the same number of samples of each class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor, distributed
from torch.utils.data import Sampler

from fastassoc import validation


class ClassBalancedBatchSampler(Sampler[list[int]]):
    """Batches of ``samples_per_class`` samples of each of ``classes_per_batch`` classes, for the labelled samples.

    A walker needs several samples of a class in a batch to tell a right round trip from a wrong one:

        sampler = ClassBalancedBatchSampler(dataset.targets, samples_per_class=10, num_batches=500)
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=4)

    Within an epoch, samples of a class are drawn without replacement: all of them come, in random order, before one
    comes again. The next epoch begins anew, with all samples. Only a class with fewer than ``samples_per_class``
    samples has the same sample several times in a batch; each of its samples then comes equally often, or once more.
    Where a batch does not hold all classes, classes are drawn without replacement, too. Inside a batch, samples lie
    class by class in ascending order of the labels.

    Each pass over the sampler is an epoch with an order of its own, made of ``seed`` and the number of the epoch. The
    first pass is epoch 0, the next one epoch 1, and so on; `set_epoch` sets the number of the next pass. A pass takes
    its number when its first batch is drawn, and one that draws no more than that batch counts as well.

    In distributed training every process makes the same schedule and takes its own part of it. Call
    ``set_epoch(epoch)`` in every process before each pass: else a process that draws a batch beside its passes, to look
    at it for example, is an epoch ahead of the others from then on. At each step all processes see the same classes.
    They draw different samples of each class that has enough of them, which is ``num_replicas * samples_per_class``,
    and all have the same number of batches.

    Args:
        labels: [N], the label of each sample of the data set; a tensor, an array or a sequence of integers.
        samples_per_class: number of samples of each class in a batch of this process.
        classes_per_batch: number of classes in a batch; all of them by default.
        num_batches: number of batches in an epoch. By default all processes together draw as many samples as take
            part, rounded down to whole batches, and at least one batch each. For a small labelled set beside a large
            unlabelled one, set it to the number of unlabelled batches.
        ignore_index: samples with this label are left out, for example those without a label.
        seed: from 0; the same in all processes.
        num_replicas: number of processes; by default that of ``torch.distributed`` where it is initialised, else 1.
        rank: number of this process, from 0; by default that of ``torch.distributed`` where it is initialised, else 0.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape or value.
    """

    def __init__(
        self,
        labels: Tensor | Sequence[int] | np.ndarray[Any, Any],
        samples_per_class: int,
        *,
        classes_per_batch: int | None = None,
        num_batches: int | None = None,
        ignore_index: int | None = None,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__()
        grouped = distributed.is_available() and distributed.is_initialized()
        if num_replicas is None:
            num_replicas = distributed.get_world_size() if grouped else 1
        if rank is None:
            rank = distributed.get_rank() if grouped else 0
        validation.check_ignore_index(ignore_index)
        self._samples = _samples_of_classes(validation.checked_sample_labels(labels), ignore_index)
        classes = len(self._samples)
        if classes_per_batch is None:
            classes_per_batch = classes
        validation.check_count("samples_per_class", samples_per_class, 1)
        validation.check_count("classes_per_batch", classes_per_batch, 1, classes)
        validation.check_count("seed", seed, 0)
        validation.check_count("num_replicas", num_replicas, 1)
        validation.check_count("rank", rank, 0, num_replicas - 1)
        if num_batches is None:
            samples = sum(len(x) for x in self._samples)
            num_batches = max(1, samples // (samples_per_class * classes_per_batch * num_replicas))
        validation.check_count("num_batches", num_batches, 1)
        self.samples_per_class = samples_per_class
        self.classes_per_batch = classes_per_batch
        self.num_batches = num_batches
        self.seed = seed
        self.num_replicas = num_replicas
        self.rank = rank
        self.epoch = 0

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        """Indices of the samples of each batch of an epoch."""
        # At the first batch: a DataLoader with workers makes an iterator before the one that it draws from.
        random = np.random.default_rng((self.seed, self.epoch))
        self.epoch += 1
        classes = _Deck(np.arange(len(self._samples)), random)
        decks = [_Deck(samples, random) for samples in self._samples]
        for _ in range(self.num_batches):
            chosen = np.sort(classes.draw(self.classes_per_batch))
            yield [int(sample) for number in chosen for sample in self._share(decks[number])]

    def set_epoch(self, epoch: int) -> None:
        """Makes the next pass that epoch: call it before a pass to repeat one, or to go on after an interruption."""
        validation.check_count("epoch", epoch, 0)
        self.epoch = epoch

    def _share(self, deck: _Deck) -> np.ndarray[Any, Any]:
        """Samples of a class for this process; those for the others are drawn as well, for all go by one schedule."""
        each, processes = self.samples_per_class, self.num_replicas
        if len(deck) >= each * processes:
            return deck.draw(each * processes)[each * self.rank : each * (self.rank + 1)]
        return [deck.draw(each) for _ in range(processes)][self.rank]


class _Deck:
    """Items drawn without replacement, until all have come and are shuffled anew."""

    def __init__(self, items: np.ndarray[Any, Any], random: np.random.Generator) -> None:
        self._items, self._random = items, random
        self._left = items[:0]

    def __len__(self) -> int:
        return len(self._items)

    def draw(self, count: int) -> np.ndarray[Any, Any]:
        """All different where there are as many; else each equally often, or once more."""
        rounds, rest = divmod(count, len(self._items))
        drawn = [self._random.permutation(self._items) for _ in range(rounds)]
        if rest > len(self._left):
            # What is left of the old order comes first, and last in the new one, so that no draw has it twice.
            fresh = self._random.permutation(self._items)
            old = np.isin(fresh, self._left)
            self._left = np.concatenate([self._left, fresh[~old], fresh[old]])
        drawn.append(self._left[:rest])
        self._left = self._left[rest:]
        return np.concatenate(drawn)


def _samples_of_classes(labels: np.ndarray[Any, Any], ignore_index: int | None) -> list[np.ndarray[Any, Any]]:
    """The indices of each class, by ascending label."""
    kept = np.arange(len(labels)) if ignore_index is None else np.flatnonzero(labels != ignore_index)
    if ignore_index is not None:
        validation.check_samples_left(len(kept), ignore_index)
    ascending = kept[labels[kept].argsort(kind="stable")]
    starts = np.flatnonzero(np.diff(labels[ascending])) + 1
    return np.split(ascending, starts)
