"""What products are computed in."""

from __future__ import annotations

from itertools import permutations
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from fastassoc.backends import triton
from fastassoc.backends.triton.launch import Machine, recording
from fastassoc.backends.triton.precision import choose_precision, float32_products
from tests.backends.triton.support import meta_inputs


@pytest.mark.parametrize(("before", "after"), list(permutations(("highest", "high", "medium"), 2)))
@pytest.mark.parametrize("rows", [100, 1100])
def test_backward_products_are_those_of_the_forward_pass(
    rows: int, before: str, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = before
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: asked)
    with recording(Machine("sm_90", 132)) as launches:
        inputs = meta_inputs(rows)
        inputs = inputs._replace(labels=triton.prepare_labels(inputs.labels.values, None, inputs.b, torch.float32))
        losses = triton.losses(inputs, needs_gradient=True, statistics=False)
        asked = after
        upstream = torch.empty((), device="meta")
        needs = (True, True, False, False)
        triton.gradients(inputs, losses.saved, upstream, upstream, needs)
        scores, others = {"highest": ("bf16x3",) * 2, "high": ("fp16", "tf32"), "medium": ("bf16",) * 2}[before]
        for name, products in (("PRECISION", scores), ("PRODUCT", others)):
            assert {x.arguments[name] for x in launches if name in x.arguments} == {products}
        # A compiled backward pass prepares its labels anew.
        other = inputs._replace(labels=triton.prepare_labels(inputs.labels.values, None, inputs.b, torch.float32))
        with pytest.raises(RuntimeError, match="changed between the forward and the backward pass"):
            triton.gradients(other, losses.saved, upstream, upstream, needs)


@pytest.mark.parametrize(
    ("architecture", "dtype", "setting", "scores", "others"),
    [
        ("sm_90", torch.bfloat16, "highest", "bf16", "bf16"),
        ("sm_90", torch.float16, "highest", "fp16", "tf32"),
        ("sm_80", torch.float32, "medium", "bf16", "bf16"),
        ("sm_80", torch.float32, "high", "fp16", "tf32"),
        ("gfx942", torch.float32, "highest", "bf16x3", "bf16x3"),
        ("gfx942", torch.float16, "highest", "fp16", "tf32"),
        # Of AMD's, one has tf32.
        ("gfx90a", torch.float32, "high", "fp16", "ieee"),
        ("gfx950", torch.float16, "highest", "fp16", "ieee"),
        ("sm_90", torch.float64, "medium", "ieee", "ieee"),
        # Tensor cores for float16 alone.
        ("sm_75", torch.float16, "highest", "fp16", "ieee"),
        ("sm_75", torch.bfloat16, "highest", "ieee", "ieee"),
        ("sm_70", torch.float32, "medium", "ieee", "ieee"),
        ("interpreter", torch.bfloat16, "medium", "ieee", "ieee"),
    ],
)
def test_products(architecture: str, dtype: torch.dtype, setting: str, scores: str, others: str) -> None:
    precision = choose_precision(dtype, Machine(architecture, 132), setting)
    assert precision[:2] == (scores, others)
    assert precision.scaled == (scores == "fp16" and dtype == torch.float32)
    accumulated = torch.float64 if dtype == torch.float64 else torch.float32
    assert precision.step_dtype(accumulated) == (torch.bfloat16 if "bf16" in others else accumulated)
    assert precision.parts == (3 if others == "bf16x3" else 1)


def test_the_newer_switch_for_float32_products(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses() -> str:
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuses)
    for setting, products in (("tf32", "high"), ("ieee", "highest")):
        monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision=setting))
        assert float32_products() == products
