"""Everything there is to know of the Triton backend on this GPU: ``python -m benchmarks.gpu --out DIR``.

In order: the tests of the kernels, errors against float64 beside eager PyTorch's, determinism, launches and
synchronisations, the loss over two processes where there are two GPUs, speed against eager PyTorch and torch.compile,
time by kernel, memory, and the fraction of the card's rate. What is known is saved after every row, so that a run that
is cut off loses nothing; a stage that breaks is recorded and the next one begins; what does not fit into the time is
recorded as not run. Nothing is installed. Ends with status 1 if anything is wrong. ``--smoke`` runs all of it on a CPU
in Triton's interpreter at tiny sizes; its times mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import environment
from benchmarks.gpu import warm
from benchmarks.gpu.checks import determinism, errors, launches
from benchmarks.gpu.kernel_tests import kernel_tests
from benchmarks.gpu.launches import kernel_times
from benchmarks.gpu.plan import FULL, SMOKE, Clock, Context
from benchmarks.gpu.plots import draw
from benchmarks.gpu.ranks import over_ranks
from benchmarks.gpu.report import found_problems, markdown
from benchmarks.gpu.speed import fractions, memory, speed
from benchmarks.modes import interpret


class Record:
    """What is known so far; ``gpu.json`` and ``gpu.md`` are never older than the last row."""

    def __init__(self, folder: Path, smoke: bool, minutes: float, about: dict[str, Any]) -> None:
        self.folder = folder
        self.data: dict[str, Any] = {"smoke": smoke, "minutes": minutes, "environment": about, "stages": {}}
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, stage: Callable[[], Iterable[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Runs a stage to its end or to its failure, and gives its rows."""
        entry: dict[str, Any] = {"rows": [], "failure": None, "seconds": 0.0}
        self.data["stages"][name] = entry
        start = time.monotonic()
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            for row in stage():
                entry["rows"].append(row)
                entry["seconds"] = time.monotonic() - start
                self.save()
        except Exception as error:  # The next stage may still tell something.
            traceback.print_exc()
            entry["failure"] = f"{type(error).__name__}: {error}"[:500]
        entry["seconds"] = time.monotonic() - start
        self.save()
        rows: list[dict[str, Any]] = entry["rows"]
        return rows

    def save(self) -> None:
        """Writes beside the files and then in their place, so that a cut leaves the last whole ones."""
        texts = {"gpu.json": json.dumps(_plain(self.data), indent=1) + "\n", "gpu.md": markdown(self.data)}
        for name, text in texts.items():
            part = self.folder / f"{name}.part"
            part.write_text(text)
            part.replace(self.folder / name)


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become words."""
    if isinstance(value, dict):
        return {key: _plain(x) for key, x in value.items()}
    if isinstance(value, list):
        return [_plain(x) for x in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def about_machine(context: Context) -> dict[str, Any]:
    """What the figures depend on."""
    about = environment(context.device) | {"triton": metadata.version("triton"), "cuda": torch.version.cuda}
    if not context.cuda:
        return about | {"device": f"interpreter on {platform.machine()}"}
    properties = torch.cuda.get_device_properties(context.device)
    return about | {
        "device": properties.name,
        "architecture": f"sm_{properties.major}{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "device_memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": _driver(),
    }


def _driver() -> str:
    """Version of the driver as the kernel module gives it."""
    version = Path("/proc/driver/nvidia/version")
    if not version.exists():
        return "unknown"
    return version.read_text().splitlines()[0].partition("Module")[2].split()[0]


def run_all(record: Record, context: Context, smoke: bool) -> None:
    """Every stage."""
    processes = warm.start(context, smoke)
    try:
        record.run("kernel tests", lambda: kernel_tests(context, record.folder / "kernel_tests.log"))
    finally:
        warm.finish(processes, warm.WAIT * context.clock.left())
    record.run("errors", lambda: errors(context))
    record.run("determinism", lambda: determinism(context))
    record.run("launches", lambda: launches(context))
    record.run("ranks", lambda: over_ranks(context))
    timed = record.run("speed", lambda: speed(context))
    record.run("kernel times", lambda: kernel_times(context))
    record.run("memory", lambda: memory(context))
    record.run("fractions", lambda: fractions(context, timed))
    record.run("plots", lambda: draw(record.data, record.folder))


def main(arguments: list[str] | None = None) -> int:
    """Runs, prints the page, and says whether all is well."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json, gpu.md, the log and the pictures")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for everything (default: %(default)s)")
    parser.add_argument("--smoke", action="store_true", help="tiny, on a CPU, through Triton's interpreter")
    options = parser.parse_args(arguments)
    if options.smoke:
        interpret()
        torch.set_num_threads(1)
    elif not torch.cuda.is_available():
        print("no CUDA GPU here; --smoke runs the same on a CPU at tiny sizes", file=sys.stderr)
        return 2
    if importlib.util.find_spec("triton") is None:
        print("the package triton is not installed: there are no kernels to run", file=sys.stderr)
        return 2
    plan = SMOKE if options.smoke else FULL
    context = Context(plan, torch.device("cpu" if options.smoke else "cuda"), Clock(60 * options.minutes))
    record = Record(options.out, options.smoke, options.minutes, about_machine(context))
    run_all(record, context, options.smoke)
    print(markdown(record.data))
    return 1 if found_problems(record.data) else 0


if __name__ == "__main__":
    sys.exit(main())
