"""Forward and backward time against eager PyTorch: ``python -m benchmarks.speed``.

Every round runs the contenders in turn in one process; what is quoted are medians over rounds, of times and of ratios
within a round, since a shared machine drifts by more than the contenders differ. ``torch.compile`` runs with static
shapes. The floor is the time of the useful work, ``6 N M D + 3 M sum_c n_c^2`` floating-point operations (scores once,
da, db; the symmetric round trip once and one product back), at the rate of a ``torch.mm`` of 2048 cubed timed in
the same rounds.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import benchmarks.eager
import fastassoc

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Size(NamedTuple):
    """A batch: N labelled and M unlabelled embeddings, classes of equal size; ``rounds`` to time."""

    n: int
    m: int
    classes: int
    rounds: int


SIZES = (
    Size(100, 100, 10, 301),
    Size(100, 1000, 10, 201),
    Size(1000, 1000, 10, 41),
    Size(2048, 16384, 10, 7),
    Size(2048, 16384, 100, 7),
    Size(4096, 16384, 100, 5),
)
PRODUCT_SIZE = 2048


def useful_operations(size: Size, d: int) -> int:
    """``6 N M D + 3 M sum_c n_c^2``."""
    sizes = torch.bincount(torch.arange(size.n) % size.classes)
    return 6 * size.n * size.m * d + 3 * size.m * int(sizes.square().sum())


def make_inputs(size: Size, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings with logits of standard deviation 3.5 at D = 128, as a network has them early in training."""
    generator = torch.Generator().manual_seed(0)
    a = (torch.randn(size.n, d, generator=generator) * 0.55).requires_grad_()
    b = (torch.randn(size.m, d, generator=generator) * 0.55).requires_grad_()
    labels = torch.arange(size.n) % size.classes
    return a, b, labels[torch.randperm(size.n, generator=generator)]


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def step(loss: Loss, a: Tensor, b: Tensor, labels: Tensor) -> None:
    """Forward and backward, gradients fresh."""
    a.grad = b.grad = None
    loss(a, b, labels).backward()


def check(losses: dict[str, Loss], a: Tensor, b: Tensor, labels: Tensor) -> None:
    """Refuses to time a contender whose gradients are not eager's (1e-4, ten times what float32 rounding gives)."""
    results = {}
    for name, loss in losses.items():
        step(loss, a, b, labels)
        assert a.grad is not None
        assert b.grad is not None
        results[name] = (a.grad, b.grad)
    for name, gradients in results.items():
        for mine, eager in zip(gradients, results["eager"], strict=True):
            error = float((mine - eager).norm() / eager.norm())
            if not error < 1e-4:
                raise SystemExit(f"{name} is wrong: its gradient is {error:.1e} from eager's")


def measure(size: Size, d: int, compiled: bool) -> dict[str, Any]:
    """Medians for one batch."""
    a, b, labels = make_inputs(size, d)
    losses: dict[str, Loss] = {"fastassoc": fastassoc.walker_visit_loss, "eager": benchmarks.eager.walker_visit_loss}
    if compiled:
        torch._dynamo.reset()
        losses["compiled"] = torch.compile(benchmarks.eager.walker_visit_loss, dynamic=False)
    check(losses, a, b, labels)
    left, out = torch.randn(PRODUCT_SIZE, PRODUCT_SIZE), torch.empty(PRODUCT_SIZE, PRODUCT_SIZE)
    times: dict[str, list[float]] = {name: [] for name in losses}
    products = []
    # A product of this size empties the caches a small batch lives in: it goes before such rounds, not between them.
    between = size.n >= 1000
    for index in range(size.rounds):
        if between or index < 9:
            products.append(seconds(lambda: torch.mm(left, left, out=out)))
        for name, loss in losses.items():
            times[name].append(seconds(lambda loss=loss: step(loss, a, b, labels)))  # type: ignore[misc]
    rate = 2 * PRODUCT_SIZE**3 / statistics.median(products)
    mine = times["fastassoc"]
    row: dict[str, Any] = {"n": size.n, "m": size.m, "d": d, "classes": size.classes, "rounds": size.rounds}
    for name, values in times.items():
        twentieth, middle, eightieth = (sorted(values)[int(q * (len(values) - 1))] for q in (0.2, 0.5, 0.8))
        row |= {f"{name}_ms": middle * 1e3, f"{name}_p20_ms": twentieth * 1e3, f"{name}_p80_ms": eightieth * 1e3}
        if name != "fastassoc":
            row[f"times_{name}"] = statistics.median(x / y for x, y in zip(values, mine, strict=True))
    row["product_gflops"] = rate / 1e9
    row["floor_over_time"] = useful_operations(size, d) / rate / statistics.median(mine)
    return row


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "date": date.today().isoformat(),
        "commit": revision.stdout.strip() or "unknown",
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fastassoc": fastassoc.__version__,
    }


def processor() -> str:
    """The processor's own name where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of the README."""
    compiled = "compiled_ms" in rows[0]
    head = ["N x M, classes", "fastassoc ms", "eager ms", "times eager"]
    head += ["compiled ms", "times compiled"] if compiled else []
    lines = ["| " + " | ".join([*head, "floor / time"]) + " |", "|---" * (len(head) + 1) + "|"]
    for row in rows:
        cells = [f"{row['n']} x {row['m']}, {row['classes']}", f"{row['fastassoc_ms']:.3g}", f"{row['eager_ms']:.4g}"]
        cells.append(f"{row['times_eager']:.1f}")
        if compiled:
            cells += [f"{row['compiled_ms']:.4g}", f"{row['times_compiled']:.1f}"]
        lines.append("| " + " | ".join([*cells, f"{row['floor_over_time']:.0%}"]) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Times every size, prints the table and saves it with the environment."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.split("\n\n")[0])
    parser.add_argument("--d", type=int, default=128, help="embedding size (default: %(default)s)")
    parser.add_argument("--rounds", type=int, help="rounds for every size (default: 5 to 301, fewer for large batches)")
    parser.add_argument("--largest", type=int, default=4096, help="skip batches with more labelled rows (default: all)")
    parser.add_argument("--compile", action="store_true", help="also time torch.compile of the eager loss")
    parser.add_argument("--out", type=Path, help="folder for speed.csv and speed.json (default: nothing is saved)")
    options = parser.parse_args(arguments)
    rows = []
    for size in SIZES:
        if size.n > options.largest:
            continue
        size = size._replace(rounds=options.rounds or size.rounds)
        print(f"{size.n} x {size.m}, {size.classes} classes, {size.rounds} rounds ...", file=sys.stderr, flush=True)
        rows.append(measure(size, options.d, options.compile))
    print(markdown(rows))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        with (options.out / "speed.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        record = {"environment": environment(), "rows": rows}
        (options.out / "speed.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
