"""Matrix products of class blocks, a bucket at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from fastassoc.classes import ClassBlocks


def add_round_trips(blocks: ClassBlocks, products: list[Tensor], t: Tensor, q: Tensor) -> None:
    """``products_cik += sum_j t_cij q_ckj`` for every block c, from ``t`` and ``q`` [N, columns]."""
    for bucket, product in zip(blocks.buckets, products, strict=True):
        left, right = bucket.rows(t), bucket.rows(q)
        if bucket.size == 1:
            product += (left * right).sum(2, keepdim=True)
        elif bucket.blocks == 1:
            product[0].addmm_(left[0], right[0].t())
        else:
            product.baddbmm_(left, right.transpose(1, 2))


def apply_kernels(blocks: ClassBlocks, kernels: list[Tensor], tile: Tensor, out: Tensor) -> Tensor:
    """``out_cij = sum_k kernels_cik tile_ckj`` for every block c; ``tile`` and ``out`` are row-major [N, columns]."""
    for bucket, kernel in zip(blocks.buckets, kernels, strict=True):
        rows, out_rows = bucket.rows(tile), bucket.rows(out)
        if bucket.size == 1:
            torch.mul(kernel, rows, out=out_rows)
        elif bucket.blocks == 1:
            torch.mm(kernel[0], rows[0], out=out_rows[0])
        else:
            torch.bmm(kernel, rows, out=out_rows)
    return out
