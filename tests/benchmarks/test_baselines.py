"""What the benchmarks compare with is right."""

from __future__ import annotations

import pytest

import benchmarks.eager
from fastassoc import reference
from tests.cases import assert_close, evaluate, make_case


@pytest.mark.parametrize("classes", [1, 4, 0])
def test_the_eager_port_is_the_specification(classes: int) -> None:
    case = make_case(20, 50, 6, classes)
    assert_close(evaluate(benchmarks.eager.walker_visit_loss, case), evaluate(reference.walker_visit_loss, case), 1e-12)
