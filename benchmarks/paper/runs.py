"""One training from its configuration to the files that keep its outcome, so that no configuration is trained twice.

A run lives in a folder that is named after its configuration:

    run.json        configuration, environment, learning curve and seconds; it exists once the training is finished
    weights.pt      the trained network
    checkpoint.pt   an unfinished training, from which it can be resumed
    events.*        for TensorBoard, where it is installed
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.environment import environment
from benchmarks.paper.augmentation import Stl10Augmentation, SvhnAugmentation
from benchmarks.paper.data import DataError, Dataset, Images
from benchmarks.paper.networks import NETWORKS, AssociationNetwork
from benchmarks.paper.sampling import (
    Augmentation,
    Batches,
    LabelledBatches,
    Stream,
    UnlabelledBatches,
    all_per_class,
    choose_per_class,
    random_stream,
)
from benchmarks.paper.sources import Source, load
from benchmarks.paper.tensorboard import tensorboard_log
from benchmarks.paper.training import Curve, Progress, TrainingOptions, save_whole, train

LATER_DEFAULTS = (("files", None), ("precision", "float32"), ("unlabelled_of_source", False))
AUGMENTATIONS: dict[str, Callable[[], Augmentation]] = {"svhn": SvhnAugmentation, "stl10": Stl10Augmentation}


@dataclass(frozen=True)
class RunConfig:
    """Everything that the numbers of one training depend on, apart from the number of threads.

    ``labels_per_class`` and ``unlabelled``: how many samples there are of each kind; None: all, 0 unlabelled: labels
    only. ``target``: the data set of the test images, and of the unlabelled ones but where ``unlabelled_of_source``,
    if it is another one. ``start``: the training whose network is trained on. ``test_limit``: at most so many test
    images.
    """

    source: Source
    network: str
    training: TrainingOptions
    labels_per_class: int | None
    unlabelled: int | None
    labelled_per_class_in_batch: int = 10
    unlabelled_batch: int = 100
    target: Source | None = None
    start: RunConfig | None = None
    augmentation: str | None = None
    test_limit: int | None = None
    seed: int = 0
    device: str = "cpu"
    unlabelled_of_source: bool = False

    @property
    def key(self) -> str:
        """The name of the run's folder."""
        content = json.dumps(asdict(self, dict_factory=_without_later_defaults), sort_keys=True)
        return f"{self.source.name}-seed{self.seed}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class Record:
    """A finished run."""

    config: RunConfig
    environment: dict[str, Any]
    sizes: dict[str, int]
    curve: Curve
    seconds: float

    @property
    def error_percent(self) -> float:
        """Of the trained network, on the test images."""
        return self.curve.test_error_percent[-1]


@dataclass(frozen=True)
class Samples:
    """The images of a run: those with labels, by class, and those without."""

    train: Images
    labelled: list[Tensor]
    unlabelled: Tensor
    chosen: Tensor | None
    test: Images


def samples(config: RunConfig) -> Samples:
    """Choose the samples of ``config``. Raises `DataError` where there are too few."""
    dataset = load(config.source)
    target = dataset if config.target is None else load(config.target)
    setup = random_stream(config.seed, Stream.SETUP)
    if config.labels_per_class is None:
        labelled = all_per_class(dataset.train.labels)
    else:
        labelled = list(choose_per_class(dataset.train.labels, config.labels_per_class, setup))
    others = dataset if config.unlabelled_of_source else target
    unlabelled = others.train.images if others.unlabelled is None else others.unlabelled
    chosen = None
    if config.unlabelled is not None:
        if config.unlabelled > len(unlabelled):
            raise DataError(
                f"{others.name} has {len(unlabelled):,} unlabelled images where {config.unlabelled:,} are needed"
            )
        chosen = torch.randperm(len(unlabelled), generator=setup)[: config.unlabelled]
    return Samples(dataset.train, labelled, unlabelled, chosen, _limited(target, config.test_limit))


def initial_network(config: RunConfig, runs: Path) -> AssociationNetwork:
    """The network before its first step: random, or as the run of ``config.start`` left it."""
    if config.start is not None:
        return trained_network(config.start, runs)
    return _random_network(config)


