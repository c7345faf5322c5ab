"""Slots, tiles and pairs of tiles: `fastassoc.kernels.triton.layout`."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastassoc.backends import triton
from fastassoc.backends.protocol import Inputs
from fastassoc.backends.triton import forward, plan
from fastassoc.backends.triton.buffers import Buffers
from fastassoc.backends.triton.launch import OverRanges
from fastassoc.kernels.triton.configs import PASSES, Config, Tile
from tests.kernels.triton.support import DEVICE, sized_classes


class Layout(NamedTuple):
    """What the kernels made of labels."""

    rows: Tensor
    """[slots], -1 in an empty one."""
    firsts: Tensor
    """[slots], the first slot of the class, likewise."""
    tiles: Tensor
    """[3, tiles]: first pair, first tile of the class, tiles of the class."""
    kept: int
    tile_count: int
    pair_count: int
    class_rows: int
    """Slots of a class tile."""


def layout(labels: Tensor, ignore_index: int | None = None) -> Layout:
    a = torch.zeros(len(labels), 1, device=DEVICE)
    values = triton.prepare_labels(labels.to(DEVICE), ignore_index, a, a.dtype)
    inputs = Inputs(a, a[:1], None, None, values, 1.0, 1e-8, True, False, a.dtype)
    saved = triton.losses(inputs, needs_gradient=True, statistics=False).saved
    made = Buffers(*saved[:5])  # type: ignore[arg-type]
    counts = made.counts.tolist()[:3]
    return Layout(*made.slots.cpu(), made.tiles.cpu(), *counts, made.slots.shape[1] // made.tiles.shape[1])


def use_class_tiles(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Of that many slots."""
    config = Config(*[Tile(rows, columns=64, depth=256, warps=4, stages=1)] * len(PASSES))
    monkeypatch.setattr(plan, "choose_config", lambda *_: config)


