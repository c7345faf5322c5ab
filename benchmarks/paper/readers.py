"""The published file formats of MNIST (IDX), SVHN (MATLAB), STL-10 (raw binary), USPS (LIBSVM), read and checked."""

from __future__ import annotations

import bz2
import gzip
import importlib
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import INSTALL_DEMO

UInt8Array = npt.NDArray[np.uint8]

MNIST_SIDE = 28
SVHN_SIDE = 32
STL10_SIDE = 96
USPS_SIDE = 16
COLOURS = 3

IDX_UNSIGNED_BYTE = 0x08  # third byte of the magic number; the fourth is the number of dimensions


class DataError(ValueError):
    """The images cannot be used; the message names the file or package and says what is wrong with it."""


def read_idx(path: Path) -> UInt8Array:
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
        raise _unreadable(path, error) from error

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


def read_mnist_part(folder: Path, part: str) -> tuple[UInt8Array, UInt8Array]:
    """Images [N, 28, 28] and labels [N], 0 to 9, of the ``part`` "train" or "t10k", each file gzipped or not."""
    images_path = _find_idx(folder, f"{part}-images-idx3-ubyte")
    labels_path = _find_idx(folder, f"{part}-labels-idx1-ubyte")
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or images.shape[1:] != (MNIST_SIDE, MNIST_SIDE):
        raise DataError(f"{images_path}: holds an array of shape {images.shape}, expected (count, 28, 28)")
    if labels.ndim != 1:
        raise DataError(f"{labels_path}: holds an array of shape {labels.shape}, expected (count,)")
    if len(images) != len(labels):
        raise DataError(f"{labels_path}: {len(labels):,} labels for the {len(images):,} images of {images_path}")
    _check_labels(labels_path, labels, 0, 9)
    return images, labels


