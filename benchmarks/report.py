"""Results of the benchmark suites as tables and files."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

from benchmarks.batches import Batch
from benchmarks.exchange import CONTENDERS
from benchmarks.providers import PROVIDERS

Row = dict[str, Any]
_LABELS = {provider.name: provider.label for provider in PROVIDERS}


def timing_table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and lines: a batch and a provider each."""
    head = ["N x M, D, classes", "provider", "ms (p20 to p80)", "eager / this", "floor / this"]
    return head, [[Batch(*row["batch"]).label, _LABELS[row["provider"]], *_timing_cells(row)] for row in rows]


def _timing_cells(row: Row) -> list[str]:
    if "median_ms" not in row:
        return [
            row["status"] + (f": {row['message']}" if row["status"] in ("wrong", "failed", "missing") else ""),
            "",
            "",
        ]
    spread = f"{row['median_ms']:.3g} ({row['p20_ms']:.3g} to {row['p80_ms']:.3g})"
    ratio = f"{row['times_eager']:.2f}" if "times_eager" in row else "-"
    return [spread, ratio, f"{row['floor_over_time']:.0%}"]


def memory_table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and lines: a batch and a provider each."""
    head = ["N x M, D, classes", "provider", "peak resident, MiB", "peak live tensors, MiB", "one step, s"]
    lines = []
    for row in rows:
        cells = [row["status"], "", ""]
        if row["status"] == "ok":
            numbers = row["resident_mib"], row["live_mib"]
            cells = ["-" if x is None else f"{x:.0f}" for x in numbers]
            cells.append(f"{row['first_ms'] / 1e3:.2f}" if "first_ms" in row else "-")
        lines.append([Batch(*row["batch"]).label, _LABELS[row["provider"]], *cells])
    return head, lines


def ranks_table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and lines: a batch, a number of ranks and a contender each."""
    labels = {contender.name: contender.label for contender in CONTENDERS}
    head = [
        "N x M, D, classes", "ranks", "contender", "sent forward, KiB", "sent backward, KiB", "collectives",
        "peak of a rank, MiB", "ms (p20 to p80)",
    ]  # fmt: skip
    lines = []
    for row in rows:
        label = labels[row["provider"]] if row["ranks"] > 1 else "one process"
        cells = [f"{row['status']}: {row.get('message', '')}", "", "", "", ""]
        if row["status"] == "ok":
            sent = [f"{row[f'{way}_bytes'] / 1024:,.0f}" for way in ("forward", "backward")]
            spread = f"{row['median_ms']:.0f} ({row['p20_ms']:.0f} to {row['p80_ms']:.0f})"
            cells = [*sent, str(row["collectives"]), f"{row['resident_mib']:.0f}", spread]
        lines.append([Batch(*row["batch"]).label, str(row["ranks"]), label, *cells])
    return head, lines


def capacity_table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and lines: the largest M of a provider."""
    head = ["provider", "largest M", "its peak, MiB", "limit, MiB", "N, D"]
    lines = []
    for row in rows:
        largest = f"{row['m']:,}" + (" or more" if row["at_least"] else "") if row["m"] else "none"
        peak = f"{row['total_mib']:.0f}" if row["m"] else "-"
        lines.append([_LABELS[row["provider"]], largest, peak, f"{row['limit_mib']}", f"{row['n']}, {row['d']}"])
    return head, lines


def growth_exponent(rows: list[Row], value: str) -> float:
    """The slope of log value over log M, by least squares."""
    points = [(math.log(Batch(*row["batch"]).m), math.log(row[value])) for row in rows if row.get(value)]
    if len(points) < 2:
        return math.nan
    mean_x, mean_y = (sum(axis) / len(points) for axis in zip(*points, strict=True))
    above = sum((x - mean_x) * (y - mean_y) for x, y in points)
    return float(above / sum((x - mean_x) ** 2 for x, _ in points))


def print_table(title: str, head: list[str], lines: list[list[str]]) -> None:
    """For a terminal with rich installed its table, else Markdown."""
    if sys.stdout.isatty():
        try:
            from rich.console import Console
            from rich.table import Table
        except ImportError:
            pass
        else:
            table = Table(*head, title=title)
            for line in lines:
                table.add_row(*line)
            Console().print(table)
            return
    print(f"\n{title}\n\n{markdown(head, lines)}")


def markdown(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def save(folder: Path, name: str, rows: list[Row], environment: Row) -> None:
    """``name.json`` with the environment, and ``name.csv``."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"environment": environment, "rows": rows}
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    flat = [{**Batch(*row["batch"])._asdict(), **row} if "batch" in row else row for row in rows]
    fields = list(dict.fromkeys(key for row in flat for key in row if key != "batch"))
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=fields, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({**dict.fromkeys(fields, ""), **row} for row in flat)
