"""Host time without a GPU."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

import fastassoc
from benchmarks import host
from benchmarks.batches import Batch

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1" or torch.cuda.is_available(), reason="for a GPU that is not there"
)


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
    from triton.runtime import driver

    from fastassoc.backends import triton
    from fastassoc.backends.triton import dense, launch

    def state() -> tuple[object, ...]:
        kept = dense._forward.cache_info().currsize, dense._backward.cache_info().currsize
        return triton.check_can_run, launch._device_machine, kept

    dense.forget()
    before = state()
    a = torch.ones(4, 16)
    with host.nothing_launched() as nothing:
        assert driver.active is nothing
        fastassoc.walker_visit_loss(a, a, torch.arange(4), backend="triton")
        assert state() != before
    assert state() == before
    assert driver._active is None
