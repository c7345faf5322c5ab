"""What products are computed in."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from fastassoc.backends import triton
from fastassoc.backends.triton.launch import Machine, recording
from fastassoc.backends.triton.precision import float32_products
from tests.backends.triton.support import meta_inputs


def test_backward_products_are_those_of_the_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = "high"
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: asked)
    with recording(Machine("sm_90", 132)) as launches:
        inputs = meta_inputs(100)
        inputs = inputs._replace(labels=triton.prepare_labels(inputs.labels.values, None, inputs.b, torch.float32))
        losses = triton.losses(inputs, needs_gradient=True, statistics=False)
        asked = "highest"
        upstream = torch.empty((), device="meta")
        needs = (True, True, False, False)
        triton.gradients(inputs, losses.saved, upstream, upstream, needs)
        assert {x.arguments["PRECISION"] for x in launches if "PRECISION" in x.arguments} == {"tf32"}
        # A compiled backward pass prepares its labels anew.
        other = inputs._replace(labels=triton.prepare_labels(inputs.labels.values, None, inputs.b, torch.float32))
        with pytest.raises(RuntimeError, match="changed between the forward and the backward pass"):
            triton.gradients(other, losses.saved, upstream, upstream, needs)


def test_the_newer_switch_for_float32_products(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses() -> str:
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuses)
    for setting, products in (("tf32", "tf32"), ("ieee", "ieee")):
        monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision=setting))
        assert float32_products() == products
