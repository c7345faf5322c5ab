"""What the forward pass saves and the backward pass restores."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from fastassoc.backends import triton
from fastassoc.backends.triton.buffers import Buffers, Sizes
from fastassoc.backends.triton.launch import Machine, recording
from fastassoc.backends.triton.plan import Plan
from tests.backends.triton.support import meta_inputs


# A batch that surely fits one tile, one that may not; what is read back: one tile to a class and several, either form.
@pytest.mark.parametrize(
    ("rows", "counts"),
    [
        (10, None),
        (300, None),
        (4096, (4096, 40, 40, 0)),
        (4096, (4096, 40, 160, 0)),
        (4096, (4096, 40, 160, 1)),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("walker", "biased"), [(True, False), (True, True), (False, False)])
def test_what_is_saved_comes_back_from_flat(
    rows: int, counts: tuple[int, ...] | None, dtype: torch.dtype, walker: bool, biased: bool
) -> None:
    with recording(Machine("sm_90", 132), counts):
        inputs = meta_inputs(rows, dtype, walker)
        if biased:
            biases = (torch.empty(x.shape[0], dtype=inputs.dtype, device="meta") for x in (inputs.a, inputs.b))
            inputs = inputs._replace(**dict(zip(("bias_a", "bias_b"), biases, strict=True)))
        saved = triton.losses(inputs, needs_gradient=True, statistics=False).saved
        dtypes = triton.saved_dtypes(inputs.a, inputs.dtype)
        plan = Plan(inputs)
        buffers, sizes, g, (a, _) = Buffers.restore(tuple(None if x is None else x.reshape(-1) for x in saved), plan)
    assert len(dtypes) == len(saved)
    assert all(x is None or x.dtype == y for x, y in zip(saved, dtypes, strict=True))
    assert (g is not None) == walker
    assert (a.bias_ptr is not None) == biased
    for x, y in zip(saved, (*buffers, g, a.ptr, a.bias_ptr, None), strict=True):
        assert (x is None) == (y is None)
        assert x is None or y is None or (x.shape, x.dtype) == (y.shape, y.dtype)
    if counts is None:
        tiles, pairs, sides = plan.max_tiles, plan.max_pairs, 2
    else:
        _, tiles, pairs, plain = counts
        sides = 1 + plain
    assert sizes == Sizes.of(plan, tiles, pairs if walker else tiles, sides)


def test_no_row_left_comes_back_from_flat() -> None:
    # What an operator saves of an empty tensor comes back as None: nothing may be empty.
    with recording(Machine("sm_90", 132), (0, 0, 0, 1)):
        inputs = meta_inputs(4096)
        saved = triton.losses(inputs, needs_gradient=True, statistics=False).saved
        assert all(x is None or x.numel() > 0 for x in saved)
        flat = tuple(None if x is None else x.reshape(-1) for x in saved)
        buffers, sizes, *_ = Buffers.restore(flat, Plan(inputs))
    assert (sizes.tiles, sizes.pairs, sizes.sides) == (1, 1, 2)
    assert buffers.slots.shape[1] == buffers.weights.shape[0]
