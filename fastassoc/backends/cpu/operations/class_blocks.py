"""Labels to row order and class blocks."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_LAYOUT_ROWS = 1024
"""Up to so many rows a layout is used again by labels whose classes, in the order of their labels, are of the same
sizes: with more, making it is a small part of a step, and the target may be large."""


class Bucket(NamedTuple):
    """``blocks`` neighbouring blocks of ``size`` rows each, the first row being ``start``."""

    start: int
    blocks: int
    size: int

    def rows(self, x: Tensor) -> Tensor:
        """The bucket's rows of ``x`` [N, ...] as [blocks, size, ...]."""
        length = self.blocks * self.size
        rows = x if length == x.shape[0] else x.narrow(0, self.start, length)
        return rows.view(self.blocks, self.size, *x.shape[1:])


class ClassBlocks(NamedTuple):
    """Square diagonal blocks of the N x N round trips that cover every same-class pair.

    The entries of all blocks lie one after another in a flat tensor; `views` opens it.
    """

    order: Tensor | None
    """[N] int64: row of ``a`` at each position, or None where the rows stay as they are."""
    position: Tensor | None
    """[N] int64, the inverse of ``order``: where each row of ``a`` went; None where some take no part."""
    buckets: tuple[Bucket, ...]
    minus_target: Tensor
    """Flat: ``-1 / (N n_i)`` for a same-class pair, 0 elsewhere: what the walker loss multiplies ``log p_aba`` by (eq 7
    over N). It sums to minus one."""
    rows: int
    """N: the rows that take part."""

    @property
    def dense(self) -> bool:
        """Whether one block holds all rows."""
        return self.buckets[0].size == self.rows

    def views(self, flat: Tensor) -> list[Tensor]:
        """One [blocks, size, size] view of the flat tensor for every bucket."""
        if len(self.buckets) == 1:
            _, count, size = self.buckets[0]
            return [flat.view(count, size, size)]
        lengths = [bucket.blocks * bucket.size**2 for bucket in self.buckets]
        return [
            part.view(bucket.blocks, bucket.size, bucket.size)
            for part, bucket in zip(torch.split(flat, lengths), self.buckets, strict=True)
        ]

    def rows_in_order(self, x: Tensor) -> Tensor:
        """Rows in the order of the blocks, those that take part."""
        return x if self.order is None else x.index_select(0, self.order)

    def rows_back(self, x: Tensor, rows: int) -> Tensor:
        """Rows to where they came from, of so many; those that took no part are zero."""
        if self.order is None:
            return x
        if self.position is not None:
            return x.index_select(0, self.position)
        return x.new_zeros((rows, *x.shape[1:])).index_copy_(0, self.order, x)

    def row_sums(self, flat: Tensor) -> Tensor:
        """[N]: the sum over every row of the blocks."""
        sums = [view.sum(2).view(-1) for view in self.views(flat)]
        return sums[0] if len(sums) == 1 else torch.cat(sums)


def dense_block(labels: Tensor, dtype: torch.dtype, kept_rows: Tensor | None = None) -> ClassBlocks:
    """All rows in one block, off-class pairs with target 0: nothing to sort, quickest for a few hundred rows.

    ``labels`` [N] lie on the CPU; ``kept_rows`` [N] int64 says which rows of ``a`` they are of, if not of all.
    """
    n = labels.shape[0]
    same = torch.empty((n, n), dtype=dtype, device="cpu")
    torch.eq(labels.view(-1, 1), labels, out=same)
    same /= same.sum(1, keepdim=True).mul_(-n)
    return ClassBlocks(kept_rows, None, (Bucket(0, 1, n),), same.view(-1), n)


def class_blocks(labels: Tensor, dtype: torch.dtype, kept_rows: Tensor | None = None) -> ClassBlocks:
    """One block for each class; classes of equal size share a bucket, the largest first.

    ``labels`` [N] lie on the CPU; ``kept_rows`` [N] int64 says which rows of ``a`` they are of, if not of all.
    """
    values = labels.numpy()
    n = len(values)
    order = values.argsort(kind="stable")
    ordered = values[order]
    ends = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    sizes = np.empty(len(ends) + 1, dtype=np.int64)
    sizes[:-1], sizes[-1] = ends, n
    sizes[1:] -= ends
    target_dtype = np.dtype(np.float64 if dtype == torch.float64 else np.float32)
    make_layout = _make_layout_once if n <= _LAYOUT_ROWS else _make_layout
    buckets, by_size, minus_target = make_layout(sizes.tobytes(), target_dtype)
    if by_size is not None:
        order = order[by_size]
    rows: Tensor | None = torch.from_numpy(order)
    position = None
    if kept_rows is not None:
        rows = kept_rows[rows]
    elif (order[1:] > order[:-1]).all():
        # Sorted by class, as many samplers give them.
        rows = None
    else:
        inverse = np.empty_like(order)
        inverse[order] = np.arange(n)
        position = torch.from_numpy(inverse)
    return ClassBlocks(rows, position, buckets, torch.from_numpy(minus_target), n)


def _make_layout(sizes: bytes, dtype: np.dtype) -> tuple[tuple[Bucket, ...], np.ndarray | None, np.ndarray]:
    """Buckets, the order of rows that brings classes of one size together if it is not theirs, and the target."""
    sizes_of_classes = np.frombuffer(sizes, dtype=np.int64)
    n = int(sizes_of_classes.sum())
    number = np.bincount(sizes_of_classes)
    unique = np.flatnonzero(number)[::-1]
    # Stable, so the rows of a class stay together.
    by_size = np.argsort(-sizes_of_classes.repeat(sizes_of_classes), kind="stable") if len(unique) > 1 else None
    buckets = []
    start = filled = 0
    minus_target = np.empty(int((sizes_of_classes**2).sum()), dtype=dtype)
    for size, count in zip(unique.tolist(), number[unique].tolist(), strict=True):
        buckets.append(Bucket(start, count, size))
        minus_target[filled : filled + size * size * count] = -1.0 / (n * size)
        start += size * count
        filled += size * size * count
    return tuple(buckets), by_size, minus_target


_make_layout_once = functools.lru_cache(maxsize=1)(_make_layout)
"""The latest only: a sampler often draws as many rows of each class at every step. What was made of it shares the
target's memory, so nothing may write there."""
