"""Time and peak memory of fastassoc, eager PyTorch and torch.compile of it, and the fraction of the card's rate."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import benchmarks.eager
from benchmarks import batches
from benchmarks.gpu.batches import (
    Batch,
    Loss,
    eager,
    explain,
    free_memory,
    fused,
    make_batch,
    peak_memory,
    relative_errors,
    seconds,
)
from benchmarks.gpu.checks import NEEDS_GPU, allowed_error
from benchmarks.gpu.plan import SPEED_MODES, Context, Size
from benchmarks.modes import MODES, float32_products

OUT_OF_TIME = "not run: out of time"
COMPILE_SECONDS = 30.0
"""What must be left of the time for torch.compile to be tried."""
SIZE_SECONDS = 5.0
"""What must be left for anything to be tried."""
PRODUCT_ERROR = 8
"""Errors beyond so many roundings of the products' operands are wrong where eager gives nothing to compare with."""
_UNITS = {"bf16": 2.0**-8, "fp32-high": 2.0**-16}


def speed(context: Context) -> Iterator[dict[str, Any]]:
    """A row for each size, mode and contender, smaller sizes first."""
    for size in (*context.plan.speed, context.plan.alone):
        contenders: dict[str, Loss] = {"fastassoc": fused}
        if size != context.plan.alone:
            contenders |= {"eager": eager, "compiled": torch.compile(benchmarks.eager.walker_visit_loss, dynamic=False)}
        for mode in SPEED_MODES:
            with float32_products(MODES[mode].precision):
                yield from _speed_at(context, size, mode, contenders)
            free_memory(context)


def _speed_at(context: Context, size: Size, mode: str, contenders: dict[str, Loss]) -> Iterator[dict[str, Any]]:
    common = {"n": size.n, "m": size.m, "classes": size.classes, "d": context.plan.depth, "mode": mode}
    if context.clock.left() < SIZE_SECONDS:
        yield from ({**common, "contender": name, "verdict": OUT_OF_TIME} for name in contenders)
        return
    batch = make_batch(context, size, mode)
    expected, source = _expected(context, batch, alone=len(contenders) == 1)
    rows: dict[str, dict[str, Any]] = {}
    for name, loss in contenders.items():
        row = {**common, "contender": name, "reference": source}
        try:
            if name == "compiled" and context.clock.left() < COMPILE_SECONDS:
                row["verdict"] = OUT_OF_TIME
            else:
                row["error"] = _worst_error(batch, loss, expected)
                row["peak_mib"] = peak_memory(context, batch, loss)
                row["verdict"] = "ok"
        except Exception as error:  # A contender that cannot run is a result.
            row["verdict"] = explain(error)
            free_memory(context)
        rows[name] = row
    mine = rows["fastassoc"]
    if mine["verdict"] == "ok" and expected is not None:
        most = _most(mode, rows.get("eager", {}).get("error", math.nan))
        mine["verdict"] = "ok" if mine["error"] <= most else "wrong"
    running = {name: contenders[name] for name, row in rows.items() if row["verdict"] == "ok"}
    for name, values in time_in_turn(context, batch, running, size.rounds).items():
        rows[name] |= _quantiles(values)
    yield from rows.values()


def _expected(context: Context, batch: Batch, alone: bool) -> tuple[tuple[Tensor, ...] | None, str]:
    """Gradients at fp32-highest: eager's, or where that is too large fastassoc's own."""
    loss, name = (fused, "fastassoc fp32-highest") if alone else (eager, "eager fp32-highest")
    try:
        with float32_products("highest"):
            return batch.to(torch.float32).step(loss)[1:], name
    except Exception as error:  # Without a reference there are still times.
        free_memory(context)
        return None, f"none: {name} {explain(error)}"


