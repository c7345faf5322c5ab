"""Train the same network twice, without and with association, and write down what came of it."""

from __future__ import annotations

import copy
import json
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.paper.associations import SHOWN_UNLABELLED_PER_CLASS, associate, save_association_graph
from benchmarks.paper.data import Dataset, Images
from benchmarks.paper.networks import MnistNetwork
from benchmarks.paper.plots import save_error_curves
from benchmarks.paper.sampling import (
    Batches,
    LabelledBatches,
    Stream,
    UnlabelledBatches,
    choose_per_class,
    random_stream,
)
from benchmarks.paper.training import Curve, Progress, TrainingOptions, train

SUPERVISED, ASSOCIATION = "supervised only", "with association"


@dataclass(frozen=True)
class SamplingOptions:
    """How many samples carry labels, how many of each kind stand in a batch, and the seed of every random choice."""

    labels_per_class: int
    labelled_per_class_in_batch: int
    unlabelled_batch: int
    seed: int


@dataclass(frozen=True)
class Result:
    """The curve and the seconds of each run by its name, and the networks and digits of the association graph."""

    labels: int
    curves: dict[str, Curve]
    seconds: dict[str, float]
    untrained: MnistNetwork
    trained: MnistNetwork
    shown_labelled: Images
    shown_unlabelled: Images


def run(
    dataset: Dataset,
    sampling: SamplingOptions,
    training: TrainingOptions,
    device: torch.device,
    progress_for: Callable[[str], AbstractContextManager[Progress]],
) -> Result:
    """Both trainings from the same initial weights, labelled samples and labelled batches.

    ``progress_for(name)`` is entered around each run. Raises `DataError` where a class has too few samples and
    `DivergenceError` where a training fails.
    """
    setup = random_stream(sampling.seed, Stream.SETUP)
    chosen = choose_per_class(dataset.train.labels, sampling.labels_per_class + SHOWN_UNLABELLED_PER_CLASS, setup)
    labelled, shown_unlabelled = chosen.split([sampling.labels_per_class, SHOWN_UNLABELLED_PER_CLASS], dim=1)
    untrained = MnistNetwork(dataset.classes, setup).to(device)

    curves, seconds = {}, {}
    for name in (SUPERVISED, ASSOCIATION):
        network = copy.deepcopy(untrained)
        unlabelled = None
        if name == ASSOCIATION:
            unlabelled = UnlabelledBatches(
                dataset.train.images, sampling.unlabelled_batch, random_stream(sampling.seed, Stream.UNLABELLED)
            )
        # Both trainings draw the same labelled batches, because these have a random stream of their own.
        with_labels = LabelledBatches(
            dataset.train,
            labelled,
            sampling.labelled_per_class_in_batch,
            random_stream(sampling.seed, Stream.LABELLED),
        )
        with progress_for(name) as progress:
            trained = train(network, Batches(with_labels, unlabelled, device), dataset.test, training, progress)
        curves[name], seconds[name] = trained.curve, trained.seconds
    return Result(
        labels=labelled.numel(),
        curves=curves,
        seconds=seconds,
        untrained=untrained,
        trained=network,
        shown_labelled=dataset.train[labelled[:, 0]],
        shown_unlabelled=dataset.train[shown_unlabelled.flatten()],
    )


def table(result: Result, dataset: Dataset) -> str:
    """The final test errors as plain text."""
    supervised, association = (result.curves[name].test_error_percent[-1] for name in (SUPERVISED, ASSOCIATION))
    title = f"{result.labels:,} labelled of {len(dataset.train):,} training digits, {len(dataset.test):,} test digits"
    rows = (
        ("training", "test error"),
        (SUPERVISED, f"{supervised:8.2f} %"),
        (ASSOCIATION, f"{association:8.2f} %"),
        ("difference", f"{supervised - association:8.2f} percentage points"),
    )
    return "\n".join([title, *(f"  {name:<20}{value}" for name, value in rows)])


def save(result: Result, dataset: Dataset, options: dict[str, Any], folder: Path) -> list[Path]:
    """Write the numbers (JSON) and the two pictures (PNG) to the existing ``folder``; returns their paths."""
    numbers, curves, graph = folder / "results.json", folder / "test_error.png", folder / "associations.png"
    content = {
        "options": options,
        "data": {
            "name": dataset.name,
            "train": len(dataset.train),
            "test": len(dataset.test),
            "labelled": result.labels,
        },
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "runs": {name: asdict(curve) for name, curve in result.curves.items()},
        "seconds": result.seconds,
    }
    numbers.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    subtitle = f"{result.labels:,} labelled digits; with association also {len(dataset.train):,} digits without labels"
    save_error_curves(curves, result.curves, subtitle)
    shown = (result.shown_labelled, result.shown_unlabelled)
    steps = result.curves[ASSOCIATION].steps[-1]
    panels = {
        "Before training": associate(result.untrained, *shown),
        f"After {steps:,} training steps with association": associate(result.trained, *shown),
    }
    save_association_graph(graph, *shown, panels)
    return [curves, graph, numbers]
