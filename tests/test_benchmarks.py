"""The benchmark commands run, and what they compare with is right."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

import benchmarks.eager
import benchmarks.memory
import benchmarks.speed
from fastassoc import reference
from tests.cases import assert_close, evaluate, make_case


@pytest.mark.parametrize("classes", [1, 4, 0])
def test_the_eager_port_is_the_specification(classes: int) -> None:
    case = make_case(20, 50, 6, classes)
    assert_close(evaluate(benchmarks.eager.walker_visit_loss, case), evaluate(reference.walker_visit_loss, case), 1e-12)


def test_speed_prints_a_table_and_saves_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmarks.speed.main(["--largest", "100", "--rounds", "2", "--out", str(tmp_path)]) == 0
    assert "| 100 x 1000, 10 |" in capsys.readouterr().out
    record = json.loads((tmp_path / "speed.json").read_text())
    assert {"processor", "torch", "commit", "date"} <= set(record["environment"])
    with (tmp_path / "speed.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["m"] for row in rows] == ["100", "1000"]
    assert all(float(row["times_eager"]) > 0.0 and 0.0 < float(row["floor_over_time"]) < 1.0 for row in rows)


def test_speed_refuses_a_wrong_contender() -> None:
    case = make_case(20, 50, 6, 3, dtype=torch.float32)
    a, b = case.a.requires_grad_(), case.b.requires_grad_()
    losses = {
        "eager": benchmarks.eager.walker_visit_loss,
        "wrong": lambda a, b, labels: benchmarks.eager.walker_visit_loss(a, b, labels, visit_weight=1.01),
    }
    with pytest.raises(SystemExit, match="wrong is wrong"):
        benchmarks.speed.check(losses, a, b, case.labels)


def test_useful_operations_of_a_batch() -> None:
    # 6 N M D = 6 * 5 * 7 * 3, classes of 3 and 2 rows: 3 * 7 * (9 + 4).
    assert benchmarks.speed.useful_operations(benchmarks.speed.Size(5, 7, 2, 1), 3) == 630 + 273
