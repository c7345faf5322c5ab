"""Scores of float32 at "highest" are the same numbers in every pass: rounded once, before anything is added to them.

The compiler may join a product with a sum, ``s unit - shift``, and leave out the rounding between them, in one pass
and not in another. With logits of 1,000 gradients were off by 5e-4 for it, 400 times as much as eager code's.
"""

from __future__ import annotations

import re

import pytest

pytest.importorskip("triton")

from benchmarks import compile_report
from benchmarks.compilation import compiled
from tests.benchmarks.test_duplicated_work import constants

ROUNDED = re.compile(r"fma\.rn\.f32\s+%\w+, %\w+, %\w+, 0f00000000;")
COPIES = {"row_normalisers": 2, "column_normalisers": 2, "steps": 1}
"""Of a tile in the code of a pass."""


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_scores_of_float32_are_rounded_once(architecture: str) -> None:
    found = set()
    for _, _, compilation in compile_report.shipped([architecture], ["fp32-highest"], [128]):
        kernel = compilation.kernel
        if kernel not in COPIES or kernel in found or not compilation.plain:
            continue
        found.add(kernel)
        values = constants(compilation)
        of_tile = values["BLOCK_N"] * values["BLOCK_M"] // (32 * compilation.warps)
        assert len(ROUNDED.findall(compiled(compilation).asm["ptx"])) == COPIES[kernel] * of_tile, kernel
    assert found == set(COPIES)
