"""The configurations of the paper's experiments: their values, and the names that runs are found again by."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.paper import plans
from benchmarks.paper.experiments import EMBEDDED, EXPERIMENTS, with_seed
from benchmarks.paper.plans import Settings
from benchmarks.paper.runs import RunConfig
from benchmarks.paper.schedules import LearningRate, Weight
from benchmarks.paper.sources import Source
from benchmarks.paper.training import TrainingOptions


def configs(name: str, settings: Settings) -> set[RunConfig]:
    return set(EXPERIMENTS[name](settings).configs(settings))


@pytest.mark.parametrize("steps", [None, 7, 3000])
def test_tables_share_what_they_have_in_common(steps: int | None) -> None:
    settings = Settings(steps=steps)
    (common,) = configs("figure3", Settings(steps=steps, runs=1))
    for name in EMBEDDED:
        assert (common in configs(name, settings)) == (name not in ("table4", "table5", "figure2")), name
    assert len(configs("table1", settings) & configs("table4", settings)) == 3  # 1,000 labels, visit weight 1
    assert len(configs("table1", settings) & configs("table3", settings)) == 4 * 3


def test_a_seed_goes_down_to_the_run_that_is_started_from() -> None:
    adapted = with_seed(plans.domain_adaptation(Settings())["adapted"], 5)
    assert adapted.start is not None
    assert (adapted.seed, adapted.start.seed) == (5, 5)


# --- names of runs --------------------------------------------------------------------------------------------------

SOURCE = Source("mnist", "folder", 16, 1, "file")
TRAINING = TrainingOptions(100, LearningRate(1e-3, 0.5, 10, 1e-6), Weight(0.5, "linear", 10, 20), Weight(0.25), 10)
RUN = RunConfig(SOURCE, "mnist", TRAINING, labels_per_class=10, unlabelled=50)


@dataclass(frozen=True)
class Part:
    """A part of `RUN`: how a changed one is put in, and another value for every field of it."""

    part: Any
    whole: Callable[[Any], RunConfig]
    changes: dict[str, object]


PARTS = [
    Part(
        SOURCE,
        lambda source: replace(RUN, source=source),
        {"name": "svhn", "folder": "other", "side": 32, "channels": 3, "files": "other"},
    ),
    Part(
        TRAINING.walker,
        lambda weight: replace(RUN, training=replace(TRAINING, walker=weight)),
        {"final": 0.6, "ramp": "sigmoid", "duration": 11, "delay": 21},
    ),
    Part(
        TRAINING.learning_rate,
        lambda rate: replace(RUN, training=replace(TRAINING, learning_rate=rate)),
        {"initial": 1e-4, "factor": 0.6, "every": 11, "minimum": 1e-7},
    ),
    Part(
        TRAINING,
        lambda training: replace(RUN, training=training),
        {
            "steps": 101,
            "learning_rate": LearningRate(1e-3),
            "walker": Weight(0.5),
            "visit": Weight(0.5),
            "eval_every": 11,
            "loss": "eager",
            "precision": "bf16",
        },
    ),
    Part(
        RUN,
        lambda run: run,
        {
            "source": Source("svhn"),
            "network": "svhn",
            "training": TRAINING.scaled(200),
            "labels_per_class": None,
            "unlabelled": None,
            "labelled_per_class_in_batch": 11,
            "unlabelled_batch": 101,
            "target": SOURCE,
            "start": RUN,
            "augmentation": "svhn",
            "test_limit": 60,
            "seed": 1,
            "device": "cuda",
            "unlabelled_of_source": True,
        },
    ),
]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: type(part.part).__name__)
def test_the_name_tells_every_field_apart(part: Part) -> None:
    assert list(part.changes) == [field.name for field in fields(part.part)]
    changed = [replace(part.part, **{name: value}) for name, value in part.changes.items()]
    assert len({part.whole(each).key for each in (part.part, *changed)}) == len(changed) + 1


def test_the_name_is_of_one_training() -> None:
    assert plans.mnist(Settings()).key == plans.mnist(Settings(runs=9)).key


def test_the_names_of_embedded_runs_stay() -> None:
    """Results that took an hour are found again by them."""
    assert plans.mnist(Settings()).key == "mnist-seed0-d75464411e8a"
    assert plans.domain_adaptation(Settings())["adapted"].key == "digits-seed0-f38346fe3049"


@pytest.mark.parametrize(
    ("plan", "file"),
    [
        (plans.mnist, "t10k-labels-idx1-ubyte.gz"),
        (plans.svhn, "train_32x32.mat"),
        (plans.stl10, "unlabeled_X.bin"),
        (lambda settings: plans.domain_adaptation(settings)["source only"], "train-images-idx3-ubyte"),
    ],
)
def test_the_name_tells_other_files_apart(
    plan: Callable[[Settings], RunConfig], file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / file
    path.write_bytes(b"one")
    key = plan(Settings(data=tmp_path)).key
    (tmp_path / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    assert plan(Settings(data=Path())).key == key  # the same folder, whatever else lies in it
    time = path.stat().st_mtime_ns
    os.utime(path, ns=(time, time + 1))
    assert plan(Settings(data=tmp_path)).key != key
    os.utime(path, ns=(time, time))
    assert plan(Settings(data=tmp_path)).key == key
    path.write_bytes(b"longer")
    os.utime(path, ns=(time, time))
    assert plan(Settings(data=tmp_path)).key != key


# --- values ---------------------------------------------------------------------------------------------------------


def test_values_of_the_original() -> None:
    """Literally, from where `plans` says; what is this project's choice there is not repeated here."""
    mnist, svhn, stl10, svhn_to_mnist = plans.MNIST, plans.SVHN, plans.STL10, plans.SVHN_TO_MNIST
    # mnist_train_eval.py: its flags, but for how often it tests
    assert replace(mnist, eval_every=500) == TrainingOptions(
        steps=20_000,
        learning_rate=LearningRate(1e-3, factor=0.33, every=5_000, minimum=0.0),
        walker=Weight(1.0),
        visit=Weight(1.0),
        eval_every=500,
    )
    # Issue 6: visit weight and initial rate; train.py: factor and minimum of the rate, walker weight
    assert (svhn.learning_rate.initial, svhn.learning_rate.factor, svhn.learning_rate.minimum) == (1e-3, 0.33, 1e-6)
    assert (svhn.walker, svhn.visit) == (Weight(1.0), Weight(0.25))
    # Issue 8: visit weight; train.py: rates and steps; tools/stl10.py: unlabelled images
    assert stl10.steps == 100_000
    assert stl10.learning_rate == LearningRate(1e-4, factor=0.33, every=60_000, minimum=1e-6)
    assert (stl10.walker, stl10.visit) == (Weight(1.0), Weight(0.0))
    assert plans.STL10_UNLABELLED == 20_000
    # README, SVHN to MNIST: its command; train.py: minimum of the rate
    assert svhn_to_mnist.steps == 12_000
    assert svhn_to_mnist.learning_rate == LearningRate(1e-4, factor=0.33, every=9_000, minimum=1e-6)
    assert svhn_to_mnist.walker == Weight(1.0, "linear", duration=1, delay=500)
    assert svhn_to_mnist.visit == Weight(0.2, "linear", duration=1, delay=500)


