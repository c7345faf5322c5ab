"""Every kernel with every configuration that ships, compiled without a GPU: ``python -m benchmarks.compile_report``.

Compiles for each architecture and reports registers, spilled bytes, shared memory, tensor-core instructions and
estimated occupancy. Ends with status 1 if a configuration needs more shared memory than there is, fails to compile, or
leaves a product of anything but float64 off the tensor cores: those of float32 are in bfloat16, float16 or tf32. Spills
are shown, not limited: tiles are chosen by time. Equal compilations are done once. Everything takes about 100 minutes
of processor time; with ``--cache`` a later run compiles only what changed.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.compilation import (
    ARCHITECTURES,
    KIB,
    Compilation,
    Figures,
    become_compiler,
    compile_kernel,
    violations,
)
from benchmarks.modes import MODES, float32_products

DEPTHS = (128, 256)
"""Embeddings that fit a tile, and those that take several. Narrower ones have the tiles of 128, or less of them."""


class Use(NamedTuple):
    """Where a compilation ships."""

    mode: str
    depth: int
    compilation: Compilation


class Row(NamedTuple):
    """A line of the table: a kernel in one mode, the worst of its variants."""

    architecture: str
    mode: str
    depth: int
    kernel: str
    variants: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    products: str
    """On tensor cores, of all, over the variants."""
    instructions: str
    occupancy: float


def shipped(architectures: Iterable[str], modes: Iterable[str], depths: Iterable[int]) -> list[Use]:
    """All that ships."""
    from fastassoc.backends.triton.shipped import shipped_launches

    uses = []
    for architecture in architectures:
        for mode in modes:
            with float32_products(MODES[mode].precision):
                for depth in depths:
                    launches = shipped_launches(architecture, MODES[mode].dtype, depth)
                    uses += [Use(mode, depth, Compilation.of(launch, architecture)) for launch in launches]
    return uses


def attempt(compilation: Compilation) -> Figures | str:
    """Figures, or what the compiler said instead."""
    try:
        return compile_kernel(compilation)
    except Exception as error:  # Whatever a compiler raises is a result here.
        return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:200]}"


def compile_all(
    compilations: Iterable[Compilation],
    workers: int,
    progress: Callable[[int, int], None],
    cache: Path | None = None,
) -> dict[str, Figures | str]:
    """Each distinct compilation once, by its ``repr``, in other processes, which share ``cache`` or an empty one."""
    distinct = {repr(x): x for x in compilations}
    done: dict[str, Figures | str] = {}

    def compile_some(some: dict[str, Compilation], processes: int, cache: str) -> None:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, context, become_compiler, (cache,)) as pool:
            futures = {pool.submit(attempt, x): key for key, x in some.items()}
            # A compiler that dies takes the work of its neighbours with it: see below.
            with suppress(BrokenProcessPool):
                for future in as_completed(futures):
                    done[futures[future]] = future.result()
                    progress(len(done), len(distinct))

    with tempfile.TemporaryDirectory() as empty:
        folder = empty if cache is None else str(cache.resolve())
        compile_some(distinct, workers, folder)
        for key in [key for key in distinct if key not in done]:
            compile_some({key: distinct[key]}, 1, folder)
            done.setdefault(key, "the compiler died")
    return done


def table(uses: list[Use], results: dict[str, Figures | str]) -> list[Row]:
    """The worst of each kernel's variants, by architecture, mode and depth."""
    groups: dict[tuple[str, str, int, str], list[Figures]] = {}
    for mode, depth, compilation in uses:
        figures = results[repr(compilation)]
        if isinstance(figures, Figures):
            key = (compilation.architecture, mode, depth, compilation.kernel)
            groups.setdefault(key, []).append(figures)
    return [
        Row(
            *key,
            len(group),
            max(x.registers for x in group),
            max(x.spilled_bytes for x in group),
            max(x.shared_bytes for x in group),
            f"{sum(x.tensor_products for x in group)} / {sum(x.products for x in group)}",
            _instructions(group),
            min(x.occupancy for x in group),
        )
        for key, group in groups.items()
    ]


def _instructions(group: list[Figures]) -> str:
    counts = {name: sum(getattr(x, name) for x in group) for name in ("mma_sync", "wgmma", "tcgen05", "mfma")}
    return " ".join(f"{count} {name.replace('_', '.')}" for name, count in counts.items() if count) or "none"


