"""The benchmark suites measure what they say, and go on where a provider cannot."""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import benchmarks.__main__ as suites
import benchmarks.chunked
from benchmarks import batches, environment, pictures, providers, report, worker
from benchmarks.batches import Batch
from fastassoc import reference
from tests.cases import assert_close, evaluate, make_case

pytest.importorskip("tqdm")
ROOT = Path(__file__).parents[2]
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads memory from /proc")


@pytest.mark.parametrize("chunk", [7, 50, 4096])
def test_the_chunked_port_is_the_specification(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks.chunked, "_CHUNK", chunk)
    case = make_case(20, 50, 6, 4, dtype=torch.float32)
    exact = evaluate(reference.walker_visit_loss, case, torch.float64)
    assert_close(evaluate(benchmarks.chunked.walker_visit_loss, case), exact, 1e-5)


def test_useful_operations() -> None:
    # 6 N M D = 6 * 5 * 7 * 3, classes of 3 and 2 rows: 3 * 7 * (9 + 4).
    batch = Batch(5, 7, d=3, classes=2)
    assert batches.useful_operations(batch) == 630 + 273
    assert batches.useful_operations(batch, walker=False) == 630


def test_unbalanced_labels_fall_by_halves() -> None:
    sizes = batches.make_labels(Batch(1024, 1, classes=5, unbalanced=True)).bincount()
    assert sizes.tolist() == [512, 256, 128, 64, 64]


def test_visit_terms_take_turns_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = []

    def work(task: dict[str, Any]) -> dict[str, Any]:
        tasks.append(task["providers"])
        return {"product_gflops": 1.0, "providers": {name: {"status": "ok"} for name in task["providers"]}}

    monkeypatch.setattr(suites, "work", work)
    options = argparse.Namespace(providers=None, dtype="float32", device="cpu")
    sizes = (Batch(8, 8), Batch(2048, 16384))
    rows = list(suites.timings(sizes, options, 1.0))
    walkers = ["fastassoc", "eager", "compiled", "chunked"]
    assert [name for name in tasks[0] if name in walkers] == walkers
    assert tasks == [tasks[0], tasks[0], ["fastassoc_visit", "keops_visit"]]
    assert [row["provider"] for row in rows] == [name for names in tasks for name in names]

    tasks.clear()
    options.providers = ["eager"]
    list(suites.timings(sizes, options, 1.0))
    assert tasks == [["eager"], ["eager"]]


@linux
def test_times_are_printed_and_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--suite", "paper", "--largest", "10000", "--seconds", "0.05", "--providers", "fastassoc", "eager"]
    assert suites.main([*arguments, "--out", str(tmp_path)]) == 0
    assert "| 100 x 100, D 128, 10 classes | fastassoc |" in capsys.readouterr().out
    record = json.loads((tmp_path / "paper.json").read_text())
    assert {"device", "torch", "commit", "date", "dtype"} <= set(record["environment"])
    with (tmp_path / "paper.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["m"], row["provider"]) for row in rows] == [
        (m, name) for m in ("8", "100", "100") for name in ("fastassoc", "eager")
    ]
    for row in rows:
        assert row["status"] == "ok"
        assert float(row["error"]) < 1e-4
        assert 0.0 < float(row["p20_ms"]) <= float(row["median_ms"]) <= float(row["p80_ms"])
        assert float(row["times_eager"]) > 0.0
        assert 0.0 < float(row["floor_over_time"]) <= float(row["mm_floor_over_time"])
        assert float(row["floor_over_time"]) < 1.0
        assert float(row["product_gflops"]) >= float(row["mm_gflops"]) > 0.0


def task(kind: str, batch: Batch, limit_mib: int | None = None, **more: object) -> dict[str, object]:
    return {"kind": kind, "batch": batch, "dtype": "float32", "device": "cpu", "limit_mib": limit_mib, **more}


def test_a_wrong_or_missing_provider_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> providers.Loss:
        raise providers.MissingProviderError("not here")

    wrong = providers.Provider("eager", "wrong", lambda: lambda a, b, labels: (a.sum() + b.sum()) * 1e-3)
    absent = providers.Provider("chunked", "absent", missing)
    monkeypatch.setattr(providers, "PROVIDERS", (wrong, absent))
    answer = worker.time_providers(task("time", Batch(20, 30, 8, 2), providers=["eager", "chunked"], seconds=0.01))
    assert answer["providers"]["eager"]["status"] == "wrong"
    assert answer["providers"]["chunked"] == {"status": "missing", "message": "not here"}


