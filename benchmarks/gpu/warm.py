"""Compiles the kernels that later stages need, while the tests run: ``python -m benchmarks.gpu.warm MODE [--smoke]``.

What Triton compiles is kept on disk, so that another process finds it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.plan import ERROR_MODES, FULL, LOGITS, SMOKE, SPEED_MODES, Clock, Context, Plan

ROOT = Path(__file__).parents[2]
WAIT = 0.1
"""Of the time left, at most, once the tests are over."""


def start(context: Context, smoke: bool) -> list[subprocess.Popen[bytes]]:
    """A process for each mode."""
    command = [sys.executable, "-m", "benchmarks.gpu.warm"]
    flags = ["--smoke"] if smoke else []
    quiet = subprocess.DEVNULL
    return [
        subprocess.Popen([*command, mode, *flags], cwd=ROOT, stdout=quiet, stderr=quiet)
        for mode in context.plan.warmed_modes
    ]


def finish(processes: list[subprocess.Popen[bytes]], seconds: float) -> None:
    """Waits for them so long; compiling goes on later, in the stage that needs it."""
    end = Clock(seconds)
    while end.left() > 0.0 and any(process.poll() is None for process in processes):
        time.sleep(0.1)
    for process in processes:
        process.kill()
        process.wait()


def main(arguments: list[str]) -> int:
    """One step at every size of the mode."""
    mode, smoke = arguments[0], "--smoke" in arguments
    if smoke:
        os.environ["TRITON_INTERPRET"] = "1"
    run(mode, SMOKE if smoke else FULL, smoke)
    return 0


def run(mode: str, plan: Plan, smoke: bool) -> None:
    """Steps whose results nobody reads."""
    import torch

    from benchmarks.gpu.batches import fused, make_batch
    from benchmarks.modes import MODES, float32_products

    context = Context(plan, torch.device("cpu" if smoke else "cuda"), Clock(0.0))
    with float32_products(MODES[mode].precision):
        if mode in ERROR_MODES:
            for size in plan.errors:
                make_batch(context, size, mode, LOGITS["small"]).step(fused)
        if mode in SPEED_MODES:
            for size in plan.speed:
                make_batch(context, size, mode).step(fused)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
