"""`python -m benchmarks.paper`: every experiment from its options to its files, at the sizes of --quick."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("mlxtend")
pytest.importorskip("scipy")
pytest.importorskip("sklearn")
pytest.importorskip("tqdm")

import scipy.io

from benchmarks.paper import plans, training
from benchmarks.paper.__main__ import main
from benchmarks.paper.experiments import EMBEDDED
from benchmarks.paper.plans import Settings
from benchmarks.paper.runs import finished, samples, steps_done, trained_network
from tests.benchmarks.paper.test_usps import write_usps

# What stands beside the rows of --quick, where the task is the paper's.
PAPERS_NUMBERS = {
    "table1": ["0.89 (0.08)", "0.36 (0.03)"],
    "table2": ["82.10 (1.91)"],  # Table 2 has no 20 labels, Table 3 has
    "table3": ["81.00 (3.01)", "82.10 (1.91)", "3.09 (0.06)", "2.69 (0.05)"],
    "table5": ["18.56", "0.51 (99.3 %)", "0.38"],
    "figure3": ["0.96"],
    "table4": ["5.68 (0.53)", "0.85 (0.04)"],
    "stl10": ["19"],
}
# Group, series, labelled and unlabelled images of each row of test errors. MNIST-5k has 4,000 digits to train with,
# scikit-learn 1,415.
MNIST_5K_ROW = ("100", "with association", "100", "4000")
ROWS = {
    "table1": [
        ("100", "labels only", "100", "0"),
        MNIST_5K_ROW,
        ("all", "labels only", "4000", "0"),
        ("all", "with association", "4000", "4000"),
    ],
    "table3": [
        ("20", "0", "20", "0"),
        ("20", "40", "20", "40"),
        ("20", "all", "20", "4000"),
        ("all", "0", "4000", "0"),
        ("all", "40", "4000", "40"),
        ("all", "all", "4000", "4000"),
    ],
    "table4": [
        (weight, reading, "1000", "4000")
        for weight in ("0", "1")
        for reading in ("least during training", "at the end")
    ],
    "table5": [
        ("source only", "scikit-learn digits to MNIST-5k", "1415", "0"),
        ("adapted", "scikit-learn digits to MNIST-5k", "1415", "4000"),
        ("target only", "scikit-learn digits to MNIST-5k", "4000", "0"),
    ],
    "figure2": [("20", "with association", "20", "4000")],
    **{name: [MNIST_5K_ROW] for name in ("figure3", "figure4")},
    "curves": [("100 labels", "eager PyTorch", "100", "4000"), ("100 labels", "fastassoc", "100", "4000")],
}
EMBEDDED_IS_ANOTHER_TASK = ("table3", "table5")
# How many numbers of other methods or data sets follow the embedded ones.
OTHERS = {"table1": 4, "table4": 4, "table5": 9}
QUICK = ["--quick", "--quiet"]


ANOTHER_METHOD = "the paper's of another method or data set, %"
GAP = "gap from source only to target only that adaptation closes, %"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shared_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all commands, so that they share trainings as they do for a reader."""
    return tmp_path_factory.mktemp("paper")


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def papers_numbers(rows: list[dict[str, str]]) -> list[str]:
    """Beside what is measured; a figure's findings have none."""
    return [row["paper"] for row in rows if row["quantity"] == "test error, %" and row["paper"] != "-"]


def write_mnist(folder: Path, count: int = 120) -> None:
    rng = np.random.default_rng(0)
    for part, size in (("train", count), ("t10k", 20)):
        for name, array in (
            ("images-idx3", rng.integers(0, 256, (size, 28, 28), dtype=np.uint8)),
            ("labels-idx1", np.arange(size, dtype=np.uint8) % 10),
        ):
            header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            (folder / f"{part}-{name}-ubyte").write_bytes(header + array.tobytes())


def write_svhn(folder: Path) -> None:
    rng = np.random.default_rng(1)
    for part, size in (("train", 60), ("test", 20)):
        images = rng.integers(0, 256, (32, 32, 3, size), dtype=np.uint8)
        labels = (np.arange(size, dtype=np.uint8) % 10 + 1)[:, None]
        scipy.io.savemat(folder / f"{part}_32x32.mat", {"X": images, "y": labels})


