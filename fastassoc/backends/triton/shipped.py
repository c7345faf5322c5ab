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
_SEVERAL_TILES = ((4096, 48, 192, 0), (4096, 48, 192, 1))
"""What is read back of large classes, in the merged and in the plain form; not without the walker, which needs none."""
_COLUMNS = 65536
_BATCHES = (
    (1024, _COLUMNS, None),
    (4096, _COLUMNS, (4096, 48, 48, 0)),
    *((4096, _COLUMNS, counts) for counts in _SEVERAL_TILES),
    # Small ones: one program for all, one for the losses, and several.
    (112, 112, None),
    (112, 1008, None),
    (1008, 1008, None),
)
"""Rows and columns, and what is read back of classes, if anything. Whole numbers of 16, as most sizes are: a kernel is
compiled anew for others."""
_ONE_TILE = (16, _COLUMNS, None)
"""All rows fit a tile, and numbers of tiles are 1, for which a kernel is compiled anew too."""


def shipped_launches(architecture: str, dtype: torch.dtype, depth: int) -> list[Launch]:
    """The launches of forward and backward passes over ``depth`` columns, one of each distinct compilation.

    float32 follows ``torch.get_float32_matmul_precision()``. Covers both terms together and alone, both also with
    ignored rows and biases (of squared distances, whose embeddings have the dtype that sums are in), what is known of
    classes and of the form of the steps, for both terms also a batch of one tile, and for float64 scores by
    differences.
    """
    distinct: dict[str, Launch] = {}
    # Biases meet what a term alone leaves out nowhere.
    cases = [
        (False, False, True, True),
        (True, False, True, True),
        (False, False, True, False),
        (False, False, False, True),
    ]
    if dtype == torch.float64:
        cases.append((True, True, True, True))
    for (rows, columns, counts), case in [(_ONE_TILE, cases[0]), *product(_BATCHES, cases)]:
        walker = case[2]
        if not walker and counts in _SEVERAL_TILES:
            continue
        for launch in _launches(architecture, dtype, rows, columns, counts, depth, *case):
            signature, constants, attributes = launch.specialisation()
            key = f"{launch.kernel.__name__} {signature} {constants} {attributes} {launch.warps} {launch.stages}"
            distinct.setdefault(key, launch)
    return list(distinct.values())


def _launches(
    architecture: str,
    dtype: torch.dtype,
    rows: int,
    columns: int,
    counts: tuple[int, ...] | None,
    depth: int,
    biased: bool,
    differences: bool,
    walker: bool,
    visit: bool,
) -> Iterator[Launch]:
    accumulated = torch.float64 if dtype == torch.float64 else torch.float32
    has_biases = biased and dtype == accumulated

    def empty(*shape: int, dtype: torch.dtype = accumulated) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    inputs = Inputs(
        a=empty(rows, depth, dtype=dtype),
        b=empty(columns, depth, dtype=dtype),
        bias_a=empty(rows) if has_biases else None,
        bias_b=empty(columns) if has_biases else None,
        labels=Labels(empty(rows, dtype=torch.int64), 0 if biased else None, float32_products()),
        scale=1.0,
        eps=1e-8,
        walker=walker,
        visit=visit,
        dtype=accumulated,
        differences=differences,
        weights=(1.0, 1.0),
    )
    with recording(Machine(architecture, _PROCESSORS), counts) as launches:
        losses = triton.losses(inputs, needs_gradient=True, statistics=True)
        upstream = empty() if walker else None, empty() if visit else None
        triton.gradients(inputs, losses.saved, *upstream, needs=(True, True, has_biases, has_biases))
    yield from launches
