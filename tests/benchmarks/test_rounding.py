"""Rounding of float32, in the compiled code."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest

pytest.importorskip("triton")

from benchmarks import compile_report
from benchmarks.compilation import ARCHITECTURES, Compilation, compiled
from fastassoc.kernels.triton.configs import PASSES
from tests.benchmarks.test_duplicated_work import constants

ROUNDED = re.compile(r"fma\.rn\.f32\s+%\w+, %\w+, %\w+, 0f00000000;")
WITH_SCORES = set(PASSES) - {"score_gradients"}
COPIES = {"row_normalisers": 2, "column_normalisers": 2, "steps": 1}
"""Of a tile in the code of a pass."""


def plain_compilations(architecture: str, kernels: Iterable[str], mode: str = "fp32-highest") -> dict[str, Compilation]:
    """The first of each kernel, of both losses without biases, at D = 128."""
    found: dict[str, Compilation] = {}
    for _, _, compilation in compile_report.shipped([architecture], [mode], [128]):
        if compilation.kernel in kernels and compilation.plain:
            found.setdefault(compilation.kernel, compilation)
    return found


@pytest.mark.parametrize("depth", [64, 128, 256])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_pass_adds_scores_up_in_the_same_parts(architecture: str, depth: int) -> None:
    depths = {}
    for _, _, compilation in compile_report.shipped([architecture], ["fp32-highest"], [depth]):
        values = constants(compilation)
        if compilation.kernel in WITH_SCORES and values.get("WAY") != "stored":
            depths[compilation.kernel] = values["BLOCK_D"]
    assert {"row_normalisers", "column_normalisers", "steps"} <= set(depths)
    assert len(set(depths.values())) == 1, depths


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_scores_are_rounded_before_anything_is_added(architecture: str) -> None:
    """The compiler may join a product with a sum, ``s unit - shift``, and leave out the rounding between them.

    It does so in one pass and not in another. With logits of 1,000 gradients were off by 5e-4 for it, 400 times as much
    as eager code's.
    """
    found = plain_compilations(architecture, COPIES)
    for kernel, compilation in found.items():
        values = constants(compilation)
        of_tile = values["BLOCK_N"] * values["BLOCK_M"] // (32 * compilation.warps)
        assert len(ROUNDED.findall(compiled(compilation).asm["ptx"])) == COPIES[kernel] * of_tile, kernel
    assert set(found) == set(COPIES)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_the_sum_of_earlier_tiles_is_rounded_once_a_tile(architecture: str) -> None:
    """The six products of parts of a tile are added up from 0, and only then to the sum of earlier tiles.

    Each that was added on its own would round that sum, which made gradients of flat batches twice as far off.
    """
    found = plain_compilations(architecture, PASSES)
    for kernel, compilation in found.items():
        sums = re.findall(r"= tt\.dot [^,]+, [^,]+, %(\w+),", compiled(compilation).asm["ttir"])
        assert sums, kernel
        assert [x.startswith("cst") for x in sums] == [True, *[False] * 5] * (len(sums) // 6), kernel
    # Steps of float32 are stored, and gradients of their scores hold kappa.
    assert set(found) == set(PASSES) - {"kappa"}


def origins(ttir: str) -> tuple[list[tuple[str, str]], set[str]]:
    """What makes the operands of every product in tf32, and the matrices in float32 that are stored.

    A number of 16 bits, also times a power of two, is an "extf".
    """
    made: dict[str, str] = {}
    products, stores = [], set()
    # A name may be used again further on.
    for line in ttir.splitlines():
        if dot := re.search(r"= tt\.dot %(\w+), %(\w+),.*inputPrecision = tf32 : tensor<\d+x\d+xf32>", line):
            products.append((made[dot[1]], made[dot[2]]))
        if store := re.search(r"tt\.store %\w+, %(\w+).*: tensor<\d+x\d+x!tt\.ptr<f32>", line):
            stores.add(made.get(store[1], "nothing"))
        if made_here := re.match(r"\s*%(\w+) = (?:tt|arith)\.(\w+)(?: %(\w+))?", line):
            name, how, of = made_here.groups()
            as_before = how == "trans" or (how == "mulf" and made.get(of) == "extf")
            made[name] = made.get(of, how) if as_before else how
    return products, stores


# "select" is the rounding; what is loaded was rounded where it was stored.
@pytest.mark.parametrize("mode", ["fp16", "fp32-high"])
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_operands_in_tf32_have_no_more_digits(architecture: str, mode: str) -> None:
    """Tensor cores leave out what is beyond 11 digits, and Triton does not round: every number would become smaller."""
    dense = {f"dense_{x}" for x in ("scores", "trips", "score_gradients", "embedding_gradients", "forward", "backward")}
    found = plain_compilations(architecture, {*PASSES, *dense, "walker", "take_off_kappa"}, mode)
    made = {kernel: origins(compiled(x).asm["ttir"]) for kernel, x in found.items()}
    for kernel, (products, _) in made.items():
        for pair in products:
            assert set(pair) <= {"select", "extf", "load"}, kernel
            assert pair != ("load", "load"), kernel
    with_products = {kernel for kernel, (products, _) in made.items() if products}
    loaded = {kernel for kernel, (products, _) in made.items() if any("load" in pair for pair in products)}
    expected = {"round_trips", "row_gradients", "column_gradients"}
    expected |= {"dense_trips", "dense_score_gradients", "dense_embedding_gradients"}
    assert expected <= with_products
    # The derivative by the round trips, and the gradients of scores, which without the walker need no kappa.
    assert loaded <= {"kappa", "score_gradients", "row_gradients", "column_gradients"}
    stores = [made["walker"][1], made["take_off_kappa"][1]]
    for _, _, x in compile_report.shipped([architecture], [mode], [128]):
        if x.kernel == "score_gradients" and "grad_walker_ptr=None" in x.variant():
            stores.append(origins(compiled(x).asm["ttir"])[1])
    assert all(x == {"select"} for x in stores)