def write_stl10(folder: Path) -> None:
    rng = np.random.default_rng(2)
    for part, size in (("train", 30), ("test", 20), ("unlabeled", 25)):
        (folder / f"{part}_X.bin").write_bytes(rng.integers(0, 256, (size, 3, 96, 96), dtype=np.uint8).tobytes())
        if part != "unlabeled":
            (folder / f"{part}_y.bin").write_bytes((np.arange(size, dtype=np.uint8) % 10 + 1).tobytes())


# --- every command --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EMBEDDED)
def test_every_embedded_command(name: str, shared_out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, *QUICK, "--out", str(shared_out)]) == 0
    printed = capsys.readouterr().out
    for path in (shared_out / f"{name}.png", shared_out / f"{name}.csv"):
        assert f"saved {path}" in printed
    assert (shared_out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "its numbers mean nothing" in printed
    every_row = read_csv(shared_out / f"{name}.csv")
    rows = [row for row in every_row if row["quantity"] != ANOTHER_METHOD]
    assert len(every_row) - len(rows) == OTHERS.get(name, 0)
    assert all(row["paper"] in printed and row["median"] == "" for row in every_row[len(rows) :])
    assert papers_numbers(rows) == ([] if name in EMBEDDED_IS_ANOTHER_TASK else PAPERS_NUMBERS.get(name, []))
    assert {row["std"] for row in rows} == {"-"}  # one run has none
    errors = [row for row in rows if row["quantity"] == "test error, %"]
    names = list(rows[0])[2:4]  # of group and series, which differ between experiments
    assert [tuple(row[name] for name in (*names, "labelled_images", "unlabelled_images")) for row in errors] == ROWS[
        name
    ]
    if name == "table4":
        assert [row["visit_weight"] for row in rows] == ["0.0", "0.0", "1.0", "1.0"]
        for least, final in (rows[:2], rows[2:]):
            assert float(least["median"]) <= float(final["median"])
    if name == "curves":
        assert [row["loss"] for row in errors] == ["eager", "fastassoc"]
    for row in rows:
        assert -100 <= float(row["median"]) <= 100
        assert row["median"] in printed
        assert row["torch"] == torch.__version__
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", row["date"])
        assert row["commit"]
    assert rows[0]["steps"] == "3"
    assert float(rows[0]["seconds_a_run"]) >= 0


def test_trainings_are_shared_between_commands(shared_out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["table1", *QUICK, "--out", str(shared_out)])
    before = {path: path.stat().st_mtime_ns for path in (shared_out / "runs").glob("*/run.json")}
    capsys.readouterr()
    assert main(["figure3", *QUICK, "--out", str(shared_out)]) == 0
    assert "1 of 1 trainings are already in" in capsys.readouterr().out
    assert main(["table1", *QUICK, "--out", str(shared_out)]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (shared_out / "runs").glob("*/run.json")}


@pytest.mark.parametrize(
    ("name", "writers", "rows"),
    [
        ("table1", [write_mnist], 4),
        ("table2", [write_svhn], 1),
        ("table3", [write_svhn], 6),
        ("table5", [write_svhn, write_mnist], 3),
        ("stl10", [write_stl10], 2),
        ("figure4", [write_stl10], 3),
    ],
)
def test_commands_on_published_files(
    name: str, writers: list[object], rows: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    for write in writers:
        write(data)  # type: ignore[operator]
    assert main([name, *QUICK, "--data", str(data), "--out", str(out)]) == 0
    written = read_csv(out / f"{name}.csv")
    assert len([row for row in written if row["quantity"] not in (ANOTHER_METHOD, GAP)]) == rows
    numbers = PAPERS_NUMBERS["stl10"] if name == "figure4" else PAPERS_NUMBERS[name]  # both of STL-10
    assert papers_numbers(written) == numbers
    printed = capsys.readouterr().out
    assert all(number in printed for number in numbers)


@pytest.mark.parametrize("pair", [("usps", "mnist"), ("mnist", "usps")])
def test_usps_and_mnist_adapt_to_each_other(
    pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"usps": ("25", "10"), "mnist": ("120", "20")}
    for name, write in (("usps", lambda folder: write_usps(folder, train=25)), ("mnist", write_mnist)):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    source, target = pair
    options = [*QUICK, "--source", source, "--target", target, "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["table5", *options]) == 0
    every_row = read_csv(tmp_path / "out" / "table5.csv")
    rows = [row for row in every_row if row["quantity"] == "test error, %"]
    training, test = sizes[target]
    assert {(row["source to target"], row["test_images"]) for row in rows} == {
        (f"{source.upper()} to {target.upper()}", test)
    }
    trained_on, _ = sizes[source]
    assert [(row["training"], row["labelled_images"], row["unlabelled_images"]) for row in rows] == [
        ("source only", trained_on, trained_on),
        ("adapted", trained_on, training),
        ("target only", training, training),
    ]
    assert {row["paper"] for row in rows} == {"-"}
    others = [row for row in every_row if row["quantity"] == ANOTHER_METHOD]
    assert all(row["source to target"].startswith("SVHN to MNIST") for row in others)
    assert [row["paper"] for row in others[:3]] == PAPERS_NUMBERS["table5"]
    assert "another task" in capsys.readouterr().out


def test_neighbours_of_published_mnist(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    assert main(["figure4", *QUICK, "--source", "mnist", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert read_csv(tmp_path / "out" / "figure4.csv")[0]["test_images"] == "20"


def test_what_is_finished_can_be_shown_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table without some of its trainings; of each seed the longest."""
    show = ["table1", *QUICK, "--finished", "--runs", "2", "--out", str(tmp_path)]
    assert main(show) == 2
    assert "no training of table1 with these options is finished" in capsys.readouterr().err
    for seed, steps in ((0, "1"), (1, "1"), (0, "2")):  # the training of 100 labels, with association
        options = ["--steps", steps, "--seed", f"{seed}", "--runs", "1", "--out", str(tmp_path)]
        assert main(["figure3", *QUICK, *options]) == 0
    assert main(show) == 0
    (row,) = (row for row in read_csv(tmp_path / "table1.csv") if row["quantity"] == "test error, %")
    assert (row["labelled digits"], row["training"]) == ("100", "with association")
    assert (row["steps"], row["seeds"]) == ("2 1", "0 1")
    assert main([*show, "--steps", "2"]) == 0
    (row,) = (row for row in read_csv(tmp_path / "table1.csv") if row["quantity"] == "test error, %")
    assert (row["steps"], row["seeds"]) == ("2", "0")
    assert len(list(tmp_path.glob("runs/*/run.json"))) == 3


def test_data_may_lie_in_subfolders(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    write_mnist(tmp_path / "mnist")
    out = tmp_path / "out"
    assert main(["figure3", *QUICK, "--steps", "1", "--data", str(tmp_path), "--out", str(out)]) == 0
    (row,) = read_csv(out / "figure3.csv")
    assert (row["labelled_images"], row["unlabelled_images"], row["test_images"]) == ("100", "120", "20")
    assert row["steps"] == "1"


def test_seeds_give_median_and_deviation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["figure4", *QUICK, "--steps", "1", "--runs", "3", "--seed", "7", "--out", str(tmp_path)]) == 0
    row, *_ = read_csv(tmp_path / "figure4.csv")
    values = [float(value) for value in row["values"].split()]
    assert len(values) == 3
    assert row["seeds"] == "7 8 9"
    assert float(row["median"]) == sorted(values)[1]
    assert float(row["std"]) == pytest.approx(np.std(values, ddof=1), abs=0.006)


def test_two_processes_train_the_same_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In two waves: the adapted network starts from the one that is trained on the source."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)  # so that each has one thread, as this process
    write_svhn(tmp_path)
    write_mnist(tmp_path)
    for name, workers in (("alone", "1"), ("shared", "2")):
        options = ["--data", str(tmp_path), "--workers", workers, "--out", str(tmp_path / name)]
        assert main(["table5", *QUICK, *options]) == 0
    alone, shared = (read_csv(tmp_path / name / "table5.csv") for name in ("alone", "shared"))
    assert [row["values"] for row in alone] == [row["values"] for row in shared]


def test_resume_goes_on_from_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained_steps = 0
    batch_loss = training.batch_loss

    def counting(*arguments: object) -> object:
        nonlocal trained_steps
        trained_steps += 1
        if trained_steps == 6:
            raise KeyboardInterrupt
        return batch_loss(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "batch_loss", counting)
    options = ["figure3", *QUICK, "--steps", "8"]
    assert main([*options, "--out", str(tmp_path)]) == 130
    assert "with --resume also within the others" in capsys.readouterr().err
    (checkpoint,) = tmp_path.glob("runs/*/checkpoint.pt")
    assert steps_done(plans.mnist(Settings(quick=True, steps=8)), tmp_path / "runs") == 5
    kept = shutil.copytree(tmp_path, tmp_path / "kept")
    assert main([*options, "--resume", "--out", str(tmp_path)]) == 0
    assert "start anew" not in capsys.readouterr().out
    assert trained_steps == 6 + 3  # the sixth step was lost, the five before it not
    assert not checkpoint.exists()

    events = kept / checkpoint.relative_to(tmp_path).with_name("events.of.before")
    events.touch()
    assert main([*options, "--out", str(kept)]) == 0
    assert trained_steps == 6 + 3 + 8
    assert not events.exists()
    assert "1 interrupted trainings start anew" in capsys.readouterr().out
    assert main([*options, "--out", str(tmp_path / "uninterrupted")]) == 0
    resumed, whole = (
        json.loads(next(folder.glob("runs/*/run.json")).read_text())["curve"]
        for folder in (tmp_path, tmp_path / "uninterrupted")
    )
    assert resumed == whole


def test_processes_end_with_the_command(tmp_path: Path) -> None:
    """Ctrl-C goes to all processes of a terminal at once, also to one that still imports what it needs."""
    options = [*QUICK, "--steps", "1000000", "--runs", "2", "--workers", "2", "--out", str(tmp_path)]
    command = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.paper", "figure3", *options],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts its background jobs, perhaps these tests, deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 300  # where other work keeps the cores busy, imports alone take half a minute
        while not list(tmp_path.glob("runs/*/")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(command.pid, signal.SIGINT)
        _, errors = command.communicate(timeout=300)  # until the last process has closed these pipes
    finally:
        command.kill()
    assert command.returncode == 130
    assert "--resume" in errors
    assert len(errors.splitlines()) == 1


def test_another_commit_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["figure3", *QUICK, "--steps", "1", "--out", str(tmp_path)]
    assert main(command) == 0
    assert main(command) == 0
    assert "another commit" not in capsys.readouterr().out
    (record,) = tmp_path.glob("runs/*/run.json")
    content = json.loads(record.read_text())
    content["environment"]["commit"] = "0123abc"
    record.write_text(json.dumps(content))
    assert main(command) == 0
    assert "of another commit (0123abc) than this code" in capsys.readouterr().out


# --- runs -----------------------------------------------------------------------------------------------------------


def test_a_run_without_weights_is_not_finished(tmp_path: Path) -> None:
    assert main(["figure3", *QUICK, "--steps", "1", "--out", str(tmp_path)]) == 0
    config = plans.mnist(Settings(quick=True, steps=1))
    assert finished(config, tmp_path / "runs") is not None
    (tmp_path / "runs" / config.key / "weights.pt").unlink()
    assert finished(config, tmp_path / "runs") is None


def test_the_adapted_network_starts_from_the_source_network(shared_out: Path) -> None:
    main(["table5", *QUICK, "--out", str(shared_out)])
    adapted = plans.domain_adaptation(Settings(quick=True))["adapted"]
    assert adapted.start is not None
    source, target = (finished(config, shared_out / "runs") for config in (adapted.start, adapted))
    assert source is not None
    assert target is not None
    assert target.curve.test_error_percent[0] == source.error_percent
    assert samples(adapted).unlabelled.shape[1:] == samples(adapted).train.images.shape[1:]
    assert trained_network(adapted, shared_out / "runs").training
