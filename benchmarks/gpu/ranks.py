"""The loss over two processes with a GPU each, against float64 on the rows of both."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

import fastassoc
from benchmarks.gpu.batches import Batch, eager, exact, make_batch, relative_errors
from benchmarks.gpu.checks import allowed_error
from benchmarks.gpu.plan import Context, Size
from benchmarks.modes import MODES, float32_products

RANKS = 2
RANK_MODES = ("bf16", "fp32-high", "fp32-highest", "fp64")


def over_ranks(context: Context) -> Iterator[dict[str, Any]]:
    """Relative errors of the loss and of gradients beside eager's in one process; the loss is one number for all."""
    if context.cuda and torch.cuda.device_count() < RANKS:
        yield {"verdict": f"needs {RANKS} GPUs"}
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spawn(_work, (context, folder), nprocs=RANKS)
        for mode, size in _cases(context):
            shares = [torch.load(_file(folder, mode, size, rank), map_location=context.device) for rank in range(RANKS)]
            losses, das, dbs = zip(*shares, strict=True)
            same = all(torch.equal(x, losses[0]) for x in losses)
            batch = make_batch(context, size, mode)
            expected = exact(batch)
            with float32_products(MODES[mode].precision):
                theirs = relative_errors(batch.step(eager), expected)
            mine = relative_errors((losses[0], torch.cat(das), torch.cat(dbs)), expected)
            for value, x, y in zip(("loss", "da", "db"), mine, theirs, strict=True):
                good = x <= allowed_error(mode, y, value != "loss") and math.isfinite(x) and same
                row = {"mode": mode, "n": size.n, "m": size.m, "classes": size.classes, "ranks": RANKS, "value": value}
                row |= {"error": x, "eager_error": y, "same_on_all": same}
                yield row | {"verdict": "ok" if good else "wrong"}


def _cases(context: Context) -> Iterator[tuple[str, Size]]:
    return product(RANK_MODES, context.plan.errors)


def _file(folder: Path, mode: str, size: Size, rank: int) -> Path:
    return folder / f"{mode}-{size.n}x{size.m}-{rank}.pt"


def _work(rank: int, context: Context, folder: Path) -> None:
    """What one rank finds, saved."""
    torch.set_num_threads(1)
    if context.cuda:
        torch.cuda.set_device(rank)
        context = context._replace(device=torch.device("cuda", rank))
    meeting = (folder / "meeting").as_uri()
    backend = "nccl" if context.cuda else "gloo"
    dist.init_process_group(backend, meeting, timedelta(minutes=2), rank=rank, world_size=RANKS)
    for mode, size in _cases(context):
        with float32_products(MODES[mode].precision):
            results = _own(make_batch(context, size, mode), rank).step(_together)
        torch.save([x.cpu() for x in results], _file(folder, mode, size, rank))
    dist.destroy_process_group()


def _own(batch: Batch, rank: int) -> Batch:
    """A third of the rows for the first rank, the others for the second."""
    cuts = [len(x) // 3 for x in (batch.a, batch.b)]
    a, b, labels = (
        (x[:cut] if rank == 0 else x[cut:]).detach().clone() for x, cut in zip(batch, (*cuts, cuts[0]), strict=True)
    )
    return Batch(a.requires_grad_(), b.requires_grad_(), labels)


def _together(a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
    return fastassoc.walker_visit_loss(a, b, labels, backend="triton", group="world", gradient_reduction="sum")
