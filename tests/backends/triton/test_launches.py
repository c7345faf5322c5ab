"""Kernels launched, memory read back, and what ships."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from triton.runtime import JITFunction

import fastassoc
from benchmarks.host import nothing_launched
from fastassoc.backends import triton
from fastassoc.backends.protocol import Inputs
from fastassoc.backends.triton import backward, buffers, dense, forward, plan
from fastassoc.backends.triton import launch as launching
from fastassoc.backends.triton.buffers import Buffers
from fastassoc.backends.triton.launch import Launch, Machine, recording
from fastassoc.backends.triton.shipped import shipped_launches
from fastassoc.kernels.triton.buffers import Steps
from tests.backends.triton.support import meta_inputs


class Operations(TorchDispatchMode):
    """Names of the tensor operations within."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(("rows", "columns"), [(100, 100), (1000, 1000), (100, 4096), (2048, 4096)])
def test_nothing_is_read_back(rows: int, columns: int) -> None:
    # Tensors on "meta" have no values: reading one is an error, so there is no synchronisation.
    with Operations() as operations:
        step(meta_inputs(rows, columns=columns))
    # No kernel of torch's beside ours.
    assert operations.names <= {"empty", "empty_like", "new_empty", "select", "slice", "view"}


def step(inputs: Inputs) -> tuple[list[Launch], list[Launch]]:
    """What the forward and the backward pass launch."""
    with recording(Machine("sm_90", 132)) as launches:
        losses = triton.losses(inputs, needs_gradient=True, statistics=True)
        forward = len(launches)
        upstream = torch.empty((), device="meta")
        triton.gradients(inputs, losses.saved, upstream, upstream, (True, True, False, False))
    return launches[:forward], launches[forward:]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("rows", "columns", "launches"),
    [
        (100, 100, (1, 1)),
        (128, 128, (1, 1)),
        (128, 129, (3, 2)),
        (100, 1000, (3, 2)),
        (129, 128, (4, 2)),
        (1000, 1000, (4, 2)),
        (1024, 2048, (4, 2)),
    ],
)
def test_a_small_batch_is_few_launches(rows: int, columns: int, launches: tuple[int, int], dtype: torch.dtype) -> None:
    if dtype == torch.float64 and launches == (1, 1):
        # One tile would not fit the memory of a program.
        launches = 3, 2
    forward, backward = step(meta_inputs(rows, dtype, columns=columns))
    assert (len(forward), len(backward)) == launches


# Rows of float32 are split into parts once before rows are put in the order of the slots.
@pytest.mark.parametrize(("dtype", "splits"), [(torch.bfloat16, 0), (torch.float16, 0), (torch.float32, 1)], ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(100, 2049), (1025, 100)])
def test_launches_of_the_general_passes(rows: int, columns: int, dtype: torch.dtype, splits: int) -> None:
    forward, backward = step(meta_inputs(rows, dtype, columns=columns))
    assert len(forward) <= 10 + splits
    assert len(backward) <= 8


def test_ranges_of_columns_compile_nothing_anew() -> None:
    variants: dict[str, set[str]] = {}
    starts = set()
    for launches in step(meta_inputs(2048, columns=5000)):
        passes: dict[str, set[str]] = {}
        for launch in launches:
            passes.setdefault(launch.kernel.__name__, set()).add(repr(launch.specialisation()))
            starts |= {x.START for x in launch.arguments.values() if isinstance(x, Steps)}
        several = {name: len(found) for name, found in passes.items() if len(found) > 1}
        # Rows are split in their own order, and in that of the slots.
        assert several == ({"row_operands": 2} if "row_operands" in passes else {})
        variants |= passes
    assert len(starts) > 3
    assert min(starts) == 0
    assert "steps" in variants


