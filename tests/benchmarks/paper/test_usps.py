"""`benchmarks.paper.data.read_usps`: the published form of USPS, and what breaks it."""

from __future__ import annotations

import bz2
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.paper.data import DataError, read_usps


def write_usps(folder: Path, train: int = 12, test: int = 10) -> dict[str, np.ndarray]:
    """Random images in the two published files; returns their values by the name of the file."""
    written = {}
    for name, count in (("usps.bz2", train), ("usps.t.bz2", test)):
        values = np.random.default_rng(count).integers(-1000, 1001, (count, 256)) / 1000
        lines = [
            " ".join([str(number % 10 + 1), *(f"{index}:{value:g}" for index, value in enumerate(row, start=1))])
            for number, row in enumerate(values)
        ]
        (folder / name).write_bytes(bz2.compress(("\n".join(lines) + "\n").encode()))
        written[name] = values
    return written


def test_usps_round_trip(tmp_path: Path) -> None:
    written = write_usps(tmp_path)
    dataset = read_usps(tmp_path)
    for part, name in ((dataset.train, "usps.bz2"), (dataset.test, "usps.t.bz2")):
        assert part.images.dtype == torch.uint8
        expected = (written[name].reshape(-1, 1, 16, 16) + 1) / 2 * 255
        assert np.abs(part.images.numpy() - expected).max() <= 0.5
    assert dataset.train.labels.tolist() == [*range(10), 0, 1]  # the label 1 is the digit 0


def text(change: Callable[[str], str]) -> Callable[[bytes], bytes]:
    return lambda content: bz2.compress(change(bz2.decompress(content).decode()).encode())


BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut": (lambda content: content[:-9], "not a complete bzip2 file"),
    "not compressed": (bz2.decompress, "not a complete bzip2 file"),
    "not text": (lambda content: bz2.compress(bytes([200, 201])), "not a complete bzip2 file of text"),
    "empty": (lambda content: bz2.compress(b""), "holds no labels"),
    "a value less": (text(lambda lines: lines[: lines.rindex(" ")]), "is not a label and 256 pairs"),
    "a word": (text(lambda lines: lines.replace(" 7:", " seven:", 1)), "holds what is not a number"),
    "two indices exchanged": (
        text(lambda lines: lines.replace(" 3:", " x:", 1).replace(" 4:", " 3:", 1).replace(" x:", " 4:", 1)),
        "the indices of a line are not 1 to 256",
    ),
    "a value of 1.5": (text(lambda lines: lines[: lines.rindex(":")] + ":1.5"), "a value that is not from -1 to 1"),
    "not a number": (text(lambda lines: lines[: lines.rindex(":")] + ":nan"), "a value that is not from -1 to 1"),
    "label 11": (text(lambda lines: "1" + lines), "label 11"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_usps_file_is_named(kind: str, tmp_path: Path) -> None:
    damage, message = BROKEN[kind]
    write_usps(tmp_path)
    path = tmp_path / "usps.t.bz2"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message) as raised:
        read_usps(tmp_path)
    assert str(path) in str(raised.value)


def test_missing_usps_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        read_usps(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"usps\.bz2: no such file"):
        read_usps(tmp_path)
