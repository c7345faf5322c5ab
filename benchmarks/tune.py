"""Proposes rows of tiles: ``python -m benchmarks.tune --n 4096 --m 65536 --dtype bf16`` on a GPU.

They are for ``kernels/triton/configs.py``. For each pass with products, every candidate tile is compiled in other
processes and rejected where it breaks a limit (`benchmarks.compilation.violations`). What is left runs once as part of
a whole step, whose gradients must be as exact as those of eager PyTorch allow (`benchmarks.gpu.checks.allowed_error`),
and only then its kernel is timed alone, in all its launches. The passes over class tiles share the rows of a tile:
those are taken that make their times add up to the least. What ships afterwards is for
``python -m benchmarks.compile_report`` to judge, which knows every variant of a kernel. ``--smoke`` runs all of it on a
CPU in Triton's interpreter, with few tiles and tiny sizes; its times mean nothing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import statistics
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, NamedTuple

import torch

from benchmarks.compilation import ARCHITECTURES, Compilation, become_compiler, compile_kernel, violations
from benchmarks.gpu.batches import Batch, eager, explain, fused, make_batch, relative_errors, seconds
from benchmarks.gpu.checks import allowed_error
from benchmarks.gpu.launches import milliseconds, noted_launches
from benchmarks.gpu.plan import FULL, Clock, Context, Size
from benchmarks.modes import MODES, float32_products, interpret
from fastassoc.kernels.triton.configs import PASSES, Config, Tile

SCORE_PASSES = ("row_normalisers", "column_normalisers")
CLASS_PASSES = tuple(name for name in PASSES if name not in SCORE_PASSES)


@dataclass(frozen=True)
class Grid:
    """The candidates of a pass: all combinations that `candidates` lets through."""

    rows: tuple[int, ...] = (32, 64, 128)
    columns: tuple[int, ...] = (16, 32, 64, 128)
    depths: tuple[int, ...] = (32, 64, 128, 256)
    warps: tuple[int, ...] = (4, 8)
    stages: tuple[int, ...] = (2, 3)


FULL_GRID = Grid()
SMOKE_GRID = Grid(rows=(32, 64), columns=(32,), depths=(32,), warps=(4,), stages=(2,))
SCORES_PER_THREAD = (4, 64)
"""Fewer leave tensor cores idle, more cannot stay in registers."""
SMOKE_ARCHITECTURE = "sm_90"
"""What a smoke run compiles for."""


def candidates(grid: Grid, depth: int, by_depth: bool = True) -> list[Tile]:
    """Tiles that may be worth compiling. Powers of two of at least 16, as products need.

    The embedding is cut into parts of a quarter of it or more, but not into one wider than it has to be, and a thread
    holds 4 to 64 scores. Without ``by_depth`` the pass does not read embeddings, and all have the same depth.
    """
    whole = max(32, 1 << (depth - 1).bit_length())
    least, most = SCORES_PER_THREAD
    tiles = [Tile(*x) for x in product(grid.rows, grid.columns, grid.depths, grid.warps, grid.stages)]
    tiles = [x for x in tiles if whole <= 4 * x.depth <= 4 * whole]
    if not by_depth:
        tiles = [x for x in tiles if x.depth == tiles[0].depth]
    return [x for x in tiles if least <= x.rows * x.columns // (32 * x.warps) <= most]


class Trial(NamedTuple):
    """A tile for one pass."""

    name: str
    """Of the pass, which is that of its kernel."""
    tile: Tile

    def within(self, base: Config) -> Config:
        """A configuration with that tile; the other passes follow in the rows of class tiles, with small tiles."""
        changed: dict[str, Any] = {self.name: self.tile}
        if self.name in CLASS_PASSES and self.tile.rows != base.class_rows:
            small = Tile(self.tile.rows, columns=16, depth=32, warps=4, stages=1)
            changed = {name: small for name in CLASS_PASSES} | changed
        # However the batch takes steps, the tile is the one that is timed.
        stored = None if "column_gradients" in changed else base.stored_column_gradients
        return replace(base, stored_column_gradients=stored, **changed)


class Assignment(NamedTuple):
    """What a compiling process is told."""

    trial: Trial
    base: Config
    depth: int
    mode: str
    architecture: str


class Result(NamedTuple):
    """A trial and its time, or why it has none."""

    trial: Trial
    milliseconds: float | None
    reason: str


def main(arguments: list[str] | None = None) -> int:
    """Tries every candidate, and prints the results and the row."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--n", type=int, default=4096, help="labelled rows (default: %(default)s)")
    parser.add_argument("--m", type=int, default=65536, help="unlabelled rows (default: %(default)s)")
    parser.add_argument("--d", type=int, default=128, help="embedding size (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--dtype", choices=MODES, default="bf16", help="float32 by its matmul precision")
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=list(PASSES), help="only these (default: all)")
    parser.add_argument("--rounds", type=int, default=20, help="of which the median is taken (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all candidates (default: %(default)s)")
    parser.add_argument("--smoke", action="store_true", help="tiny, on a CPU, through Triton's interpreter")
    options = parser.parse_args(arguments)
    if options.smoke:
        interpret()
        options.n, options.m, options.d, options.classes, options.rounds = 20, 40, 20, 3, 2
    elif not torch.cuda.is_available():
        print("no CUDA GPU here: there is nothing to time; --smoke runs the same on a CPU", file=sys.stderr)
        return 2
    architecture = SMOKE_ARCHITECTURE if options.smoke else "sm_{}{}".format(*torch.cuda.get_device_capability())
    if architecture not in ARCHITECTURES:
        print(f"the limits of {architecture} are not known; add it to benchmarks/compilation.py", file=sys.stderr)
        return 2
    device = torch.device("cpu" if options.smoke else "cuda")
    context = Context(replace(FULL, depth=options.d), device, Clock(60 * options.minutes))
    size = Size(options.n, options.m, options.classes, options.rounds)
    grid = SMOKE_GRID if options.smoke else FULL_GRID
    with float32_products(MODES[options.dtype].precision):
        bench = Bench(context, size, options.dtype)
        results = list(_tried(bench, architecture, grid, options.passes))
        print(_listing(results))
        print(proposal(bench, results, architecture))
    return 0


