"""The kernels that a step launches: noted as they are launched, and timed one by one."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from benchmarks.gpu.batches import fused, make_batch, seconds
from benchmarks.gpu.plan import SPEED_MODES, Context
from benchmarks.modes import MODES, float32_products

ROUNDS = 5


class Noted(NamedTuple):
    """A launch."""

    name: str
    arguments: dict[str, Any]
    again: Callable[[], None]
    """Makes it again, for its time alone: what it computes is another thing once buffers are overwritten."""


@contextmanager
def noted_launches() -> Iterator[list[Noted]]:
    """Every launch of fastassoc's kernels within."""
    from fastassoc.backends.triton import dense, forward, plan
    from fastassoc.backends.triton import launch as launching

    hosts: tuple[Any, ...] = forward, plan, launching
    launch = launching.launch
    made: list[Noted] = []

    def noting(kernel: Any, grid: Any, *tile: Any, **arguments: Any) -> Any:
        compiled = launch(kernel, grid, *tile, **arguments)
        made.append(Noted(kernel.__name__, arguments, lambda: launch(kernel, grid, *tile, **arguments)))
        return compiled

    # Launches that are made again do not pass through here.
    dense.forget()
    for module in hosts:
        module.launch = noting
    try:
        yield made
    finally:
        for module in hosts:
            module.launch = launch


def milliseconds(context: Context, launches: list[Noted], rounds: int) -> float:
    """Median times of these launches, added up."""
    return 1e3 * sum(statistics.median(seconds(context, x.again) for _ in range(rounds)) for x in launches)


def kernel_times(context: Context) -> Iterator[dict[str, Any]]:
    """Time of every kernel of a step at the largest size of the comparison, all its launches, by their first."""
    size = context.plan.speed[-1]
    for mode in SPEED_MODES:
        batch = make_batch(context, size, mode)
        with float32_products(MODES[mode].precision):
            with noted_launches() as launches:
                batch.step(fused)
            kernels: dict[str, list[Noted]] = {}
            for launch in launches:
                kernels.setdefault(launch.name, []).append(launch)
            times = {name: milliseconds(context, mine, ROUNDS) for name, mine in kernels.items()}
        where = {"mode": mode, "n": size.n, "m": size.m, "classes": size.classes}
        for name, time in times.items():
            row = {"kernel": name, "launches": len(kernels[name]), "ms": time}
            yield where | row | {"share": time / sum(times.values())}
