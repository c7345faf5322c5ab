"""Labels laid out by machine code: the order of rows, the tables of classes, and tasks for threads."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastassoc
from fastassoc.backends.cpu import labels
from fastassoc.backends.cpu.native import machine
from fastassoc.backends.cpu.operations import class_blocks
from tests.cases import evaluate, make_case
from tests.conftest import narrow_machine, take_native

pytestmark = pytest.mark.skipif(machine.machine() is None, reason="machine code cannot run here")


@functools.cache
def machine_of(wide: bool) -> machine.Machine:
    """The processor's own code, which is ``wide`` with AVX-512, or that for AVX2."""
    own = machine.machine() if wide else narrow_machine()
    assert own is not None
    assert (own.lanes, own.width) in ([(8, 16), (16, 64)] if wide else [(8, 16)])
    return own


@functools.cache
def layout_of(sizes: tuple[int, ...], seed: int, parts: int, wide: bool) -> tuple[labels.Layout, np.ndarray]:
    """A layout, and the labels it is of, in an order of their own."""
    own = machine_of(wide)
    values = np.random.default_rng(seed).permutation(np.arange(len(sizes)).repeat(sizes)) * 7 - 20
    return labels.Labels(values, torch.float32, 1, None).layout(own, parts), values


SIZES = st.lists(st.integers(1, 200), min_size=1, max_size=12).map(tuple)


@given(sizes=SIZES, seed=st.integers(0, 3), parts=st.integers(1, 9), wide=st.booleans())
def test_layout(sizes: tuple[int, ...], seed: int, parts: int, wide: bool) -> None:
    layout, values = layout_of(sizes, seed, parts, wide)
    order, rows = layout.memory[: len(values)], len(values)
    # The order of class blocks for operations, which sums of the same classes have in common.
    expected = class_blocks.class_blocks(torch.from_numpy(values), torch.float32).order
    assert (order == (np.arange(rows) if expected is None else expected.numpy())).all()
    assert layout.moves == (expected is not None)
    start, size, place, kernel, kernel_row = layout.class_table().T
    assert size.tolist() == sorted(sizes, reverse=True)
    for first, count in zip(start, size, strict=True):
        assert len(set(values[order[first : first + count]].tolist())) == 1
    assert (start == np.cumsum(size) - size).all()
    assert (place == np.cumsum(size**2) - size**2).all()
    assert (kernel == np.cumsum(size * kernel_row) - size * kernel_row).all()
    lanes = machine_of(wide).lanes
    assert (kernel_row == np.where(size > 1, -(-size // lanes) * lanes, 1)).all()
    alone = int((size == 1).sum())
    assert (layout.number, layout.several, layout.singles) == (len(size), len(size) - alone, alone)
    assert (layout.pairs, layout.kernels) == ((size**2).sum(), (size * kernel_row).sum())
    assert layout.longest == kernel_row[0]
    if alone:
        singles = layout.single, layout.single_place, layout.single_kernel
        assert singles == (start[-alone], place[-alone], kernel[-alone])


@given(sizes=SIZES, seed=st.integers(0, 3), parts=st.integers(1, 9), wide=st.booleans())
def test_tasks_cover_every_pair_once(sizes: tuple[int, ...], seed: int, parts: int, wide: bool) -> None:
    layout, _ = layout_of(sizes, seed, parts, wide)
    table = layout.class_table()
    width = machine_of(wide).width
    covered = np.zeros(layout.pairs, int)
    loads = np.zeros(parts)
    largest = 0
    of_row = np.repeat(np.arange(layout.number), table[:, 1])
    for first_row, left, size, place, panels, part in layout.task_table():
        number = of_row[first_row]
        assert (of_row[first_row : first_row + left] == number).all()
        own_place, row = table[number, 2], first_row - table[number, 0]
        assert place == own_place + row * (size + 1)
        for column in range(row, min(row + width * panels, size)):
            begin = row + (column - row) // width * width
            covered[own_place + np.arange(begin, size) * size + column] += 1
        cost = left * min(left, panels * width)
        loads[part] += cost
        largest = max(largest, cost)
    # No part has more to do than the least by more than one task.
    assert loads.max() - loads.min() <= largest
    expected = np.zeros(layout.pairs, bool)
    for _, size, place, *_ in table[: layout.several]:
        expected[place + (np.arange(size)[:, None] * size + np.arange(size))[np.tril_indices(size)]] = True
    # Blocks on the diagonal are whole.
    assert (covered[expected] == 1).all()
    assert covered.max(initial=0) <= 1


@pytest.mark.usefixtures("native")
def test_rows_that_take_no_part_are_left_out_of_the_layout() -> None:
    case = make_case(60, 90, 8, 4, dtype=torch.float32)
    kept = case.labels != 2
    for options in ({}, {"similarity": "euclidean"}, {"walker_weight": 0.0}):
        part = evaluate(fastassoc.walker_visit_loss, case._replace(a=case.a[kept], labels=case.labels[kept]), **options)
        whole = evaluate(fastassoc.walker_visit_loss, case, ignore_index=2, **options)
        assert torch.equal(whole.loss, part.loss)
        assert torch.equal(whole.da[kept], part.da)
        assert not whole.da[~kept].any()
        assert torch.equal(whole.db, part.db)


def test_labels_may_be_written_to_before_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    take_native(monkeypatch)
    case = make_case(1100, 40, 8, 5, dtype=torch.float32)
    for rows in (50, 1100):
        a, b, labels = (
            case.a[:rows].clone().requires_grad_(),
            case.b.clone().requires_grad_(),
            case.labels[:rows].clone(),
        )
        expected = torch.autograd.grad(fastassoc.walker_visit_loss(a, b, labels), (a, b))
        loss = fastassoc.walker_visit_loss(a, b, labels)
        labels.random_(0, 9)
        for x, y in zip(torch.autograd.grad(loss, (a, b)), expected, strict=True):
            assert torch.equal(x, y)
