"""One measurement in a process of its own: ``python -m benchmarks.worker TASK``, TASK and answer being JSON.

A process of its own has a memory peak of its own, and when it runs out of memory nothing else does.
"""

from __future__ import annotations

import ctypes
import json
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.batches import Batch, make_inputs, useful_operations
from benchmarks.providers import Loss, MissingProviderError, Provider, provider_named
from fastassoc import reference

MIB = 2**20
_PRODUCT_SIZE = 2048
_CHECKED_ROWS, _CHECKED_COLUMNS = 512, 8192
"""The corner of a batch that a provider has to get right before it is timed: four tiles of fastassoc's on a CPU."""
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 2e-1}
"""Of gradients, relative: ten times what rounding in the dtype does to eager PyTorch."""
_QUICK_SECONDS = 0.05
"""A round of all providers quicker than this is a matter of caches: who comes after whom, and what lay between."""
_STEPS_OF_QUICK_TURN = 5
MOST_ROUNDS = 500
FEWEST_ROUNDS = 3
_LONG_SECONDS = 40.0
"""A round longer than this is the only one."""


def step(loss: Loss, a: Tensor, b: Tensor, labels: Tensor) -> None:
    """Forward and backward, gradients fresh."""
    a.grad = b.grad = None
    loss(a, b, labels).backward()


def reorder(labels: Tensor) -> None:
    """Another order of the same labels."""
    labels.copy_(labels.roll(1))


def seconds(loss: Loss, a: Tensor, b: Tensor, labels: Tensor) -> float:
    """Wall time of a step, the device's work included."""
    synchronise(a.device)
    start = time.perf_counter()
    step(loss, a, b, labels)
    synchronise(a.device)
    return time.perf_counter() - start


def turn(loss: Loss, a: Tensor, b: Tensor, labels: Tensor, quick: bool, new_labels: bool = False) -> float:
    """Wall time of a step; a quick one is the mean of several, after one that finds its code and memory."""
    if quick:
        step(loss, a, b, labels)
    times = []
    for _ in range(_STEPS_OF_QUICK_TURN if quick else 1):
        if new_labels:
            reorder(labels)
        times.append(seconds(loss, a, b, labels))
    return statistics.mean(times)


def synchronise(device: torch.device) -> None:
    """Waits for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def product_rates(dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Operations per second of one large matrix product, by each library that PyTorch has for it.

    Which is the quicker depends on the processor: MKL leaves AVX-512 aside on some that have it, oneDNN does not.
    """
    left = torch.randn(_PRODUCT_SIZE, _PRODUCT_SIZE, device=device).to(dtype)
    products: dict[str, Callable[[], Tensor]] = {"mm": lambda: torch.mm(left, left)}
    if device.type == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available():
        own = left.to_mkldnn()
        products["oneDNN"] = lambda: torch.nn.functional.linear(own, own)
    rates = {}
    for name, product in products.items():
        synchronise(device)
        start = time.perf_counter()
        product()
        synchronise(device)
        rates[name] = 2 * _PRODUCT_SIZE**3 / (time.perf_counter() - start)
    return rates


def error(provider: Provider, loss: Loss, batch: Batch, dtype: torch.dtype, device: torch.device) -> float:
    """Relative error of both gradients against the float64 specification, on a corner of the batch."""
    a, b, labels = make_inputs(batch, dtype, device)
    a, b = a.detach()[:_CHECKED_ROWS].requires_grad_(), b.detach()[:_CHECKED_COLUMNS].requires_grad_()
    labels = labels[:_CHECKED_ROWS]
    step(loss, a, b, labels)
    exact_a, exact_b = (x.detach().double().requires_grad_() for x in (a, b))
    reference.walker_visit_loss(exact_a, exact_b, labels, walker_weight=float(provider.walker)).backward()
    errors = []
    for mine, true in ((a, exact_a), (b, exact_b)):
        assert mine.grad is not None
        assert true.grad is not None
        errors.append(float((mine.grad.double() - true.grad).norm() / true.grad.norm()))
    return max(errors)


