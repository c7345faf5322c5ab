"""What ships compiles, within the limits, on a machine without a GPU; and the report would say if it did not.

Compiled here are the kernels with products, for both losses without biases, at D = 128 on one architecture with
``mma.sync`` and one with ``wgmma``, and on every architecture the kernels whose scores come by differences: some 120
of the 3,000 compilations of the whole report, and less than three minutes of the test run on one core. The rest is for
``python -m benchmarks.compile_report``, whose committed results have to be of all that ships.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import compile_report
from benchmarks.compilation import ARCHITECTURES, Compilation, Figures, count_products, occupancy, violations
from benchmarks.modes import MODES
from fastassoc.backends.triton import plan
from fastassoc.kernels.triton.buffers import Embeddings
from fastassoc.kernels.triton.configs import PASSES, Config, Tile

ROOT = Path(__file__).parents[2]
PRODUCTS = set(PASSES)
"""The kernels with products: they bear the names of the passes that have tiles."""
FINE = Figures(
    registers=128,
    spilled_bytes=32,
    shared_bytes=99 * 1024,
    products=3,
    tensor_products=3,
    mma_sync=24,
    wgmma=0,
    tcgen05=0,
    mfma=0,
    occupancy=0.25,
    compile_s=1.0,
)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_what_ships_is_within_the_limits(architecture: str, capsys: pytest.CaptureFixture[str]) -> None:
    uses = [
        use
        for use in compile_report.shipped([architecture], ["fp16", "bf16", "fp32-high"], [128])
        # That a batch has but one tile makes little difference.
        if use.compilation.plain and use.compilation.kernel in PRODUCTS and "TILES=1" not in use.compilation.variant()
    ]
    assert {use.compilation.kernel for use in uses} == PRODUCTS
    results = compile_report.compile_all((use.compilation for use in uses), 1, compile_report.show_progress)
    assert compile_report.broken(uses, results) == []
    for use in uses:
        figures = results[repr(use.compilation)]
        assert isinstance(figures, Figures)
        assert figures.products >= 1
        assert figures.mma_sync if architecture == "sm_80" else figures.wgmma + figures.mma_sync


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_by_differences_are_within_the_limits(architecture: str) -> None:
    uses = [
        use
        for use in compile_report.shipped([architecture], ["fp64"], [128])
        if "PRECISION=differences" in use.compilation.variant()
    ]
    kernels = {"row_operands", "row_normalisers", "column_normalisers", "steps", "dense_scores"}
    assert {use.compilation.kernel for use in uses} == kernels
    results = compile_report.compile_all((use.compilation for use in uses), 1, compile_report.show_progress)
    assert compile_report.broken(uses, results) == []


def test_the_committed_report_covers_what_ships_and_breaks_no_limit() -> None:
    place = ("architecture", "mode", "depth", "kernel", "warps", "stages", "variant")
    with (ROOT / "benchmarks" / "results" / "compile_report.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert not row["failure"]
        figures = Figures(**{name: float(row[name]) for name in Figures._fields})
        found = violations(figures, ARCHITECTURES[row["architecture"]], MODES[row["mode"]].tensor_cores)
        assert not found, [row[name] for name in place]
    uses = compile_report.shipped(ARCHITECTURES, MODES, compile_report.DEPTHS)
    shipped = {
        (x.architecture, mode, str(depth), x.kernel, str(x.warps), str(x.stages), x.variant())
        for mode, depth, x in uses
    }
    assert shipped == {tuple(row[name] for name in place) for row in rows}


def test_too_large_a_tile_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = Tile(rows=256, columns=128, depth=256, warps=4, stages=1)
    monkeypatch.setattr(plan, "choose_config", lambda *_: Config(*[wide] * len(PRODUCTS)))
    uses = compile_report.shipped(["sm_86"], ["bf16"], [256])
    use = next(use for use in uses if use.compilation.kernel == "row_normalisers")
    results = compile_report.compile_all([use.compilation], 1, compile_report.show_progress)
    (line, *_) = compile_report.broken([use], results)
    assert "KiB shared of 99" in line


def test_a_kept_cache_is_used_again(tmp_path: Path) -> None:
    (use, *_) = compile_report.shipped(["sm_80"], ["bf16"], [64])
    key = repr(use.compilation)
    results, files = [], []
    for _ in range(2):
        figures = compile_report.compile_all([use.compilation], 1, compile_report.show_progress, tmp_path)[key]
        assert isinstance(figures, Figures)
        results.append(figures._replace(compile_s=0.0))
        files.append({path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()})
    assert results[0] == results[1]
    assert any(path.suffix == ".cubin" for path in files[0])
    assert files[0] == files[1]


def test_the_command_saves_every_variant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    shipped = compile_report.shipped

    def two_kernels(*arguments: Any) -> list[compile_report.Use]:
        return [use for use in shipped(*arguments) if use.compilation.kernel in ("row_normalisers", "add_row_shares")]

    monkeypatch.setattr(compile_report, "shipped", two_kernels)
    options = ["--architecture", "sm_89", "gfx942", "--dtype", "fp32-high", "fp64", "--depth", "64", "--workers", "2"]
    status = compile_report.main([*options, "--out", str(tmp_path)])
    output = capsys.readouterr().out
    assert output == (tmp_path / "compile_report.md").read_text() + "\n"
    assert status == ("None." not in output)
    with (tmp_path / "compile_report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(two_kernels(["sm_89", "gfx942"], ["fp32-high", "fp64"], [64]))
    for row in rows:
        assert not row["failure"]
        assert int(row["registers"]) > 0
        product = row["kernel"] == "row_normalisers" and row["mode"] == "fp32-high"
        assert (int(row["mma_sync"]) > 0) >= (product and row["architecture"] == "sm_89")
        assert (int(row["mfma"]) > 0) >= (product and row["architecture"] == "gfx942")
    # Figures come from this run: no cache but its own was written.
    assert not (tmp_path / "cache").exists()
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "cache")


def test_float32_products_follow_the_mode() -> None:
    before = torch.get_float32_matmul_precision()
    found = {}
    for mode in ("fp32-medium", "fp32-high", "fp32-highest"):
        uses = compile_report.shipped(["sm_80"], [mode], [128])
        found[mode] = next(x.compilation.variant() for x in uses if x.compilation.kernel == "score_gradients")
    assert found["fp32-medium"].endswith("PRODUCT=bf16")
    assert found["fp32-high"].endswith("PRODUCT=tf32")
    assert found["fp32-highest"].endswith("PRODUCT=bf16x3")
    assert torch.get_float32_matmul_precision() == before


def test_constants_are_named_and_both_losses_without_biases_are_plain() -> None:
    kinds = Embeddings("*bf16", "constexpr", "constexpr", "i32", "i32", "constexpr")
    signature = {"a": kinds, "rho_ptr": "*fp32", "M": "i32", "WALKER": "constexpr"}
    constants = {(0, 1): None, (0, 2): None, (0, 5): 1, (3,): True}
    plain = Compilation("sm_80", "module", "kernel", signature, constants, {}, 4, 2)
    assert plain.variant() == "a.bias_ptr=None a.largest_ptr=None a.stride_d=1 WALKER=True"
    assert plain.plain
    biased = {"a": kinds._replace(bias_ptr="*fp32")}
    assert not plain._replace(signature=signature | biased, constants={(3,): True}).plain
    assert not plain._replace(constants=constants | {(1,): None}).plain
    assert not plain._replace(constants=constants | {(3,): False}).plain


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, []),
        ({"shared_bytes": 99 * 1024 + 1}, ["99.0 KiB shared of 99"]),
        ({"spilled_bytes": 1000}, []),
        ({"tensor_products": 2}, ["1 of 3 products off tensor cores"]),
        ({"mma_sync": 0}, ["no tensor-core instruction"]),
        ({"mma_sync": 0, "products": 0, "tensor_products": 0}, []),
    ],
)
def test_limits(change: dict[str, int], words: list[str]) -> None:
    assert violations(FINE._replace(**change), ARCHITECTURES["sm_86"], True) == words


def test_float64_needs_no_tensor_cores() -> None:
    assert violations(FINE._replace(tensor_products=0, mma_sync=0), ARCHITECTURES["sm_86"], False) == []


def test_what_does_not_compile_is_in_the_report() -> None:
    compilation = Compilation("sm_80", "fastassoc.kernels.triton.kappa", "kappa", {"a_ptr": "*bf16"}, {}, {}, 4, 2)
    use = compile_report.Use("bf16", 64, compilation)
    other = compile_report.Use("bf16", 128, compilation._replace(warps=8))
    failed = {repr(compilation): "CompilationError: no"}
    assert compile_report.broken([use], failed) == ["sm_80: does not compile with this Triton: CompilationError: no"]
    lines = compile_report.broken([use, other], failed | {repr(other.compilation): FINE})
    assert len(lines) == 1
    assert "sm_80 bf16 D=64 kappa, 4 warps" in lines[0]
    assert isinstance(compile_report.attempt(compilation), str)


def test_a_compiler_that_dies_takes_no_other_result_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deadly.py").write_text("import os; os._exit(1)")
    monkeypatch.syspath_prepend(str(tmp_path))
    deadly = Compilation("sm_80", "deadly", "kernel", {}, {}, {}, 4, 2)
    harmless = deadly._replace(module="fastassoc.kernels.triton.configs")
    results = compile_report.compile_all([deadly, harmless], 1, compile_report.show_progress)
    assert results[repr(deadly)] == "the compiler died"
    assert "has no attribute 'kernel'" in str(results[repr(harmless)])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads processes from /proc")
def test_compilers_end_with_the_process_that_started_them() -> None:
    script = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from benchmarks.compilation import become_compiler
if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), become_compiler, (None,))
    print(pool.submit(os.getpid).result(), flush=True)
    os._exit(0)
"""
    output = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    stat = Path(f"/proc/{int(output.stdout)}/stat")
    end = time.monotonic() + 10.0
    # Ended, or ended and not yet collected by whoever adopted it.
    while running(stat) and time.monotonic() < end:
        time.sleep(0.1)
    assert not running(stat)


