"""Launches of small batches that are made again: past Triton's launch, with the same arguments."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import fastassoc
from benchmarks.host import nothing_launched
from fastassoc.backends import triton
from fastassoc.backends.triton import dense
from fastassoc.backends.triton.launch import Machine, machine, recording
from fastassoc.kernels.triton.dense.buffers import Dense
from tests.backends.triton.support import meta_inputs
from tests.cases import make_case

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1" or torch.cuda.is_available(),
    reason="compiles for a GPU that is not there",
)

DEVICES = "meta", "cpu"
SIZES = pytest.mark.parametrize(("rows", "columns"), [(20, 30), (20, 140), (140, 30)])


class Step:
    """A step of a batch, and what its launches were handed."""

    def __init__(self, rows: int, columns: int) -> None:
        case = make_case(rows, columns, 16, 3, dtype=torch.float32)
        self.a, self.b = case.a.requires_grad_(), case.b.requires_grad_()
        self.labels = case.labels

    def __call__(self, driver: Any, a: Tensor | None = None, **options: Any) -> list[list[Any]]:
        driver.arguments.clear()
        loss = fastassoc.walker_visit_loss(self.a if a is None else a, self.b, self.labels, backend="triton", **options)
        loss.backward()
        return [flat(x) for x in driver.arguments]


def flat(arguments: Any) -> list[Any]:
    """All in one list, the addresses of tensors in their place."""
    if isinstance(arguments, (tuple, list)):
        return [y for x in arguments for y in flat(x)]
    return [arguments.data_ptr() if isinstance(arguments, Tensor) else arguments]


@pytest.fixture(autouse=True)
def _nothing_remembered() -> None:
    dense.forget()


@SIZES
def test_launches_again_have_the_same_arguments(rows: int, columns: int) -> None:
    step = Step(rows, columns)
    known = {step.a.data_ptr(), step.b.data_ptr(), step.labels.data_ptr()}
    with nothing_launched() as driver:
        first, again, third = (step(driver) for _ in range(3))
    assert len(first) == len(again) == len(third) > 1

    def fixed(launches: list[list[Any]]) -> list[list[Any]]:
        # Buffers may lie elsewhere each time, in some builds of Python below 2^32; what was given and numbers stay.
        return [[x if not isinstance(x, int) or x < 2**20 or x in known else "buffer" for x in y] for y in launches]

    assert fixed(first) == fixed(again) == fixed(third)
    # As many of the tensors given as were given the first time.
    assert [sum(x in known for x in y) for y in first] == [sum(x in known for x in y) for y in again]


@SIZES
def test_only_aligned_tensors_go_past_triton(rows: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step(rows, columns)
    shifted = torch.zeros(step.a.numel() + 1)[1:].view_as(step.a).requires_grad_()
    assert shifted.data_ptr() % 16
    hows = []
    repeat = dense.Repeated.__call__

    def noting(self: Any, how: str, *arguments: Any) -> None:
        hows.append(how)
        repeat(self, how, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(dense.Repeated, "__call__", noting)
    with nothing_launched() as driver:
        steps = [step(driver, a=a) for a in (shifted, None, None, shifted, None)]
    count = len(steps[0])
    assert [set(hows[k * count : (k + 1) * count]) for k in range(5)] == [
        {"once"},
        {"first"},
        {"again"},
        {"once"},
        {"again"},
    ]


def test_what_is_remembered_is_told_apart() -> None:
    step = Step(20, 30)
    options: list[dict[str, Any]] = [
        {},
        {"visit_weight": 0.0},
        {"walker_weight": 0.0},
        {"return_stats": False, "ignore_index": 1},
        {"similarity": "euclidean"},
    ]
    with nothing_launched() as driver:
        for chosen in options:
            step(driver, **chosen)
        assert dense._forward.cache_info().currsize == dense._backward.cache_info().currsize == len(options)
        # Numbers that kernels take as arguments are not part of it.
        step(driver, eps=1e-3, temperature=0.5)
        assert dense._forward.cache_info().currsize == len(options)
        given = driver.arguments[0]
    assert Dense(*given[2]).N == 20
    assert 2.0 in given
    assert 1e-3 in given


def test_the_loss_and_its_terms_are_told_apart() -> None:
    step = Step(20, 30)

    def made(launches: list[Any]) -> tuple[list[int], list[Any]]:
        """Which results the forward pass has a place for, and the weights of both passes."""
        forward, backward = launches
        return [k for k, x in enumerate(forward[3]) if x is not None], [forward[7:9], backward[5:7]]

    with nothing_launched() as driver:
        for _ in range(3):
            step(driver)
            assert made(driver.arguments) == ([0], [(1.0, 1.0)] * 2)
            step(driver, walker_weight=0.5, visit_weight=-2.0)
            assert made(driver.arguments) == ([0], [(0.5, -2.0)] * 2)
            driver.arguments.clear()
            sum(fastassoc.walker_visit_losses(step.a, step.b, step.labels, backend="triton")).backward()
            assert made(driver.arguments) == ([1, 2], [(1.0, 1.0)] * 2)
        assert dense._forward.cache_info().currsize == 2


@SIZES
def test_a_step_computes_nothing_with_operations(rows: int, columns: int) -> None:
    step = Step(rows, columns)
    with nothing_launched() as driver:
        step(driver, visit_weight=0.5)
        step.a.grad = step.b.grad = None
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            step(driver, visit_weight=0.5)
    found = {x.name.removeprefix("aten::") for x in profile.events() if x.name.startswith("aten::")}
    # The upstream gradient of a loss is a 1, which autograd makes.
    assert found <= {"empty", "empty_like", "empty_strided", "new_empty", "detach", "ones_like", "fill_"}


def test_devices_of_one_kind_are_told_apart() -> None:
    # A kernel that one of them loaded is not there on the other.
    with recording(Machine("sm_90", 132)):
        assert machine(DEVICES[0]) == machine(DEVICES[1])
    inputs = (meta_inputs(100, columns=100)._replace(a=torch.empty(100, 128, device=x)) for x in DEVICES)
    a, b = (dense._key(x) for x in inputs)
    assert a != b


# What Triton compiles is another thing for labels of fewer bits.
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int32])
@pytest.mark.parametrize("columns", [30, 140])
def test_labels_of_any_width_compile(dtype: torch.dtype, columns: int) -> None:
    case = make_case(20, columns, 16, 2, dtype=torch.float64)
    a, b = case.a.requires_grad_(), case.b.requires_grad_()
    with nothing_launched() as driver:
        fastassoc.walker_visit_loss(a, b, case.labels.to(dtype), ignore_index=1, backend="triton").backward()
        assert driver.arguments


def test_what_products_are_set_to_is_seen_to_have_changed() -> None:
    # One tile in one part, tiles of half that size in three.
    inputs = meta_inputs(60, torch.float32, columns=60)
    one = torch.empty((), device="meta")
    with recording(Machine("sm_80", 108)):
        saved = triton.losses(inputs._replace(labels=inputs.labels._replace(float32_products="medium")), True, False)
        with pytest.raises(RuntimeError, match="get_float32_matmul_precision"):
            triton.gradients(
                inputs._replace(labels=inputs.labels._replace(float32_products="highest")),
                (saved.saved[0],),
                one,
                one,
                (True, True, False, False),
            )
