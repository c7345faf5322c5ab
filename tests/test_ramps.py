"""Weights over the steps of a training."""

from __future__ import annotations

import math

import pytest

from fastassoc.ramps import linear_rampup, sigmoid_rampup


def test_values() -> None:
    steps = (-1, 0, 25, 50, 100, 1000)
    assert [linear_rampup(step, 100) for step in steps] == [0.0, 0.0, 0.25, 0.5, 1.0, 1.0]
    expected = [math.exp(-5.0 * (1.0 - t) ** 2) for t in (0.0, 0.0, 0.25, 0.5, 1.0, 1.0)]
    assert [sigmoid_rampup(step, 100) for step in steps] == pytest.approx(expected)


@pytest.mark.parametrize("ramp", [linear_rampup, sigmoid_rampup])
def test_a_ramp_of_no_length_is_a_jump_and_one_of_negative_length_an_error(ramp: object) -> None:
    assert callable(ramp)
    # Delayed by 500 steps, as in the README: nothing before them.
    assert [ramp(step - 500, 0) for step in (0, 499)] == [ramp(-1, 100)] * 2
    assert [ramp(step - 500, 0) for step in (500, 501)] == [1.0, 1.0]
    with pytest.raises(ValueError, match="length must not be negative; got -1"):
        ramp(0, -1)
