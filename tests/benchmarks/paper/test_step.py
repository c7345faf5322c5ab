"""`python -m benchmarks.paper.step`: every way computes a step, and the shares are of the whole."""

from __future__ import annotations

import pytest

pytest.importorskip("mlxtend")

from benchmarks.paper import step

pytestmark = pytest.mark.usefixtures("one_thread")


def test_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("ROUNDS", "WARM_UP", "PROFILED_STEPS"):
        monkeypatch.setattr(step, name, 1)
    monkeypatch.setattr(step, "WAYS", {name: way for name, way in step.WAYS.items() if "compile" not in name})
    step.main()
    printed = capsys.readouterr().out
    assert all(f"| {name} | " in printed for name in (*step.WAYS, *step.KINDS))
    assert "| float32 | " in printed
    *_, shares = printed.split("share of the operations' time | float32 | bf16 |")
    for column in (2, 3):
        percents = [float(line.split("|")[column].strip(" %")) for line in shares.splitlines()[2:]]
        assert sum(percents) == pytest.approx(100, abs=0.5)