def time_providers(task: dict[str, Any]) -> dict[str, Any]:
    """Medians of every provider, all in turn in one process, and the rates of large products between them."""
    batch, dtype, device = Batch(*task["batch"]), getattr(torch, task["dtype"]), torch.device(task["device"])
    results: dict[str, dict[str, Any]] = {}
    losses: dict[str, Loss] = {}
    a, b, labels = make_inputs(batch, dtype, device)
    for name in task["providers"]:
        provider = provider_named(name)
        try:
            loss = provider.load()
            off = error(provider, loss, batch, dtype, device)
            if not off < TOLERANCE[dtype]:
                results[name] = {"status": "wrong", "message": f"gradients are {off:.1e} from the specification"}
                continue
            if name == "compiled":
                # The check above compiled for another size.
                loss = provider.load()
            first = seconds(loss, a, b, labels)
            losses[name] = loss
            results[name] = {"status": "ok", "error": off, "first_ms": first * 1e3}
        except Exception as problem:
            results[name] = failure(problem)
    product_rates(dtype, device)
    rates = [product_rates(dtype, device)]
    budget = task["seconds"]
    # A first step compiles and finds its memory; where it takes long, a second one is the only one timed.
    estimate = sum(results[name]["first_ms"] / 1e3 for name in losses)
    if estimate < budget:
        estimate = sum(seconds(loss, a, b, labels) for loss in losses.values())
    times: dict[str, list[float]] = {name: [] for name in losses}
    quick = estimate < _QUICK_SECONDS
    round_seconds = estimate * (_STEPS_OF_QUICK_TURN + 1 if quick else 1)
    least = FEWEST_ROUNDS if round_seconds < _LONG_SECONDS else 1
    rounds = max(least, min(MOST_ROUNDS, int(budget / max(round_seconds, 1e-9))))
    order, shuffle = list(losses), random.Random(0).shuffle
    for index in range(rounds if losses else 0):
        # A product of this size empties the caches a small batch lives in: it goes before such rounds, not between.
        if not quick or index < 9:
            rates.append(product_rates(dtype, device))
        # Nobody always follows the same one.
        shuffle(order)
        for name in order:
            times[name].append(turn(losses[name], a, b, labels, quick, batch.new_labels))
    medians = {name: statistics.median(x[name] for x in rates) for name in rates[0]}
    quickest = max(medians.values())
    for name, values in times.items():
        ordered = sorted(values)
        p20, p50, p80 = (ordered[round(q * (len(ordered) - 1))] * 1e3 for q in (0.2, 0.5, 0.8))
        row = results[name]
        row |= {"rounds": len(values), "median_ms": p50, "p20_ms": p20, "p80_ms": p80}
        a_second = useful_operations(batch, provider_named(name).walker) / (p50 / 1e3)
        row |= {"floor_over_time": a_second / quickest, "mm_floor_over_time": a_second / medians["mm"]}
        if times.get("eager"):
            row["times_eager"] = statistics.median(x / y for x, y in zip(times["eager"], values, strict=True))
    return {"product_gflops": quickest / 1e9, "mm_gflops": medians["mm"] / 1e9, "providers": results}


def measure_memory(task: dict[str, Any]) -> dict[str, Any]:
    """Peaks of one step beyond inputs and gradients, in MiB: resident memory, and live tensors of the allocator."""
    batch, dtype, device = Batch(*task["batch"]), getattr(torch, task["dtype"]), torch.device(task["device"])
    try:
        loss = provider_named(task["provider"]).load()
        a, b, labels = make_inputs(batch, dtype, device)
        # The same operations at a small size load the libraries.
        step(loss, a.detach()[:64].requires_grad_(), b.detach()[:64].requires_grad_(), labels[:64])
        gradients = (a.numel() + b.numel()) * a.itemsize
        if device.type == "cuda":
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            step(loss, a, b, labels)
            peak = (torch.cuda.max_memory_allocated(device) - before - gradients) / MIB
            return {"status": "ok", "live_mib": peak, "resident_mib": None}
        grown, spent = resident_growth(lambda: step(loss, a, b, labels), gradients)
        live = (live_peak(loss, a, b, labels) - gradients) / MIB if task["live"] else None
        return {"status": "ok", "live_mib": live, "resident_mib": grown, "first_ms": spent * 1e3}
    except Exception as problem:
        return failure(problem)


def resident_growth(run: Callable[[], None], gradients: int) -> tuple[float, float]:
    """MiB by which ``run`` makes this process grow beyond so many bytes of gradients, and its seconds."""
    # What loading left to the allocator would hide growth.
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    ballast = torch.ones(gradients, dtype=torch.uint8)
    before = resident("VmRSS")
    del ballast
    Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    run()
    spent = time.perf_counter() - start
    return resident("VmHWM") - before, spent


def live_peak(loss: Loss, a: Tensor, b: Tensor, labels: Tensor) -> int:
    """Bytes: the peak of what the allocator handed out and did not get back, during a step."""
    a.grad = b.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss(a, b, labels).backward()
    assert profiler.profiler is not None
    results = profiler.profiler.kineto_results
    assert results is not None
    events = [(event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"]
    live = peak = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        live += size
        peak = max(peak, live)
    return peak


def resident(field: str) -> float:
    """``VmRSS`` or ``VmHWM`` of this process in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def failure(problem: Exception) -> dict[str, Any]:
    """A failed measurement in words."""
    text = str(problem).strip().splitlines()
    message = text[0][:200] if text else type(problem).__name__
    if isinstance(problem, MissingProviderError):
        return {"status": "missing", "message": message}
    out_of_memory = isinstance(problem, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(
        problem
    )
    return {"status": "out of memory" if out_of_memory else "failed", "message": message}


def main(arguments: list[str]) -> int:
    """Limits the address space, so that too large a batch fails here instead of at the system's hands."""
    task = json.loads(arguments[0])
    if task["limit_mib"] is not None and torch.device(task["device"]).type == "cpu":
        limit = task["limit_mib"] * MIB
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print(json.dumps({"time": time_providers, "memory": measure_memory}[task["kind"]](task)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
