"""Host time of a step of a small batch on a GPU, measured without one: ``python -m benchmarks.host``.

A step of a small batch takes as long as the host needs to launch it. Triton compiles for an H100 here, and hands its
launches to a driver that does nothing; tensors are on the CPU. All else is what a GPU gets: the public function,
autograd, buffers, arguments. What is not in it: the driver's own part of a launch, about 2 us, and CUDA's way to
allocate memory. Beside it stand the operations that eager PyTorch dispatches, each of them a launch or more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastassoc
from benchmarks.batches import Batch, make_inputs
from benchmarks.compile_report import check_possible
from benchmarks.eager import walker_visit_loss as eager
from benchmarks.environment import environment
from benchmarks.modes import MODES, float32_products

SIZES = (Batch(100, 100), Batch(100, 1000), Batch(1000, 1000))
ROUNDS, STEPS, WARM_UP = 9, 200, 20
_PROCESSORS = 132
"""Of an H100."""


class Row(NamedTuple):
    """A line of the table."""

    n: int
    m: int
    d: int
    mode: str
    launches_forward: int
    launches_backward: int
    forward_us: float
    """Median over the rounds of the mean over the steps of a round, as are the other times."""
    backward_us: float
    step_us: float
    eager_operations: int
    """Those that eager PyTorch dispatches in a step; views of tensors are not counted."""


class _Driver:
    """A driver of Triton for an H100 that is not there."""

    def __init__(self) -> None:
        self.arguments: list[tuple[Any, ...]] = []
        """Of every launch."""
        self.kernels: list[tuple[Any, ...]] = []
        """What was launched: name and hash of the compiled kernel, and the grid."""
        self.utils = self

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": _PROCESSORS}

    def load_binary(self, *_: Any) -> tuple[Any, ...]:
        return 0, 0, 0, 0, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        def launch(x: int, y: int, z: int, stream: int, function: int, *more: Any) -> None:
            # Behind what is Triton's own: metadata of the kernel and of the launch, and two hooks.
            self.arguments.append(more[4:])
            self.kernels.append((metadata.name, metadata.hash, (x, y, z)))

        return launch


_DRIVER = _Driver()
"""Kernels stay with the driver that loaded them."""


@contextmanager
def nothing_launched() -> Iterator[_Driver]:
    """Within, the Triton backend takes tensors on the CPU for those of an H100, and no kernel runs."""
    from triton.runtime import driver

    from fastassoc.backends import choose_backend, triton
    from fastassoc.backends.triton import dense, launch

    if torch.cuda.is_available():
        raise SystemExit("there is a GPU: kernels of a driver that does nothing must not stay with it")
    dense.forget()
    choose_backend.cache_clear()
    found = triton.check_can_run, launch._device_machine
    driver.set_active(_DRIVER)
    triton.check_can_run = lambda device: None
    launch._device_machine = lambda device: launch.Machine("sm_90", _PROCESSORS)  # type: ignore[assignment]
    try:
        yield _DRIVER
    finally:
        triton.check_can_run, launch._device_machine = found
        # A driver for what is there is looked for when one is needed.
        driver._active = None
        dense.forget()
        choose_backend.cache_clear()


class Operations(TorchDispatchMode):
    """Counts operations that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not function.is_view
        return function(*args, **kwargs or {})


def eager_operations(inputs: tuple[Tensor, Tensor, Tensor]) -> int:
    """Of a step."""
    with Operations() as operations:
        eager(*inputs).backward()
    return int(operations.count)


def measure(driver: _Driver, batch: Batch, mode: str) -> Row:
    """The host time of a step."""
    a, b, labels = make_inputs(batch, MODES[mode].dtype, torch.device("cpu"))

    def step() -> tuple[int, int, int, int, int]:
        a.grad = b.grad = None
        driver.arguments.clear()
        driver.kernels.clear()
        begin = time.perf_counter_ns()
        loss = fastassoc.walker_visit_loss(a, b, labels, backend="triton")
        middle, forward = time.perf_counter_ns(), len(driver.arguments)
        loss.backward()
        return begin, middle, time.perf_counter_ns(), forward, len(driver.arguments) - forward

    forward = backward = 0
    for _ in range(WARM_UP):
        *_, forward, backward = step()
    rounds = []
    for _ in range(ROUNDS):
        times = [step() for _ in range(STEPS)]
        rounds.append(tuple(sum(x[k + 1] - x[k] for x in times) / STEPS / 1e3 for k in (0, 1)))
    return Row(
        n=batch.n,
        m=batch.m,
        d=batch.d,
        mode=mode,
        launches_forward=forward,
        launches_backward=backward,
        forward_us=statistics.median(x for x, _ in rounds),
        backward_us=statistics.median(x for _, x in rounds),
        step_us=statistics.median(sum(x) for x in rounds),
        eager_operations=eager_operations((a, b, labels)),
    )


def markdown(rows: list[Row], where: dict[str, Any]) -> str:
    """A table."""
    lines = [
        "# Host time of a step",
        "",
        f"Processor {where['device']}, Python {where['python']}, torch {where['torch']}, Triton {where['triton']}, "
        f"commit {where['commit']}, {where['date']}.",
        "",
        "No kernel runs: launches go to a driver that does nothing (`python -m benchmarks.host`).",
        "",
        "| N x M, D | dtype | launches forward, backward | forward, us | backward, us | step, us | eager operations |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {x.n} x {x.m}, {x.d} | {x.mode} | {x.launches_forward}, {x.launches_backward} | {x.forward_us:.0f} | "
        f"{x.backward_us:.0f} | {x.step_us:.0f} | {x.eager_operations} |"
        for x in rows
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints the table, saves it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, help="folder for host.md and host.json (default: nothing is saved)")
    parser.add_argument("--dtype", nargs="+", choices=MODES, default=["fp32-highest", "bf16"])
    options = parser.parse_args(arguments)
    check_possible()
    with nothing_launched() as driver:
        rows = []
        for mode in options.dtype:
            with float32_products(MODES[mode].precision):
                rows += [measure(driver, batch, mode) for batch in SIZES]
    where = environment(torch.device("cpu"))
    text = markdown(rows, where)
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "host.md").write_text(text)
        results = {"environment": where, "rows": [x._asdict() for x in rows]}
        (options.out / "host.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
