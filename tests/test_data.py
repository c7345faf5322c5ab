"""The class-balanced sampler in a DataLoader, in several processes, and with classes that are too small."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader, TensorDataset

import fastassoc
from fastassoc.data import ClassBalancedBatchSampler

SIZES = (40, 7, 23, 30)


def labels_of(sizes: tuple[int, ...]) -> Tensor:
    """Mixed, with labels that are neither dense nor positive."""
    labels = torch.cat([torch.full((size,), 3 * number - 5) for number, size in enumerate(sizes)])
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


LABELS = labels_of(SIZES)


def counts(batch: list[int], labels: Tensor = LABELS) -> Counter[int]:
    return Counter(labels[batch].tolist())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_loop(workers: int) -> None:
    """As a user writes it: labelled batches beside unlabelled ones, over two epochs."""
    images = torch.randn(100, 6)
    labelled = TensorDataset(images, LABELS, torch.arange(100))
    sampler = ClassBalancedBatchSampler(LABELS, samples_per_class=5, num_batches=8)
    options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    loader = DataLoader(labelled, batch_sampler=sampler, **options)
    unlabelled = DataLoader(TensorDataset(torch.randn(160, 6)), batch_size=20)
    network = torch.nn.Linear(6, 3)
    epochs = []
    for _ in range(2):
        seen = []
        for (x, labels, indices), (y,) in zip(loader, unlabelled, strict=True):
            assert torch.equal(x, images[indices])
            assert sorted(Counter(labels.tolist()).values()) == [5, 5, 5, 5]
            fastassoc.walker_visit_loss(network(x), network(y), labels).backward()
            seen.append(indices.tolist())
        epochs.append(seen)
    # In the main process or by workers, the first epoch is epoch 0, and the next another one.
    sampler.set_epoch(0)
    assert [list(sampler), list(sampler)] == epochs
    assert epochs[0] != epochs[1]
    assert len(loader) == len(sampler) == 8


@pytest.mark.parametrize("kind", [Tensor.tolist, Tensor.numpy, Tensor.int, Tensor.clone])
def test_labels_of_any_kind(kind: Any) -> None:
    expected = list(ClassBalancedBatchSampler(LABELS, 5))
    assert list(ClassBalancedBatchSampler(kind(LABELS), 5)) == expected
    assert all(type(index) is int for index in itertools.chain(*expected))


def test_every_sample_of_a_class_comes_before_it_comes_again() -> None:
    sampler = ClassBalancedBatchSampler(LABELS, 6, num_batches=40)
    drawn: dict[int, list[int]] = {label: [] for label in LABELS.unique().tolist()}
    for batch in sampler:
        assert len(set(batch)) == len(batch)
        assert LABELS[batch].tolist() == sorted(LABELS[batch].tolist())
        for index in batch:
            drawn[int(LABELS[index])].append(index)
    for label, size in zip(drawn, SIZES, strict=True):
        indices = (label == LABELS).nonzero().squeeze(1).tolist()
        for start in range(0, len(drawn[label]) - size + 1, size):
            assert sorted(drawn[label][start : start + size]) == indices


def test_small_classes_repeat_as_little_as_they_can() -> None:
    labels = labels_of((1, 3, 10, 50))
    for batch in ClassBalancedBatchSampler(labels, 10, num_batches=7):
        assert set(counts(batch, labels).values()) == {10}
        of_samples = Counter(batch)
        repeats = [sorted(of_samples[i] for i in set(batch) if labels[i] == label) for label in (-5, -2, 1, 4)]
        assert repeats == [[10], [3, 3, 4], [1] * 10, [1] * 10]


def test_some_classes_of_many() -> None:
    labels = torch.arange(300) % 10
    sampler = ClassBalancedBatchSampler(labels, 2, classes_per_batch=3, num_batches=50)
    seen: Counter[int] = Counter()
    for batch in sampler:
        found = counts(batch, labels)
        assert sorted(found.values()) == [2, 2, 2]
        seen.update(found.keys())
    # 150 classes in rounds of all ten.
    assert set(seen.values()) == {15}


def test_ignored_samples_are_never_drawn() -> None:
    labels = LABELS.clone()
    labels[::3] = -1
    for batch in ClassBalancedBatchSampler(labels, 4, ignore_index=-1, num_batches=30):
        assert -1 not in counts(batch, labels)
    plain = ClassBalancedBatchSampler(LABELS, 4, ignore_index=77)
    assert list(plain) == list(ClassBalancedBatchSampler(LABELS, 4))


def test_seed_and_epoch_fix_the_order() -> None:
    def batches(seed: int, epoch: int) -> list[list[int]]:
        sampler = ClassBalancedBatchSampler(LABELS, 5, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert batches(3, 4) == batches(3, 4)
    orders = [batches(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert all(x != y for x, y in itertools.combinations(orders, 2))
    sampler = ClassBalancedBatchSampler(LABELS, 5)
    assert [list(sampler) for _ in range(3)] == [batches(0, epoch) for epoch in range(3)]
    # A pass that was only begun is an epoch as well, one of which nothing was drawn is not.
    next(iter(sampler))
    iter(sampler)
    assert list(sampler) == batches(0, 4)


def test_set_epoch_brings_processes_together() -> None:
    samplers = [ClassBalancedBatchSampler(LABELS, 5, num_replicas=2, rank=rank) for rank in range(2)]
    next(iter(samplers[0]))  # a look at a batch, in one process
    for epoch in range(2):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        for ours, theirs in zip(*samplers, strict=True):
            # Class 1 has 7 samples, too few for both.
            shared = set(ours) & set(theirs)
            assert {int(LABELS[index]) for index in shared} <= {-2}


def test_the_length_of_an_epoch() -> None:
    assert len(ClassBalancedBatchSampler(LABELS, 5)) == 100 // 20
    assert len(ClassBalancedBatchSampler(LABELS, 5, num_replicas=2, rank=0)) == 100 // 40
    assert len(ClassBalancedBatchSampler(LABELS, 5, classes_per_batch=2)) == 10
    assert len(ClassBalancedBatchSampler(LABELS, 90)) == 1
    for sampler in (ClassBalancedBatchSampler(LABELS, 5), ClassBalancedBatchSampler(LABELS, 5, num_batches=13)):
        assert len(list(sampler)) == len(sampler)


@pytest.mark.parametrize("classes", [None, 2])
def test_processes_share_a_schedule(classes: int | None) -> None:
    samplers = [
        ClassBalancedBatchSampler(LABELS, 5, classes_per_batch=classes, num_batches=20, num_replicas=3, rank=rank)
        for rank in range(3)
    ]
    for batches in zip(*samplers, strict=True):
        assert len({tuple(sorted(counts(batch).items())) for batch in batches}) == 1
        for label in counts(batches[0]):
            drawn = [index for batch in batches for index in batch if LABELS[index] == label]
            enough = int((label == LABELS).sum()) >= 15
            # Class 1 has 7 samples: not enough for three processes, but for each of them.
            assert (len(set(drawn)) == 15) == enough
        assert all(len(set(batch)) == len(batch) for batch in batches)


def test_processes_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 4)
    monkeypatch.setattr(distributed, "get_rank", lambda: 3)
    sampler = ClassBalancedBatchSampler(LABELS, 5)
    assert (sampler.num_replicas, sampler.rank) == (4, 3)
    assert list(sampler) == list(ClassBalancedBatchSampler(LABELS, 5, num_replicas=4, rank=3))


@pytest.mark.parametrize(
    ("labels", "options", "error", "words"),
    [
        (["a", "b"], {}, TypeError, ["labels", "integers", "list"]),
        ([0.5, 1.0], {}, TypeError, ["labels", "integer or bool", "float32"]),
        (LABELS[:, None], {}, ValueError, ["labels", "1 dimension", "(100, 1)"]),
        ([], {}, ValueError, ["labels", "empty"]),
        (np.zeros(3, int), {"ignore_index": 0}, ValueError, ["ignore_index=0", "at least one sample"]),
        ([1, "dog"], {}, TypeError, ["labels must be", "integers; got list with an item of type str"]),
        (np.array(["cat", "dog"]), {}, TypeError, ["integers; got ndarray of dtype <U3"]),
        ([0, 2**63], {}, TypeError, ["integers; got list (", "verflow"]),
        (torch.zeros(3, dtype=torch.int64, device="meta"), {}, TypeError, ["labels must have values", "meta"]),
        (LABELS, {"ignore_index": "0"}, TypeError, ["ignore_index", "int or None", "str"]),
        (LABELS, {"ignore_index": 1.5}, TypeError, ["ignore_index", "int or None", "float"]),
        (LABELS, {"ignore_index": True}, TypeError, ["ignore_index", "int or None", "bool"]),
        (LABELS, {"ignore_index": torch.tensor(1)}, TypeError, ["ignore_index", "int or None", "Tensor"]),
        (LABELS, {"ignore_index": 2**63}, ValueError, ["ignore_index", "int64"]),
        (LABELS, {"samples_per_class": 0}, ValueError, ["samples_per_class", "at least 1", "0"]),
        (LABELS, {"samples_per_class": 2.0}, TypeError, ["samples_per_class", "int", "float"]),
        (LABELS, {"classes_per_batch": 5}, ValueError, ["classes_per_batch", "from 1 to 4", "5"]),
        (LABELS, {"num_batches": 0}, ValueError, ["num_batches", "at least 1", "0"]),
        (LABELS, {"seed": -1}, ValueError, ["seed", "at least 0", "-1"]),
        (LABELS, {"num_replicas": 0, "rank": 0}, ValueError, ["num_replicas", "at least 1", "0"]),
        (LABELS, {"num_replicas": 2, "rank": 2}, ValueError, ["rank", "from 0 to 1", "2"]),
    ],
)
def test_bad_input_is_named(labels: Any, options: dict[str, Any], error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as raised:
        ClassBalancedBatchSampler(labels, **({"samples_per_class": 2} | options))
    assert all(word in str(raised.value) for word in words), raised.value


def test_an_epoch_below_0_is_an_error() -> None:
    with pytest.raises(ValueError, match="epoch must be at least 0; got -1"):
        ClassBalancedBatchSampler(LABELS, 2).set_epoch(-1)
