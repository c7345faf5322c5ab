"""Small batches: few launches, and little Python between them.

A step of these takes as long as the host needs to launch it. All that the shapes, dtypes, strides and options of a call
decide is found out once and remembered, with the compiled kernels; every further call looks it up, allocates its
buffers and results, and launches with addresses.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastassoc.backends.protocol import Gradients, Inputs, Losses, Needs, Saved
from fastassoc.backends.triton.launch import How, Machine, Repeated, device_guard, machine, recorded
from fastassoc.backends.triton.plan import ceil_div, tile_depth
from fastassoc.backends.triton.precision import Precision, choose_precision, float32_products
from fastassoc.kernels.triton.buffers import Embeddings, Results
from fastassoc.kernels.triton.configs import Tile, choose_dense_tile, choose_one_tile
from fastassoc.kernels.triton.dense.buffers import Dense, backward_size, forward_size, saved_size
from fastassoc.kernels.triton.dense.embedding_gradients import dense_embedding_gradients
from fastassoc.kernels.triton.dense.one_tile import dense_backward, dense_forward
from fastassoc.kernels.triton.dense.score_gradients import dense_score_gradients
from fastassoc.kernels.triton.dense.scores import dense_scores
from fastassoc.kernels.triton.dense.trips import dense_trips
from fastassoc.kernels.triton.dense.walk import dense_losses, dense_walk

MOST_ROWS, MOST_COLUMNS = 1024, 2048
"""The largest batch that is small: its four matrices are at most 32 MiB in float32."""
FEW_ROWS = 128
"""Up to so many rows one program adds up the losses."""
_MOST_SHARES = 8
"""Of the columns, where there are few pairs of tiles of rows."""
_TERMS = 1.0, 1.0
"""What upstream gradients of the terms themselves are multiplied by."""
_REMEMBERED = 64
"""Calls that differ in more than the place and the numbers of their tensors."""


class Key(NamedTuple):
    """All about a call that decides how it is computed."""

    device: torch.device
    """A kernel is loaded on one device, and made for its machine."""
    dtype: torch.dtype
    shape_a: torch.Size
    shape_b: torch.Size
    stride_a: tuple[int, ...]
    stride_b: tuple[int, ...]
    label_dtype: torch.dtype
    label_stride: tuple[int, ...]
    ignore_index: int | None
    float32_products: str
    biased: bool
    accumulated: torch.dtype
    differences: bool
    walker: bool
    visit: bool


def is_small(n: int, m: int) -> bool:
    """Whether a batch of so many rows and columns is."""
    return n <= MOST_ROWS and m <= MOST_COLUMNS


def takes(inputs: Inputs) -> bool:
    """Whether a batch is small, and all here."""
    return inputs.ranks is None and is_small(inputs.a.shape[0], inputs.b.shape[0])


def _key(inputs: Inputs) -> tuple[Any, ...]:
    """The fields of a `Key`, which itself takes twice as long to make."""
    a, b, bias_a, _, labels, _, _, walker, visit, dtype, differences, _, _ = inputs
    values, ignore_index, float32_products = labels
    return (
        a.device, a.dtype, a.shape, b.shape, a.stride(), b.stride(), values.dtype, values.stride(), ignore_index,
        float32_products, bias_a is not None, dtype, differences, walker, visit,
    )  # fmt: skip


def _tile(machine: Machine, precision: Precision, dtype: torch.dtype, n: int, m: int) -> tuple[Tile, bool]:
    """The tile that a batch is taken in, and whether it is the only one."""
    kind = machine.architecture, precision.tiles(dtype)
    one = choose_one_tile(*kind)
    if one is not None and n <= one.rows and m <= one.rows:
        return one, True
    return choose_dense_tile(*kind), False


def saved_numbers(a: Tensor, b: Tensor) -> int | None:
    """How many numbers a batch of these shapes saves for the backward pass; None for one that is not small.

    Rows may be symbols, which then stand for all numbers with the same tile.
    """
    n, m = a.shape[0], b.shape[0]
    if not is_small(n, m):
        return None
    on = machine(a.device)
    block = _tile(on, choose_precision(a.dtype, on, float32_products()), a.dtype, n, m)[0].rows
    return saved_size(ceil_div(n, block) * block, ceil_div(m, block) * block)


class Sizes:
    """Sizes and tiles of a call, and the constants of its kernels."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self.n, self.d = key.shape_a
        self.m = key.shape_b[0]
        self.machine = machine(key.device)
        precision = choose_precision(key.dtype, self.machine, key.float32_products)
        self.tile, self.one_tile = _tile(self.machine, precision, key.dtype, self.n, self.m)
        self.block = self.tile.rows
        self.row_tiles, self.column_tiles = ceil_div(self.n, self.block), ceil_div(self.m, self.block)
        self.rows, self.columns = self.row_tiles * self.block, self.column_tiles * self.block
        self.numbers = self.n, self.m, self.d, self.rows, self.columns, key.label_stride[0], key.ignore_index
        self.layout_a, self.layout_b = (None, 0, *key.stride_a), (None, 0, *key.stride_b)
        self.saved = saved_size(self.rows, self.columns)
        depth = tile_depth(self.tile, self.d)
        self.depths = ceil_div(self.d, depth)
        self.depth = {"BLOCK_D": depth}
        # A largest value would be launches of its own.
        scores = precision.others if precision.scaled else precision.scores
        self.precision = {"PRECISION": "differences" if key.differences else scores}
        self.product = {"PRODUCT": precision.others}

    def repeated(self, kernel: Any, *grid: int, **constants: Any) -> Repeated:
        """Launches of a kernel in that grid."""
        return Repeated(kernel, grid, self.tile, constants | {"BLOCK": self.block})

    def arguments(self, pointers: Sequence[Any]) -> tuple[tuple[Any, ...], ...]:
        """What both directions hand to kernels: fields of `Embeddings` of ``a`` and of ``b``, and of `Dense`."""
        a, bias_a, b, bias_b, labels, saved, scratch = pointers
        return (a, bias_a, *self.layout_a), (b, bias_b, *self.layout_b), (labels, saved, scratch, *self.numbers)

    def check(self, saved: Tensor) -> None:
        """RuntimeError if ``saved`` is not of these sizes: a compiled call sees what products are set to twice."""
        if saved.numel() != self.saved:
            raise RuntimeError(
                "torch.get_float32_matmul_precision() changed between the forward and the backward pass of fastassoc's "
                "loss under torch.compile"
            )


