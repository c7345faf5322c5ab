"""Host time without a GPU."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import host
from benchmarks.batches import Batch


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled")
def test_rows_and_their_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host, "SIZES", (Batch(20, 30, d=16), Batch(20, 140, d=16)))
    monkeypatch.setattr(host, "ROUNDS", 1)
    monkeypatch.setattr(host, "STEPS", 2)
    monkeypatch.setattr(host, "WARM_UP", 1)
    assert host.main(["--dtype", "bf16", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "host.json").read_text())["rows"]
    assert [(x["launches_forward"], x["launches_backward"]) for x in rows] == [(1, 1), (3, 2)]
    for row in rows:
        assert row["forward_us"] > 0
        assert row["backward_us"] > 0
        # Products, softmaxes and their derivatives.
        assert 30 <= row["eager_operations"] <= 80
    assert "| 20 x 30, 16 | bf16 | 1, 1 |" in capsys.readouterr().out
    assert (tmp_path / "host.md").read_text().count("\n| 20 x") == 2


def test_all_is_as_before_afterwards() -> None:
    from fastassoc.backends import triton

    before = triton.check_can_run
    with host.nothing_launched():
        triton.check_can_run(torch.device("cpu"))
    assert triton.check_can_run is before