class Bench:
    """A batch, what its gradients have to be, and the configuration that ships for it."""

    def __init__(self, context: Context, size: Size, mode: str) -> None:
        self.context, self.size, self.mode = context, size, mode
        self.batch: Batch = make_batch(context, size, mode)
        exact = self.batch.to(torch.float64 if MODES[mode].dtype == torch.float64 else torch.float32)
        with float32_products("highest"):
            self._expected = exact.step(eager)[1:]
        theirs = max(relative_errors(self.batch.step(eager)[1:], self._expected))
        self._allowed = allowed_error(mode, theirs, gradient=True)
        with _configured(None) as asked, noted_launches() as launches:
            self.batch.step(fused)
        self.precision, self.base = asked[0]
        self._by_depth = {x.name for x in launches if "BLOCK_D" in x.arguments}

    def trials(self, name: str, grid: Grid) -> list[Trial]:
        """Every candidate for a pass, and what ships."""
        tiles = candidates(grid, self.context.plan.depth, name in self._by_depth)
        return [Trial(name, tile) for tile in {getattr(self.base, name), *tiles}]

    def wrong(self, config: Config) -> str | None:
        """What is wrong with the gradients of a step under that configuration."""
        with _configured(config):
            error = max(relative_errors(self.batch.step(fused)[1:], self._expected))
        return None if error <= self._allowed else f"wrong: error {error:.1e}, allowed {self._allowed:.1e}"

    def milliseconds(self, name: str, config: Config) -> float:
        """Median times of the pass's kernel alone, on the arguments it has in a step, added up over its launches."""
        with _configured(config), noted_launches() as launches:
            self.batch.step(fused)
        return milliseconds(self.context, [x for x in launches if x.name == name], self.size.rounds)

    def step_milliseconds(self, config: Config) -> float:
        """Median time of a whole step."""
        with _configured(config):
            self.batch.step(fused)
            times = [seconds(self.context, lambda: self.batch.step(fused)) for _ in range(self.size.rounds)]
        return 1e3 * statistics.median(times)


@contextmanager
def _configured(config: Config | None) -> Iterator[list[tuple[str, Config]]]:
    """Has the backend use that configuration, or its own for None; gives the precisions asked for, and the answers."""
    from fastassoc.backends.triton import dense, plan

    module: Any = plan
    # Tiles of small batches are not in a configuration: every batch takes the general passes.
    small: Any = dense
    takes, small.takes = small.takes, lambda _: False
    choose = module.choose_config
    asked: list[tuple[str, Config]] = []

    def answer(architecture: str, precision: str, depth: int) -> Config:
        asked.append((precision, choose(architecture, precision, depth) if config is None else config))
        return asked[-1][1]

    module.choose_config = answer
    try:
        yield asked
    finally:
        module.choose_config = choose
        small.takes = takes


def _tried(bench: Bench, architecture: str, grid: Grid, passes: list[str]) -> Iterator[Result]:
    """Every candidate and what ships, compiled beside the timing, in a random order lest time end before some pass."""
    depth = bench.context.plan.depth
    order = sorted((trial for name in passes for trial in bench.trials(name, grid)), key=str)
    random.Random(0).shuffle(order)
    workers = max(1, (os.cpu_count() or 1) - 1)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), become_compiler, (None,)) as pool:
        futures = {
            pool.submit(objections, Assignment(x, bench.base, depth, bench.mode, architecture)): x for x in order
        }
        for done, future in enumerate(as_completed(futures), 1):
            print(f"{done} of {len(order)} candidates", file=sys.stderr, flush=True)
            try:
                trial, found = futures[future], future.result()
            except BrokenProcessPool:
                print("a compiler died: the other candidates were not tried", file=sys.stderr)
                return
            if found:
                yield Result(trial, None, "; ".join(found))
            else:
                yield _measured(bench, trial)
            if bench.context.clock.left() < 0.0:
                pool.shutdown(cancel_futures=True)
                print("out of time: the other candidates were not tried", file=sys.stderr)
                return


