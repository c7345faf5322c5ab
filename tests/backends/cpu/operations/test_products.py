"""Products of class blocks on the CPU against one dense product."""

from __future__ import annotations

import pytest
import torch

from fastassoc.backends.cpu.operations import products
from fastassoc.backends.cpu.operations.class_blocks import class_blocks
from fastassoc.backends.cpu.operations.products import SymmetricTrips


@pytest.mark.parametrize("columns", [1, 40, 128, 512])
@pytest.mark.parametrize(
    "sizes",
    [[1], [1, 1, 1], [2], [15, 15], [16, 16, 16, 1], [47, 47], [96], [97], [105, 105], [161, 161], [200, 30, 30, 1]],
    ids=str,
)
def test_symmetric_trips_are_the_block_products(
    monkeypatch: pytest.MonkeyPatch, sizes: list[int], columns: int
) -> None:
    monkeypatch.setattr(products, "_COLUMNS_AT_ONCE", 200)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    blocks = class_blocks(labels, torch.float64)
    trips = SymmetricTrips(blocks, columns)
    generator = torch.Generator().manual_seed(0)
    # The last tile is often narrower than the width that the strips were made for.
    tiles = [torch.randn(len(labels), width, dtype=torch.float64, generator=generator) for width in (columns, 3)]
    for tile in tiles:
        trips.add(tile)

    t = torch.cat(tiles, 1)
    dense = t @ t.T
    expected = [
        dense[rows, rows]
        for bucket in blocks.buckets
        for first in range(bucket.start, bucket.start + bucket.blocks * bucket.size, bucket.size)
        for rows in [slice(first, first + bucket.size)]
    ]
    torch.testing.assert_close(trips.result(), torch.cat([block.reshape(-1) for block in expected]))


def test_strips_cover_the_upper_triangle_alone() -> None:
    blocks = class_blocks(torch.arange(4).repeat_interleave(300), torch.float32)
    (strips,) = SymmetricTrips(blocks, 512).strips
    assert [tuple(strip.shape) for strip in strips] == [(4, 12, 300), (4, 96, 288), (4, 96, 192), (4, 96, 96)]


def test_no_thin_strips_where_products_underflow() -> None:
    blocks = class_blocks(torch.arange(3).repeat_interleave(50), torch.float32)
    (strips,) = SymmetricTrips(blocks, 512, underflow=True).strips
    assert [tuple(strip.shape) for strip in strips] == [(3, 50, 50)]


@pytest.mark.parametrize(("columns", "highest"), [(1000, 15), (256, 10), (128, 5)])
def test_thin_strips_have_many_columns_for_a_row(columns: int, highest: int) -> None:
    blocks = class_blocks(torch.arange(3).repeat_interleave(100), torch.float32)
    (strips,) = SymmetricTrips(blocks, columns).strips
    assert max(strip.shape[1] for strip in strips) == highest
