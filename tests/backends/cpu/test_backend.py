"""Which batches the CPU backend computes whole, which in tiles, and what it does on import."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import benchmarks.eager
import fastassoc
from fastassoc import reference
from fastassoc.backends import cpu
from fastassoc.backends.cpu.native import backward, machine
from fastassoc.backends.cpu.operations import tiles, whole
from tests.cases import assert_as_exact_as, evaluate, make_case


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("n", "m", "scale", "expected"),
    [
        (100, 200, 0.3, "whole"),
        (100, 200, 3.0, "whole"),
        (300, 1000, 0.3, "tiles"),
        (300, 1000, 3.0, "tiles"),
        (10, 15, 0.3, "whole after native"),
        (3, 16, 0.3, "native"),
        (300, 1000, 0.3, "native"),
        # Beyond its range, a batch goes where it would without machine code, and in the blocks it would.
        (100, 200, 3.0, "whole after native"),
        (300, 1000, 3.0, "tiles after native"),
    ],
)
def test_which_way(
    monkeypatch: pytest.MonkeyPatch, n: int, m: int, scale: float, expected: str, compiled: bool
) -> None:
    used = []
    expected, _, native = expected.partition(" after ")
    if expected == "native" or native:
        if machine.machine() is None:
            pytest.skip("machine code cannot run here")
    else:
        monkeypatch.setattr(machine, "machine", lambda: None)
    for name, module in (("whole", whole), ("tiles", tiles), ("native", backward)):
        gradients = module.gradients

        def noting(*arguments, name=name, gradients=gradients):  # type: ignore[no-untyped-def]
            used.append(name)
            return gradients(*arguments)

        monkeypatch.setattr(module, "gradients", noting)
    case = make_case(n, m, 64, 10, scale=scale, dtype=torch.float32)
    loss = fastassoc.walker_visit_loss
    if compiled:
        # Operators give what was saved back flat, and padded with None.
        loss = torch.compile(loss, backend="aot_eager")
    mine = evaluate(loss, case)
    assert used == [expected]
    exact = evaluate(reference.walker_visit_loss, case, torch.float64)
    assert_as_exact_as(mine, evaluate(benchmarks.eager.walker_visit_loss, case), exact, case)


@pytest.mark.parametrize(
    ("sizes", "m", "dense"),
    [
        ([10] * 10, 100, True),
        ([10] * 10, 1000, False),
        # Blocks of four sizes take four times as many operations.
        ([4, 8, 12, 16] * 3, 800, True),
        ([4, 8, 12, 16] * 3, 2000, False),
        ([100] * 5 + [50], 1000, False),
        # A dense block of many rows takes memory and time whatever M is.
        (list(range(1, 40)), 32, False),
    ],
)
def test_one_dense_block_or_one_for_each_class(
    monkeypatch: pytest.MonkeyPatch, sizes: list[int], m: int, dense: bool
) -> None:
    monkeypatch.setattr(machine, "machine", lambda: None)
    monkeypatch.setattr(cpu, "_latest", None)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    b = torch.empty(m, 1)
    assert cpu.prepare_labels(labels, None, b, torch.float32).blocks().dense == dense
    ignored = torch.cat([labels, torch.full((300,), 99)])
    assert cpu.prepare_labels(ignored, 99, b, torch.float32).blocks().dense == dense


def test_vector_functions_are_resolved_by_one_thread_on_import() -> None:
    # The race itself shows in one process of seventy.
    program = """
import torch
called = set()
for name in ("exp", "log", "sqrt"):
    def noting(x, name=name, function=getattr(torch, name)):
        assert x.numel() == 1
        called.add((name, x.dtype, x.device.type))
        return function(x)
    setattr(torch, name, noting)
torch.set_default_device("meta")
import fastassoc
print(len(called), {device for _, _, device in called})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "6 {'cpu'}"


@pytest.mark.parametrize("seed", [9, 12])
def test_an_upstream_gradient_is_a_factor_after_the_products_of_a_dense_block(seed: int) -> None:
    # Without eps, gradients by round trips may come near the largest float32, and the factor of a scaler beyond it.
    torch.manual_seed(seed)
    a, b = (torch.randn(rows, 8) * 8**0.5 for rows in (30, 20))
    a.requires_grad_()
    b.requires_grad_()
    loss = fastassoc.walker_visit_loss(a, b, torch.arange(30) % 3, eps=0.0)
    for x in torch.autograd.grad(65536.0 * loss, (a, b)):
        assert x.isfinite().all()
