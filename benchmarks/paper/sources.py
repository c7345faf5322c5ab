"""Which data set a training reads, and in which size and channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from benchmarks.paper.data import (
    DataError,
    Dataset,
    Images,
    read_mnist,
    read_sklearn_digits,
    read_stl10,
    read_svhn,
    read_usps,
    resize,
    to_channels,
)


@dataclass(frozen=True)
class Source:
    """A data set by ``name``, from a ``folder`` or embedded (None), resized and recoloured where that is asked for.

    ``files``: name, size and time of modification of the files in ``folder``, so that what was trained on others is not
    taken for the same.
    """

    name: str
    folder: str | None = None
    side: int | None = None
    channels: int | None = None
    files: str | None = None


FILES = {
    "mnist": ("train-*-ubyte*", "t10k-*-ubyte*"),
    "svhn": ("train_32x32.mat", "test_32x32.mat"),
    "stl10": ("*_X.bin", "*_y.bin"),
    "usps": ("usps.bz2", "usps.t.bz2"),
}


READERS: dict[str, Callable[[Path | None], Dataset]] = {
    "mnist": read_mnist,
    "digits": lambda folder: read_sklearn_digits(),
    "svhn": lambda folder: read_svhn(_required(folder)),
    "stl10": lambda folder: read_stl10(_required(folder)),
    "usps": lambda folder: read_usps(_required(folder)),
}


@lru_cache(maxsize=4)
def load(source: Source) -> Dataset:
    """The data set of ``source``. Raises `DataError` where it cannot be read."""
    dataset = READERS[source.name](None if source.folder is None else Path(source.folder))
    if source.side is None and source.channels is None:
        return dataset
    return replace(
        dataset,
        train=Images(_fit(dataset.train.images, source), dataset.train.labels),
        test=Images(_fit(dataset.test.images, source), dataset.test.labels),
        unlabelled=None if dataset.unlabelled is None else _fit(dataset.unlabelled, source),
    )


def find(name: str, data: Path | None, *, side: int | None = None, channels: int | None = None) -> Source:
    """The data set ``name``, embedded (None) or with its files in the folder ``data`` or in its subfolder ``name``."""
    if data is None:
        return Source(name, side=side, channels=channels)
    folder = (data / name if (data / name).is_dir() else data).resolve()
    paths = sorted(path for pattern in FILES[name] for path in folder.glob(pattern))
    stats = [(path.name, path.stat()) for path in paths]
    files = " ".join(f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in stats)
    return Source(name, str(folder), side, channels, files)


def _fit(images: Tensor, source: Source) -> Tensor:
    if source.channels is not None:
        images = to_channels(images, source.channels)
    return images if source.side is None else resize(images, source.side)


def _required(folder: Path | None) -> Path:
    if folder is None:
        raise DataError("this data set is not embedded; give the folder with its published files with --data DIR")
    return folder
