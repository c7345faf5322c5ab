"""What earlier ranges of columns left is read by all warps before any of it is written, in the compiled code."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("triton")

from benchmarks import compile_report
from benchmarks.compilation import compiled


# Small tiles, whose numbers several warps have.
@pytest.mark.parametrize(("architecture", "mode"), [("sm_90", "fp64"), ("gfx942", "bf16")])
@pytest.mark.parametrize("kernel", ["round_trips", "row_gradients"])
def test_a_sum_is_stored_after_all_have_read(kernel: str, architecture: str, mode: str) -> None:
    """A warp that reads what another has stored would add its numbers twice."""
    compilation = next(
        x
        for _, _, x in compile_report.shipped([architecture], [mode], [128])
        if x.kernel == kernel and x.plain and "WAY=stored" in x.variant()
    )
    ttir = compiled(compilation).asm["ttir"]
    sums = re.findall(r"tt\.load .*\n.*arith\.addf .*\n\s*(?:ttg|gpu)\.barrier", ttir)
    # Round trips, and the visits' sums beside them.
    assert len(sums) == {"round_trips": 2, "row_gradients": 1}[kernel]