@pytest.mark.parametrize(("quick", "steps"), [(True, 6), (False, 1)])
def test_a_quick_turn_starts_with_a_step_that_is_not_timed(quick: bool, steps: int) -> None:
    calls = []

    def loss(a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
        calls.append(1)
        time.sleep(0.5 if quick and len(calls) == 1 else 0.001)
        return (a * b).sum()

    a, b = (torch.ones(2, 2, requires_grad=True) for _ in range(2))
    assert 0.001 <= worker.turn(loss, a, b, torch.zeros(2), quick) < 0.25
    assert len(calls) == steps


def test_labels_in_another_order_at_each_step() -> None:
    seen = []

    def loss(a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
        seen.append(labels.tolist())
        return (a * b).sum()

    a, b = (torch.ones(2, 2, requires_grad=True) for _ in range(2))
    labels = torch.tensor([3, 1, 1, 2, 1, 4, 1, 5])
    worker.turn(loss, a, b, labels, quick=True, new_labels=True)
    assert all(x != y for x, y in itertools.pairwise(seen))
    assert len({tuple(sorted(x)) for x in seen}) == 1


@linux
def test_out_of_memory_is_an_answer() -> None:
    small = suites.work(task("memory", Batch(64, 64), limit_mib=None, provider="eager", live=True))
    assert small["status"] == "ok"
    # Address space for the libraries, not for one N x M matrix of 16 GiB: the first allocation fails.
    large = task("memory", Batch(4096, 2**20, d=8), limit_mib=5000, provider="eager", live=False)
    assert suites.work(large)["status"] == "out of memory"


@linux
def test_memory_of_a_batch() -> None:
    # Five N x M matrices of 16 MiB and more for eager code; fastassoc keeps one and tiles.
    batch = Batch(512, 8192, d=16)
    eager, mine = (suites.work(task("memory", batch, provider=name, live=True)) for name in ("eager", "fastassoc"))
    assert eager["live_mib"] > 64.0
    assert eager["resident_mib"] > 64.0
    assert mine["live_mib"] < 64.0


def test_growth_exponent() -> None:
    rows = [{"batch": list(Batch(2, m)), "x": 3.0 * m**1.5} for m in (10, 100, 1000)]
    assert report.growth_exponent(rows, "x") == pytest.approx(1.5)
    assert math.isnan(report.growth_exponent(rows[:1], "x"))


def test_pictures_are_drawn_from_saved_results(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    names = ("speedup", "speedup_small", "speedup_shapes", "time_over_m", "time_over_n", "time_over_classes", "ranks")
    expected = {f"{name}.png" for name in (*names, "memory_over_m")}
    results = ROOT / "benchmarks" / "results"
    # Every picture beside the committed results has them behind it.
    assert {path.name for path in results.glob("*.png")} == expected
    for suite in ("paper", "large", "classes", "memory", "ranks"):
        (tmp_path / f"{suite}.json").write_bytes((results / f"{suite}.json").read_bytes())
    assert pictures.main([str(tmp_path)]) == 0
    drawn = {path.name: path.stat().st_size for path in tmp_path.glob("*.png")}
    assert set(drawn) == expected
    assert min(drawn.values()) > 5000


def test_no_picture_without_results(tmp_path: Path) -> None:
    assert pictures.main([str(tmp_path)]) == 1
    assert not list(tmp_path.iterdir())


def test_bars_of_different_machines_stay_apart(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for suite, device in (("paper", "one"), ("large", "another")):
        record = json.loads((ROOT / "benchmarks" / "results" / f"{suite}.json").read_text())
        record["environment"]["device"] = device
        (tmp_path / f"{suite}.json").write_text(json.dumps(record))
    drawn = {path.name for path in pictures.draw(tmp_path)}
    assert "speedup_small.png" in drawn
    assert "speedup.png" not in drawn


def test_a_speedup_is_the_median_of_ratios() -> None:
    pytest.importorskip("matplotlib")
    rows: list[dict[str, Any]] = [
        {"batch": list(Batch(8, 10)), "provider": name, "median_ms": time}
        for name, time in (("fastassoc", 2.0), ("eager", 9.0), ("compiled", 5.0))
    ]
    rows[0] |= {"times_eager": 4.0, "floor_over_time": 0.5}
    figure = pictures.speedup_figure(rows, [Batch(8, 10), Batch(8, 11)], "a machine")
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [4.0, 2.5]
    assert pictures.speedup_figure(rows, [Batch(8, 11)], "a machine") is None


def test_commit_tells_changes_and_is_unknown_outside_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = tmp_path / "code.py"
    code.write_text("first\n")
    monkeypatch.setattr("benchmarks.environment.__file__", str(code))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    read = environment.commit.__wrapped__  # afresh every time
    assert read() == "unknown"

    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.example"]
    for command in (["init", "-q"], ["add", "code.py"], ["commit", "-q", "-m", "first"], ["tag", "v1"]):
        subprocess.run([*git, *command], check=True)
    assert re.fullmatch("[0-9a-f]{7,}", read())
    (tmp_path / "untracked").touch()
    code.write_text("second\n")
    assert re.fullmatch("[0-9a-f]{7,}-dirty", read())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read() == "unknown"
