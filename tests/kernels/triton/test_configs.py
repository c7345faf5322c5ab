"""The table of tiles."""

from __future__ import annotations

import pytest

from fastassoc.kernels.triton.configs import choose_config


@pytest.mark.parametrize("precision", ["bf16", "fp32-bf16", "tf32", "ieee", "fp64"])
def test_tiles_fit_the_shared_memory_of_the_gpu(precision: str) -> None:
    large, usual, small = (
        choose_config(architecture, precision, 128) for architecture in ("sm_90", "sm_120", "gfx942")
    )
    # Both operands of the scores, in the bytes of the precision, are the least that a tile takes.
    size = {"bf16": 2, "fp32-bf16": 4, "tf32": 4, "ieee": 4, "fp64": 8}[precision]
    for config, kib in ((large, 227), (usual, 99), (small, 64)):
        for tile in (config.normalisers, config.round_trips, config.column_gradients):
            assert (tile.rows + tile.columns) * tile.depth * size <= kib * 1024
    assert choose_config("sm_75", precision, 2048) == choose_config("gfx90a", precision, 2048) == small
