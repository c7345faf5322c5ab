"""Cases on the device of the kernels, and the dense float64 values that passes are compared with."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import fastassoc
from fastassoc.backends import triton
from fastassoc.backends.triton import plan
from fastassoc.backends.triton.precision import Precision
from fastassoc.kernels.triton.buffers import Tables
from tests.cases import Case, Result, evaluate

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

FLOAT64 = 1e-12
"""Relative error of a float64 pass: sums of up to 1,000 terms, a few in a row, at 1.1e-16 a rounding."""


class Trace(list[tuple[str, dict[str, Any]]]):
    """Kernel launches: names and arguments."""

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self]

    def arguments(self, name: str) -> dict[str, Any]:
        (found,) = (arguments for kernel, arguments in self if kernel == name)
        return found


class Dense(NamedTuple):
    """Everything the passes compute, dense, rows as given."""

    s: Tensor
    p_ab: Tensor
    q: Tensor
    p_aba: Tensor
    visit: Tensor
    same: Tensor
    g: Tensor
    h: Tensor
    kappa: Tensor


def dense(case: Case, eps: float = 1e-8) -> Dense:
    """DESIGN's equations, literally."""
    s = case.a.double() @ case.b.double().T
    n, m = s.shape
    p_ab, q = s.softmax(1), s.softmax(0)
    p_aba, visit = p_ab @ q.T, p_ab.mean(0)
    same = case.labels[:, None] == case.labels
    g = -(same.double() / same.sum(1, keepdim=True)) / (n * (eps + p_aba))
    h = -1 / (n * m * (eps + visit))
    kappa = (p_ab * (g @ q)).sum(0)
    return Dense(s, p_ab, q, p_aba, visit, same, g, h, kappa)


def multiply_as_at_high(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of float32 at "high", but that the interpreter has no tf32."""

    def choose(dtype: torch.dtype, *_: Any) -> Precision:
        return Precision("fp16", "ieee", scaled=True) if dtype == torch.float32 else Precision("ieee", "ieee")

    for module in (triton, plan):
        monkeypatch.setattr(module, "choose_precision", choose)


def on_device(case: Case) -> Case:
    return Case(*(x.to(DEVICE) for x in case))


def run(case: Case, **options: object) -> Result:
    """The loss and its gradients by the kernels, compared on the CPU."""
    result = evaluate(fastassoc.walker_visit_loss, on_device(case), backend="triton", **options)
    return Result(*(x.cpu() for x in result))


def sized_classes(sizes: list[int], seed: int = 0) -> Tensor:
    """Labels of classes of these sizes, shuffled."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)) * 7 - 3
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


def blocks_to_dense(flat: Tensor, tables: Tables, rows: int) -> Tensor:
    """[pairs, size, size] of pairs of class tiles, as the kernels lay them out, to [N, N] with inf elsewhere."""
    size = flat.shape[1]
    slots, tiles = tables.slots_ptr[0], tables.tiles_ptr
    out = flat.new_full((rows, rows), float("inf"))
    for tile, (pair, first, count) in enumerate(tiles.T.tolist()):
        i = slots[tile * size : (tile + 1) * size]
        for step in range(count):
            k = slots[(first + step) * size : (first + step + 1) * size]
            block = flat[pair + step][i >= 0][:, k >= 0]
            out[i[i >= 0][:, None], k[k >= 0]] = block
    return out
