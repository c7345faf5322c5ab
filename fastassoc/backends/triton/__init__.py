"""The Triton backend, host of `fastassoc.kernels.triton`: on CUDA GPUs, or in Triton's interpreter.

Seven kernels forward and at most four backward. Up to `fastassoc.backends.triton.buffers.MAX_ROWS_WITHOUT_SYNC` rows
nothing waits for the device, as buffers are as large as any classes could need; above, the numbers of class tiles
and of their pairs are read back, once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastassoc.backends.protocol import Gradients, Inputs, Losses, Needs, Saved
from fastassoc.backends.triton import backward, forward
from fastassoc.backends.triton.buffers import Buffers
from fastassoc.backends.triton.labels import Labels, labels_on
from fastassoc.backends.triton.launch import interpreted, machine
from fastassoc.backends.triton.plan import Plan
from fastassoc.backends.triton.precision import choose_precision, float32_products


def check_can_run(device: torch.device) -> None:
    """RuntimeError where kernels cannot run, with what is missing."""
    if device.type == "cuda":
        if torch.version.hip is None and torch.cuda.get_device_capability(device) < (7, 0):
            capability = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
            raise RuntimeError(
                f"backend 'triton' cannot run: it needs a GPU of sm_70 or newer; {device} is {capability}"
            )
    elif not interpreted():
        raise RuntimeError(
            f"backend 'triton' cannot run on {device}: it takes tensors on a CUDA GPU, "
            "or on the CPU with TRITON_INTERPRET=1 set before Triton is imported"
        )


def prepare_labels(labels: Tensor, ignore_index: int | None, b: Tensor, dtype: torch.dtype) -> Labels:
    """See `fastassoc.backends.protocol.Backend`."""
    return labels_on(b.device, labels, ignore_index)


def losses(inputs: Inputs, needs_gradient: bool, statistics: bool) -> Losses:
    """See `fastassoc.backends.protocol.Backend`."""
    plan = Plan(inputs)
    buffers = Buffers.allocate(plan)
    visit_probability = visit_parts = walker_parts = None
    with plan.device_guard():
        forward.normalise(plan, buffers)
        if inputs.visit:
            visit_probability, visit_parts = forward.visit(plan, buffers)
        if inputs.walker or needs_gradient:
            buffers, pairs = buffers.sized(plan)
            walker_parts, g = forward.walk(plan, buffers, pairs, needs_gradient)
            buffers = buffers._replace(g=g)
        results = forward.add_up(plan, buffers.counts, walker_parts, visit_parts, statistics)
    saved = buffers.saved() if needs_gradient else ()
    return Losses(*results, visit_probability if statistics else None, saved)


def gradients(
    inputs: Inputs, saved: Saved, grad_walker: Tensor | None, grad_visit: Tensor | None, needs: Needs
) -> Gradients:
    """See `fastassoc.backends.protocol.Backend`."""
    plan = Plan(inputs)
    buffers = Buffers.restore(saved, plan.class_rows)
    da = db = dbias_a = dbias_b = None
    with plan.device_guard():
        kappa = None if grad_walker is None else backward.find_kappa(plan, buffers)
        upstream = backward.Upstream(grad_walker, grad_visit, kappa)
        if needs[1] or needs[3]:
            db, dbias_b = backward.gradients_of_columns(plan, buffers, upstream, needs[3])
        if needs[0] or needs[2]:
            da, dbias_a = backward.gradients_of_rows(plan, buffers, upstream, needs[2])
    return Gradients(da if needs[0] else None, db if needs[1] else None, dbias_a, dbias_b)


def saved_dtypes(a: Tensor, dtype: torch.dtype) -> list[torch.dtype]:
    """See `fastassoc.backends.protocol.Backend`."""
    precision = choose_precision(a.dtype, machine(a.device), float32_products())
    return Buffers.saved_dtypes(dtype, precision.g_dtype(dtype))
