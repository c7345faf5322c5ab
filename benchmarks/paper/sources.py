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
    resize,
    to_channels,
)


@dataclass(frozen=True)
class Source:
    """A data set by ``name``, from a ``folder`` or embedded (None), resized and recoloured where that is asked for."""

    name: str
    folder: str | None = None
    side: int | None = None
    channels: int | None = None


READERS: dict[str, Callable[[Path | None], Dataset]] = {
    "mnist": read_mnist,
    "digits": lambda folder: read_sklearn_digits(),
    "svhn": lambda folder: read_svhn(_required(folder)),
    "stl10": lambda folder: read_stl10(_required(folder)),
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


def folder_of(name: str, folder: Path | None) -> str | None:
    """Where the files of data set ``name`` are: in ``folder``, or in its subfolder of that name."""
    if folder is None:
        return None
    return str(folder / name if (folder / name).is_dir() else folder)


def _fit(images: Tensor, source: Source) -> Tensor:
    if source.channels is not None:
        images = to_channels(images, source.channels)
    return images if source.side is None else resize(images, source.side)


def _required(folder: Path | None) -> Path:
    if folder is None:
        raise DataError("this data set is not embedded; give the folder with its published files with --data DIR")
    return folder