def objections(assignment: Assignment) -> list[str]:
    """Limits that the kernel breaks, with both losses and without biases; for a process that compiles."""
    from fastassoc.backends.triton.shipped import shipped_launches

    trial, base, depth, mode, architecture = assignment
    with float32_products(MODES[mode].precision), _configured(trial.within(base)):
        launches = shipped_launches(architecture, MODES[mode].dtype, depth)
    compilations = [Compilation.of(x, architecture) for x in launches if x.kernel.__name__ == trial.name]
    for compilation in (x for x in compilations if x.plain):
        try:
            figures = compile_kernel(compilation)
        except Exception as error:  # Whatever a compiler raises is an objection.
            return [explain(error)]
        found = violations(figures, ARCHITECTURES[architecture], MODES[mode].tensor_cores)
        if found:
            return found
    return []


def _measured(bench: Bench, trial: Trial) -> Result:
    config = trial.within(bench.base)
    try:
        wrong = bench.wrong(config)
        if wrong is None:
            return Result(trial, bench.milliseconds(trial.name, config), "")
    except Exception as error:  # A candidate that cannot run is a result.
        wrong = explain(error)
    return Result(trial, None, wrong)


def _listing(results: list[Result]) -> str:
    """All results, the quickest of each pass first."""
    lines = ["| pass | rows | columns | depth | warps | stages | ms | rejected because |", "|---" * 8 + "|"]
    for x in sorted(results, key=lambda x: (PASSES.index(x.trial.name), x.milliseconds is None, x.milliseconds or 0.0)):
        time = "" if x.milliseconds is None else f"{x.milliseconds:.4g}"
        tile = " | ".join(map(str, asdict(x.trial.tile).values()))
        lines.append(f"| {x.trial.name} | {tile} | {time} | {x.reason} |")
    return "\n".join(lines) + "\n"


def best_tiles(base: Config, results: list[Result]) -> dict[str, Result]:
    """The quickest tile of each pass that was tried, those of the class passes with the rows that are best together.

    Rows count only where every class pass has a tile of them. Where some class passes were not tried, and keep theirs,
    the rows stay as they are.
    """
    timed = [x for x in results if x.milliseconds is not None]

    def quickest(name: str, rows: int | None) -> Result | None:
        mine = [x for x in timed if x.trial.name == name and rows in (None, x.trial.tile.rows)]
        return min(mine, key=lambda x: x.milliseconds or 0.0, default=None)

    tried = {x.trial.name for x in results}
    best = {name: x for name in SCORE_PASSES if (x := quickest(name, None)) is not None}
    class_passes = [name for name in CLASS_PASSES if name in tried]
    choices = {base.class_rows, *(x.trial.tile.rows for x in timed if len(class_passes) == len(CLASS_PASSES))}
    found = [{name: x for name in class_passes if (x := quickest(name, rows)) is not None} for rows in sorted(choices)]
    whole = [x for x in found if len(x) == len(class_passes)]
    return best | min(whole, key=lambda x: sum(y.milliseconds or 0.0 for y in x.values()), default={})


def proposal(bench: Bench, results: list[Result], architecture: str) -> str:
    """A row to paste, with what it was measured to do."""
    best = best_tiles(bench.base, results)
    tiles: dict[str, Any] = {name: x.trial.tile for name, x in best.items()}
    stored = bench.base.stored_column_gradients
    if stored is not None and any(tiles[name].rows != stored.rows for name in CLASS_PASSES if name in tiles):
        stored = None
    config = replace(bench.base, stored_column_gradients=stored, **tiles)
    wrong = bench.wrong(config)
    if wrong is not None:
        return f"The quickest tiles together are {wrong}"
    before, after = (bench.step_milliseconds(x) for x in (bench.base, config))
    size, depth = bench.size, bench.context.plan.depth
    lines = [
        f"# {architecture}, {bench.precision}, for up to D = {depth}; timed with {bench.mode} at {size.n} x {size.m}, "
        f"{size.classes} classes:",
        f"# a step takes {after:.4g} ms, {before:.4g} with what ships.",
        f"({depth}, Config(",
    ]
    for name in PASSES:
        figure = f"{best[name].milliseconds:.4g} ms" if name in best else "not timed"
        lines.append(f"    {name}={getattr(config, name)},  # {figure}")
    lines += [f"    {name}={getattr(config, name)}," for name in ("stored_column_gradients", "compute_steps")]
    return "\n".join([*lines, ")),"])


if __name__ == "__main__":
    sys.exit(main())