# Launches of ranges after the first go past Triton: of classes larger than a tile, stored, and of others, computed.
@pytest.mark.parametrize(
    ("rows", "counts", "workspace", "starts"),
    [
        (2100, (2100, 20, 50, 0), 2**20, {0, 128, 256, 384}),
        (2100, (2100, 20, 20, 0), 2**15, {0, 256}),
        # In two ways, between which the device chooses.
        (2000, (), 2**15, {0, 128, 256, 384}),
    ],
)
def test_later_ranges_launch_the_same(
    rows: int, counts: tuple[int, ...], workspace: int, starts: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "WORKSPACE_BYTES", workspace)
    monkeypatch.setattr(buffers, "read_back", lambda _: counts)
    a, b = (torch.zeros(n, 64, dtype=torch.bfloat16, requires_grad=True) for n in (rows, 500))
    labels = torch.zeros(rows, dtype=torch.int64)

    def arguments() -> list[Any]:
        with nothing_launched() as driver:
            driver.arguments.clear()
            driver.kernels.clear()
            fastassoc.walker_visit_loss(a, b, labels, backend="triton").backward()
            return [(*kernel, without_addresses(x)) for kernel, x in zip(driver.kernels, driver.arguments, strict=True)]

    through_triton = []
    launch = launching.launch
    monkeypatch.setattr(launching, "launch", lambda *x, **y: through_triton.append(x[0]) or launch(*x, **y))
    again = arguments()
    # One of each kernel and direction, but for those that are launched outside of ranges.
    assert len(through_triton) <= 13
    assert {x.START for *_, given in again for x in given if isinstance(x, Steps)} == starts
    monkeypatch.setattr(launching.OverRanges, "__call__", lambda self, *x, **y: launch(*x, **y))
    assert again == arguments()


def without_addresses(x: Any) -> Any:
    """Arguments with shapes in the place of tensors."""
    if isinstance(x, torch.Tensor):
        return tuple(x.shape), x.dtype
    if isinstance(x, tuple):
        fields = map(without_addresses, x)
        return type(x)(*fields) if hasattr(x, "_fields") else tuple(fields)
    return x


def test_above_2048_rows_sizes_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read_after = []

    def sizes(counts: torch.Tensor) -> list[int]:
        read_after.append([launch.kernel.__name__ for launch in launches])
        return [2049, 33, 70, 0]

    # A meta tensor has nothing to read: any other attempt raises.
    monkeypatch.setattr(torch.Tensor, "tolist", sizes)
    with recording(Machine("sm_90", 132)) as launches:
        losses = triton.losses(meta_inputs(2049), needs_gradient=True, statistics=False)
    (before,) = read_after
    assert before[-1] == "forms"
    assert "steps" not in before
    *saved, g, a, _, _ = losses.saved
    assert Buffers(*saved).tiles.shape == (3, 33)  # type: ignore[arg-type]
    assert g is not None
    assert g.shape[1] == 70
    assert a is not None
    assert a.shape[1] == saved[1].shape[1]
    # One side of the steps, as the form is the merged one.
    after = launches[len(before) :]
    assert {x.arguments["SIDES"] for x in after if "SIDES" in x.arguments} == {1}


def test_shipped_launches_are_all_kernels() -> None:
    kernels = {
        x for module in (backward, dense, forward, plan) for x in vars(module).values() if isinstance(x, JITFunction)
    }
    launches = [x for dtype in (torch.bfloat16, torch.float32) for x in shipped_launches("sm_90", dtype, 128)]
    assert {launch.kernel for launch in launches} == kernels
    for launch in launches:
        signature, constants, _ = launch.specialisation()
        assert list(signature) == launch.kernel.arg_names
        assert constant_paths(signature) == set(constants)
    # Known to be merged, and perhaps plain.
    for kernel in kernels:
        if "SIDES" in kernel.arg_names:
            assert {x.arguments["SIDES"] for x in launches if x.kernel is kernel} == {1, 2}


def constant_paths(signature: dict[str, Any]) -> set[tuple[int, ...]]:
    """Where a signature, in which a tuple is a tuple of kinds, has constants."""
    found: set[tuple[int, ...]] = set()
    for index, kind in enumerate(signature.values()):
        if isinstance(kind, tuple):
            found |= {(index, field) for field, x in enumerate(kind) if x == "constexpr"}
        elif kind == "constexpr":
            found.add((index,))
    return found
