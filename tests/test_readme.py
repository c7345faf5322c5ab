"""The figures of the README are those of the committed results."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from benchmarks.batches import Batch, useful_operations

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def read_results(name: str) -> list[dict[str, str]]:
    with (ROOT / "benchmarks" / "results" / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table_below(heading: str) -> list[list[str]]:
    """The rows of the first table below ``heading``, as cells."""
    (table,) = re.findall(r"(?:^\|.*\n)+", README[README.index(heading) :], re.MULTILINE)[:1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_times_are_the_suites() -> None:
    times = {
        (f"{row['n']} x {row['m']}, {row['classes']}", row["provider"]): row
        for row in read_results("paper.csv") + read_results("large.csv")
        if (row["d"], row["scale"], row["unbalanced"], row.get("new_labels", "False"))
        == ("128", "0.55", "False", "False")
    }
    rows = table_below("## Speed and memory on a CPU")
    assert len(rows) == 9
    for name, mine, eager, over_eager, compiled, over_compiled, floor in rows:
        medians = {x: float(times[name, x]["median_ms"]) for x in ("fastassoc", "eager", "compiled")}
        for written, provider in ((mine, "fastassoc"), (eager, "eager"), (compiled, "compiled")):
            assert float(written) == pytest.approx(medians[provider], rel=0.01), (name, provider)
        # That against eager code is a median of ratios; both are written with one decimal.
        assert over_eager == f"{float(times[name, 'fastassoc']['times_eager']):.1f}", name
        assert float(over_compiled) == pytest.approx(medians["compiled"] / medians["fastassoc"], abs=0.051), name
        assert floor == f"{float(times[name, 'fastassoc']['floor_over_time']):.0%}"


def test_peaks_are_the_suites() -> None:
    peaks = {
        (f"{row['n']} x {row['m']}", row["provider"]): float(row["resident_mib"])
        for row in read_results("memory.csv")
        if row["classes"] == "10"
    }
    rows = table_below("Peak memory of one step beyond")
    assert len(rows) == 3
    for name, _, *written in rows:
        providers = ("fastassoc", "eager", "compiled", "chunked")
        assert written == [f"{peaks[name, provider]:.0f}" for provider in providers]


def test_figures_in_sentences_are_the_suites() -> None:
    text = " ".join(README.split())
    largest = {row["provider"]: int(row["m"]) for row in read_results("largest_batch.csv")}
    assert f"a step took {largest['fastassoc'] / 1e6:.1f} million unlabelled samples" in text
    eager, chunked = (f"{round(largest[name], -3):,}" for name in ("eager", "chunked"))
    assert largest["compiled"] == largest["eager"]
    assert f"`torch.compile` of it take {eager}, checkpointed chunks {chunked}." in text
    growth = json.loads((ROOT / "benchmarks" / "results" / "growth.json").read_text(encoding="utf-8"))
    last = growth["rows"][-1]
    assert f"the power of {growth['environment']['time_exponent']:.2f} from 62,500 to {last['batch'][1]:,}" in text
    assert f"gradients is {last['resident_mib']:.0f} MiB" in text
    ratios = [row for row in read_results("paper.csv") if row["provider"] == "fastassoc"]
    large_logits = [f"{float(row['times_eager']):.0f}" for row in ratios if row["scale"] != "0.55"]
    assert f"it is {' and '.join(large_logits)} times slower" in text
    timed = [row for row in read_results("large.csv") if int(row["n"]) * int(row["m"]) >= 2048 * 16384]
    timed = [row for row in timed if row["provider"] == "fastassoc" and row["n"] != "1024"]
    assert len(timed) >= 7
    assert f"would be {min(float(row['mm_floor_over_time']) for row in timed):.0%} of the time and more" in text
    for batch in (Batch(512, 1_000_000), Batch(4096, 65536, classes=100)):
        useful = useful_operations(batch)
        # Scores three times instead of once.
        most = useful / (useful + 4 * batch.n * batch.m * batch.d)
        assert f"at the full rate of a large product they would reach {most:.0%}." in text
    for column in ("mm_gflops", "product_gflops"):
        rates = [float(row[column]) for row in read_results("large.csv")]
        assert f"{min(rates):.0f} to {max(rates):.0f}" in text
    compiled = {
        (row["n"], row["m"], row["new_labels"]): float(row["median_ms"])
        for row in read_results("paper.csv")
        if row["provider"] == "compiled" and row["scale"] == "0.55"
    }
    for new_labels in ("False", "True"):
        small = [row for row in ratios if int(row["n"]) <= 100 and row["new_labels"] == new_labels]
        gains = [100 * float(row["times_eager"]) - 100 for row in small]
        assert f"quicker than eager code by {min(gains):.0f} to {max(gains):.0f}%" in text
        over = [compiled[row["n"], row["m"], new_labels] / float(row["median_ms"]) for row in small]
        if new_labels == "True":
            assert f"took {' and '.join(f'{x:.2f}' for x in over)} times as long in this run" in text
        else:
            assert f"than `torch.compile` of it by {100 * min(over) - 100:.0f} to {100 * max(over) - 100:.0f}%" in text


def test_errors_are_the_experiments() -> None:
    rows = read_results("experiments/table3.csv")
    medians = {(row["labelled digits"], row["unlabelled digits"]): float(row["median"]) for row in rows}
    written = table_below("## The paper's experiments")
    assert [row[0] for row in written] == ["20", "100", "1,000"]
    for labelled, *errors in written:
        for unlabelled, error in zip(("0", "1,000", "all"), errors, strict=True):
            assert error == f"{medians[labelled, unlabelled]:.1f}"


def test_mnist_errors_are_the_commands() -> None:
    text = (ROOT / "benchmarks" / "results" / "mnist" / "results.json").read_text(encoding="utf-8")
    for name, error in table_below("## What 4,000 unlabelled digits are worth"):
        (errors,) = re.findall(rf'"{name}": {{\s*"steps".*?"test_error_percent": \[(.*?)\]', text, re.DOTALL)
        assert error == f"{float(errors.split(',')[-1]):.1f} %"