def test_batch_sizes_and_augmentation_of_the_original(tmp_path: Path) -> None:
    """10 of each class and 100 unlabelled are the defaults of its scripts, 100 and 1,000 in its README's command."""
    settings = Settings(data=tmp_path)
    runs = [plans.mnist(settings), plans.svhn(settings), plans.stl10(settings)]
    assert {(run.labelled_per_class_in_batch, run.unlabelled_batch) for run in runs} == {(10, 100)}
    assert [run.labels_per_class for run in runs] == [10, 10, 100]
    assert [run.unlabelled for run in runs] == [None, None, 20_000]
    assert [run.augmentation for run in runs] == [None, "svhn", "stl10"]

    source_only, adapted, target_only = plans.domain_adaptation(settings).values()
    for run in (source_only, adapted, target_only):
        assert (run.labelled_per_class_in_batch, run.unlabelled_batch) == (100, 1_000)
        assert (run.labels_per_class, run.augmentation, run.network) == (None, None, "svhn")
    assert adapted.start == source_only
    assert adapted.target is not None
    assert (adapted.target.name, adapted.target.side, adapted.target.channels) == ("mnist", 32, 3)
    assert (source_only.unlabelled, adapted.unlabelled, target_only.unlabelled) == (0, None, 0)
    assert target_only.source == adapted.target
