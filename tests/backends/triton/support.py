"""Inputs without values, on which launches can be recorded."""

from __future__ import annotations

import torch
from torch import Tensor

from fastassoc.backends.protocol import Inputs
from fastassoc.backends.triton.labels import Labels


def meta_inputs(rows: int, dtype: torch.dtype = torch.float32, walker: bool = True, columns: int = 4096) -> Inputs:
    """Of a batch of that many labelled and unlabelled rows, with the visit term."""

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    labels = Labels(empty(rows, dtype=torch.int64), None)
    accumulated = torch.float64 if dtype == torch.float64 else torch.float32
    return Inputs(empty(rows, 128), empty(columns, 128), None, None, labels, 1.0, 1e-8, walker, True, accumulated)
