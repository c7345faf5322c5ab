"""What kernels give to products in tf32 is rounded, in the code that a GPU gets; compiled here without one.

Tensor cores drop the 13 bits that tf32 does not have. Unrounded, operands are too small by 2^-12 on average, and the
loss was off by up to 150 times the error of eager PyTorch in the same precision.
"""

from __future__ import annotations

import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("triton")

from benchmarks.compilation import Compilation, become_compiler, compiled
from benchmarks.compile_report import shipped

PASSES = {"normalisers", "visits", "round_trips", "kappa", "column_gradients", "row_gradients"}
PRODUCT = re.compile(r"= tt\.dot (%\w+), (%\w+), .*inputPrecision = tf32 : tensor<\w+xf32> ")
STORED_G = re.compile(r"tt\.store %\w+, (%\w+) : tensor<\d+x\d+x!tt\.ptr<f32>>")
ROUNDED = re.compile(r"and\.b32 [^;]*, -8192;")


def code(compilation: Compilation) -> tuple[str, str]:
    """Triton's own code, and the PTX."""
    stages = compiled(compilation).asm
    return stages["ttir"], stages["ptx"]


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize(
    ("mode", "kernels"), [("fp16", PASSES - {"normalisers", "visits"}), ("fp32-high", PASSES)], ids=["fp16", "high"]
)
def test_operands_in_tf32_are_rounded(architecture: str, mode: str, kernels: set[str], tmp_path: Path) -> None:
    uses = [use.compilation for use in shipped([architecture], [mode], [128])]
    compilations = [x for x in uses if x.kernel in kernels and x.plain]
    assert {x.kernel for x in compilations} == kernels
    # ``g`` is rounded where it is stored.
    compilations += [x for x in uses if x.kernel == "walker" and "WALKER=True VISIT=True" in x.variant()][:1]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, become_compiler, (str(tmp_path),)) as pool:
        codes = list(pool.map(code, compilations))
    for compilation, (ttir, ptx) in zip(compilations, codes, strict=True):
        lines = ttir.splitlines()
        pattern = STORED_G if compilation.kernel == "walker" else PRODUCT
        found = [(line, match.groups()) for line, text in enumerate(lines) if (match := pattern.search(text))]
        assert found, compilation.kernel
        # By line: a tensor may be in several products, and is rounded once.
        sizes = {}
        for line, operands in found:
            for operand in operands:
                sizes |= roundings(lines, line, operand)
        assert sizes, compilation.kernel
        # Every thread rounds its share of the elements.
        assert len(ROUNDED.findall(ptx)) >= sum(sizes.values()) / (32 * compilation.warps), compilation.kernel
        assert compilation.kernel == "walker" or ".tf32.tf32" in ptx


def roundings(lines: list[str], line: int, operand: str) -> dict[int, int]:
    """The line that rounds this operand of that line, and how many elements; empty where none is needed."""
    place, text, inputs = definition(lines, line, operand)
    while "= tt.trans " in text:
        place, text, inputs = definition(lines, place, inputs[0])
    if "= arith.extf " in text and re.search(r": tensor<\w+xf16>", text):
        return {}  # No more digits than tf32 has.
    if "= tt.load " in text:
        pointer = text
        where = place
        while "= tt.splat " not in pointer:
            where, pointer, inputs = definition(lines, where, inputs[0])
        assert inputs == ["%g_ptr"], f"loaded and not rounded: {text}"
        return {}
    assert "= arith.select " in text, f"not rounded: {text}"
    original = inputs[2]
    for constant in ("dense<-8192>", "dense<4096>"):
        # Bits of the operand, plus a half of the last place kept, with the places below it cut off.
        place, text, inputs = definition(lines, place, inputs[1 if "= arith.select" in text else 0])
        if "= tt.bitcast " in text:
            place, text, inputs = definition(lines, place, inputs[0])
        assert constant in definition(lines, place, inputs[1])[1], f"not rounded: {text}"
    _, text, inputs = definition(lines, place, inputs[0])
    assert "= tt.bitcast " in text
    assert inputs == [original]
    (shape,) = re.findall(r"tensor<(\d+)x(\d+)xf32>", text)
    return {place: int(shape[0]) * int(shape[1])}


def definition(lines: list[str], line: int, name: str) -> tuple[int, str, list[str]]:
    """Where a value that is used in a line was made: the line, its text, what it takes."""
    place = next(n for n in range(line - 1, -1, -1) if lines[n].lstrip().startswith(f"{name} = "))
    text = lines[place]
    return place, text, re.findall(r"%\w+", text.partition(" = ")[2].partition(" : ")[0])
