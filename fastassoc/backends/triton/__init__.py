"""The Triton backend, host of `fastassoc.kernels.triton`: on CUDA GPUs, or in Triton's interpreter.

Small batches have passes of their own (`fastassoc.backends.triton.dense`). Of others columns are taken range by range,
so that what has a number for every row and column stays within `fastassoc.backends.triton.plan.WORKSPACE_BYTES`, or is
of 128 columns. Up to `fastassoc.backends.triton.plan.MAX_ROWS_WITHOUT_SYNC` rows nothing waits for the device, as
buffers are as large as any classes could need, and the device chooses between launches where it matters; above, the
numbers of class tiles and of their pairs, and the form of the steps, are read back, once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastassoc.backends.protocol import Gradients, Inputs, Losses, Needs, Saved
from fastassoc.backends.triton import dense, forward
from fastassoc.backends.triton.backward import Backward
from fastassoc.backends.triton.buffers import Buffers
from fastassoc.backends.triton.labels import Labels, labels_on
from fastassoc.backends.triton.launch import device_guard, interpreted, machine
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
    return labels_on(b.device, labels, ignore_index, dtype)


def losses(inputs: Inputs, needs_gradient: bool, statistics: bool) -> Losses:
    """See `fastassoc.backends.protocol.Backend`."""
    if dense.takes(inputs):
        return dense.losses(inputs, needs_gradient, statistics)
    plan = Plan(inputs)
    buffers = Buffers.allocate(plan)
    walker_parts = g = None
    with device_guard(inputs.a):
        classes = forward.count_classes(plan, buffers)
        largest = plan.largest(classes)
        b = plan.embeddings_b(largest)
        normalised = forward.normalise(plan, plan.embeddings_a(largest), b, classes, buffers, statistics)
        visit_parts = normalised.visit_parts
        if inputs.walker or needs_gradient:
            buffers, sizes = buffers.sized(plan)
            a = plan.embeddings_by_slot(buffers.slots, largest)
            walker_parts, visit_parts, g = forward.walk(plan, a, b, normalised, buffers, sizes, needs_gradient)
        elif inputs.ranks is not None and visit_parts is not None:
            (visit_parts,) = inputs.ranks.sum(visit_parts.sum(0, keepdim=True))
        results = forward.add_up(plan, buffers.counts, walker_parts, visit_parts, statistics)
    saved = buffers.saved(sizes, g, a, largest) if needs_gradient else ()
    return Losses._make((*results, normalised.visit_probability, saved))


def gradients(
    inputs: Inputs, saved: Saved, grad_walker: Tensor | None, grad_visit: Tensor | None, needs: Needs
) -> Gradients:
    """See `fastassoc.backends.protocol.Backend`."""
    if dense.takes(inputs):
        return dense.gradients(inputs, saved, grad_walker, grad_visit, needs)
    if inputs.weights is not None:
        grad_walker, grad_visit = (
            grad if grad is None or weight == 1.0 else grad * weight
            for grad, weight in zip((grad_walker, grad_visit), inputs.weights, strict=True)
        )
    plan = Plan(inputs)
    buffers, sizes, g, embeddings = Buffers.restore(saved, plan)
    with device_guard(inputs.a):
        return Backward(plan, *embeddings, buffers, sizes, g, grad_walker, grad_visit).gradients(needs)


def agreement(device: torch.device) -> str:
    """See `fastassoc.backends.protocol.Backend`: the table of tiles goes by both."""
    return f"{machine(device).architecture} with float32 products at {float32_products()!r}"


def saved_sizes(a: Tensor, b: Tensor) -> list[int] | None:
    """See `fastassoc.backends.protocol.Backend`: those of small batches."""
    numbers = dense.saved_numbers(a, b)
    return None if numbers is None else [numbers]


def saved_dtypes(a: Tensor, dtype: torch.dtype) -> list[torch.dtype]:
    """See `fastassoc.backends.protocol.Backend`."""
    precision = choose_precision(a.dtype, machine(a.device), float32_products())
    return Buffers.saved_dtypes(dtype, precision.step_dtype(dtype), precision.operand_dtype(a.dtype))
