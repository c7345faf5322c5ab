"""The suite over ranks counts what it says, and goes on where a contender cannot."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

import benchmarks.__main__ as suites
from benchmarks import batches, pictures, ranks, report
from benchmarks.batches import Batch
from tests.benchmarks.test_suites import linux

pytest.importorskip("tqdm")
N, D, CLASSES = 24, 16, 4


@linux
def test_bytes_memory_and_times_are_printed_and_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(batches, "RANKS", (Batch(N, 80, D, CLASSES), Batch(N, 10**6, D, CLASSES)))
    monkeypatch.setattr(ranks, "NUMBERS", (1, 2))
    arguments = ["--suite", "ranks", "--device", "cpu", "--largest", "10000", "--seconds", "0.02"]
    arguments += ["--providers", "fastassoc", "gathered_with_gradients"]
    assert suites.main([*arguments, "--out", str(tmp_path)]) == 0
    assert f"| {N} x 80, D {D}, {CLASSES} classes | 2 | fastassoc with a group |" in capsys.readouterr().out
    record = json.loads((tmp_path / "ranks.json").read_text())
    assert {"device", "torch", "commit", "date"} <= set(record["environment"])
    assert record["environment"]["threads"] == 1
    with (tmp_path / "ranks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["provider"] for row in rows] == ["fastassoc", "fastassoc", "gathered_with_gradients"]
    assert [row["ranks"] for row in rows] == ["1", "2", "2"]
    for row in rows:
        assert row["status"] == "ok"
        assert float(row["error"]) < 1e-4
        assert 0.0 < float(row["p20_ms"]) <= float(row["median_ms"]) <= float(row["p80_ms"])
        assert -1.0 < float(row["resident_mib"]) < 64.0
    sent = [(int(row["forward_bytes"]), int(row["backward_bytes"]), int(row["collectives"])) for row in rows]
    half = N // 2
    # Sizes and options, a and labels, row sums; a half of the round trips, rho and the visits' part, twice; both terms.
    part = 4 * -(-(N * N // CLASSES + N + 1) // 2)
    mine = 7 * 8 + half * (4 * D + 8) + 2 * 8 * N + 2 * part + 2 * 4, 4 * D * half, 7
    gathered = 4 * D * (half + 40)
    assert sent == [(0, 0, 0), mine, (gathered + 8 * half, gathered, 5)]
    assert (tmp_path / "ranks.png").stat().st_size > 5000


@linux
def test_a_rank_that_fails_is_an_answer() -> None:
    task = {"batch": Batch(N, 80, D, CLASSES), "dtype": "none", "kind": "steps", "contenders": ["gathered"]}
    answer = ranks.work(1, task)["gathered"]
    assert answer["status"] == "failed"
    assert "none" in answer["message"]
    line = {"batch": list(Batch(N, 80)), "ranks": 2, "provider": "gathered", **answer}
    assert report.ranks_table([line])[1][0][3].startswith("failed: rank 0")
    assert pictures.ranks_figure([line], "a machine") is None


def test_a_gpu_has_no_such_suite(capsys: pytest.CaptureFixture[str]) -> None:
    options: Any = type("Options", (), {"device": "cuda"})
    ranks.run(options, {})
    assert "left out" in capsys.readouterr().err
