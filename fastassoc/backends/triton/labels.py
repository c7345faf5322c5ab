"""Labels on the device of the embeddings."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastassoc import validation
from fastassoc.backends.triton.precision import float32_products

_NOT_IN_KERNELS = frozenset((torch.uint16, torch.uint32, torch.uint64))


class Labels(NamedTuple):
    """What a call makes of its labels."""

    values: Tensor
    """[N], any strides, of a dtype that kernels take."""
    ignore_index: int | None
    float32_products: str = "highest"
    """As they were set when the forward pass began; the backward pass must not see another setting."""


def labels_on(device: torch.device, labels: Tensor, ignore_index: int | None, dtype: torch.dtype) -> Labels:
    """Labels on that device. Those on the CPU must leave a row that takes part; those on a device are not read."""
    if labels.dtype in _NOT_IN_KERNELS or (dtype == torch.float64 and labels.itemsize < 4):
        # Beyond int64 values wrap around, one to one. And Triton 3.7 does not compile products in float64 of what
        # labels of fewer than 32 bits had a part in.
        labels = labels.to(torch.int64)
    if ignore_index is not None and labels.device.type == "cpu":
        # An index beyond a narrower dtype would wrap around.
        validation.check_rows_left(int((labels.to(torch.int64) != ignore_index).sum()), ignore_index)
    if labels.device != device:
        labels = labels.to(device, non_blocking=True)
    return Labels(labels, ignore_index, float32_products())