def trained_network(config: RunConfig, runs: Path) -> AssociationNetwork:
    """The network of a finished run."""
    network = _random_network(config)
    network.load_state_dict(torch.load(runs / config.key / "weights.pt", weights_only=True, map_location="cpu"))
    return network.to(config.device)


def finished(config: RunConfig, runs: Path) -> Record | None:
    """What is known of the run of ``config`` in the folder ``runs``; None where it is not finished."""
    path = runs / config.key / "run.json"
    if not (path.exists() and path.with_name("weights.pt").exists()):
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    curve = Curve(**content["curve"])
    return Record(config, content["environment"], content["sizes"], curve, content["seconds"])


def lengths(runs: Path) -> set[int]:
    """How many steps the finished runs in the folder ``runs`` took."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in runs.glob("*/run.json")]
    return {record["config"]["training"]["steps"] for record in records}


def steps_done(config: RunConfig, runs: Path) -> int:
    """How many steps the checkpoint of ``config`` has behind it; 0 where there is none."""
    checkpoint = runs / config.key / "checkpoint.pt"
    if not checkpoint.exists():
        return 0
    return int(torch.load(checkpoint, weights_only=True, map_location="cpu")["step"])


def check(config: RunConfig) -> None:
    """Raises `DataError` where the data of ``config`` cannot be read or have too few samples."""
    make_batches(config, samples(config))


def make_batches(config: RunConfig, drawn: Samples) -> Batches:
    """What the run of ``config`` draws from its samples. Raises `DataError` where they fill no batch."""
    unlabelled = None
    if config.unlabelled != 0:
        generator = random_stream(config.seed, Stream.UNLABELLED)
        unlabelled = UnlabelledBatches(drawn.unlabelled, config.unlabelled_batch, generator, drawn.chosen)
    labelled = LabelledBatches(
        drawn.train,
        drawn.labelled,
        config.labelled_per_class_in_batch,
        random_stream(config.seed, Stream.LABELLED),
    )
    if config.augmentation is None:
        return Batches(labelled, unlabelled, config.device)
    streams = (Stream.AUGMENTATION, Stream.UNLABELLED_AUGMENTATION)
    generators = [random_stream(config.seed, stream) for stream in streams]
    return Batches(labelled, unlabelled, config.device, AUGMENTATIONS[config.augmentation](), generators)


def execute(config: RunConfig, runs: Path, progress: Progress, *, resume: bool) -> None:
    """Train ``config`` and write its files; with ``resume``, from its checkpoint where there is one.

    Raises `DataError` and `DivergenceError`.
    """
    folder = runs / config.key
    about = environment(torch.device(config.device))
    drawn = samples(config)
    batches = make_batches(config, drawn)
    network = initial_network(config, runs).to(config.device)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    if not (resume and checkpoint.exists()):
        checkpoint.unlink(missing_ok=True)
        for events in folder.glob("events.*"):
            events.unlink()
    with tensorboard_log(folder) as log:
        trained = train(network, batches, drawn.test, config.training, progress, checkpoint=checkpoint, log=log)
    save_whole(folder / "weights.pt", network.state_dict())
    content = {
        "config": asdict(config),
        "environment": about,
        "sizes": {
            "labelled": sum(len(indices) for indices in drawn.labelled),
            "unlabelled": len(drawn.unlabelled) if drawn.chosen is None else len(drawn.chosen),
            "test": len(drawn.test),
        },
        "curve": asdict(trained.curve),
        "seconds": trained.seconds,
    }
    unfinished = folder / "run.json.unfinished"
    unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(folder / "run.json")
    checkpoint.unlink(missing_ok=True)


def _without_later_defaults(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Runs keep the names that they had before these fields were added."""
    return dict(field for field in fields if field not in LATER_DEFAULTS)


def _random_network(config: RunConfig) -> AssociationNetwork:
    dataset = load(config.source)
    _, channels, side, _ = dataset.train.images.shape
    generator = random_stream(config.seed, Stream.WEIGHTS)
    network = NETWORKS[config.network](dataset.classes, generator, channels=channels, side=side)
    return network.to(config.device)


def _limited(dataset: Dataset, limit: int | None) -> Images:
    if limit is None or limit >= len(dataset.test):
        return dataset.test
    return dataset.test[torch.linspace(0, len(dataset.test) - 1, limit).long()]
