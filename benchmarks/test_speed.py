"""The suites under pytest-benchmark: ``pytest benchmarks/``; ``-k large`` for the large batches alone.

A provider that is wrong, missing or out of memory is skipped and says so.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from benchmarks import batches, worker
from benchmarks.batches import Batch
from benchmarks.providers import PROVIDERS, MissingProviderError, provider_named

DEVICE = torch.device(os.environ.get("FASTASSOC_DEVICE", "cuda" if torch.cuda.is_available() else "cpu"))
LARGE = tuple(x for x in batches.LARGE if x.d == 128 and x.n >= 2048 and x.n * x.m <= 2**26)


@pytest.mark.parametrize("name", [provider.name for provider in PROVIDERS if provider.walker])
@pytest.mark.parametrize(
    "batch",
    [
        *(pytest.param(x, id=f"large: {x.label}") for x in LARGE),
        *(pytest.param(x, id=f"paper: {x.label}") for x in batches.PAPER),
    ],
)
def test_forward_and_backward(benchmark: Any, batch: Batch, name: str) -> None:
    provider = provider_named(name)
    try:
        loss = provider.load()
    except MissingProviderError as missing:
        pytest.skip(str(missing))
    assert worker.error(provider, loss, batch, torch.float32, DEVICE) < 1e-4
    a, b, labels = batches.make_inputs(batch, torch.float32, DEVICE)
    try:
        worker.seconds(loss, a, b, labels)
    except (RuntimeError, MemoryError) as problem:
        pytest.skip(str(problem).splitlines()[0])
    benchmark.group = batch.label
    benchmark.extra_info.update(useful_operations=batches.useful_operations(batch), device=str(DEVICE))
    rounds = 3 if batch.n >= 2048 else 25
    before = (lambda: worker.reorder(labels)) if batch.new_labels else None
    benchmark.pedantic(worker.seconds, args=(loss, a, b, labels), setup=before, rounds=rounds, warmup_rounds=1)
