"""Batch after batch, and a table of what came of them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.fuzz import ways
from benchmarks.fuzz.cases import WAYS, Case, describe
from benchmarks.fuzz.verdict import Loss, Outcome, judge


class Limits(NamedTuple):
    """Which batches of a campaign are run."""

    seed: int
    minutes: float
    cases: int | None = None
    """How many, however long they take."""
    only: str | None = None
    """A kind, way, similarity or dtype."""
    interpreted: bool = False


class Row:
    """What came of the batches of a kind, or of a way."""

    def __init__(self) -> None:
        self.cases = 0
        self.machine_code = 0
        self.failures = 0
        self.ratio = 0.0

    def add(self, outcome: Outcome) -> None:
        """One more."""
        self.cases += 1
        self.machine_code += outcome.machine_code
        self.failures += bool(outcome.problems)
        self.ratio = max(self.ratio, outcome.ratio)


class Tally:
    """What came of all batches, by way and by kind."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Row]] = {"way": defaultdict(Row), "kind": defaultdict(Row)}

    def add(self, outcome: Outcome) -> None:
        """One more."""
        self.rows["way"][outcome.case.way].add(outcome)
        self.rows["kind"][outcome.case.kind].add(outcome)

    @property
    def cases(self) -> int:
        """All of them."""
        return sum(row.cases for row in self.rows["way"].values())

    @property
    def failures(self) -> int:
        """Those with a problem."""
        return sum(row.failures for row in self.rows["way"].values())

    def table(self) -> str:
        """Lines of text; the ratio is the largest error over what is allowed."""
        lines = []
        for heading, rows in self.rows.items():
            lines.append(f"{heading:<16}{'batches':>9}{'machine code':>14}{'failures':>10}{'error / allowed':>17}")
            for name, row in sorted(rows.items()):
                lines.append(f"{name:<16}{row.cases:>9}{row.machine_code:>14}{row.failures:>10}{row.ratio:>17.3g}")
            lines.append("")
        return "\n".join(lines)


def outcomes(limits: Limits, loss: Loss) -> Iterator[Outcome]:
    """Batches in the order of their numbers, those that can be run here."""
    end = time.monotonic() + 60.0 * limits.minutes
    left_out = {way for way in WAYS if ways.missing(way) is not None}
    done = number = 0
    while done < limits.cases if limits.cases is not None else time.monotonic() < end:
        case = describe(limits.seed, number, limits.interpreted)
        number += 1
        if case.way in left_out or not _asked_for(case, limits.only):
            continue
        yield judge(case, loss)
        done += 1


def _asked_for(case: Case, only: str | None) -> bool:
    return only is None or only in (case.kind, case.way, case.similarity, case.dtype)
