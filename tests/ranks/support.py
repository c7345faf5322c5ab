"""Rows of every rank, and what a step on all of them gives."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastassoc
from tests.cases import Case, Result

D = 7


class Shape(NamedTuple):
    """Rows of every rank."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def ranks(self) -> int:
        return len(self.rows)


# Uneven; a rank with one row, with none, with one column; a rank whose rows lack classes comes with few rows.
SHAPES = [Shape((9, 5), (30, 41)), Shape((9, 1, 6), (30, 17, 83)), Shape((0, 12, 3), (5, 1, 60))]
TWO, THREE, _ = SHAPES


class Step(NamedTuple):
    """What a rank found."""

    loss: Tensor
    statistics: list[Tensor]
    da: Tensor
    db: Tensor
    learned: list[Tensor]


def own(x: Tensor, counts: tuple[int, ...], rank: int) -> Tensor:
    return x.split(list(counts))[rank].clone()


def own_case(rank: int, shape: Shape, case: Case) -> Case:
    a, labels = (own(x, shape.rows, rank) for x in (case.a, case.labels))
    return Case(a.requires_grad_(), own(case.b, shape.columns, rank).requires_grad_(), labels)


def step(rank: int, shape: Shape, case: Case, options: dict[str, Any]) -> Step:
    """Forward and backward; tensors among the options are parameters that all ranks share."""
    a, b, labels = own_case(rank, shape, case)
    learned = {name: x.clone().requires_grad_() for name, x in options.items() if isinstance(x, Tensor)}
    loss, statistics = fastassoc.walker_visit_loss(a, b, labels, return_stats=True, group="world", **options | learned)
    loss.backward()
    assert a.grad is not None
    assert b.grad is not None
    return Step(
        loss.detach(), list(statistics), a.grad, b.grad, [x.grad for x in learned.values() if x.grad is not None]
    )


def joined(steps: list[Step], reduction: str = "mean") -> Result:
    """The loss, one for all, and the gradients that rows of all ranks end with."""
    assert all(torch.equal(x.loss, steps[0].loss) for x in steps)
    for mine, first in zip([x.statistics[:4] for x in steps], [steps[0].statistics[:4]] * len(steps), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(mine, first, strict=True))
    factor = 1.0 / len(steps) if reduction == "mean" else 1.0
    da, db = (torch.cat([getattr(x, name) for x in steps]).double() * factor for name in ("da", "db"))
    return Result(steps[0].loss.double(), da, db)
