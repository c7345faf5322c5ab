"""Speed and memory beside what users would use instead: ``python -m benchmarks``.

Every measurement runs in a process of its own (`benchmarks.worker`): a provider has to give the right gradients before
it is timed, contenders run in turn, in another order each round, and one that is missing or out of memory shows as
such. Times are of forward and backward together; where they are a matter of caches, a turn is one step that is not
timed and the mean of five that are. The floor is the time of the useful operations
(`benchmarks.batches.useful_operations`) at the rate of a matrix product of 2048 cubed timed between the rounds: that of
the quicker of PyTorch's libraries, and in the files also that of `torch.mm`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import batches, pictures, ranks, report
from benchmarks.batches import Batch
from benchmarks.environment import environment, memory_mib
from benchmarks.exchange import CONTENDERS
from benchmarks.providers import PROVIDERS

Row = dict[str, Any]
SUITES = ("paper", "large", "classes", "memory", "ranks")
_NEED_MIB = 3072
"""Address space that libraries take before any tensor."""
_CAPACITY = Batch(512, 1, d=128, classes=10)
_LARGEST_M = 2**24


def work(task: Row) -> Row:
    """The answer of a worker, or why there is none."""
    command = [sys.executable, "-m", "benchmarks.worker", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        answer: Row = json.loads(done.stdout.splitlines()[-1])
        return answer
    killed = done.returncode < 0 or "MemoryError" in done.stderr or "allocate" in done.stderr
    lines = done.stderr.strip().splitlines()
    return {
        "status": "out of memory" if killed else "failed",
        "message": lines[-1][:200] if lines else f"exit status {done.returncode}",
    }


def timings(sizes: tuple[Batch, ...], options: argparse.Namespace, seconds: float) -> Iterator[Row]:
    """A row for each batch and provider."""
    for batch in tqdm(sizes, desc="times", unit="batch"):
        # Those of the visit term alone take turns with each other: KeOps needs a minute on a CPU.
        groups = [[x.name for x in PROVIDERS if x.walker]]
        if batch == Batch(2048, 16384):
            groups.append([x.name for x in PROVIDERS if not x.walker])
        for group in groups:
            names = [name for name in group if not options.providers or name in options.providers]
            if not names:
                continue
            task = {"kind": "time", "batch": batch, "providers": names, "seconds": seconds, **shared(options)}
            answer = work(task)
            if "providers" not in answer:
                # Someone took the others down: each alone then, without ratios.
                answers = {name: work({**task, "providers": [name]}) for name in names}
                answer = {"providers": {name: x.get("providers", {name: x})[name] for name, x in answers.items()}}
            for name, result in answer["providers"].items():
                rates = {key: answer.get(key) for key in ("product_gflops", "mm_gflops")}
                yield {"batch": list(batch), "provider": name, **rates, **result}


def memories(
    sizes: tuple[Batch, ...], names: tuple[str, ...], options: argparse.Namespace, live: bool = True
) -> Iterator[Row]:
    """A row for each batch and provider."""
    for batch in tqdm(sizes, desc="memory", unit="batch"):
        for name in names:
            if not options.providers or name in options.providers:
                task = {"kind": "memory", "batch": batch, "provider": name, "live": live, **shared(options)}
                yield {"batch": list(batch), "provider": name, **work(task)}


def capacities(names: tuple[str, ...], options: argparse.Namespace) -> Iterator[Row]:
    """The largest M whose inputs, gradients and step fit a memory limit, to within a tenth."""
    for name in tqdm(names, desc="largest batch", unit="provider"):
        fits, total, fails = 0, 0.0, None
        m = 4096
        while m <= _LARGEST_M:
            batch = _CAPACITY._replace(m=m)
            size = getattr(torch, options.dtype).itemsize
            own = 2 * (batch.n + m) * batch.d * size / 2**20
            needed = None
            if own < options.memory_limit:
                task = {"kind": "memory", "batch": batch, "provider": name, "live": False, **shared(options)}
                answer = work(task)
                peak = answer.get("resident_mib") or answer.get("live_mib")
                needed = own + peak if answer["status"] == "ok" else None
            if needed is not None and needed <= options.memory_limit:
                fits, total = m, needed
            else:
                fails = m
            if fails is None:
                m *= 4
            elif fails - fits <= max(fails // 10, 256):
                break
            else:
                m = (fits + fails) // 2
        yield {
            "provider": name, "m": fits, "total_mib": total, "at_least": fails is None,
            "limit_mib": options.memory_limit, "n": _CAPACITY.n, "d": _CAPACITY.d,
        }  # fmt: skip


def shared(options: argparse.Namespace) -> Row:
    """What every task has."""
    limit = memory_mib() * 9 // 10 + _NEED_MIB if torch.device(options.device).type == "cpu" else None
    return {"dtype": options.dtype, "device": options.device, "limit_mib": limit}


def run_times(suite: str, options: argparse.Namespace, about: Row) -> None:
    """Times, table, files and pictures of a suite."""
    sizes = {"paper": batches.PAPER, "large": batches.LARGE, "classes": batches.CLASSES}[suite]
    if options.largest is not None:
        sizes = tuple(batch for batch in sizes if batch.n * batch.m <= options.largest)
    rows = []
    for row in timings(sizes, options, options.seconds or (2.0 if suite == "paper" else 8.0)):
        rows.append(row)
        if options.out is not None:
            # A run that ends early leaves what it has.
            report.save(options.out, suite, rows, about)
    report.print_table(f"Forward and backward, suite {suite}", *report.timing_table(rows))
    if options.out is not None:
        pictures.draw(options.out)


def run_memory(options: argparse.Namespace, about: Row) -> None:
    """Peaks over M, growth up to M = 4,000,000, and the largest batch that fits a limit."""
    names = ("fastassoc", "eager", "compiled", "chunked")
    largest = options.largest or 2**62
    sizes = tuple(batch for batch in batches.MEMORY if batch.n * batch.m <= largest)
    growth_sizes = tuple(batch for batch in batches.GROWTH if batch.n * batch.m <= largest)
    rows = list(memories(sizes, names, options))
    growth = list(memories(growth_sizes, ("fastassoc",), options, live=False))
    report.print_table("Peak memory beyond inputs and gradients", *report.memory_table(rows))
    report.print_table("Growth with M", *report.memory_table(growth))
    exponent = report.growth_exponent(growth, "first_ms")
    print(f"\nTime grows as M to the power of {exponent:.2f}.")
    found = list(capacities(names, options)) if options.memory_limit else []
    if found:
        report.print_table("Largest batch within a memory limit", *report.capacity_table(found))
    if options.out is None:
        return
    report.save(options.out, "memory", rows, about)
    report.save(options.out, "growth", growth, about | {"time_exponent": exponent})
    if found:
        report.save(options.out, "largest_batch", found, about)
    pictures.draw(options.out)


def main(arguments: list[str] | None = None) -> int:
    """Runs the suites asked for, prints their tables and saves them with the environment."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--suite", choices=[*SUITES, "all"], default="paper", help="(default: %(default)s)")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)"
    )
    parser.add_argument("--dtype", choices=["float32", "float64", "bfloat16", "float16"], default="float32")
    names = dict.fromkeys(x.name for x in (*PROVIDERS, *CONTENDERS))
    parser.add_argument("--providers", nargs="+", choices=list(names), help="only these (default: all)")
    parser.add_argument(
        "--memory-limit", type=int, help="MiB: find each provider's largest batch within (suite memory)"
    )
    parser.add_argument("--seconds", type=float, help="time for the rounds of a batch (default: 2 or 8)")
    parser.add_argument("--largest", type=int, help="skip batches of more than so many scores N M")
    parser.add_argument("--out", type=Path, help="folder for JSON, CSV and PNG (default: nothing is saved)")
    options = parser.parse_args(arguments)
    about = environment(torch.device(options.device)) | {"dtype": options.dtype}
    for suite in SUITES if options.suite == "all" else (options.suite,):
        if suite == "memory":
            run_memory(options, about)
        elif suite == "ranks":
            ranks.run(options, about)
        else:
            run_times(suite, options, about)
    return 0


if __name__ == "__main__":
    sys.exit(main())
