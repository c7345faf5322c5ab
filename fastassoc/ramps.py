"""Factors that rise from about 0 to 1 over the first steps of training, as plain functions of the step.

A network that has learned nothing yet associates at random. Many trainings therefore raise the weight of an association
loss over their first steps: ``walker_weight=linear_rampup(step, 1000)``.
"""

from __future__ import annotations

import math


def linear_rampup(step: float, length: float) -> float:
    """``step / length``, from 0 at step 0 to 1 at step ``length`` and beyond.

    A ``length`` of 0 is a jump from 0 to 1 at step 0.

    Raises:
        ValueError: a negative ``length``.
    """
    return _progress(step, length)


def sigmoid_rampup(step: float, length: float) -> float:
    """``exp(-5 (1 - t)^2)`` with ``t = step / length``: from 0.0067 at step 0 to 1 at step ``length`` and beyond.

    A ``length`` of 0 is a jump from 0.0067 to 1 at step 0.

    Raises:
        ValueError: a negative ``length``.

    Source: Laine, Aila, "Temporal Ensembling for Semi-Supervised Learning", ICLR 2017.
    """
    return math.exp(-5.0 * (1.0 - _progress(step, length)) ** 2)


def _progress(step: float, length: float) -> float:
    if length < 0:
        raise ValueError(f"length must not be negative; got {length}")
    return float(step >= 0) if length == 0 else min(max(step / length, 0.0), 1.0)
