"""Gradients over ranks: networks in training, terms apart, ranks that need none, torch.compile and checkpoints."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import fastassoc
from fastassoc import reference
from tests.cases import Case, evaluate, make_case, relative_error
from tests.ranks.support import THREE, TWO, D, Shape, own, own_case, step


class Network(nn.Module):
    """Embeddings, and logits of the labelled samples."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            nn.Linear(5, 16, dtype=torch.float64), nn.Tanh(), nn.Linear(16, D, dtype=torch.float64)
        )
        self.classify = nn.Linear(D, 4, dtype=torch.float64)
        self.association: nn.Module = fastassoc.WalkerVisitLoss(group="world", similarity="cosine", temperature=0.2)

    def forward(self, labelled: Tensor, unlabelled: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.embed(torch.cat([labelled, unlabelled])).split([len(labelled), len(unlabelled)])
        return self.association(a, b, labels), self.classify(a)


def trained(rank: int, shape: Shape, case: Case, way: str) -> list[Tensor]:
    """The parameters after three steps."""
    torch.manual_seed(0)
    network = Network()
    module: Any = network
    alone = way == "alone"
    if alone:
        network.association = fastassoc.WalkerVisitLoss(similarity="cosine", temperature=0.2)
    elif way == "fsdp":
        mesh = init_device_mesh("cpu", (shape.ranks,))
        for x in (network.embed, network):
            fully_shard(x, mesh=mesh)
    else:
        module = DistributedDataParallel(network)
    if way == "compiled ddp":
        torch._dynamo.reset()
        module = torch.compile(module, backend="aot_eager")
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    labelled, unlabelled, labels = case if alone else own_case(rank, shape, case)
    for _ in range(3):
        optimizer.zero_grad()
        association, logits = module(labelled.detach(), unlabelled.detach(), labels)
        # The mean over all rows, where DDP takes the mean over ranks.
        share = 1.0 if alone else shape.ranks * len(labels) / sum(shape.rows)
        (association + share * nn.functional.cross_entropy(logits, labels)).backward()
        optimizer.step()
    parameters = [x.detach() for x in network.parameters()]
    return [x.full_tensor() if isinstance(x, DTensor) else x.clone() for x in parameters]


@pytest.mark.parametrize("way", ["ddp", "compiled ddp", "fsdp"])
def test_training_is_that_of_one_process(ranks: Any, way: str) -> None:
    case = make_case(sum(THREE.rows), sum(THREE.columns), 5, 4)
    alone = trained(0, THREE, case, "alone")
    for parameters in ranks(3, trained, THREE, case, way):
        for mine, other in zip(parameters, alone, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


def both_terms(rank: int, shape: Shape, case: Case) -> list[Tensor]:
    """Gradients through one term, the other, and both once more."""
    a, b, labels = own_case(rank, shape, case)
    terms = fastassoc.walker_visit_losses(a, b, labels, group=dist.group.WORLD)
    walker = torch.autograd.grad(terms.walker, (a, b), retain_graph=True)
    visit = torch.autograd.grad(terms.visit, (a, b), retain_graph=True)
    return [*walker, *visit, *torch.autograd.grad(terms.walker + terms.visit, (a, b))]


def test_backward_again_and_through_either_term(ranks: Any) -> None:
    case = make_case(sum(TWO.rows), sum(TWO.columns), D, 4)
    for of_rank in ranks(2, both_terms, TWO, case):
        walker, visit, both = of_rank[:2], of_rank[2:4], of_rank[4:]
        for x, y, z in zip(walker, visit, both, strict=True):
            torch.testing.assert_close(x + y, z, rtol=1e-12, atol=1e-15)


def with_needs(rank: int, shape: Shape, case: Case, needs: list[tuple[bool, bool]], enabled: list[bool]) -> Any:
    """Gradients by ``a`` and ``b`` of ranks that need them."""
    a, b, labels = own_case(rank, shape, case)
    for x, need in zip((a, b), needs[rank], strict=True):
        x.requires_grad_(need)
    with nullcontext() if enabled[rank] else torch.no_grad():
        loss = fastassoc.walker_visit_loss(a, b, labels, group="world", similarity="euclidean")
    assert loss.requires_grad == (any(needs[rank]) and enabled[rank])
    if loss.requires_grad:
        loss.backward()
    return loss.detach(), a.grad, b.grad


@pytest.mark.parametrize(
    ("needs", "enabled"),
    [
        ([(True, True), (True, True)], [True, False]),
        ([(True, True), (False, False)], [True, True]),
        ([(True, False), (False, True)], [True, True]),
        ([(False, True), (False, False)], [True, True]),
        ([(False, True), (False, True)], [True, True]),
        ([(True, True), (True, True)], [False, False]),
    ],
)
def test_ranks_that_need_no_gradient(ranks: Any, needs: list[tuple[bool, bool]], enabled: list[bool]) -> None:
    case = make_case(sum(TWO.rows), sum(TWO.columns), D, 4)
    exact = evaluate(reference.walker_visit_loss, case, similarity="euclidean")
    found = ranks(2, with_needs, TWO, case, needs, enabled)
    for rank, (loss, da, db) in enumerate(found):
        torch.testing.assert_close(loss, exact.loss, rtol=1e-12, atol=0.0)
        for mine, whole, counts in ((da, exact.da, TWO.rows), (db, exact.db, TWO.columns)):
            if mine is not None:
                torch.testing.assert_close(mine / 2, own(whole, counts, rank), rtol=1e-10, atol=1e-13)
        assert [da is not None, db is not None] == [need and enabled[rank] for need in needs[rank]]


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_gradients_in_half_precision_beside_a_rank_without(ranks: Any, backend: str) -> None:
    # Without the scale of the loss most of them would be rounded to 0.
    shape, scale = Shape((6, 5), (3000, 40)), 2.0**14
    case = make_case(11, 3040, D, 3, dtype=torch.float16, scale=0.2)
    (_, da, db), _ = ranks(2, scaled, shape, case, scale, backend, backend=backend)
    exact = evaluate(reference.walker_visit_loss, case, torch.float64)
    for mine, whole, counts in ((da, exact.da, shape.rows), (db, exact.db, shape.columns)):
        assert relative_error(mine.double() / (2 * scale), own(whole, counts, 0)) < 2 * torch.finfo(torch.float16).eps


def scaled(rank: int, shape: Shape, case: Case, scale: float, backend: str) -> Any:
    """Gradients of a scaled loss on the first rank; the second needs none."""
    a, b, labels = own_case(rank, shape, case)
    with nullcontext() if rank == 0 else torch.no_grad():
        loss = fastassoc.walker_visit_loss(a, b, labels, group="world", backend=backend)  # type: ignore[call-overload]
    if rank == 0:
        (loss * scale).backward()
    return loss.detach(), a.grad, b.grad


def within_checkpoint(rank: int, shape: Shape, case: Case, mixed: bool) -> list[Tensor]:
    """The loss is computed again in the backward pass; or one rank is under autocast, where dtypes may meet."""
    a, b, labels = own_case(rank, shape, case)
    if mixed:
        with torch.autocast("cpu", dtype=torch.bfloat16) if rank == 0 else nullcontext():
            loss = fastassoc.walker_visit_loss(a, b.double() if rank == 0 else b, labels, group="world")
    else:
        loss = checkpoint(lambda *x: fastassoc.walker_visit_loss(*x, group="world"), a, b, labels, use_reentrant=False)
    loss.backward()
    assert a.grad is not None
    assert b.grad is not None
    return [loss.detach(), a.grad, b.grad]


@pytest.mark.parametrize("mixed", [False, True])
def test_checkpoint_and_autocast_around_the_loss(ranks: Any, mixed: bool) -> None:
    case = make_case(sum(TWO.rows), sum(TWO.columns), D, 2)
    plain = ranks(2, step, TWO, case, {})
    for (loss, da, db), other in zip(ranks(2, within_checkpoint, TWO, case, mixed), plain, strict=True):
        assert torch.equal(loss, other.loss)
        assert torch.equal(da, other.da)
        assert torch.equal(db, other.db)


def compiled_step(rank: int, shape: Shape, case: Case) -> list[Tensor]:
    """The loss and its gradients, compiled and eager."""
    torch._dynamo.reset()

    def loss_of(a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
        return 2.0 * fastassoc.walker_visit_loss(a * 1.5, b, labels, group="world", gradient_reduction="sum")

    results: list[Tensor] = []
    for function in (loss_of, torch.compile(loss_of, backend="aot_eager")):
        a, b, labels = own_case(rank, shape, case)
        loss = function(a, b, labels)
        loss.backward()
        results += [loss.detach(), a.grad, b.grad]  # type: ignore[list-item]
    return results


def test_compiled_step_is_the_eager_one(ranks: Any) -> None:
    for eager in ranks(2, compiled_step, TWO, make_case(sum(TWO.rows), sum(TWO.columns), D, 4)):
        assert all(torch.equal(x, y) for x, y in zip(eager[:3], eager[3:], strict=True))
