"""The table of tiles."""

from __future__ import annotations

import pytest

from fastassoc.kernels.triton.configs import PASSES, Tile, choose_config

# Bytes of the parts of an element, and of what is loaded to make them.
SIZES = {"bf16": (2, 2), "fp32-bf16": (2, 4), "tf32": (2, 4), "bf16x3": (6, 4), "fp64": (8, 8)}


@pytest.mark.parametrize("depth", [1, 64, 128, 256, 2048])
@pytest.mark.parametrize("precision", SIZES)
def test_tiles_fit_the_shared_memory_of_the_gpu(precision: str, depth: int) -> None:
    large, usual, small = (
        choose_config(architecture, precision, depth) for architecture in ("sm_90", "sm_120", "gfx942")
    )
    # Both operands of the scores, in the fewest bytes that they may have, are the least that a tile takes.
    size = min(SIZES[precision])
    for config, kib in ((large, 227), (usual, 99), (small, 64)):
        tiles = [getattr(config, name) for name in PASSES]
        assert all(isinstance(tile, Tile) for tile in tiles)
        for tile in tiles:
            assert (tile.rows + tile.columns) * tile.depth * size <= kib * 1024
    assert choose_config("sm_75", precision, depth) == choose_config("gfx90a", precision, depth) == small


@pytest.mark.parametrize("precision", SIZES)
def test_every_architecture_has_a_row(precision: str) -> None:
    for architecture in ("sm_70", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "sm_130"):
        for depth in (1, 65, 129, 4096):
            assert choose_config(architecture, precision, depth).class_rows >= 16


def test_products_without_tensor_cores_are_for_those_that_have_none() -> None:
    assert choose_config("sm_75", "ieee", 128) == choose_config("sm_70", "ieee", 2048)
