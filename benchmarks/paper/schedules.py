"""How the weights of the losses and the learning rate change over a training, with the formulas of the original code.

Steps count from 0. Every schedule has ``scaled(ratio)``: the same shape over a training ``ratio`` times as long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

RAMPS = ("constant", "linear", "sigmoid")


@dataclass(frozen=True)
class Weight:
    """A weight that is ``final`` throughout, or rises to it.

    "linear" leaves zero after ``delay`` steps and reaches ``final`` in ``duration`` more, "sigmoid" leaves nearly zero
    and nearly reaches it in ``duration + delay`` more: for this one the original adds the delay to the duration, too.
    """

    final: float
    ramp: str = "constant"
    duration: int = 1
    delay: int = 0

    def __post_init__(self) -> None:
        if self.ramp not in RAMPS:
            raise ValueError(f"unknown ramp {self.ramp!r}; expected one of {', '.join(RAMPS)}")
        if self.final < 0 or self.duration < 1 or self.delay < 0:
            raise ValueError(f"expected final >= 0, duration >= 1 and delay >= 0, got {self}")

    def at(self, step: int) -> float:
        """The weight of step ``step``."""
        if self.ramp == "constant":
            return self.final
        since = step - self.delay
        if self.ramp == "linear":
            share = since / self.duration
        else:
            share = (math.tanh(5 * (since / (self.duration + self.delay) - 0.5)) + 1) / 2
        return self.final * min(max(share, 0.0), 1.0)

    def scaled(self, ratio: float) -> Weight:
        """See the module."""
        return replace(self, duration=_scaled(self.duration, ratio), delay=round(self.delay * ratio))


@dataclass(frozen=True)
class LearningRate:
    """``initial``, multiplied by ``factor`` every ``every`` steps, but never below ``minimum``."""

    initial: float
    factor: float = 1.0
    every: int = 1
    minimum: float = 0.0

    def at(self, step: int) -> float:
        """The learning rate of step ``step``."""
        return max(self.initial * self.factor ** (step // self.every), self.minimum)

    def scaled(self, ratio: float) -> LearningRate:
        """See the module."""
        return replace(self, every=_scaled(self.every, ratio))


def _scaled(steps: int, ratio: float) -> int:
    return max(1, round(steps * ratio))
