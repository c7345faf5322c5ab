"""One rank of a measurement: ``python -m benchmarks.rank_worker TASK``, TASK and the answer of rank 0 being JSON.

All ranks of a task meet at a file. One thread each; what is random, such as the order of turns, is the same on all.
"""

from __future__ import annotations

import json
import random
import sys
import time
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

import fastassoc
from benchmarks.batches import Batch, make_inputs
from benchmarks.exchange import CONTENDERS, Contender, counted
from benchmarks.providers import provider_named
from benchmarks.worker import FEWEST_ROUNDS, MOST_ROUNDS, TOLERANCE, error, resident_growth, step

_CPU = torch.device("cpu")
_SMALL = 64
"""Rows with which a rank loads its libraries before its memory is measured."""

Row = dict[str, Any]


class Share(NamedTuple):
    """Rows of a rank."""

    a: Tensor
    b: Tensor
    labels: Tensor


def share(inputs: tuple[Tensor, Tensor, Tensor]) -> Share:
    """One of equal parts, that of this rank, in memory of its own."""
    a, b, labels = (x.detach().chunk(dist.get_world_size())[dist.get_rank()].clone() for x in inputs)
    return Share(a.requires_grad_(), b.requires_grad_(), labels)


def of_all(x: Any) -> list[Any]:
    """``x`` of every rank."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, x)
    return found


def errors(batch: Batch, dtype: torch.dtype, contenders: list[Contender], own: Share) -> dict[str, float]:
    """The largest relative error of the loss and of both gradients on any rank, against one process with all rows.

    One process alone is held to the float64 specification, on a corner of the batch.
    """
    if dist.get_world_size() == 1:
        provider = provider_named("fastassoc")
        return {x.name: error(provider, provider.load(), batch, dtype, _CPU) for x in contenders}
    inputs = make_inputs(batch, dtype, _CPU)
    exact = fastassoc.walker_visit_loss(*inputs)
    exact.backward()
    chunks = [x.grad.chunk(dist.get_world_size())[dist.get_rank()] for x in inputs[:2] if x.grad is not None]
    found = {}
    for contender in contenders:
        own.a.grad = own.b.grad = None
        loss = contender.loss(*own)
        loss.backward()
        times = dist.get_world_size() if contender.times_ranks else 1
        off = [float(abs(loss.detach() - exact.detach()) / exact.detach())]
        for mine, true in zip((own.a.grad, own.b.grad), chunks, strict=True):
            assert mine is not None
            off.append(float((mine.double() / times - true).norm() / true.norm()))
        # Of one that is not a number no maximum would tell.
        found[contender.name] = max(off) if all(x < 1e9 for x in off) else 1e9
    everywhere = of_all(found)
    return {name: max(x[name] for x in everywhere) for name in found}


def traffic(contender: Contender, own: Share) -> Row:
    """What this rank sends in a step."""
    own.a.grad = own.b.grad = None
    with counted() as forward:
        loss = contender.loss(*own)
    with counted() as backward:
        loss.backward()
    return {
        "forward_bytes": forward.sent,
        "backward_bytes": backward.sent,
        "collectives": forward.collectives + backward.collectives,
    }


def seconds(contender: Contender, own: Share) -> float:
    """Wall time of a step that all ranks begin together."""
    dist.barrier()
    start = time.perf_counter()
    step(contender.loss, *own)
    return time.perf_counter() - start


def measure_steps(task: Row) -> Row:
    """Rows by name of contender: its error, its traffic and, of one that is right, its times, all in turn.

    The time of a step is that of the last rank to end it.
    """
    batch, dtype = Batch(*task["batch"]), getattr(torch, task["dtype"])
    contenders = [x for x in CONTENDERS if x.name in task["contenders"]]
    own = share(make_inputs(batch, dtype, _CPU))
    rows: dict[str, Row] = {}
    for name, off in errors(batch, dtype, contenders, own).items():
        rows[name] = {"status": "ok", "error": off}
        if off > TOLERANCE[dtype]:
            rows[name] = {"status": "wrong", "message": f"the loss or a gradient is {off:.1e} off"}
    right = [x for x in contenders if rows[x.name]["status"] == "ok"]
    for contender in right:
        most = of_all(traffic(contender, own))
        rows[contender.name] |= {key: max(x[key] for x in most) for key in most[0]}
    estimate = sum(seconds(x, own) for x in right)
    rounds = max(of_all(max(FEWEST_ROUNDS, min(MOST_ROUNDS, int(task["seconds"] / max(estimate, 1e-9))))))
    times: dict[str, list[float]] = {x.name: [] for x in right}
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(right)
        for contender in right:
            times[contender.name].append(seconds(contender, own))
    for name, values in times.items():
        ordered = sorted(map(max, zip(*of_all(values), strict=True)))
        p20, p50, p80 = (ordered[round(q * (rounds - 1))] * 1e3 for q in (0.2, 0.5, 0.8))
        rows[name] |= {"rounds": rounds, "median_ms": p50, "p20_ms": p20, "p80_ms": p80}
    return rows


def measure_memory(task: Row) -> Row:
    """The largest growth of a rank during its first step, beyond its share of inputs and gradients."""
    (contender,) = (x for x in CONTENDERS if x.name in task["contenders"])
    own = share(make_inputs(Batch(*task["batch"]), getattr(torch, task["dtype"]), _CPU))
    step(contender.loss, *(x.detach()[:_SMALL].requires_grad_(x.is_floating_point()) for x in own))
    own.a.grad = own.b.grad = None

    def run() -> None:
        dist.barrier()
        step(contender.loss, *own)

    grown, _ = resident_growth(run, own.a.nbytes + own.b.nbytes)
    return {contender.name: {"resident_mib": max(of_all(grown))}}


def main(arguments: list[str]) -> int:
    """Meets the others and measures."""
    task = json.loads(arguments[0])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=task["meeting"], rank=task["rank"], world_size=task["ranks"])
    answer = {"steps": measure_steps, "memory": measure_memory}[task["kind"]](task)
    if dist.get_rank() == 0:
        print(json.dumps(answer))
    dist.barrier()
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
