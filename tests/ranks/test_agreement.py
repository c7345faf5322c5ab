"""What ranks have to agree on, what crosses between them, and errors that all of them see."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import fastassoc
from fastassoc import reference
from tests.cases import Case, make_case
from tests.processes import RankError
from tests.ranks.support import TWO, D, Shape, own_case


def with_threads(rank: int, case: Case, weights: tuple[float, float]) -> list[Tensor]:
    """The loss and statistics, with another number of threads on every rank."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 + rank)
    try:
        shape = Shape((800, 800), (200, 100))
        a, b, labels = own_case(rank, shape, case)
        loss, statistics = fastassoc.walker_visit_loss(
            a, b, labels, walker_weight=weights[0], visit_weight=weights[1], group="world", return_stats=True
        )
    finally:
        torch.set_num_threads(before)
    return [loss.detach(), *statistics[:4]]


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 0.0)])
def test_ranks_with_different_numbers_of_threads_agree_to_the_bit(ranks: Any, weights: tuple[float, float]) -> None:
    first, second = ranks(2, with_threads, make_case(1600, 300, D, 2, dtype=torch.float32), weights)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def without_weights(rank: int, shape: Shape, case: Case) -> Any:
    """A loss of which no term is left, for example at the start of a ramp."""
    a, b, labels = own_case(rank, shape, case)
    loss = fastassoc.walker_visit_loss(a, b, labels, walker_weight=0.0, visit_weight=0.0, group="world")
    loss.backward()
    return loss.detach(), a.grad


def test_without_weights_the_loss_is_one_zero_for_all(ranks: Any) -> None:
    case = make_case(sum(TWO.rows), sum(TWO.columns), D, 2)
    for loss, da in ranks(2, without_weights, TWO, case):
        assert loss == 0.0
        assert not da.any()
    case.b[0, 0] = math.inf
    assert all(loss.isnan() for loss, _ in ranks(2, without_weights, TWO, case))


def in_other_products(rank: int, case: Case) -> Any:
    """Float32 products at another setting on one rank, on which tiles depend."""
    torch.set_float32_matmul_precision("high" if rank else "highest")
    try:
        return fastassoc.walker_visit_loss(*case, group="world", backend="triton")
    finally:
        torch.set_float32_matmul_precision("highest")


def test_ranks_agree_on_what_tiles_depend_on(ranks: Any) -> None:
    for x in ranks(2, in_other_products, make_case(9, 13, D, 2), backend="triton", check=False):
        assert isinstance(x, RankError)
        assert "interpreter with float32 products at 'highest' on rank 0, interpreter with" in str(x)


def counting_operations(rank: int, shape: Shape, case: Case) -> Tensor:
    """One rank counts its operations, as people do who look at one of them."""
    a, b, labels = own_case(rank, shape, case)
    with FlopCounterMode(display=False) if rank == 0 else nullcontext():
        loss = fastassoc.walker_visit_loss(a, b, labels, group="world")
        loss.backward()
    return loss.detach()


def test_one_rank_may_be_looked_at(ranks: Any) -> None:
    case = make_case(sum(TWO.rows), sum(TWO.columns), D, 2)
    exact = reference.walker_visit_loss(*case)
    for loss in ranks(2, counting_operations, TWO, case):
        torch.testing.assert_close(loss, exact, rtol=1e-13, atol=0.0)


