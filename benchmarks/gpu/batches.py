"""Batches, the losses that are compared on them, and what one forward and backward pass of a loss gives and takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import benchmarks.eager
import fastassoc
from benchmarks.gpu.plan import Context, Size
from benchmarks.modes import MODES, float32_products
from fastassoc import reference

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
MIB = 2**20


class Batch(NamedTuple):
    """Inputs of the loss; ``a`` and ``b`` take gradients."""

    a: Tensor
    b: Tensor
    labels: Tensor

    def step(self, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """The loss and its gradients by ``a`` and ``b``."""
        value = loss(self.a, self.b, self.labels)
        da, db = torch.autograd.grad(value, (self.a, self.b))
        return value.detach(), da, db

    def to(self, dtype: torch.dtype) -> Batch:
        """The same numbers in another dtype."""
        a, b = (x.detach().to(dtype).requires_grad_() for x in (self.a, self.b))
        return Batch(a, b, self.labels)


def make_batch(context: Context, size: Size, mode: str, scale: float = 0.55) -> Batch:
    """Embeddings of that standard deviation: 0.55 gives logits of 3.4 at D = 128, as early in training."""
    generator = torch.Generator(context.device).manual_seed(0)

    def embeddings(rows: int) -> Tensor:
        x = torch.randn(rows, context.plan.depth, generator=generator, device=context.device).mul_(scale)
        return x.to(MODES[mode].dtype).requires_grad_()

    order = torch.randperm(size.n, generator=generator, device=context.device)
    return Batch(embeddings(size.n), embeddings(size.m), order % size.classes)


def fused(a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
    """The loss that is measured."""
    return fastassoc.walker_visit_loss(a, b, labels, backend="triton")


def eager(a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
    """What it replaces."""
    return benchmarks.eager.walker_visit_loss(a, b, labels)


def exact(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The specification in float64."""
    with float32_products("highest"):
        return batch.to(torch.float64).step(reference.walker_visit_loss)


def relative_errors(results: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> list[float]:
    """``|x - y| / |y|``, Frobenius norms in float64 (absolute where ``y`` is 0); NaN for NaN."""
    errors = []
    for x, y in zip(results, expected, strict=True):
        norm = float(y.double().norm())
        errors.append(float((x.double() - y.double()).norm()) / (norm or 1.0))
    return errors


def seconds(context: Context, function: Callable[[], object]) -> float:
    """Time of one call: between two events on a GPU that had nothing else to do."""
    if not context.cuda:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    function()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3


def peak_memory(context: Context, batch: Batch, loss: Loss) -> float | None:
    """MiB of one pass beyond inputs and gradients, as torch's allocator counts them; None without a GPU."""
    if not context.cuda:
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    results = batch.step(loss)
    torch.cuda.synchronize()
    gradients = sum(x.numel() * x.element_size() for x in results[1:])
    return (torch.cuda.max_memory_allocated() - before - gradients) / MIB


def free_memory(context: Context) -> None:
    """Gives back what a failed contender left."""
    torch._dynamo.reset()
    if context.cuda:
        torch.cuda.empty_cache()


def explain(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    lines = str(error).strip().splitlines() or ["no message"]
    return f"failed: {type(error).__name__}: {lines[0][:200]}"