def running(stat: Path) -> bool:
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_products_by_where_their_result_lies() -> None:
    line = "%0 = tt.dot %x, %y, %z : tensor<64x16xf32, #ttg.dot_op<{parent = #P}>> -> tensor<64x8xf32, #P> loc(#l)"
    assert count_products(line.replace("#P", "#mma")) == (1, 1)
    assert count_products(line.replace("#P", "#blocked1")) == (1, 0)
    other = "%1 = ttng.warp_group_dot %a, %b, %c : x\nttng.tc_gen5_mma %a, %b, %c : y\n%2 = ttng.warp_group_dot_wait %1"
    assert count_products(other + "\n" + line.replace("#P", "#blocked")) == (3, 2)


# By hand: registers of a warp 255 -> 8192, 8 warps; 128 -> 4096, 16 warps. Shared 1 KiB is kept for the system.
@pytest.mark.parametrize(
    ("architecture", "registers", "shared_kib", "warps", "tensor_columns", "expected"),
    [
        ("sm_90", 255, 0, 4, 0, 8 / 64),
        ("sm_90", 128, 0, 8, 0, 16 / 64),
        ("sm_90", 128, 114, 8, 0, 8 / 64),
        ("sm_90", 32, 0, 4, 0, 1.0),
        ("sm_86", 32, 0, 4, 0, 1.0),
        ("sm_86", 32, 99, 4, 0, 4 / 48),
        ("sm_80", 255, 0, 16, 0, 0.0),
        ("sm_100", 64, 0, 4, 256, 8 / 64),
        ("gfx942", 184, 0, 4, 0, 8 / 32),
        ("gfx942", 64, 40, 4, 0, 4 / 32),
    ],
)
def test_occupancy(
    architecture: str, registers: int, shared_kib: int, warps: int, tensor_columns: int, expected: float
) -> None:
    found = occupancy(ARCHITECTURES[architecture], registers, shared_kib * 1024, warps, tensor_columns)
    assert found == pytest.approx(expected)


def test_interpreted_kernels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit, match="interpreted, not compiled"):
        compile_report.main([])