@pytest.fixture(autouse=True)
def _layout_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Class tiles of 64 slots, and no kernel that does not touch the layout, for time."""
    use_class_tiles(monkeypatch, 64)
    launch = forward.launch
    needed = {"class_sizes", "rows"}
    monkeypatch.setattr(forward, "launch", lambda k, *x, **y: launch(k, *x, **y) if k.__name__ in needed else None)
    monkeypatch.setattr(OverRanges, "__call__", lambda *_, **__: None)
    # What would be read back of the form was not computed.
    monkeypatch.setattr(plan, "MAX_ROWS_WITHOUT_SYNC", 10**9)


def check(labels: Tensor, ignore_index: int | None = None) -> None:
    rows, firsts, tiles, kept, tile_count, pair_count, class_rows = layout(labels, ignore_index)
    keep = torch.ones_like(labels, dtype=torch.bool) if ignore_index is None else labels != ignore_index
    assert kept == int(keep.sum())
    # Every kept row has one slot, and shares its first slot with its class alone.
    assert sorted(rows[rows >= 0].tolist()) == keep.nonzero().view(-1).tolist()
    assert torch.equal(firsts >= 0, rows >= 0)
    class_of_slot = {}
    for slot in (rows >= 0).nonzero().view(-1).tolist():
        label = int(labels[rows[slot]])
        assert class_of_slot.setdefault(int(firsts[slot]), label) == label
    assert len(set(class_of_slot.values())) == len(class_of_slot) == len(set(labels[keep].tolist()))
    # A class takes slots in a row, and straddles no tile unless it is larger than one, from whose first slot it starts.
    for first, label in class_of_slot.items():
        size = int((labels == label).sum())
        slots = (firsts == first).nonzero().view(-1)
        assert slots.tolist() == list(range(first, first + size))
        if size > class_rows:
            assert first % class_rows == 0
        else:
            assert first // class_rows == (first + size - 1) // class_rows
    # More than half of the slots have a row, not counting the end of the last tile.
    used = 1 + int((rows >= 0).nonzero().max()) if kept else 0
    assert 2 * kept > used or kept == 0
    assert tile_count == -(-used // class_rows)
    # Pairs are numbered through, tile by tile, and join a class that has several tiles with itself.
    pairs = []
    for tile, (pair, first, count) in enumerate(tiles.T.tolist()):
        assert (count > 0) == (tile < tile_count)
        pairs += range(pair, pair + count)
        assert count == 0 or first <= tile < first + count
        assert count <= 1 or set(firsts[first * class_rows : (first + count) * class_rows].tolist()) <= {
            first * class_rows,
            -1,
        }
    assert pairs == list(range(pair_count))
    # Tiles that do not exist come after all others.
    assert tiles[0].tolist() == sorted(tiles[0].tolist())


@pytest.mark.parametrize(
    "labels",
    [
        torch.zeros(1, dtype=torch.int64),
        sized_classes([200]),
        sized_classes([1] * 130),
        # Below, at and above powers of two and the tile.
        sized_classes([1, 2, 3, 16, 17, 63, 64, 65, 128, 129]),
        torch.tensor([2**62, -(2**62), 2**62, 0]),
        torch.tensor([True, False, True]),
        torch.tensor([255, 0, 255], dtype=torch.uint8),
    ],
    ids=["one row", "one class", "distinct", "sizes", "large labels", "bool", "uint8"],
)
def test_layout(labels: Tensor) -> None:
    check(labels)


INTEGERS = [
    torch.bool,
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_every_integer_is_a_label(dtype: torch.dtype) -> None:
    if dtype == torch.bool:
        lowest, highest = 0, 1
    else:
        lowest, highest = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    # Both ends, their neighbours, and what narrower and signed dtypes would take for one another.
    values = sorted(
        {x for x in (0, 1, 2, 127, 128, 255, 256, 2**31, 2**63, 2**63 + 1, lowest, highest) if lowest <= x <= highest}
    )
    plain = sized_classes(list(range(1, len(values) + 1)), seed=1)
    rows = [values[x] for x in ((plain + 3) // 7).tolist()]
    labels = torch.tensor(rows, dtype=dtype)
    expected, found = layout(plain), layout(labels)
    assert found[3:] == expected[3:]
    assert classes_of(found) == classes_of(expected)
    for index in (0, 1, highest, -1, 2**40):
        if index < 2**63 and (index >= 0 or dtype.is_signed):
            assert layout(labels, index).kept == sum(x != index for x in rows), index


def classes_of(found: Layout) -> set[frozenset[int]]:
    """Rows that share the first slot of their class."""
    classes: dict[int, set[int]] = {}
    for row, first in zip(found.rows.tolist(), found.firsts.tolist(), strict=True):
        if row >= 0:
            classes.setdefault(first, set()).add(row)
    return {frozenset(rows) for rows in classes.values()}


def test_ignored_rows_have_no_slot() -> None:
    labels = sized_classes([5, 70, 1, 30])
    check(labels, ignore_index=-3)
    check(labels, ignore_index=4)
    check(labels, ignore_index=99)


def test_labels_may_have_strides() -> None:
    labels = sized_classes([5, 9])
    wide = torch.full((len(labels), 3), 77)
    wide[:, 1] = labels
    check(wide[:, 1])


def test_three_classes_of_41_rows_share_a_tile_of_128(monkeypatch: pytest.MonkeyPatch) -> None:
    use_class_tiles(monkeypatch, 128)
    if DEVICE == "cpu":
        # Fewer programs to interpret.
        monkeypatch.setattr(forward, "_LAYOUT_ROWS", 512)
        monkeypatch.setattr(forward, "_COUNTED_ROWS", 512)
    found = layout(sized_classes([41] * 100))
    assert (found.class_rows, found.kept, found.tile_count, found.pair_count) == (128, 4100, 34, 34)


# The least that fill a third, a half and a tile, one more than a tile, and a few left over of every kind.
@pytest.mark.parametrize(
    "sizes", [[17] * 7, [33] * 5, [65] * 3, [65, 33, 33, 22, 17, 17, 17, 17, 13, 9, 5, 3, 2, 1]], ids=str
)
@pytest.mark.parametrize("class_rows", [16, 32, 64, 128])
def test_sizes_that_leave_the_most_room(sizes: list[int], class_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    use_class_tiles(monkeypatch, class_rows)
    check(sized_classes(sizes))


@pytest.mark.parametrize("class_rows", [16, 32, 64, 128])
def test_the_least_and_the_largest_classes_of_every_kind(class_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    use_class_tiles(monkeypatch, class_rows)
    fits = {class_rows // size for size in range(1, class_rows + 1)}
    check(sized_classes([*(class_rows // k for k in fits), *(class_rows // (k + 1) + 1 for k in fits), class_rows + 1]))


@settings(max_examples=12)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=12), st.integers(0, 10))
def test_any_sizes(sizes: list[int], seed: int) -> None:
    check(sized_classes(sizes, seed))
