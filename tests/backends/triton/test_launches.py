"""Kernels launched, memory read back, and what ships."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from fastassoc.backends import triton
from fastassoc.backends.triton.buffers import Buffers
from fastassoc.backends.triton.launch import Machine, recording
from fastassoc.backends.triton.shipped import shipped_launches
from tests.backends.triton.support import meta_inputs


class Operations(TorchDispatchMode):
    """Names of the tensor operations within."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("rows", [100, 2048])
def test_launches_and_nothing_read_back(rows: int) -> None:
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
    assert Buffers(*losses.saved).tiles.shape == (3, 70)


def test_shipped_launches_are_all_kernels() -> None:
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