def read_svhn_part(path: Path) -> tuple[UInt8Array, UInt8Array]:
    """Images [N, 3, 32, 32] and labels [N], 1 to 10 where 10 is the digit 0, of one file of SVHN's format 2.

    The file is a MATLAB file (version 5, as published) with the pixels ``X`` [32, 32, 3, N] uint8 and the labels
    ``y`` [N, 1]. Raises `DataError` naming the file, or where scipy is not installed.
    """
    scipy_io = import_or_explain("scipy.io", "SVHN is read with the package scipy")
    _require_file(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise _unreadable(path, error) from error
    with file:
        try:
            # Asked for all variables, the reader goes to the end of the file and sees what follows X and y.
            variables = scipy_io.loadmat(file)
        except Exception as error:  # whatever the damage leads it to: zlib's errors, OSError, TypeError, MemoryError
            raise DataError(
                f"{path}: not a complete MATLAB file of version 5 ({type(error).__name__}: {error})"
            ) from error

    images, labels = (_mat_variable(path, variables, name) for name in ("X", "y"))
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (SVHN_SIDE, SVHN_SIDE, COLOURS):
        raise DataError(
            f"{path}: the variable X is {images.dtype} of shape {images.shape}, expected uint8 of (32, 32, 3, count)"
        )
    count = images.shape[3]
    if labels.shape not in {(count, 1), (1, count)}:
        raise DataError(f"{path}: the variable y has shape {labels.shape}, expected ({count}, 1) as X has images")
    labels = labels.ravel()
    _check_labels(path, labels, 1, 10)
    return np.ascontiguousarray(images.transpose(3, 2, 0, 1)), labels.astype(np.uint8)


def map_stl10_images(path: Path) -> UInt8Array:
    """The images of an STL-10 file as [N, 3, 96, 96], mapped into memory: a page is read when it is first used.

    The format has no header: 96 * 96 * 3 bytes an image, the colours one after the other, each column by column.
    Writing to the array leaves the file alone. Raises `DataError` naming the file.
    """
    _require_file(path)
    image_bytes = COLOURS * STL10_SIDE * STL10_SIDE
    size = path.stat().st_size
    if size == 0:
        raise DataError(f"{path}: holds no images")
    if size % image_bytes:
        raise DataError(
            f"{path}: truncated or too long, {size:,} bytes are {size // image_bytes:,} images of {image_bytes:,} "
            f"bytes and {size % image_bytes:,} bytes more"
        )
    try:
        pixels = np.memmap(path, np.uint8, "c")  # "c": torch wants a writable array, and the file stays as it is
    except OSError as error:
        raise _unreadable(path, error) from error
    return pixels.reshape(-1, COLOURS, STL10_SIDE, STL10_SIDE).transpose(0, 1, 3, 2)


def read_stl10_part(folder: Path, part: str) -> tuple[UInt8Array, UInt8Array]:
    """Images [N, 3, 96, 96], mapped as by `map_stl10_images`, and labels [N], 1 to 10, of "train" or "test"."""
    images = map_stl10_images(folder / f"{part}_X.bin")
    labels_path = folder / f"{part}_y.bin"
    _require_file(labels_path)
    try:
        labels = np.fromfile(labels_path, np.uint8)
    except OSError as error:
        raise _unreadable(labels_path, error) from error
    if len(labels) != len(images):
        raise DataError(
            f"{labels_path}: {len(labels):,} labels for the {len(images):,} images of {folder / f'{part}_X.bin'}"
        )
    _check_labels(labels_path, labels, 1, 10)
    return images, labels


def read_usps_part(path: Path) -> tuple[UInt8Array, UInt8Array]:
    """Images [N, 16, 16], 0 to 255, and labels [N], 1 to 10 where 1 is the digit 0, of a file of USPS.

    The file is text, compressed by bzip2. Each line is an image in the form of LIBSVM: its label, then ``index:value``
    for the indices 1 to 256, row by row, with values from -1 to 1. Raises `DataError` naming the file.
    """
    _require_file(path)
    try:
        lines = bz2.decompress(path.read_bytes()).decode("ascii").splitlines()
    except (OSError, ValueError) as error:  # also of a file that ends too early or is no text
        raise DataError(f"{path}: not a complete bzip2 file of text ({error})") from error
    pixels = USPS_SIDE * USPS_SIDE
    rows = [line.replace(":", " ").split() for line in lines]
    for number, row in enumerate(rows, start=1):
        if len(row) != 1 + 2 * pixels:
            raise DataError(f"{path}: line {number} is not a label and {pixels} pairs index:value")
    try:
        numbers = np.array(rows, np.float64).reshape(-1, 1 + 2 * pixels)
    except ValueError as error:
        raise DataError(f"{path}: holds what is not a number ({error})") from error
    labels, indices, values = numbers[:, 0], numbers[:, 1::2], numbers[:, 2::2]
    _check_labels(path, labels, 1, 10)
    if (indices != np.arange(1, pixels + 1)).any():
        raise DataError(f"{path}: the indices of a line are not 1 to {pixels} in this order")
    if not (np.abs(values) <= 1).all():
        raise DataError(f"{path}: holds a value that is not from -1 to 1")
    images = np.rint((values + 1) * 127.5).astype(np.uint8)
    return images.reshape(-1, USPS_SIDE, USPS_SIDE), labels.astype(np.uint8)


def import_or_explain(module: str, use: str) -> Any:
    """The ``module``, or `DataError` that says, after ``use``, how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(f"{use}, which cannot be imported ({error}); to install it: {INSTALL_DEMO}") from error


def require_folder(folder: Path) -> None:
    """Raise `DataError` where ``folder`` is none."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")


def _require_file(path: Path) -> None:
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if not path.is_file():
        raise DataError(f"{path}: cannot be read (not a file)")


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read ({error.strerror or error})")


def _find_idx(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise DataError(f"{folder / name}: no such file, with or without .gz")


def _mat_variable(path: Path, variables: dict[str, Any], name: str) -> npt.NDArray[Any]:
    if name not in variables:
        found = ", ".join(sorted(key for key in variables if not key.startswith("__"))) or "none"
        raise DataError(f"{path}: has no variable {name}; expected X and y, found {found}")
    return np.asarray(variables[name])


def _check_labels(path: Path, labels: npt.NDArray[Any], lowest: int, highest: int) -> None:
    if len(labels) == 0:
        raise DataError(f"{path}: holds no labels")
    wrong = labels[~np.isin(labels, np.arange(lowest, highest + 1))]
    if len(wrong):
        raise DataError(f"{path}: holds the label {wrong[0]:g}, expected {lowest} to {highest}")
