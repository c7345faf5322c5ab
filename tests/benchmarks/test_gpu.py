"""The GPU command: all of it on a CPU at tiny sizes, and what it says when something is wrong."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import plots, report, speed
from benchmarks.gpu.checks import allowed_error
from benchmarks.gpu.kernel_tests import summary
from benchmarks.gpu.plan import ERROR_MODES, FULL, SMOKE, SPEED_MODES, Clock, Context, Size
from benchmarks.gpu.ranks import RANK_MODES
from fastassoc.kernels.triton.configs import PASSES

ROOT = Path(__file__).parents[2]
NEEDS_GPU = "needs a GPU"


def rows_of(record: dict[str, Any], stage: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = record["stages"][stage]["rows"]
    return rows


def test_smoke_run_to_its_end(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    # Other tests may run at the same time, and take the processor.
    arguments = [sys.executable, "-m", "benchmarks.gpu", "--smoke", "--minutes", "60", "--out", str(tmp_path)]
    output = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert output.returncode == 0, output.stdout[-3000:] + output.stderr[-3000:]
    record = json.loads((tmp_path / "gpu.json").read_text())
    page = (tmp_path / "gpu.md").read_text()
    assert page in output.stdout
    assert "NaN" not in (tmp_path / "gpu.json").read_text().replace('"nan"', "")
    assert {"device", "commit", "date", "python", "torch", "triton", "fastassoc"} <= set(record["environment"])
    stages = ["kernel tests", "errors", "determinism", "launches", "ranks", "speed", "kernel times", "memory"]
    stages += ["fractions", "plots"]
    assert list(record["stages"]) == stages
    assert all(stage["failure"] is None and stage["seconds"] > 0 for stage in record["stages"].values())

    (tests,) = rows_of(record, "kernel tests")
    assert (tests["verdict"], tests["failed"], tests["error"]) == ("ok", 0, 0)
    assert tests["passed"] == 3
    assert "3 passed" in (tmp_path / "kernel_tests.log").read_text()

    errors = rows_of(record, "errors")
    assert len(errors) == len(ERROR_MODES) * len(SMOKE.errors) * 2 * 3
    assert {row["verdict"] for row in errors} == {"ok"}
    assert max(row["error"] for row in errors if row["mode"] == "fp64") < 1e-12

    repeated = rows_of(record, "determinism")
    assert {(row["runs"], row["equal"]) for row in repeated} == {(20, 20)}
    assert {row["mode"] for row in repeated} == set(SPEED_MODES)

    launches = {row["check"]: row for row in rows_of(record, "launches")}
    for size, forward, backward in SMOKE.launches:
        where = f"{size.n} x {size.m}"
        assert launches[f"own kernels forward, {where}"]["value"] == forward
        assert launches[f"own kernels backward, {where}"]["value"] == backward
    assert [row["verdict"] for row in launches.values()] == [*["ok"] * 4, *[NEEDS_GPU] * 8]

    shared = rows_of(record, "ranks")
    assert {(row["mode"], row["ranks"]) for row in shared} == {(mode, 2) for mode in RANK_MODES}
    assert {(row["verdict"], row["same_on_all"]) for row in shared} == {("ok", True)}

    timed = rows_of(record, "speed")
    assert len(timed) == len(SPEED_MODES) * (3 * len(SMOKE.speed) + 1)
    for row in timed:
        assert row["verdict"] == "ok", row
        assert 0.0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert row["rounds"] == 3
        assert row["peak_mib"] is None
    assert {row["verdict"] for row in rows_of(record, "memory")} == {NEEDS_GPU}
    kernels = rows_of(record, "kernel times")
    # Steps are stored in batches too large for the interpreter.
    stored_alone = {"steps", "score_gradients"}
    assert set(PASSES) - stored_alone <= {row["kernel"] for row in kernels if row["launches"] >= 1 and row["ms"] > 0.0}
    assert sum(row["share"] for row in kernels) == pytest.approx(len(SPEED_MODES))
    reached = [row for row in rows_of(record, "fractions") if "useful_tflops" in row]
    assert len(reached) == len(SPEED_MODES) * (len(SMOKE.speed) + 1)
    assert all(0.0 < row["fraction_of_product"] < 1.0 for row in reached)

    for words in ("Smoke run", "| fp16 | 17 x 33, 3 | large | db |", "| 24 x 40, 5 | bf16 |", "needs a GPU", "None."):
        assert words in page
    drawn = {row["file"]: row["verdict"] for row in rows_of(record, "plots")}
    assert drawn["memory.png"] == "not drawn: nothing was measured"
    if importlib.util.find_spec("matplotlib") is not None:
        assert drawn["time.png"] == "drawn"
        assert (tmp_path / "time.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--out", str(tmp_path / "new")]) == 2
    assert "--smoke" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def make_record(folder: Path) -> command.Record:
    return command.Record(folder, False, 1.0, {"device": "a card"})


def test_a_stage_that_breaks_keeps_its_rows_and_is_a_problem(tmp_path: Path) -> None:
    record = make_record(tmp_path)

    def breaking() -> Iterator[dict[str, Any]]:
        yield {"mode": "bf16", "n": 1, "m": 2, "classes": 1, "runs": 20, "equal": 20, "verdict": "ok"}
        # What is known by now is on disk.
        assert json.loads((tmp_path / "gpu.json").read_text())["stages"]["determinism"]["rows"][0]["equal"] == 20
        raise RuntimeError("the driver went away")

    assert len(record.run("determinism", breaking)) == 1
    record.run("plots", lambda: [{"file": "time.png", "verdict": "drawn", "size": math.nan}])
    saved = json.loads((tmp_path / "gpu.json").read_text())
    assert "the driver went away" in saved["stages"]["determinism"]["failure"]
    assert saved["stages"]["plots"]["rows"][0]["size"] == "nan"
    page = (tmp_path / "gpu.md").read_text()
    assert "| bf16 | 1 x 2, 1 | 20 | 20 | ok |" in page
    assert "broke off: `RuntimeError: the driver went away`" in page
    assert len(report.found_problems(record.data)) == 1


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"contender": "fastassoc", "verdict": "wrong"}, True),
        ({"contender": "fastassoc", "verdict": "out of memory"}, True),
        ({"contender": "fastassoc", "verdict": "failed: RuntimeError: no"}, True),
        ({"contender": "eager", "verdict": "out of memory"}, False),
        ({"contender": "compiled", "verdict": "failed: RuntimeError: no"}, False),
        ({"contender": "fastassoc", "verdict": speed.OUT_OF_TIME}, False),
        ({"verdict": NEEDS_GPU}, False),
        ({"verdict": "wrong"}, True),
    ],
)
def test_what_counts_as_a_problem(row: dict[str, Any], problem: bool) -> None:
    record = {"stages": {"speed": {"rows": [row], "failure": None}}}
    assert bool(report.found_problems(record)) == problem


def contender_row(name: str, verdict: str = "ok", **figures: float) -> dict[str, Any]:
    return {"n": 4096, "m": 65536, "classes": 100, "mode": "bf16", "contender": name, "verdict": verdict, **figures}


def test_a_row_of_the_speed_table() -> None:
    mine = contender_row("fastassoc", median_ms=10.0, p20_ms=9.0, p80_ms=11.0, peak_mib=30.0, error=0.003)
    theirs = contender_row("compiled", median_ms=95.0, p20_ms=94.0, p80_ms=97.0, peak_mib=4000.0)
    rows = [mine, contender_row("eager", "out of memory"), theirs]
    record = {"smoke": False, "environment": {}, "stages": {"speed": {"rows": rows, "failure": None}}}
    (line,) = [line for line in report.markdown(record).splitlines() if line.startswith("| 4096 x 65536")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:7] == ["bf16", "10 (9 to 11)", "out of memory", "95 (94 to 97)", "", "9.5"]
    assert cells[7:] == ["30", "", "4e+03", "0.003"]


def test_no_time_left_is_said_for_every_contender() -> None:
    context = Context(SMOKE, torch.device("cpu"), Clock(0.0))
    rows = [*speed.speed(context), *speed.memory(context)]
    assert len(rows) == len(SPEED_MODES) * (3 * len(SMOKE.speed) + 1 + 2 * len(SMOKE.memory_columns))
    assert {row["verdict"] for row in rows} == {"not run: out of time"}


def test_contenders_that_fail_are_results_and_a_wrong_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context(SMOKE, torch.device("cpu"), Clock(60.0))

    def out_of_memory(*_: Any) -> Any:
        raise torch.OutOfMemoryError("no")

    def broken(*_: Any) -> Any:
        raise ValueError("first line\nsecond line")

    contenders = {
        "fastassoc": lambda a, b, labels: 1.1 * speed.eager(a, b, labels),
        "eager": speed.eager,
        "compiled": broken,
    }
    size = Size(20, 30, 4, 3)
    rows = {row["contender"]: row for row in speed._speed_at(context, size, "fp32-high", contenders)}
    assert rows["fastassoc"]["verdict"] == "wrong"
    assert rows["fastassoc"]["error"] == pytest.approx(0.1, rel=1e-3)
    assert rows["eager"]["verdict"] == "ok"
    assert rows["compiled"]["verdict"] == "failed: ValueError: first line"
    assert "median_ms" not in rows["compiled"]
    contenders |= {"eager": out_of_memory, "fastassoc": speed.eager}
    rows = {row["contender"]: row for row in speed._speed_at(context, size, "fp32-high", contenders)}
    assert rows["eager"]["verdict"] == "out of memory"
    assert rows["fastassoc"]["verdict"] == "ok"


def test_the_error_allowed() -> None:
    assert allowed_error("fp32-high", 1e-3, True) == pytest.approx(2e-3, rel=1e-2)
    assert allowed_error("fp64", 0.0, True) < 2e-14
    # Stored in bfloat16, a gradient may be off by a rounding where eager's is exact; a loss may not.
    assert allowed_error("bf16", 0.0, True) > 2**-9 > allowed_error("bf16", 0.0, False)
    assert allowed_error("fp16", math.nan, True) == math.inf


ONE_PROCESS = """\
tests/kernels/triton/test_passes.py::test_passes[one tile-(5, 7, 3)] PASSED     [ 33%]
tests/kernels/triton/test_whole_loss.py::test_loss[a-b] FAILED                  [ 66%]
tests/kernels/triton/test_whole_loss.py::test_gradcheck SKIPPED (no)            [100%]
E   assert tests/kernels FAILED
========= 1 failed, 1 passed, 1 skipped in 3.21s =========
"""
MANY_PROCESSES = """\
tests/kernels/triton/test_passes.py::test_passes[one tile-(5, 7, 3)]
tests/kernels/triton/test_whole_loss.py::test_loss[a-b]
[gw1] [ 33%] PASSED tests/kernels/triton/test_passes.py::test_passes[one tile-(5, 7, 3)]
[gw0] [ 66%] FAILED tests/kernels/triton/test_whole_loss.py::test_loss[a-b]
[gw0] [100%] SKIPPED tests/kernels/triton/test_whole_loss.py::test_gradcheck
"""


@pytest.mark.parametrize("output", [ONE_PROCESS, MANY_PROCESSES])
def test_summary_of_the_kernel_tests(output: str) -> None:
    row = summary(output, 1)
    assert (row["passed"], row["failed"], row["error"], row["skipped"]) == (1, 1, 0, 1)
    assert row["failures"] == ["tests/kernels/triton/test_whole_loss.py::test_loss[a-b]"]
    assert row["verdict"] == "wrong"
    good = output.replace("FAILED", "PASSED")
    assert summary(good, 0)["verdict"] == "ok"
    assert summary(good, None)["verdict"] == "not finished: out of time"
    assert summary(output, None)["verdict"] == "wrong"
    assert summary("", 0)["verdict"] == "wrong"


def test_pictures_of_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    timed = [
        contender_row(name, median_ms=x, p20_ms=0.9 * x, p80_ms=1.1 * x)
        for name, x in (("fastassoc", 1.0), ("eager", 22.0))
    ]
    memory = [contender_row(name, peak_mib=x) for name, x in (("fastassoc", 8.0), ("eager", 4000.0))]
    stages = {"speed": {"rows": [*timed, contender_row("compiled", "out of memory")]}, "memory": {"rows": memory}}
    record = {"environment": {"device": "a card"}, "stages": stages}
    assert [row["verdict"] for row in plots.draw(record, tmp_path)] == ["drawn", "drawn"]
    figure = plots._time_figure(timed, "a card")
    words = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert words == ["22x"]
    assert "a card" in figure.get_suptitle()


def test_no_matplotlib_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    rows = list(plots.draw({"environment": {"device": "x"}, "stages": {}}, tmp_path))
    assert {row["verdict"] for row in rows} == {"not drawn: matplotlib is not installed"}


def test_the_sizes_are_those_of_the_benchmark_table() -> None:
    batches = {(size.n, size.m, size.classes) for size in FULL.speed}
    assert {(100, 100, 10), (100, 1000, 10), (1000, 1000, 10), (4096, 65536, 100)} <= batches
    assert {(2048, 16384, classes) for classes in (10, 100, 2048)} <= batches
    assert (FULL.alone.n, FULL.alone.m) == (4096, 2**20)
    assert FULL.without_sync.n <= 2048 < FULL.with_sync.n
    assert all(size.rounds == 20 for size in FULL.repeated)
