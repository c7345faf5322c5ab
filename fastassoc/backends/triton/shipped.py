"""Every kernel with every configuration that ships, as data: to compile for any GPU on a machine without one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from fastassoc.backends import triton
from fastassoc.backends.protocol import Inputs
from fastassoc.backends.triton.labels import Labels
from fastassoc.backends.triton.launch import Launch, Machine, recording
from fastassoc.backends.triton.precision import float32_products

_PROCESSORS = 132
"""Of the assumed machine; grids depend on it, kernels do not."""


def shipped_launches(architecture: str, dtype: torch.dtype, depth: int) -> list[Launch]:
    """The launches of forward and backward passes over ``depth`` columns, one of each distinct compilation.

    float32 follows ``torch.get_float32_matmul_precision()``. Covers both terms together and alone, and with and without
    biases, ignored rows, and classes known to fit one tile; for float64 also scores by differences, for both terms.
    """
    distinct: dict[str, Launch] = {}
    terms = ((True, True), (True, False), (False, True))
    cases = [(biased, False, *both) for biased, both in product((False, True), terms)]
    if dtype == torch.float64:
        cases.append((True, True, True, True))
    # Up to 16 rows surely fit one tile, 1,024 may not; both are whole numbers of 16, as are most batches.
    for rows, case in product((16, 1024), cases):
        for launch in _launches(architecture, dtype, rows, depth, *case):
            signature, constants, attributes = launch.specialisation()
            key = f"{launch.kernel.__name__} {signature} {constants} {attributes} {launch.warps} {launch.stages}"
            distinct.setdefault(key, launch)
    return list(distinct.values())


def _launches(
    architecture: str,
    dtype: torch.dtype,
    rows: int,
    depth: int,
    biased: bool,
    differences: bool,
    walker: bool,
    visit: bool,
) -> Iterator[Launch]:
    columns = 65536
    accumulated = torch.float64 if dtype == torch.float64 else torch.float32

    def empty(*shape: int, dtype: torch.dtype = accumulated) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    inputs = Inputs(
        a=empty(rows, depth, dtype=dtype),
        b=empty(columns, depth, dtype=dtype),
        bias_a=empty(rows) if biased else None,
        bias_b=empty(columns) if biased else None,
        labels=Labels(empty(rows, dtype=torch.int64), 0 if biased else None, float32_products()),
        scale=1.0,
        eps=1e-8,
        walker=walker,
        visit=visit,
        dtype=accumulated,
        differences=differences,
    )
    with recording(Machine(architecture, _PROCESSORS)) as launches:
        losses = triton.losses(inputs, needs_gradient=True, statistics=True)
        upstream = empty() if walker else None, empty() if visit else None
        triton.gradients(inputs, losses.saved, *upstream, needs=(True, True, biased, biased))
    yield from launches
