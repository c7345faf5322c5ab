"""Correctness on the device: errors against float64, the same bits on every run, launches and synchronisations.

Each stage yields rows as they are found. ``verdict`` is "ok", "wrong", or why there is none.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.batches import Batch, eager, exact, explain, free_memory, fused, make_batch, relative_errors
from benchmarks.gpu.launches import noted_launches
from benchmarks.gpu.plan import ERROR_MODES, LOGITS, SPEED_MODES, Context, Size
from benchmarks.modes import MODES, float32_products

NEEDS_GPU = "needs a GPU"


def allowed_error(mode: str, theirs: float, gradient: bool) -> float:
    """Twice eager's error and eight roundings of the accumulation, plus one of a gradient as it is stored.

    In float64, where the reference has roundings too, 64: the square root of the 4,096 terms of the longest sum here.
    Infinite where eager gives no number: there is nothing to be compared with.
    """
    dtype = MODES[mode].dtype
    accumulated, roundings = (torch.float64, 64) if dtype == torch.float64 else (torch.float32, 8)
    band = roundings * torch.finfo(accumulated).eps + (torch.finfo(dtype).eps if gradient else 0.0)
    return 2 * theirs + band if math.isfinite(theirs) else math.inf


def errors(context: Context) -> Iterator[dict[str, Any]]:
    """Relative errors of loss and gradients against float64 on the same inputs, beside eager's in the same mode."""
    for mode, size in product(ERROR_MODES, context.plan.errors):
        for logits, scale in LOGITS.items():
            batch = make_batch(context, size, mode, scale)
            expected = exact(batch)
            failure = None
            with float32_products(MODES[mode].precision):
                mine = relative_errors(batch.step(fused), expected)
                try:
                    theirs = relative_errors(batch.step(eager), expected)
                except Exception as error:  # A contender that cannot run is a result.
                    theirs, failure = [math.nan] * 3, explain(error)
                    free_memory(context)
            for name, x, y in zip(("loss", "da", "db"), mine, theirs, strict=True):
                good = x <= allowed_error(mode, y, name != "loss") and math.isfinite(x)
                row = {"mode": mode, "n": size.n, "m": size.m, "classes": size.classes, "logits": logits}
                row |= {"value": name, "error": x, "eager_error": y}
                yield row | {"eager_failure": failure, "verdict": "ok" if good else "wrong"}


def determinism(context: Context) -> Iterator[dict[str, Any]]:
    """How many runs gave the very bits of the first."""
    for size in context.plan.repeated:
        for mode in SPEED_MODES:
            batch = make_batch(context, size, mode)
            with float32_products(MODES[mode].precision):
                first = batch.step(fused)
                equal = 1 + sum(
                    all(torch.equal(x, y) for x, y in zip(first, batch.step(fused), strict=True))
                    for _ in range(size.rounds - 1)
                )
            row = {"mode": mode, "n": size.n, "m": size.m, "classes": size.classes, "runs": size.rounds, "equal": equal}
            yield row | {"verdict": "ok" if equal == size.rounds else "wrong"}


def launches(context: Context) -> Iterator[dict[str, Any]]:
    """Kernels of a pass, synchronisations with the host, and whether a step can be captured in a CUDA graph."""
    plan = context.plan
    checks: dict[str, Callable[[], dict[str, Any]]] = {
        _sync_name(plan.without_sync): lambda: _synchronised(context, plan.without_sync, 0),
        _sync_name(plan.with_sync): lambda: _synchronised(context, plan.with_sync, 1),
    }
    for size, most_forward, most_backward in plan.launches:
        batch = make_batch(context, size, "bf16")
        batch.step(fused)
        where = f"{size.n} x {size.m}"
        forward, backward = own_kernels(batch)
        yield _counted(f"own kernels forward, {where}", forward, most_forward)
        yield _counted(f"own kernels backward, {where}", backward, most_backward)
        checks |= {
            f"all kernels on the device, {where}": partial(_device_kernels, batch),
            f"CUDA graph, {where}": partial(_verdict, graph_replays, context, size),
            f"within a CUDA graph of torch.compile, {where}": partial(reduces_overhead, context, size),
        }
    for name, check in checks.items():
        if not context.cuda:
            yield {"check": name, "verdict": NEEDS_GPU}
            continue
        try:
            yield {"check": name} | check()
        except Exception as error:  # One check must not take the others with it.
            yield {"check": name, "verdict": "wrong", "failure": explain(error)}


def _device_kernels(batch: Batch) -> dict[str, Any]:
    return {"value": device_kernels(batch), "verdict": "no limit"}


def _verdict(check: Callable[[Context, Size], bool], context: Context, size: Size) -> dict[str, Any]:
    return {"verdict": "ok" if check(context, size) else "wrong"}


def _counted(name: str, value: int, limit: int) -> dict[str, Any]:
    return {"check": name, "value": value, "limit": limit, "verdict": "ok" if value <= limit else "wrong"}


def _sync_name(size: Size) -> str:
    return f"synchronisations, {size.n} x {size.m}"


def _synchronised(context: Context, size: Size, limit: int) -> dict[str, Any]:
    batch = make_batch(context, size, "bf16")
    batch.step(fused)
    return _counted(_sync_name(size), synchronisations(batch), limit)


def own_kernels(batch: Batch) -> tuple[int, int]:
    """Launches of fastassoc's kernels forward and backward."""
    with noted_launches() as made:
        value = fused(*batch)
        forward = len(made)
        torch.autograd.grad(value, (batch.a, batch.b))
    return forward, len(made) - forward


def device_kernels(batch: Batch) -> int:
    """Kernels of any origin in a forward and backward pass, by the profiler."""
    from torch.profiler import DeviceType, ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        batch.step(fused)
        torch.cuda.synchronize()
    events = profiler.events() or []
    return sum(x.device_type == DeviceType.CUDA and not x.name.startswith(("Memcpy", "Memset")) for x in events)


def synchronisations(batch: Batch) -> int:
    """Times that the host waits for the device in a forward and backward pass, by torch's own detection."""
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    torch.cuda.synchronize()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            batch.step(fused)
            torch.cuda.set_sync_debug_mode("default")
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.set_warn_always(always)
    return sum("synchronizing CUDA operation" in str(x.message) for x in caught)


def graph_replays(context: Context, size: Size) -> bool:
    """Whether a captured step gives, on other numbers, the bits of a step that was not captured."""
    batch, other = make_batch(context, size, "bf16"), make_batch(context, size, "bf16", scale=0.3)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        batch.step(fused)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = batch.step(fused)
    with torch.no_grad():
        batch.a.copy_(other.a)
        batch.b.copy_(other.b)
        batch.labels.copy_(other.labels)
    graph.replay()
    torch.cuda.synchronize()
    captured: list[Tensor] = [x.clone() for x in results]
    return all(torch.equal(x, y) for x, y in zip(captured, other.step(fused), strict=True))


def reduces_overhead(context: Context, size: Size) -> dict[str, Any]:
    """Whether torch.compile with CUDA graphs gives the bits of a step that is not compiled, and leaves nothing out."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    batch = make_batch(context, size, "bf16")
    compiled = torch.compile(fused, mode="reduce-overhead")
    expected = batch.step(fused)
    # It warms up, then records, then replays.
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        results = [x.clone() for x in batch.step(compiled)]
    left_out = _counted("", counters["inductor"]["cudagraph_skips"], 0)
    same = all(torch.equal(x, y) for x, y in zip(results, expected, strict=True))
    return {name: left_out[name] for name in ("value", "limit")} | {"verdict": left_out["verdict"] if same else "wrong"}
