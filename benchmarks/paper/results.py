"""What came of an experiment: medians and deviations beside the paper's numbers, for the terminal and as CSV."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.paper.data import DataError
from benchmarks.paper.experiments import Cell, Experiment, with_seed, with_steps
from benchmarks.paper.plans import Settings
from benchmarks.paper.runs import Record, RunConfig, finished, lengths
from benchmarks.report import print_table

NO_DEVIATION = "-"  # of a single run, or of a method that is not measured here


@dataclass(frozen=True)
class Measured:
    """A cell of a table with its finished runs, at most one for each seed."""

    cell: Cell
    records: tuple[Record, ...]

    @property
    def steps(self) -> list[int]:
        """How many each run took, without repetition."""
        return sorted({record.config.training.steps for record in self.records})

    @property
    def errors_percent(self) -> list[float]:
        """The test error of each run: the last, or the least where the cell asks for that."""
        if self.cell.least:
            return [min(record.curve.test_error_percent) for record in self.records]
        return [record.error_percent for record in self.records]


@dataclass(frozen=True)
class Finding:
    """A measured quantity of a figure beside its table of errors: ``values`` has one for each seed."""

    name: str
    values: tuple[float, ...]


def measure(experiment: Experiment, settings: Settings, runs: Path) -> list[Measured]:
    """The finished runs of every cell. Raises `DataError` where no cell has one.

    Without a number of steps in ``settings``, a seed that has none of the usual length takes the longest that is there.
    """
    others = sorted(lengths(runs), reverse=True) if settings.steps is None else []
    measured = []
    for cell in experiment.cells:
        tried = [cell.config, *(with_steps(cell.config, steps) for steps in others)]
        records = [_first_finished(tried, seed, runs) for seed in settings.seeds]
        measured.append(Measured(cell, tuple(record for record in records if record is not None)))
    if not any(item.records for item in measured):
        raise DataError(f"{runs}: no training of {experiment.name} with these options is finished")
    return [item for item in measured if item.records]


def _first_finished(configs: Iterable[RunConfig], seed: int, runs: Path) -> Record | None:
    found = (finished(with_seed(config, seed), runs) for config in configs)
    return next((record for record in found if record is not None), None)


def median(values: Sequence[float]) -> str:
    """With two decimals."""
    return f"{statistics.median(values):.2f}"


def deviation(values: Sequence[float]) -> str:
    """The standard deviation of a sample (over its size less one), with two decimals; one value has none."""
    return f"{statistics.stdev(values):.2f}" if len(values) > 1 else NO_DEVIATION


def report(experiment: Experiment, measured: Sequence[Measured], findings: Sequence[Finding] = ()) -> None:
    """Print the tables and the remarks of ``experiment``."""
    head = [
        experiment.group_name,
        experiment.series_name,
        "paper, %",
        "here: median, %",
        "std",
        "runs",
        "steps",
        "s a run",
    ]
    lines = []
    for item in measured:
        cell, errors = item.cell, item.errors_percent
        seconds = statistics.median(record.seconds for record in item.records)
        lines.append(
            [
                cell.group,
                cell.series,
                cell.paper,
                median(errors),
                deviation(errors),
                str(len(errors)),
                " and ".join(f"{steps:,}" for steps in item.steps),
                f"{seconds:.0f}",
            ]
        )
    unknown = [NO_DEVIATION] * (len(head) - 3)
    lines += [[other.group, other.method, other.paper, *unknown] for other in experiment.others]
    print_table(experiment.title, head, lines)
    if findings:
        rows = [[item.name, median(item.values), deviation(item.values)] for item in findings]
        print_table("also", ["quantity", "median", "std"], rows)
    print()
    for remark in experiment.remarks:
        print(f"- {remark}")


def save_csv(
    path: Path, experiment: Experiment, measured: Sequence[Measured], findings: Sequence[Finding] = ()
) -> None:
    """One row for each cell, one for each finding, with what the numbers depend on; then the paper's other methods."""
    rows = [_row(experiment, item) for item in measured]
    for finding in findings:
        common = {key: rows[0][key] for key in _provenance(measured[0].records)}
        values = " ".join(f"{value:.2f}" for value in finding.values)
        rows.append(
            {
                "experiment": experiment.name,
                "quantity": finding.name,
                "median": median(finding.values),
                "std": deviation(finding.values),
                "runs": len(finding.values),
                "values": values,
                **common,
            }
        )
    rows += [
        {
            "experiment": experiment.name,
            "quantity": "the paper's of another method or data set, %",
            experiment.group_name: other.group,
            experiment.series_name: other.method,
            "paper": other.paper,
        }
        for other in experiment.others
    ]
    fields = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=fields, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(rows)


def save_curves_csv(path: Path, measured: Iterable[Measured]) -> None:
    """One row for each evaluation of each run."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["series", "seed", "step", "test_error_percent"])
        for item in measured:
            for record in item.records:
                points = zip(record.curve.steps, record.curve.test_error_percent, strict=True)
                writer.writerows([item.cell.series, record.config.seed, step, f"{error:.2f}"] for step, error in points)


def _row(experiment: Experiment, measured: Measured) -> dict[str, Any]:
    errors, records, config = measured.errors_percent, measured.records, measured.cell.config
    associates = config.unlabelled != 0
    every = [record.config.training.steps for record in records]
    return {
        "experiment": experiment.name,
        "quantity": "test error, %",
        experiment.group_name: measured.cell.group,
        experiment.series_name: measured.cell.series,
        "paper": measured.cell.paper,
        "median": median(errors),
        "std": deviation(errors),
        "runs": len(errors),
        "values": " ".join(f"{error:.2f}" for error in errors),
        "seeds": " ".join(str(record.config.seed) for record in records),
        "labelled_images": records[0].sizes["labelled"],
        "unlabelled_images": records[0].sizes["unlabelled"],
        "test_images": records[0].sizes["test"],
        "steps": " ".join(str(steps) for steps in (measured.steps if len(measured.steps) == 1 else every)),
        "learning_rate": config.training.learning_rate.initial,
        "walker_weight": config.training.walker.final if associates else "",
        "visit_weight": config.training.visit.final if associates else "",
        "loss": config.training.loss if associates else "",
        "precision": config.training.precision,
        "seconds_a_run": f"{statistics.median(record.seconds for record in records):.1f}",
        **_provenance(records),
    }


def _provenance(records: Sequence[Record]) -> dict[str, str]:
    """The environments of the runs; where they differ, each value that occurs."""
    keys = records[0].environment
    return {key: " ".join(dict.fromkeys(str(record.environment[key]) for record in records)) for key in keys}
