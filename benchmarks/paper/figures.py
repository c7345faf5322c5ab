"""The pictures of every experiment, and what is measured on the networks of its Figures 2 to 4."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.paper.associations import (
    SHOWN_LABELLED_PER_CLASS,
    SHOWN_UNLABELLED_PER_CLASS,
    Associations,
    associate,
    save_association_graph,
)
from benchmarks.paper.confusion import labelled_images, save_confusion
from benchmarks.paper.data import DataError, Images
from benchmarks.paper.experiments import Experiment
from benchmarks.paper.neighbours import NEIGHBOURS, nearest, save_neighbours
from benchmarks.paper.plans import Settings
from benchmarks.paper.plots import save_errors, save_learning_curves
from benchmarks.paper.results import Finding, Measured
from benchmarks.paper.runs import Record, RunConfig, Samples, initial_network, samples, trained_network
from benchmarks.paper.sources import load
from benchmarks.paper.training import embed, predict


def check(experiment: Experiment, settings: Settings) -> None:
    """Raises `DataError` where the data leave nothing to show in the picture of ``experiment``."""
    if experiment.name == "figure2":
        for config in experiment.configs(settings):
            _shown(samples(config))


def draw(path: Path, experiment: Experiment, measured: Sequence[Measured], runs: Path) -> list[Finding]:
    """Write the picture of ``experiment`` to ``path`` as PNG, of the first seed where it shows one network.

    Returns what was measured for it, over all seeds.
    """
    records = measured[0].records
    configs = [record.config for record in records]
    if experiment.name == "figure2":
        return _figure2(path, configs, runs)
    if experiment.name == "figure3":
        return _figure3(path, f"{experiment.title}\n{_training(records[0])}", configs[0], runs)
    if experiment.name == "figure4":
        return _figure4(path, f"{experiment.title}\n{_training(records[0])}", configs, runs)
    if experiment.name == "curves":
        save_learning_curves(path, experiment, measured)
        return _differences(measured)
    save_errors(path, experiment, measured)
    return _gap_closed(measured) if experiment.name == "table5" else []


def _figure2(path: Path, configs: Sequence[RunConfig], runs: Path) -> list[Finding]:
    walks: dict[str, list[Associations]] = {"before": [], "after": []}
    for config in configs:
        shown = _shown(samples(config))
        walks["before"].append(associate(initial_network(config, runs), *shown))
        walks["after"].append(associate(trained_network(config, runs), *shown))
    shown = _shown(samples(configs[0]))
    after = f"After {configs[0].training.steps:,} training steps with association (seed {configs[0].seed})"
    save_association_graph(path, *shown, {"Before training": walks["before"][0], after: walks["after"][0]})
    return [
        Finding(
            f"correct round trips among the shown images {when} training, %", tuple(w.correct_percent for w in all_)
        )
        for when, all_ in walks.items()
    ]


def _figure3(path: Path, title: str, config: RunConfig, runs: Path) -> list[Finding]:
    drawn = samples(config)
    predictions = predict(trained_network(config, runs), drawn.test.images)
    labelled = labelled_images(drawn.train, drawn.labelled)
    error = 100 * float((predictions != drawn.test.labels).double().mean())
    title = f"{title}: test error {error:.2f} %"
    save_confusion(path, title, labelled, drawn.test, predictions, load(config.source).classes)
    return []


def _figure4(path: Path, title: str, configs: Sequence[RunConfig], runs: Path) -> list[Finding]:
    before: list[float] = []
    after: list[float] = []
    for config in configs:
        test = samples(config).test
        for network, agreements in ((initial_network(config, runs), before), (trained_network(config, runs), after)):
            neighbours = nearest(embed(network, test.images))
            agreements.append(neighbours.agreement_percent(test.labels))
        if config is configs[0]:
            save_neighbours(path, title, test, neighbours)
    name = f"{NEIGHBOURS} nearest test images of the same class"
    return [Finding(f"{name}, before training, %", tuple(before)), Finding(f"{name}, after, %", tuple(after))]


def _gap_closed(measured: Sequence[Measured]) -> list[Finding]:
    """How far the adapted network gets from the error of the source's to that of the target's, where all are there."""
    errors = {
        item.cell.group: dict(zip(map(_seed_and_steps, item.records), item.errors_percent, strict=True))
        for item in measured
    }
    if errors.keys() != {"source only", "adapted", "target only"}:
        return []
    source, adapted, target = errors["source only"], errors["adapted"], errors["target only"]
    alike = [key for key in adapted if key in source and key in target and source[key] != target[key]]
    closed = tuple(100 * (source[key] - adapted[key]) / (source[key] - target[key]) for key in alike)
    return [Finding("gap from source only to target only that adaptation closes, %", closed)] if closed else []


def _training(record: Record) -> str:
    config = record.config
    return f"{record.sizes['labelled']:,} labels, {config.training.steps:,} training steps, seed {config.seed}"


def _seed_and_steps(record: Record) -> tuple[int, int]:
    """What trainings that are compared one by one have in common."""
    return record.config.seed, record.config.training.steps


def _differences(measured: Sequence[Measured]) -> list[Finding]:
    if len(measured) != 2:
        # One of them has not been trained yet.
        return []
    first, second = measured
    seconds = {_seed_and_steps(record): record for record in second.records}
    pairs = [(a, seconds[key]) for a in first.records if (key := _seed_and_steps(a)) in seconds]
    if not pairs:
        return []
    final = tuple(b.error_percent - a.error_percent for a, b in pairs)
    largest = tuple(
        max(abs(y - x) for x, y in zip(a.curve.test_error_percent[1:], b.curve.test_error_percent[1:], strict=True))
        for a, b in pairs
    )
    names = f"{second.cell.series} less {first.cell.series}"
    return [
        Finding(f"{names}, same seed, at the end, percentage points", final),
        Finding(f"{names}, same seed, largest difference of a curve, percentage points", largest),
    ]


def _shown(drawn: Samples) -> tuple[Images, Images]:
    """The first labelled images of each class, and the first of each class of the training set that carry no label."""
    carry = torch.zeros(len(drawn.train), dtype=torch.bool)
    carry[torch.cat(drawn.labelled)] = True
    others: list[Tensor] = []
    for indices in drawn.labelled:
        label = drawn.train.labels[indices[0]]
        unlabelled = ((drawn.train.labels == label) & ~carry).nonzero().squeeze(1)
        if len(unlabelled) == 0:
            raise DataError(f"class {label} has no training image without a label, which Figure 2 shows")
        others.append(unlabelled[:SHOWN_UNLABELLED_PER_CLASS])
    labelled = torch.cat([indices[:SHOWN_LABELLED_PER_CLASS] for indices in drawn.labelled])
    return drawn.train[labelled], drawn.train[torch.cat(others)]
