"""Passes 1 and 3, the integer part: slots, tiles and pairs of tiles."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastassoc.backends import triton
from fastassoc.backends.protocol import Inputs
from fastassoc.backends.triton import forward
from fastassoc.backends.triton.buffers import Buffers
from tests.kernels.triton.support import DEVICE, sized_classes

CLASS_ROWS = 64


def layout(labels: Tensor, ignore_index: int | None = None) -> tuple[Tensor, Tensor, list[int]]:
    a = torch.zeros(len(labels), 1, device=DEVICE)
    values = triton.prepare_labels(labels.to(DEVICE), ignore_index, a, a.dtype)
    saved = triton.losses(Inputs(a, a[:1], None, None, values, 1.0, 1e-8, True, False, a.dtype), True, False).saved
    buffers = Buffers(*saved)
    return buffers.slots.cpu(), buffers.tiles.cpu(), buffers.counts.tolist()


@pytest.fixture(autouse=True)
def _layout_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out what does not touch the layout, for time."""
    launch = forward.launch
    needed = {"class_sizes", "normalisers", "rows"}
    monkeypatch.setattr(forward, "launch", lambda k, *x, **y: launch(k, *x, **y) if k.__name__ in needed else None)


def check(labels: Tensor, ignore_index: int | None = None) -> None:
    (source, start), tiles, (kept, tile_count, pair_count) = layout(labels, ignore_index)
    keep = torch.ones_like(labels, dtype=torch.bool) if ignore_index is None else labels != ignore_index
    assert kept == int(keep.sum())
    # Every kept row has one slot, and shares its first slot with its class alone.
    assert sorted(source[source >= 0].tolist()) == keep.nonzero().view(-1).tolist()
    class_of_slot = {}
    for slot in (source >= 0).nonzero().view(-1).tolist():
        label = int(labels[source[slot]])
        assert class_of_slot.setdefault(int(start[slot]), label) == label
    assert len(set(class_of_slot.values())) == len(class_of_slot) == len(set(labels[keep].tolist()))
    # No class straddles a tile unless it is larger than one.
    for first, label in class_of_slot.items():
        size = int((labels == label).sum())
        slots = (start == first).nonzero().view(-1)
        assert slots.tolist() == list(range(first, first + size))
        assert size > CLASS_ROWS or first // CLASS_ROWS == (first + size - 1) // CLASS_ROWS
    # Pairs are numbered through, tile by tile, and join a class with itself.
    pairs = []
    for tile, (pair, first, count) in enumerate(tiles.T.tolist()):
        assert (count > 0) == (tile < tile_count)
        pairs += range(pair, pair + count)
        assert count == 0 or first <= tile < first + count
        assert count <= 1 or len(set(start[first * CLASS_ROWS : (first + count) * CLASS_ROWS].tolist()) - {-1}) == 1
    assert pairs == list(range(pair_count))


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
    assert found[2] == expected[2]
    assert classes_of(found[0]) == classes_of(expected[0])
    for index in (0, 1, highest, -1, 2**40):
        if index < 2**63 and (index >= 0 or dtype.is_signed):
            kept = layout(labels, index)[2][0]
            assert kept == sum(x != index for x in rows), index


def classes_of(slots: Tensor) -> set[frozenset[int]]:
    """Rows that share the first slot of their class."""
    classes: dict[int, set[int]] = {}
    for row, start in slots.T.tolist():
        if row >= 0:
            classes.setdefault(start, set()).add(row)
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


@settings(max_examples=8)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=8), st.integers(0, 10))
def test_any_sizes(sizes: list[int], seed: int) -> None:
    check(sized_classes(sizes, seed))
