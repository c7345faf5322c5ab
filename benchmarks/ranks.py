"""The suite of the loss over the ranks of a gloo group, at totals that stay the same: `run`.

Every rank is a process of one thread. What crosses ranks and what memory a rank takes are the point; times on a
machine with fewer cores than ranks are not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import batches, pictures, report
from benchmarks.batches import Batch
from benchmarks.exchange import CONTENDERS

Row = dict[str, Any]
NUMBERS = (1, 2, 4)
"""Of ranks: they divide the rows of every batch."""
_SECONDS = 600
"""After so long a rank is taken to wait for one that never comes."""


def work(ranks: int, task: Row) -> dict[str, Row]:
    """The rows that rank 0 answers with, by contender, or why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        shared = {**task, "ranks": ranks, "meeting": (Path(folder) / "meeting").as_uri()}
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.rank_worker", json.dumps(shared | {"rank": rank})],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(ranks)
        ]
        try:
            printed = [x.communicate(timeout=_SECONDS) for x in processes]
        except subprocess.TimeoutExpired:
            return _failed(task, f"a rank did not answer within {_SECONDS} seconds")
        finally:
            for x in processes:
                x.kill()
                x.wait()
    failed = [rank for rank, x in enumerate(processes) if x.returncode != 0]
    if failed:
        lines = printed[failed[0]][1].strip().splitlines()
        return _failed(task, f"rank {failed[0]}: {lines[-1][:200] if lines else processes[failed[0]].returncode}")
    answer: dict[str, Row] = json.loads(printed[0][0].splitlines()[-1])
    return answer


def _failed(task: Row, message: str) -> dict[str, Row]:
    return {name: {"status": "failed", "message": message} for name in task["contenders"]}


def measurements(sizes: tuple[Batch, ...], options: argparse.Namespace) -> Iterator[Row]:
    """A row for each batch, number of ranks and contender; with one rank all are the same."""
    names = [x.name for x in CONTENDERS if not options.providers or x.name in options.providers]
    cells = [(batch, ranks) for batch in sizes for ranks in NUMBERS if names]
    for batch, ranks in tqdm(cells, desc="ranks", unit="group"):
        contenders = names[:1] if ranks == 1 else names
        task = {"batch": batch, "dtype": options.dtype, "seconds": options.seconds or 8.0}
        found = work(ranks, {**task, "kind": "steps", "contenders": contenders})
        for name, row in found.items():
            if row["status"] == "ok":
                # A process of its own has a memory peak of its own.
                row = row | work(ranks, {**task, "kind": "memory", "contenders": [name]})[name]
            yield {"batch": list(batch), "ranks": ranks, "provider": name, **row}


def run(options: argparse.Namespace, about: Row) -> None:
    """Bytes, memory and times; table, files and pictures."""
    if torch.device(options.device).type != "cpu":
        print("suite ranks runs on the CPU alone: left out", file=sys.stderr)
        return
    about = about | {"threads": 1}
    sizes = tuple(x for x in batches.RANKS if options.largest is None or x.n * x.m <= options.largest)
    rows = []
    for row in measurements(sizes, options):
        rows.append(row)
        if options.out is not None:
            # A run that ends early leaves what it has.
            report.save(options.out, "ranks", rows, about)
    report.print_table("Forward and backward over ranks, one thread each", *report.ranks_table(rows))
    if options.out is not None:
        pictures.draw(options.out)