def _pointers(how: How, given: tuple[Tensor | None, ...], own: tuple[Tensor | None, ...]) -> tuple[How, Sequence[Any]]:
    """What a launch takes of tensors, and how it is made: "once" where ``given`` ones begin off multiples of 16 bytes.

    Kernels are compiled for such multiples, at which all of our ``own`` begin.
    """
    if how == "once":
        return how, given + own
    addresses = [None if x is None else x.data_ptr() for x in given + own]
    for address in addresses[: len(given)]:
        if address is not None and address % 16:
            return "once", given + own
    return how, addresses if how == "again" else given + own


class Forward:
    """The passes of a forward pass."""

    def __init__(self, fields: tuple[Any, ...], needs_gradient: bool, statistics: bool, weighted: bool) -> None:
        key = Key._make(fields)
        self.sizes = sizes = Sizes(key)
        self.needs_gradient, self.statistics = needs_gradient, statistics
        self.terms = statistics or not weighted
        pairs = sizes.row_tiles ** (2 if key.walker else 1)
        self.shares = max(1, min(sizes.machine.processors // pairs, sizes.column_tiles, _MOST_SHARES))
        self.programs = 1 if sizes.n <= FEW_ROWS else sizes.row_tiles
        self.scratch = forward_size(sizes.rows, sizes.columns, sizes.block, self.shares)
        self.tiny = torch.finfo(key.accumulated).tiny
        terms = {"WALKER": key.walker, "VISIT": key.visit}
        self.whole = sizes.repeated(dense_forward, 1, **terms, **sizes.depth, **sizes.precision, **sizes.product)
        self.scores = sizes.repeated(
            dense_scores, sizes.row_tiles, sizes.column_tiles, **sizes.depth, **sizes.precision
        )
        grid = sizes.row_tiles, sizes.row_tiles if key.walker else 1, self.shares
        self.trips = sizes.repeated(dense_trips, *grid, **terms, **sizes.product)
        self.walk = sizes.repeated(dense_walk, self.programs, **terms, ONE=self.programs == 1)
        self.losses = sizes.repeated(dense_losses, 1, **terms)
        self.how: How = "once" if recorded() else "first"

    def __call__(self, inputs: Inputs) -> Losses:
        """The losses."""
        sizes, dtype, new = self.sizes, inputs.dtype, inputs.a.new_empty
        weights = inputs.weights
        loss = None if weights is None else new((), dtype=dtype)
        walker = visit = p_correct = accuracy = visit_probability = None
        if self.terms:
            walker = new((), dtype=dtype) if inputs.walker else None
            visit = new((), dtype=dtype) if inputs.visit else None
        if self.statistics:
            if inputs.walker:
                p_correct, accuracy = new((), dtype=dtype), new((), dtype=dtype)
            if inputs.visit:
                visit_probability = new(sizes.m, dtype=dtype)
        saved = new(sizes.saved, dtype=dtype) if self.needs_gradient else None
        scratch = None if sizes.one_tile else new(self.scratch, dtype=dtype)
        given = inputs.a, inputs.bias_a, inputs.b, inputs.bias_b, inputs.labels.values
        own = saved, scratch, loss, walker, visit, p_correct, accuracy, visit_probability
        how, pointers = _pointers(self.how, given, own)
        a, b, batch = sizes.arguments(pointers[:7])
        results = (*pointers[7:],)
        if how != "again":
            a, b, batch, results = Embeddings._make(a), Embeddings._make(b), Dense._make(batch), Results._make(results)
        scale, eps, tiny = inputs.scale, inputs.eps, self.tiny
        weights = weights or _TERMS
        with device_guard(inputs.a):
            if sizes.one_tile:
                self.whole(how, a, b, batch, results, scale, eps, tiny, *weights)
            else:
                self.scores(how, a, b, batch, scale)
                self.trips(how, batch)
                self.walk(how, batch, results, self.shares, eps, tiny, *weights)
                if self.programs > 1:
                    self.losses(how, batch, results, self.programs, eps, *weights)
        if how == "first":
            self.how = "again"
        return Losses(loss, walker, visit, p_correct, accuracy, visit_probability, () if saved is None else (saved,))


class Backward:
    """The passes of a backward pass."""

    def __init__(self, fields: tuple[Any, ...], walker: bool, visit: bool, needs: Needs) -> None:
        self.sizes = sizes = Sizes(Key._make(fields))
        self.needs = needs
        self.by_a, self.by_b = needs[0] or needs[2], needs[1] or needs[3]
        self.scratch = backward_size(sizes.rows, sizes.columns, sizes.block)
        self.whole = sizes.repeated(dense_backward, 1, **sizes.depth, **sizes.product)
        self.score_gradients = sizes.repeated(
            dense_score_gradients, sizes.row_tiles, sizes.column_tiles, **sizes.product
        )
        tiles = sizes.row_tiles * self.by_a + sizes.column_tiles * self.by_b
        self.embedding_gradients = sizes.repeated(
            dense_embedding_gradients, tiles, sizes.depths, WALKER=walker, **sizes.depth, **sizes.product
        )
        self.how: How = "once" if recorded() else "first"

    def __call__(
        self, inputs: Inputs, saved: Tensor, grad_walker: Tensor | None, grad_visit: Tensor | None
    ) -> Gradients:
        """The gradients."""
        sizes, dtype, new, needs = self.sizes, inputs.dtype, inputs.a.new_empty, self.needs
        sizes.check(saved)
        # Half the time of new_empty.
        da = torch.empty_like(inputs.a, memory_format=torch.contiguous_format) if self.by_a else None
        db = torch.empty_like(inputs.b, memory_format=torch.contiguous_format) if self.by_b else None
        dbias_a = new(sizes.n, dtype=dtype) if needs[2] else None
        dbias_b = new(sizes.m, dtype=dtype) if needs[3] else None
        scratch = None if sizes.one_tile else new(self.scratch, dtype=dtype)
        given = inputs.a, inputs.bias_a, inputs.b, inputs.bias_b, inputs.labels.values, saved, grad_walker, grad_visit
        how, pointers = _pointers(self.how, given, (scratch, da, db, dbias_a, dbias_b))
        a, b, batch = sizes.arguments([*pointers[:6], pointers[8]])
        if how != "again":
            a, b, batch = Embeddings._make(a), Embeddings._make(b), Dense._make(batch)
        upstream, results = (*pointers[6:8], *(inputs.weights or _TERMS)), (*pointers[9:], inputs.scale)
        with device_guard(inputs.a):
            if sizes.one_tile:
                self.whole(how, a, b, batch, *upstream, *results)
            else:
                self.score_gradients(how, batch, *upstream)
                self.embedding_gradients(how, a, b, batch, *results)
        if how == "first":
            self.how = "again"
        return Gradients(da if needs[0] else None, db if needs[1] else None, dbias_a, dbias_b)


_forward = lru_cache(_REMEMBERED)(Forward)
_backward = lru_cache(_REMEMBERED)(Backward)


def forget() -> None:
    """Every call is new."""
    _forward.cache_clear()
    _backward.cache_clear()


def _remembered(remember: Any, *arguments: Any) -> Any:
    """`Forward` or `Backward`, made before for the same arguments; of launches that are not made nothing is kept."""
    return (remember.__wrapped__ if recorded() else remember)(*arguments)


def losses(inputs: Inputs, needs_gradient: bool, statistics: bool) -> Losses:
    """See `fastassoc.backends.protocol.Backend`."""
    forward: Forward = _remembered(_forward, _key(inputs), needs_gradient, statistics, inputs.weights is not None)
    return forward(inputs)


def gradients(
    inputs: Inputs, saved: Saved, grad_walker: Tensor | None, grad_visit: Tensor | None, needs: Needs
) -> Gradients:
    """See `fastassoc.backends.protocol.Backend`."""
    (buffer, *_) = saved
    assert buffer is not None
    upstream = grad_walker is not None, grad_visit is not None
    backward: Backward = _remembered(_backward, _key(inputs), *upstream, needs)
    return backward(inputs, buffer, grad_walker, grad_visit)
