"""What a training step on MNIST takes, and what makes it quicker: `python -m benchmarks.paper.step`.

Prints, in Markdown, the time of a step with association (100 labelled and 100 unlabelled images of 28 x 28 pixels) in
several ways that take turns, and the share of each kind of operation. Images are of the embedded digits. Nothing else
may run meanwhile.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.environment import environment
from benchmarks.paper import plans
from benchmarks.paper.networks import AssociationNetwork
from benchmarks.paper.runs import initial_network, make_batches, samples
from benchmarks.paper.training import batch_loss
from benchmarks.report import markdown

ROUNDS, WARM_UP, PROFILED_STEPS = 20, 2, 5
KINDS = {
    "convolutions, backward": ("convolution_backward", "slow_conv2d_backward"),
    "convolutions, forward": ("mkldnn_convolution", "slow_conv2d_forward"),
    "ELU, both": ("elu",),
    "pooling, both": ("max_pool2d",),
    "the association loss, both": ("WalkerVisit",),
    "Adam": ("Optimizer", "addcdiv", "addcmul", "lerp", "sqrt"),
}
"""By parts of the profiler's names; the first that fits counts."""


@dataclass(frozen=True)
class Way:
    """How a step is computed, where it differs from the trainings' own."""

    precision: str = "float32"
    change: Callable[[AssociationNetwork], object] = lambda network: None
    optimizer: tuple[tuple[str, Any], ...] = ()


def _two_passes(network: AssociationNetwork) -> None:
    network.joint_batches = False


def _compile(network: AssociationNetwork) -> None:
    network.embedding = torch.compile(network.embedding)  # type: ignore[assignment]


WAYS = {
    "float32": Way(),
    "without channels_last": Way(change=lambda network: network.to(memory_format=torch.contiguous_format)),  # type: ignore[call-overload]
    "labelled and unlabelled apart": Way(change=_two_passes),
    "fused Adam": Way(optimizer=(("fused", True),)),
    "`torch.compile` of the network": Way(change=_compile),
    "bf16": Way("bf16"),
    "bf16, `torch.compile` of the network": Way("bf16", _compile),
}


def training_step(way: Way) -> Callable[[], None]:
    """A step of a training of its own."""
    config = plans.mnist(plans.Settings(precision=way.precision))
    batches, network = make_batches(config, samples(config)), initial_network(config, Path())
    way.change(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, **dict(way.optimizer))

    def run() -> None:
        loss, _ = batch_loss(network, *batches.draw(), config.training, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


def shares(step: Callable[[], None]) -> dict[str, float]:
    """The share of each of `KINDS`, and of the rest, in the time of the operations of ``step``."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        for _ in range(PROFILED_STEPS):
            step()
    times = dict.fromkeys((*KINDS, "everything else"), 0.0)
    for event in record.key_averages():
        times[_kind(event.key)] += event.self_cpu_time_total
    return {kind: spent / sum(times.values()) for kind, spent in times.items()}


def times_ms(steps: Iterable[Callable[[], None]]) -> list[list[float]]:
    """Milliseconds of each of ``steps``, in rounds in which they take turns."""
    steps = list(steps)
    for step in steps:
        for _ in range(WARM_UP):
            step()
    taken: list[list[float]] = [[] for _ in steps]
    for _ in range(ROUNDS):
        for step, mine in zip(steps, taken, strict=True):
            start = time.perf_counter()
            step()
            mine.append(1e3 * (time.perf_counter() - start))
    return taken


def main() -> None:
    """Prints both tables."""
    print(", ".join(f"{name}: {value}" for name, value in environment(torch.device("cpu")).items()), "\n")
    steps = {name: training_step(way) for name, way in WAYS.items()}
    taken = dict(zip(steps, times_ms(steps.values()), strict=True))
    base = taken["float32"]
    rows = [
        [
            name,
            f"{statistics.median(mine):.0f}",
            f"{statistics.median(x / y for x, y in zip(base, mine, strict=True)):.2f}",
        ]
        for name, mine in taken.items()
    ]
    print(markdown(["a step", "ms", "times as fast"], rows), "\n")
    parts = {name: shares(steps[name]) for name in ("float32", "bf16")}
    rows = [[kind, *(f"{part[kind]:.1%}" for part in parts.values())] for kind in parts["float32"]]
    print(markdown(["share of the operations' time", *parts], rows))


def _kind(name: str) -> str:
    fitting = (kind for kind, parts in KINDS.items() if any(part in name for part in parts))
    return next(fitting, "everything else")


if __name__ == "__main__":
    main()
