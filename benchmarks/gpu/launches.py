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
    """A launch; kernels only write what they were given to write, so that it can be made again."""

    name: str
    again: Callable[[], None]


@contextmanager
def noted_launches() -> Iterator[list[Noted]]:
    """Every launch of fastassoc's kernels within."""
    from fastassoc.backends.triton import backward, forward
    from fastassoc.backends.triton.launch import launch

    passes: tuple[Any, ...] = forward, backward
    made: list[Noted] = []

    def noting(kernel: Any, grid: Any, *tile: Any, **arguments: Any) -> None:
        launch(kernel, grid, *tile, **arguments)
        made.append(Noted(kernel.__name__, lambda: launch(kernel, grid, *tile, **arguments)))

    for module in passes:
        module.launch = noting
    try:
        yield made
    finally:
        for module in passes:
            module.launch = launch


def kernel_times(context: Context) -> Iterator[dict[str, Any]]:
    """Median time of every kernel of a step at the largest size of the comparison, in the order of their launches."""
    size = context.plan.speed[-1]
    for mode in SPEED_MODES:
        batch = make_batch(context, size, mode)
        with float32_products(MODES[mode].precision):
            with noted_launches() as launches:
                batch.step(fused)
            times = [statistics.median(seconds(context, x.again) for _ in range(ROUNDS)) for x in launches]
        where = {"mode": mode, "n": size.n, "m": size.m, "classes": size.classes}
        for launch, time in zip(launches, times, strict=True):
            yield {**where, "kernel": launch.name, "median_ms": time * 1e3, "share": time / sum(times)}