def _worst_error(batch: Batch, loss: Loss, expected: tuple[Tensor, ...] | None) -> float:
    """Of the gradients, after two passes that compile what there is to compile."""
    batch.step(loss)
    gradients = batch.step(loss)[1:]
    return math.nan if expected is None else max(relative_errors(gradients, expected))


def _most(mode: str, eager_error: float) -> float:
    """The largest error of fastassoc's gradients that is not wrong."""
    if math.isfinite(eager_error):
        return allowed_error(mode, eager_error, gradient=True)
    return PRODUCT_ERROR * _UNITS[mode]


def time_in_turn(context: Context, batch: Batch, losses: dict[str, Loss], rounds: int) -> dict[str, list[float]]:
    """Seconds of every contender in every round; at least three rounds, and then until the time for a size is over."""
    times: dict[str, list[float]] = {name: [] for name in losses}
    end = time.monotonic() + min(context.plan.seconds_per_size, max(context.clock.left(), 0.0))
    for index in range(rounds):
        if index >= 3 and time.monotonic() > end:
            break
        for name, loss in losses.items():
            times[name].append(seconds(context, lambda loss=loss: batch.step(loss)))  # type: ignore[misc]
    return times


def _quantiles(values: list[float]) -> dict[str, Any]:
    low, middle, high = (sorted(values)[int(q * (len(values) - 1))] for q in (0.2, 0.5, 0.8))
    return {"median_ms": middle * 1e3, "p20_ms": low * 1e3, "p80_ms": high * 1e3, "rounds": len(values)}


def memory(context: Context) -> Iterator[dict[str, Any]]:
    """Peak memory beyond inputs and gradients as M grows, N and classes fixed."""
    contenders: dict[str, Loss] = {"fastassoc": fused, "eager": eager}
    for m in context.plan.memory_columns:
        size = Size(context.plan.memory_rows, m, context.plan.alone.classes, 1)
        for mode in SPEED_MODES:
            batch = make_batch(context, size, mode)
            for name, loss in contenders.items():
                row: dict[str, Any] = {"n": size.n, "m": m, "mode": mode, "contender": name}
                if context.clock.left() < SIZE_SECONDS:
                    yield row | {"verdict": OUT_OF_TIME}
                    continue
                try:
                    with float32_products(MODES[mode].precision):
                        batch.step(loss)
                        peak = peak_memory(context, batch, loss)
                    yield row | {"peak_mib": peak, "verdict": NEEDS_GPU if peak is None else "ok"}
                except Exception as error:  # A contender that cannot run is a result.
                    free_memory(context)
                    yield row | {"verdict": explain(error)}


def fractions(context: Context, timed: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rate of a matrix product in each mode, and how much of it fastassoc's useful operations reach.

    ``6 N M D + 3 M sum_c n_c^2`` operations: scores once, da, db; the symmetric round trip once and one product back.
    """
    for mode in SPEED_MODES:
        rate = product_rate(context, mode)
        yield {"mode": mode, "product": context.plan.product, "product_tflops": rate / 1e12}
        for row in timed:
            if row["contender"] == "fastassoc" and row["mode"] == mode and "median_ms" in row:
                useful = batches.useful_operations(batches.Batch(row["n"], row["m"], row["d"], row["classes"]))
                reached = useful / (row["median_ms"] / 1e3)
                where = {"mode": mode, "n": row["n"], "m": row["m"], "classes": row["classes"]}
                yield where | {"useful_tflops": reached / 1e12, "fraction_of_product": reached / rate}


def product_rate(context: Context, mode: str) -> float:
    """Operations a second of ``torch.mm`` of random square matrices, median of ten after three to warm up."""
    size = context.plan.product
    x, y = (torch.randn(size, size, device=context.device).to(MODES[mode].dtype) for _ in range(2))
    out = torch.empty_like(x)
    with float32_products(MODES[mode].precision):
        times = [seconds(context, lambda: torch.mm(x, y, out=out)) for _ in range(13)]
    return 2 * size**3 / statistics.median(times[3:])