def counted(rank: int, columns: int, dtype: torch.dtype, backend: Any = "cpu") -> tuple[int, int]:
    """Bytes that this rank sends in the forward and in the backward pass."""
    sent = [0]
    gather, exchange = dist.all_gather, dist.all_to_all_single
    others = dist.get_world_size() - 1

    def noting_gather(out: Any, x: Tensor, group: Any) -> None:
        sent[0] += others * x.nbytes
        gather(out, x, group=group)

    def noting_exchange(out: Tensor, x: Tensor, received: Any, given: Any, group: Any) -> None:
        sent[0] += x.nbytes - (x.nbytes // (others + 1) if given is None else given[rank] * x[:1].nbytes)
        exchange(out, x, received, given, group=group)

    dist.all_gather, dist.all_to_all_single = noting_gather, noting_exchange
    try:
        a, b, _ = make_case(20, columns, 32, 10, seed=rank, dtype=dtype)
        labels = torch.arange(20) % 10
        loss = fastassoc.walker_visit_loss(
            a.requires_grad_(), b.requires_grad_(), labels, group="world", backend=backend
        )
        forward = sent[0]
        loss.backward()
    finally:
        dist.all_gather, dist.all_to_all_single = gather, exchange
    return forward, sent[0] - forward


@pytest.mark.parametrize("number", [2, 3])
def test_what_crosses_ranks_does_not_grow_with_columns(ranks: Any, number: int) -> None:
    few = ranks(number, counted, 50, torch.float32)
    assert few == ranks(number, counted, 5000, torch.float32)
    rows, others = 20 * number, number - 1
    header, embeddings, row_sums = 7 * 8, 20 * (4 * 32 + 8), 2 * 8 * rows
    # Pairs of 10 classes, rho of the visits and their part of the loss, each rank adding up its part of the numbers.
    part = 4 * -(-(rows * rows // 10 + rows + 1) // number)
    losses = 2 * 4
    forward, backward = others * (header + embeddings + row_sums + 2 * part + losses), 4 * 32 * 20 * others
    assert few == [(forward, backward)] * number


def test_nor_does_it_with_kernels(ranks: Any) -> None:
    few, many = (ranks(2, counted, m, torch.float32, "triton", backend="triton") for m in (50, 500))
    assert few == many


def refused(rank: int, at: int, changes: dict[str, Any]) -> Any:
    """The loss with what one rank gives changed; the next call works on all."""
    a, b, labels = make_case(6, 9, 3, 2, seed=rank)
    arguments: dict[str, Any] = {"a": a, "b": b, "labels": labels, "group": "world"}
    try:
        fastassoc.walker_visit_loss(**arguments | (changes if rank == at else {}))
        message = "nothing"
    except (TypeError, ValueError, RuntimeError) as error:
        message = f"{type(error).__name__}: {error}"
    return message, fastassoc.walker_visit_loss(**arguments)


@pytest.mark.parametrize(
    ("changes", "own_error", "error_of_others"),
    [
        (
            {"a": torch.ones(6, 4)},
            "ValueError: a and b must have the same embedding size",
            "rank 1 raised ValueError: a and",
        ),
        ({"b": torch.ones(0, 3)}, "ValueError: b must not be empty", "rank 1 raised ValueError: b must"),
        ({"labels": torch.ones(6)}, "TypeError: labels must be of an integer", "rank 1 raised TypeError: labels must"),
        ({"a": None}, "TypeError: a must be a torch.Tensor", "rank 1 raised TypeError: a must"),
        ({"temperature": -1.0}, "ValueError: temperature must be", "rank 1 raised ValueError: temperature"),
        ({"backend": "triton"}, "RuntimeError: backend 'triton'", "rank 1 raised RuntimeError: backend"),
        ({"eps": 1e-6}, "ValueError: eps must be the same on every rank; got 1e-08 on rank 0, 1e-06 on rank 1", ""),
        (
            {"similarity": "cosine"},
            "ValueError: similarity must be the same on every rank; got dot on rank 0, cosine",
            "",
        ),
        ({"visit_weight": 0.0}, "ValueError: visit_weight must be the same on every rank; got 1.0 on rank 0, 0.0", ""),
        (
            {"a": torch.ones(6, 3), "b": torch.ones(6, 3)},
            "ValueError: the dtype of a and b must be the same on every rank; got torch.float64 on rank 0",
            "",
        ),
        (
            {"labels": torch.full((6,), 2**63, dtype=torch.uint64)},
            "ValueError: labels must fit in int64",
            "rank 1 raised",
        ),
    ],
    ids=str,
)
def test_a_rank_that_raises_leaves_none_waiting(
    ranks: Any, changes: dict[str, Any], own_error: str, error_of_others: str
) -> None:
    (other, first), (message, second) = ranks(2, refused, 1, changes)
    assert message.startswith(own_error)
    if error_of_others:
        assert other.startswith(f"RuntimeError: the loss over all ranks was not computed, because {error_of_others}")
    else:
        assert other == message
    assert torch.equal(first, second)


def all_ignored(rank: int) -> None:
    """No row of any rank takes part."""
    a, b, labels = make_case(6, 9, 3, 1, seed=rank)
    fastassoc.walker_visit_loss(a, b, labels, ignore_index=0, group="world")


def no_rows(rank: int) -> None:
    """No rank has a row."""
    fastassoc.walker_visit_loss(torch.ones(0, 3), torch.ones(2, 3), torch.ones(0).long(), group="world")


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (all_ignored, "ValueError: every label equals ignore_index=0"),
        (no_rows, "ValueError: at least one rank must have a row of a"),
    ],
)
def test_without_any_row_every_rank_raises(ranks: Any, function: Any, error: str) -> None:
    for x in ranks(2, function, check=False):
        assert isinstance(x, RankError)
        assert str(x).startswith(error)


def in_a_group_of_two(rank: int) -> Any:
    """Ranks 0 and 2 of three; what the third gets."""
    group = dist.new_group([0, 2])
    a, b, labels = make_case(6, 9, 3, 2, seed=rank)
    try:
        return fastassoc.walker_visit_loss(a, b, labels, group=group)
    except ValueError as error:
        return str(error)


def test_a_group_of_some_ranks(ranks: Any) -> None:
    first, outside, third = ranks(3, in_a_group_of_two)
    assert torch.equal(first, third)
    assert outside.startswith("group must be one that this process belongs to")
    cases = [make_case(6, 9, 3, 2, seed=rank) for rank in (0, 2)]
    whole = Case(*(torch.cat(x) for x in zip(*cases, strict=True)))
    torch.testing.assert_close(first, reference.walker_visit_loss(*whole), rtol=1e-13, atol=0.0)


def second_derivative(rank: int) -> None:
    """Asks for it."""
    a, b, labels = make_case(6, 9, 3, 2, seed=rank)
    loss = fastassoc.walker_visit_loss(a.requires_grad_(), b, labels, group="world")
    torch.autograd.grad(loss, a, create_graph=True)


def transformed(rank: int) -> None:
    """Under a transform."""
    a, b, labels = make_case(6, 9, 3, 2, seed=rank)
    torch.func.grad(lambda x: fastassoc.walker_visit_loss(x, b, labels, group="world"))(a)


@pytest.mark.parametrize(
    ("function", "error"),
    [(second_derivative, "RuntimeError: fastassoc's loss has no second derivatives over ranks"),
     (transformed, "RuntimeError: group does not work under transforms of torch.func")],
)  # fmt: skip
def test_what_does_not_work_over_ranks(ranks: Any, function: Any, error: str) -> None:
    for x in ranks(2, function, check=False):
        assert isinstance(x, RankError)
        assert str(x).startswith(error)


def in_a_group_of_one(rank: int, case: Case) -> bool:
    """Whether the loss is that without a group."""
    return torch.equal(
        fastassoc.walker_visit_loss(*case, group="world", gradient_reduction="sum"), fastassoc.walker_visit_loss(*case)
    )


def test_one_rank_is_no_group(ranks: Any) -> None:
    assert ranks(1, in_a_group_of_one, make_case(6, 9, 3, 2)) == [True]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"group": "all"}, TypeError, "group must be a torch.distributed.ProcessGroup, 'world' or None; got 'all'"),
        ({"group": "world"}, RuntimeError, "init_process_group"),
        (
            {"gradient_reduction": "none"},
            ValueError,
            "unknown gradient_reduction 'none'; expected one of 'mean', 'sum'",
        ),
    ],
)
def test_errors_without_ranks(options: dict[str, Any], error: type[Exception], message: str) -> None:
    case = make_case(6, 9, 3, 2)
    for function in (fastassoc.walker_visit_loss, fastassoc.walker_visit_losses):
        with pytest.raises(error, match=message):
            function(*case, **options)
    if error is not RuntimeError:
        with pytest.raises(error, match=message):
            fastassoc.WalkerVisitLoss(**options)
