"""The choice of a backend by device."""

from __future__ import annotations

import importlib.util
from functools import cache

import torch

from fastassoc.backends import cpu
from fastassoc.backends.protocol import Backend

_CPU = torch.device("cpu")


@cache
def choose_backend(name: str, device: torch.device) -> Backend:
    """The backend of that name, or by device for "auto"; RuntimeError where it cannot run.

    One that can run is remembered: to ask a device for its capability takes longer than the rest of the choice.
    """
    if device == _CPU and name != "triton":
        return cpu
    if name == "auto":
        name = "triton" if device.type == "cuda" else "cpu"
    if name == "triton":
        if importlib.util.find_spec("triton") is None:
            raise RuntimeError("backend 'triton' cannot run: the package triton is not installed")
        try:
            from fastassoc.backends import triton
        except (ImportError, AttributeError) as error:
            raise RuntimeError(
                "backend 'triton' cannot run: its kernels are tested with Triton 3.6 to 3.9, and the one installed "
                f"lacks what they need ({error})"
            ) from error
        triton.check_can_run(device)
        return triton
    raise RuntimeError(f"backend {name!r} cannot run on {device}: it takes tensors on the CPU only")
