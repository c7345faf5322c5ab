"""No product and no exponential of a tile is computed twice: counted in the compiled code.

A layout may give the same element to two warps, which then both compute it. What a tile needs is known: its products
take rows x columns x depth multiplications each, its exponentials one or two an element.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("triton")

from benchmarks import compile_report
from benchmarks.compilation import Compilation, compiled

PER_GROUP = re.compile(r"wgmma\.mma_async\.sync\.aligned\.m(\d+)n(\d+)k(\d+)")
PER_WARP = re.compile(r"mma\.sync\.aligned\.m(\d+)n(\d+)k(\d+)")
# Products as (of scores, with g, of embeddings with gradients, of steps with steps), and exponentials of an element.
# What is "recomputed" is computed several times by intent.
NEEDED = {
    # Written twice, of which one runs: tiles of rows and columns that are all there, and tiles with a mask.
    ("row_normalisers", None): ((2, 0, 0, 0), 2),
    ("column_normalisers", None): ((2, 0, 0, 0), 4),
    ("steps", None): ((1, 0, 0, 0), 1),
    ("round_trips", "computed"): ((1, 0, 0, 1), 1),
    ("kappa", "computed"): ((1, 1, 0, 0), 1),
    ("row_gradients", "computed"): ((1, 1, 1, 0), 1),
    ("column_gradients", "computed"): ((1, 1, 1, 0), 1),
    ("round_trips", "stored"): ((0, 0, 0, 1), 0),
    ("score_gradients", None): ((0, 1, 0, 0), 0),
    ("row_gradients", "stored"): ((0, 0, 1, 0), 0),
    ("column_gradients", "stored"): ((0, 0, 1, 0), 0),
}


def constants(compilation: Compilation) -> dict[str, Any]:
    names = list(compilation.signature)
    return {names[path[0]]: value for path, value in compilation.constants.items() if len(path) == 1}


def multiplications(ptx: str, warps: int) -> int:
    """Of the tensor cores, for each time a tile is met."""
    total = 0
    for pattern, sharers in ((PER_GROUP, warps // 4), (PER_WARP, warps)):
        for m, n, k in pattern.findall(ptx):
            total += int(m) * int(n) * int(k) * sharers
    return total


@pytest.mark.parametrize("mode", ["bf16", "fp32-high"])
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_work_is_done_once(architecture: str, mode: str) -> None:
    found, shipped = set(), set()
    for _, _, compilation in compile_report.shipped([architecture], [mode], [128]):
        values = constants(compilation)
        key = compilation.kernel, values.get("WAY")
        # Both losses, and the form known; in the plain one there are two factors.
        if key not in NEEDED or not compilation.plain:
            continue
        shipped.add(key)
        if key in found or values.get("SIDES", 1) == 2:
            continue
        found.add(key)
        products, exponentials = NEEDED[key]
        rows, columns, depth = (values.get(name) for name in ("BLOCK_N", "BLOCK_M", "BLOCK_D"))
        needed = sum(
            count * rows * columns * inner
            for count, inner in zip(products, (depth, rows, depth, rows), strict=True)
            if count
        )
        ptx = compiled(compilation).asm["ptx"]
        assert multiplications(ptx, compilation.warps) == needed, key
        # Those of vectors, a row or a column each, are on top: of running sums, twice.
        of_tile = exponentials * rows * columns // (32 * compilation.warps)
        assert of_tile <= ptx.count("ex2.approx") <= of_tile + 2 * max(rows, columns) // 4, key
    assert found == shipped
    assert len(found) >= (len(NEEDED) if mode == "bf16" else 7)
