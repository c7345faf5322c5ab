"""Learning curves for TensorBoard, where its package is installed; the numbers are in ``run.json`` in any case."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.paper.training import ScalarLog


@contextmanager
def tensorboard_log(folder: Path) -> Iterator[ScalarLog | None]:
    """A function that writes scalars to an event file in ``folder``; None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        yield None
        return
    with SummaryWriter(str(folder)) as writer:

        def write(step: int, scalars: dict[str, float]) -> None:
            for name, value in scalars.items():
                writer.add_scalar(name.replace("%", "percent"), value, step)

        yield write
