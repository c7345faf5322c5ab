"""Trainings, one after the other or shared by several processes, each with its part of the cores."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.environment import commit
from benchmarks.paper.runs import RunConfig, check, execute, finished, steps_done

if TYPE_CHECKING:
    from tqdm import tqdm

REFRESH_SECONDS = 0.5

# Of all processes together; set in each of them.
_steps_done: Synchronized[int] | None = None
_stop: Event | None = None


class StoppedError(RuntimeError):
    """Another training failed, or the command was interrupted."""


def execute_all(configs: Iterable[RunConfig], runs: Path, *, workers: int, resume: bool, quiet: bool) -> None:
    """Train every configuration that has no finished run in the folder ``runs``, and before it the run it starts from.

    ``workers`` processes share the cores; one stands for this process with its threads as they are. Raises what
    `execute` raises; what is wrong with the data, before the first training.
    """
    wanted = {config: finished(config, runs) for whole in configs for config in _with_start(whole)}
    missing = [config for config, record in wanted.items() if record is None]
    reused = [record for record in wanted.values() if record is not None]
    if reused:
        print(f"{len(reused)} of {len(wanted)} trainings are already in {runs}")
    others = {record.environment["commit"] for record in reused} - {commit()}
    if others:
        print(f"some of them are of another commit ({', '.join(sorted(others))}) than this code ({commit()})")
    if not missing:
        return
    for config in missing:
        check(config)  # all of them, before hours go into the first
    done = {config: steps_done(config, runs) for config in missing}
    interrupted = sum(steps > 0 for steps in done.values())
    if interrupted and not resume:
        print(f"{interrupted} interrupted trainings start anew; with --resume they go on from their checkpoints")
        done = dict.fromkeys(missing, 0)
    missing.sort(key=_cost, reverse=True)  # the long ones first, so that the processes end together
    # A run that starts from another waits for all that do not.
    waves = [[config for config in missing if (config.start is not None) == starts] for starts in (False, True)]
    if workers == 1:
        _in_this_process({config: done[config] for wave in waves for config in wave}, runs, resume, quiet)
    else:
        _in_processes([wave for wave in waves if wave], sum(done.values()), runs, workers, resume, quiet)


def _in_this_process(done: dict[RunConfig, int], runs: Path, resume: bool, quiet: bool) -> None:
    for number, (config, steps) in enumerate(done.items(), start=1):
        with _bar(f"training {number} of {len(done)}", steps, config.training.steps, quiet) as bar:

            def update(numbers: dict[str, float], bar: tqdm = bar) -> None:
                bar.set_postfix({key: f"{value:.2f}" for key, value in numbers.items()}, refresh=False)
                bar.update()

            execute(config, runs, update, resume=resume)


def _in_processes(
    waves: list[list[RunConfig]], done_before: int, runs: Path, workers: int, resume: bool, quiet: bool
) -> None:
    context = get_context("spawn")  # a fork would copy PyTorch's threads in an unknown state
    counter, stop = context.Value("q", 0), context.Event()
    threads = max(1, (os.cpu_count() or 1) // workers)
    steps = sum(config.training.steps for wave in waves for config in wave)
    count = sum(len(wave) for wave in waves)
    with (
        ProcessPoolExecutor(workers, context, _start_worker, (counter, stop, threads)) as pool,
        _bar(f"{count} trainings", done_before, steps, quiet) as bar,
    ):
        try:
            for wave in waves:
                with _interrupts_later():
                    pending: set[Future[None]] = {pool.submit(_train, config, runs, resume) for config in wave}
                while pending:
                    done, pending = wait(pending, REFRESH_SECONDS, FIRST_EXCEPTION)
                    bar.update(done_before + counter.value - bar.n)
                    for future in done:
                        future.result()
        except BaseException:
            stop.set()  # the others end with their next step
            pool.shutdown(cancel_futures=True)
            raise


def _bar(name: str, done: int, steps: int, quiet: bool) -> tqdm:
    from tqdm import tqdm

    return tqdm(initial=done, total=steps, desc=name, unit="step", disable=quiet, dynamic_ncols=True)


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Processes started meanwhile never hear Ctrl-C, this one hears it afterwards, and sets stop."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _start_worker(counter: Synchronized[int], stop: Event, threads: int) -> None:
    global _steps_done, _stop
    _steps_done, _stop = counter, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # not every system hands it down
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None, "this runs in a worker"
    parent.join()
    os._exit(1)


def _train(config: RunConfig, runs: Path, resume: bool) -> None:
    execute(config, runs, _count_step, resume=resume)


def _count_step(numbers: dict[str, float]) -> None:
    assert _steps_done is not None, "a worker starts with _start_worker"
    assert _stop is not None
    if _stop.is_set():
        raise StoppedError
    with _steps_done.get_lock():
        _steps_done.value += 1


def _with_start(config: RunConfig) -> list[RunConfig]:
    if config.start is None:
        return [config]
    assert config.start.start is None, "there are two waves"
    return [config.start, config]


def _cost(config: RunConfig) -> int:
    labelled = config.labelled_per_class_in_batch
    if config.labels_per_class is not None:
        labelled = min(labelled, config.labels_per_class)
    unlabelled = 0 if config.unlabelled == 0 else config.unlabelled_batch
    return config.training.steps * (10 * labelled + unlabelled)
