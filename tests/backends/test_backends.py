"""The choice of a backend, and what of the Triton backend shows without running a kernel."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastassoc
from fastassoc.backends import choose_backend
from fastassoc.backends.protocol import Inputs

A, B, LABELS = torch.randn(4, 3), torch.randn(5, 3), torch.arange(4)


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match="package triton is not installed"):
        fastassoc.walker_visit_loss(A, B, LABELS, backend="triton")
    with pytest.raises(RuntimeError, match="package triton is not installed"):
        choose_backend("auto", torch.device("cuda"))


def test_without_a_gpu_or_the_interpreter() -> None:
    pytest.importorskip("triton")
    with pytest.raises(RuntimeError, match=r"'triton' cannot run on cpu.*TRITON_INTERPRET=1"):
        fastassoc.walker_visit_loss(A, B, LABELS, backend="triton")


def test_on_an_old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (6, 1))
    with pytest.raises(RuntimeError, match="sm_70 or newer; cuda:0 is sm_61"):
        choose_backend("triton", torch.device("cuda", 0))


class Operations(TorchDispatchMode):
    """Names of the tensor operations within."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **kwargs or {})


def meta_inputs(rows: int, dtype: torch.dtype = torch.float32) -> Inputs:
    from fastassoc.backends import triton

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    labels = triton.Labels(empty(rows, dtype=torch.int64), None)
    return Inputs(empty(rows, 128), empty(4096, 128), None, None, labels, 1.0, 1e-8, True, True, torch.float32)


@pytest.mark.parametrize("rows", [100, 2048])
def test_launches_and_nothing_read_back(rows: int) -> None:
    pytest.importorskip("triton")
    from fastassoc.backends import triton
    from fastassoc.backends.triton.launch import Machine, recording

    # Tensors on "meta" have no values: reading one is an error, so there is no synchronisation.
    with recording(Machine("sm_90", 132)) as launches, Operations() as operations:
        inputs = meta_inputs(rows)
        losses = triton.losses(inputs, needs_gradient=True, statistics=True)
        forward = len(launches)
        upstream = torch.empty((), device="meta")
        triton.gradients(inputs, losses.saved, upstream, upstream, (True, True, False, False))
    assert forward <= 8
    assert len(launches) - forward <= 4
    # No kernel of torch's beside ours.
    assert operations.names <= {"empty", "new_empty", "select", "slice", "view"}


def test_above_2048_rows_sizes_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from fastassoc.backends import triton
    from fastassoc.backends.triton.launch import Machine, recording

    read_after = []

    def sizes(counts: torch.Tensor) -> list[int]:
        read_after.append([launch.kernel.__name__ for launch in launches])
        return [2049, 70, 70]

    # A meta tensor has nothing to read: any other attempt raises.
    monkeypatch.setattr(torch.Tensor, "tolist", sizes)
    with recording(Machine("sm_90", 132)) as launches:
        losses = triton.losses(meta_inputs(2049), needs_gradient=True, statistics=False)
    assert read_after == [["class_sizes", "normalisers", "rows", "visits"]]
    assert [launch.kernel.__name__ for launch in launches[4:]] == ["round_trips", "walker", "losses"]
    tiles = losses.saved[3]
    assert tiles is not None
    assert tiles.shape == (3, 70)


def test_shipped_launches_are_all_kernels() -> None:
    pytest.importorskip("triton")
    from fastassoc.backends.triton.shipped import shipped_launches

    launches = shipped_launches("sm_90", torch.bfloat16, 128)
    assert {launch.kernel.__name__ for launch in launches} == {
        *("class_sizes", "normalisers", "rows", "visits", "round_trips", "walker", "losses"),
        *("kappa", "column_gradients", "row_gradients", "add_shares"),
    }
    for launch in launches:
        signature, constants, _ = launch.specialisation()
        assert list(signature) == launch.kernel.arg_names
        constant_names = {launch.kernel.arg_names[index] for (index,) in constants}
        assert constant_names == {name for name, kind in signature.items() if kind == "constexpr"}


@pytest.mark.parametrize("precision", ["bf16", "fp32-bf16", "tf32", "ieee", "fp64"])
def test_tiles_fit_the_shared_memory_of_the_gpu(precision: str) -> None:
    pytest.importorskip("triton")
    from fastassoc.kernels.triton.configs import choose_config

    large, usual, small = (
        choose_config(architecture, precision, 128) for architecture in ("sm_90", "sm_120", "gfx942")
    )
    # Both operands of the scores, in the bytes of the precision, are the least that a tile takes.
    size = {"bf16": 2, "fp32-bf16": 4, "tf32": 4, "ieee": 4, "fp64": 8}[precision]
    for config, kib in ((large, 227), (usual, 99), (small, 64)):
        for tile in (config.normalisers, config.round_trips, config.column_gradients):
            assert (tile.rows + tile.columns) * tile.depth * size <= kib * 1024
    assert choose_config("sm_75", precision, 2048) == choose_config("gfx90a", precision, 2048) == small


def test_backward_products_are_those_of_the_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from fastassoc.backends import triton
    from fastassoc.backends.triton.launch import Machine, recording

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
    pytest.importorskip("triton")
    from fastassoc.backends import triton

    def refuses() -> str:
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuses)
    for setting, products in (("tf32", "tf32"), ("ieee", "ieee")):
        monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision=setting))
        assert triton.float32_products() == products
