"""What is measured, as data: in full, and tiny for a run on a CPU through Triton's interpreter."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import torch


class Size(NamedTuple):
    """A batch: N labelled and M unlabelled embeddings, classes of equal size; at most ``rounds`` are timed."""

    n: int
    m: int
    classes: int
    rounds: int


@dataclass(frozen=True)
class Plan:
    """Sizes of every stage; the rounds of a `Size` are the most that are timed."""

    depth: int
    """Embedding size."""
    tests: tuple[str, ...]
    """Arguments of pytest that choose among the kernel tests."""
    errors: tuple[Size, ...]
    """A small batch, and one that is not."""
    repeated: tuple[Size, ...]
    """Run 20 times, to see the same bits."""
    launches: tuple[tuple[Size, int, int], ...]
    """Small batches, and the most kernels forward and backward where one tile has 128 rows and columns."""
    without_sync: Size
    with_sync: Size
    speed: tuple[Size, ...]
    alone: Size
    """Too large for any but fastassoc."""
    memory_rows: int
    memory_columns: tuple[int, ...]
    product: int
    """Rows and columns of the matrix product that gives the rate of the card."""
    seconds_per_size: float
    """Timing at one size ends after this many."""
    warmed_modes: tuple[str, ...]
    """Modes whose kernels are compiled beside the tests, before they are needed."""


ERROR_MODES = ("fp16", "bf16", "fp32-high", "fp32-highest", "fp64")
SPEED_MODES = ("bf16", "fp32-high")
LOGITS = {"small": 0.1, "large": 1.6}
"""Standard deviation of the embeddings: that of the logits is 0.1 and 29 at D = 128."""

FULL = Plan(
    depth=128,
    tests=("tests/kernels/triton",),
    errors=(Size(500, 2000, 10, 1), Size(2048, 4096, 100, 1)),
    repeated=(Size(1000, 1000, 10, 20), Size(2048, 16384, 100, 20)),
    launches=((Size(100, 100, 10, 1), 1, 1), (Size(100, 1000, 10, 1), 3, 2), (Size(1000, 1000, 10, 1), 4, 2)),
    without_sync=Size(2048, 4096, 100, 1),
    with_sync=Size(4096, 4096, 100, 1),
    speed=(
        Size(100, 100, 10, 100),
        Size(100, 1000, 10, 100),
        Size(1000, 1000, 10, 100),
        Size(2048, 16384, 10, 50),
        Size(2048, 16384, 100, 50),
        Size(2048, 16384, 2048, 50),
        Size(4096, 65536, 100, 20),
        Size(4096, 65536, 10, 20),
    ),
    alone=Size(4096, 1048576, 100, 10),
    memory_rows=4096,
    memory_columns=(4096, 16384, 65536, 262144),
    product=8192,
    seconds_per_size=4.0,
    warmed_modes=ERROR_MODES,
)
SMOKE = Plan(
    depth=20,
    tests=("tests/kernels/triton/test_whole_loss.py", "-k", "test_launches or test_backward_twice"),
    errors=(Size(17, 33, 3, 1), Size(5, 2100, 3, 1)),
    repeated=(Size(9, 14, 3, 20),),
    launches=((Size(20, 30, 4, 1), 1, 1), (Size(130, 9, 4, 1), 4, 2)),
    without_sync=Size(20, 30, 4, 1),
    with_sync=Size(40, 30, 4, 1),
    speed=(Size(20, 30, 4, 3), Size(24, 40, 5, 3), Size(4, 2100, 2, 3)),
    alone=Size(20, 80, 4, 3),
    memory_rows=20,
    memory_columns=(20, 40),
    product=256,
    seconds_per_size=2.0,
    warmed_modes=("bf16",),
)


class Clock:
    """The time that a run may take."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds; negative once it is over."""
        return self._end - time.monotonic()


class Context(NamedTuple):
    """What every stage knows."""

    plan: Plan
    device: torch.device
    clock: Clock

    @property
    def cuda(self) -> bool:
        """Whether there is a GPU; otherwise kernels are interpreted."""
        return self.device.type == "cuda"
