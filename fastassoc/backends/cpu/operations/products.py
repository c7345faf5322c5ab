"""Matrix products of class blocks, a bucket at a time."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from fastassoc.backends.cpu.operations.class_blocks import Bucket, ClassBlocks

_THIN_ROWS = 15
_THIN_COLUMNS = 25
"""The library multiplies up to 15 rows with many others without packing them, if columns are 25 times as many."""
_THICK_ROWS = 96
"""Where it packs: high enough to be quick, low enough for most of the lower triangle to be left out."""
_LARGEST_THIN = 160
"""Size of block up to which thin strips are quicker, if there are several blocks for the threads to share."""
_ROWS_MULTIPLE = 8
"""A strip is quicker by a quarter where the rows that it is multiplied with are a multiple of these."""
_COLUMNS_AT_ONCE = 2**9
"""Over more columns than these, one matrix product is less exact than the sum of several: one of few rows adds term by
term, and of 8,192 equal ones it loses seven bits."""


class SymmetricTrips:
    """Collects ``sum_j t_ij t_kj`` for all pairs of rows of a block, over tiles of columns.

    Of a symmetric product the upper triangle is enough: strips of rows, each multiplied with itself and the rows below.
    Where products underflow, thin strips take twice as long as others; ``underflow`` forgoes them.
    """

    def __init__(self, blocks: ClassBlocks, columns: int, underflow: bool = False) -> None:
        self.blocks = blocks
        self.strips = [
            [
                blocks.minus_target.new_zeros((bucket.blocks, end - start, bucket.size - start))
                for start, end in _strips(bucket, 0 if underflow else columns)
            ]
            for bucket in blocks.buckets
        ]

    def add(self, t: Tensor) -> None:
        """Adds a tile [N, columns], row-major."""
        for part in t.split(_COLUMNS_AT_ONCE, dim=1):
            self._add(part)

    def _add(self, t: Tensor) -> None:
        for bucket, strips in zip(self.blocks.buckets, self.strips, strict=True):
            rows = bucket.rows(t)
            if bucket.size == 1:
                # Not a norm: over long rows its sum is less exact.
                strips[0] += (rows * rows).sum(2, keepdim=True)
                continue
            for strip in strips:
                _, height, length = strip.shape
                below = rows if length == bucket.size else rows.narrow(1, bucket.size - length, length)
                strip.baddbmm_(below.narrow(1, 0, height), below.mT)

    def result(self) -> Tensor:
        """The products in both triangles, flat (`ClassBlocks.views`)."""
        flat = torch.empty_like(self.blocks.minus_target)
        for strips, products in zip(self.strips, self.blocks.views(flat), strict=True):
            for strip in strips:
                _, height, length = strip.shape
                start = products.shape[2] - length
                end = start + height
                products[:, start:end, start:] = strip
                products[:, end:, start:end] = strip[:, :, height:].mT
        return flat


def _strips(bucket: Bucket, columns: int) -> list[tuple[int, int]]:
    """First and last row of every strip."""
    size = bucket.size
    thin = min(_THIN_ROWS, columns // _THIN_COLUMNS)
    if bucket.blocks > 1 and size <= _LARGEST_THIN and thin > 1:
        count = -(-size // thin)
        cuts = [size * strip // count for strip in range(count + 1)]
    else:
        # The first strip takes the odd rows.
        odd = size % _ROWS_MULTIPLE
        first = odd + _ROWS_MULTIPLE if odd and size > _THICK_ROWS else _THICK_ROWS
        cuts = [0, *range(first, size, _THICK_ROWS), size]
    return list(itertools.pairwise(cuts))


def round_trips(blocks: ClassBlocks, t: Tensor, q: Tensor) -> Tensor:
    """``sum_j t_cij q_ckj`` for every block c, flat (`ClassBlocks.views`), from ``t`` and ``q`` [N, columns]."""
    if t.shape[1] <= _COLUMNS_AT_ONCE and len(blocks.buckets) == 1:
        # For small batches: nothing to fill, nothing to split.
        bucket = blocks.buckets[0]
        if blocks.dense:
            return torch.mm(t, q.t()).view(-1)
        if bucket.size > 1:
            return torch.bmm(bucket.rows(t), bucket.rows(q).mT).view(-1)
    products = torch.zeros_like(blocks.minus_target)
    add_round_trips(blocks, blocks.views(products), t, q)
    return products


def add_round_trips(blocks: ClassBlocks, products: list[Tensor], t: Tensor, q: Tensor) -> None:
    """``products_cik += sum_j t_cij q_ckj`` for every block c, from ``t`` and ``q`` [N, columns]."""
    for left, right in zip(t.split(_COLUMNS_AT_ONCE, dim=1), q.split(_COLUMNS_AT_ONCE, dim=1), strict=True):
        _add_round_trips(blocks, products, left, right)


def _add_round_trips(blocks: ClassBlocks, products: list[Tensor], t: Tensor, q: Tensor) -> None:
    for bucket, product in zip(blocks.buckets, products, strict=True):
        left, right = bucket.rows(t), bucket.rows(q)
        if bucket.size == 1:
            product += (left * right).sum(2, keepdim=True)
        elif bucket.blocks == 1:
            product[0].addmm_(left[0], right[0].t())
        else:
            product.baddbmm_(left, right.transpose(1, 2))


def apply_kernels(blocks: ClassBlocks, kernels: list[Tensor], tile: Tensor, out: Tensor | None) -> Tensor:
    """``out_cij = sum_k kernels_cik tile_ckj`` for every block c; ``tile`` and ``out`` are row-major [N, columns]."""
    if blocks.dense:
        # Small batches notice every view, and indexing more.
        return torch.mm(kernels[0].view(blocks.rows, blocks.rows), tile, out=out)
    if out is None:
        out = torch.empty_like(tile)
    for bucket, kernel in zip(blocks.buckets, kernels, strict=True):
        rows, out_rows = bucket.rows(tile), bucket.rows(out)
        if bucket.size == 1:
            torch.mul(kernel, rows, out=out_rows)
        elif bucket.blocks == 1:
            torch.mm(kernel[0], rows[0], out=out_rows[0])
        else:
            torch.bmm(kernel, rows, out=out_rows)
    return out