def broken(uses: list[Use], results: dict[str, Figures | str]) -> list[str]:
    """Limits that are broken, one line each; an architecture that compiles nothing is one line."""
    lines = []
    for name in dict.fromkeys(use.compilation.architecture for use in uses):
        mine = [use for use in uses if use.compilation.architecture == name]
        failures = [results[repr(use.compilation)] for use in mine]
        if all(isinstance(x, str) for x in failures):
            lines.append(f"{name}: does not compile with this Triton: {failures[0]}")
            continue
        for mode, depth, compilation in mine:
            figures = results[repr(compilation)]
            found = (
                [figures]
                if isinstance(figures, str)
                else violations(figures, ARCHITECTURES[name], MODES[mode].tensor_cores)
            )
            where = f"{name} {mode} D={depth} {compilation.kernel}, {compilation.warps} warps"
            lines += [f"{where}, {compilation.stages} stages ({compilation.variant()}): {x}" for x in found]
    return lines


def markdown(rows: list[Row], lines: list[str], heading: str) -> str:
    """The table, and what is broken."""
    text = [
        f"# Compiled without a GPU\n\n{heading}\n",
        "Worst of the variants of each kernel; shared memory is per block, of what the architecture gives one.",
        "Products: on tensor cores, of all. Occupancy: an estimate, by the formula in `benchmarks/compilation.py`.\n",
        "| architecture | products in | D | kernel | variants | registers | spilled, bytes | shared, KiB "
        "| products | tensor-core instructions | occupancy |",
        "|---" * 11 + "|",
    ]
    for row in rows:
        limit = ARCHITECTURES[row.architecture].shared_kib
        cells = (*row[:7], f"{row.shared_bytes / KIB:.1f} of {limit}", *row[8:10], f"{row.occupancy:.0%}")
        text.append("| " + " | ".join(map(str, cells)) + " |")
    text.append("\n## Limits broken\n")
    text += [f"- {line}" for line in lines] or ["None."]
    return "\n".join(text) + "\n"


def save(folder: Path, text: str, uses: list[Use], results: dict[str, Figures | str]) -> None:
    """``compile_report.md`` and ``compile_report.csv``, the latter with every variant."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compile_report.md").write_text(text)
    fields = ["architecture", "mode", "depth", "kernel", "warps", "stages", "variant", "shared_limit_bytes"]
    with (folder / "compile_report.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*fields, *Figures._fields, "failure"], lineterminator="\n")
        writer.writeheader()
        for mode, depth, x in uses:
            limit = ARCHITECTURES[x.architecture].shared_kib * KIB
            place = (x.architecture, mode, depth, x.kernel, x.warps, x.stages, x.variant(), limit)
            row: dict[str, Any] = dict(zip(fields, place, strict=True))
            figures = results[repr(x)]
            row |= {"failure": figures} if isinstance(figures, str) else figures._asdict()
            writer.writerow(row)


def show_progress(done: int, total: int) -> None:
    """One line that is written over, or now and then a line where nobody watches."""
    if sys.stderr.isatty():
        print(f"\r{done} of {total} compiled", end="\n" if done == total else "", file=sys.stderr, flush=True)
    elif done == total or done % 100 == 0:
        print(f"{done} of {total} compiled", file=sys.stderr, flush=True)


def check_possible() -> None:
    """SystemExit where nothing can be compiled."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise SystemExit("TRITON_INTERPRET=1 is set: kernels are interpreted, not compiled; unset it")
    try:
        import triton  # noqa: F401
    except ImportError:
        raise SystemExit("the package triton is not installed: nothing to compile with") from None


def main(arguments: list[str] | None = None) -> int:
    """Compiles, prints the table, saves it; 1 if a limit is broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile_report", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, help="folder for compile_report.md and .csv (default: nothing is saved)")
    parser.add_argument("--architecture", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument(
        "--dtype", nargs="+", choices=MODES, default=list(MODES), help="float32 by its matmul precision"
    )
    parser.add_argument("--depth", nargs="+", type=int, default=list(DEPTHS), help="embedding sizes")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    parser.add_argument("--cache", type=Path, help="folder that keeps what is compiled (default: nothing is kept)")
    options = parser.parse_args(arguments)
    check_possible()
    import triton

    start = time.perf_counter()
    uses = shipped(options.architecture, options.dtype, options.depth)
    results = compile_all((use.compilation for use in uses), options.workers, show_progress, options.cache)
    heading = (
        f"Triton {triton.__version__}, {len(results)} compilations for {len(uses)} launches, "
        f"{time.perf_counter() - start:.0f} s with {options.workers} processes"
        f"{'' if options.cache is None else ' and what an earlier run had kept'}."
    )
    lines = broken(uses, results)
    text = markdown(table(uses, results), lines, heading)
    print(text)
    if options.out is not None:
        save(options.out, text, uses, results)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
