"""What the forward pass saves and the backward pass restores."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from fastassoc.backends import triton
from fastassoc.backends.triton.buffers import Buffers
from fastassoc.backends.triton.launch import Machine, recording
from fastassoc.backends.triton.plan import Plan
from tests.backends.triton.support import meta_inputs


# Whole tiles and a ragged last one; a batch that surely fits one tile; G rounded to bfloat16, in float32, in float64.
@pytest.mark.parametrize("rows", [10, 100, 300])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("walker", [True, False])
def test_what_is_saved_comes_back_from_flat(rows: int, dtype: torch.dtype, walker: bool) -> None:
    with recording(Machine("sm_90", 132)):
        inputs = meta_inputs(rows, dtype, walker)
        saved = triton.losses(inputs, needs_gradient=True, statistics=False).saved
        dtypes = triton.saved_dtypes(inputs.a, inputs.dtype)
        plan = Plan(inputs)
    assert len(dtypes) == len(saved)
    assert all(x is None or x.dtype == y for x, y in zip(saved, dtypes, strict=True))
    before = Buffers(*saved)  # type: ignore[arg-type]
    assert (before.g is not None) == walker
    after = Buffers.restore(tuple(None if x is None else x.reshape(-1) for x in saved), plan.class_rows)
    for x, y in zip(before, after, strict=True):
        assert (x is None) == (y is None)
        assert x is None or (x.shape, x.stride(), x.dtype) == (y.shape, y.stride(), y.dtype)
    assert after.one_tile == (rows <= plan.class_rows or not walker)
