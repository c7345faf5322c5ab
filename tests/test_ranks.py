"""The loss over the ranks of a process group, against that of all their rows in one process."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import fastassoc
from fastassoc import reference
from tests.cases import Case, Result, assert_as_exact_as, assert_close, evaluate, make_case, relative_error
from tests.processes import Processes, RankError

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


@pytest.fixture(scope="module")
def processes() -> Iterator[dict[tuple[int, str], Processes]]:
    """By number of ranks and backend; started when they are first asked for."""
    started: dict[tuple[int, str], Processes] = {}
    yield started
    for x in started.values():
        x.stop()


@pytest.fixture
def ranks(processes: dict[tuple[int, str], Processes], request: pytest.FixtureRequest) -> Any:
    """Runs a function on so many ranks: ``ranks(number, function, *arguments)``."""

    def run(number: int, function: Any, *arguments: Any, backend: str = "cpu", check: bool = True) -> list[Any]:
        if backend == "triton":
            try:
                import fastassoc.backends.triton  # noqa: F401
            except (ImportError, AttributeError):
                pytest.skip("needs a Triton that the kernels run with")
        key = number, backend
        if key not in processes or not processes[key].alive:
            processes[key] = Processes(number, interpreted=backend == "triton")
        return processes[key](function, *arguments) if check else processes[key].run(function, *arguments)

    return run


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


OPTIONS: list[dict[str, Any]] = [
    {},
    {"similarity": "cosine", "temperature": 0.1, "visit_weight": 0.3},
    {"similarity": "euclidean", "temperature": 2.0, "walker_weight": 0.5},
    {"ignore_index": 2},
    {"ignore_index": -1, "eps": 0.0},
    {"walker_weight": 0.0},
    {"visit_weight": 0.0, "temperature": 0.5},
]


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_and_gradients_are_those_of_one_process(
    ranks: Any, shape: Shape, options: dict[str, Any], backend: str
) -> None:
    case = make_case(sum(shape.rows), sum(shape.columns), D, 4)
    case.labels[:2] = torch.tensor([-1, 2])
    steps = ranks(shape.ranks, step, shape, case, options | {"backend": backend}, backend=backend)
    assert_close(joined(steps), evaluate(reference.walker_visit_loss, case, **options), 1e-12)
    exact = fastassoc.walker_visit_loss(*case, return_stats=True, **options)[1]
    for mine, other in zip(steps[0].statistics[:4], exact[:4], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-14)
    visits = torch.cat([x.statistics[4] for x in steps])
    torch.testing.assert_close(visits, exact.visit_probability, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_classes_larger_than_a_tile(ranks: Any, backend: str) -> None:
    shape = Shape((90, 70), (40, 33))
    case = make_case(160, 73, D, 2, scale=0.7)
    mine = joined(ranks(2, step, shape, case, {"backend": backend}, backend=backend))
    assert_close(mine, evaluate(reference.walker_visit_loss, case), 1e-12)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("scale", [0.5, 3.0, 12.0])
def test_float32_is_as_exact_as_eager_code(ranks: Any, scale: float, backend: str) -> None:
    case = make_case(sum(THREE.rows), sum(THREE.columns), D, 4, scale=scale, dtype=torch.float32)
    exact = evaluate(reference.walker_visit_loss, case, torch.float64)
    mine = joined(ranks(3, step, THREE, case, {"backend": backend}, backend=backend))
    assert_as_exact_as(mine, evaluate(reference.walker_visit_loss, case), exact, case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_that_of_one_process(ranks: Any, dtype: torch.dtype) -> None:
    case = make_case(sum(THREE.rows), sum(THREE.columns), D, 4, dtype=dtype)
    mine = joined(ranks(3, step, THREE, case, {}))
    # Gradients are rounded to the dtype once on either side.
    assert_close(mine, evaluate(fastassoc.walker_visit_loss, case), torch.finfo(dtype).eps)


# Scores of one rank are so far from those of the others that its steps take another form on the CPU.
@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [0, 1, 2])
def test_ranks_with_scores_far_apart(ranks: Any, far: int, dtype: torch.dtype, backend: str) -> None:
    case = make_case(sum(THREE.rows), sum(THREE.columns), D, 4, dtype=dtype)
    case.b.split(THREE.columns)[far].mul_(60.0)
    exact = evaluate(reference.walker_visit_loss, case, torch.float64)
    mine = joined(ranks(3, step, THREE, case, {"backend": backend}, backend=backend))
    if dtype == torch.float64:
        assert_close(mine, exact, 1e-12)
    else:
        assert_as_exact_as(mine, evaluate(reference.walker_visit_loss, case), exact, case)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("name", ["a", "b"])
def test_nan_on_one_rank_is_seen_by_all(ranks: Any, name: str, backend: str) -> None:
    case = make_case(sum(TWO.rows), sum(TWO.columns), D, 4)
    getattr(case, name)[-1, 0] = math.nan
    assert all(x.loss.isnan() for x in ranks(2, step, TWO, case, {"backend": backend}, backend=backend))


@pytest.mark.parametrize("similarity", ["dot", "cosine", "euclidean"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_parameters_that_ranks_share(ranks: Any, similarity: str, reduction: str) -> None:
    case = make_case(sum(THREE.rows), sum(THREE.columns), D, 4)
    numbers = {"walker_weight": 0.7, "visit_weight": 0.3, "temperature": 2.0}
    options = {name: torch.tensor(x, dtype=torch.float64) for name, x in numbers.items()}
    steps = ranks(3, step, THREE, case, {**options, "similarity": similarity, "gradient_reduction": reduction})
    learned = {name: x.clone().requires_grad_() for name, x in options.items()}
    exact = evaluate(reference.walker_visit_loss, case, similarity=similarity, **learned)
    assert_close(joined(steps, reduction), exact, 1e-12)
    for mine, x in zip(zip(*(s.learned for s in steps), strict=True), learned.values(), strict=True):
        total = torch.stack(mine).mean(0) if reduction == "mean" else torch.stack(mine).sum(0)
        torch.testing.assert_close(total, x.grad, rtol=1e-12, atol=1e-14)


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


def with_own_labels(rank: int, dtypes: list[torch.dtype], case: Case) -> Tensor:
    """Labels of a dtype of their own; -1 marks rows that take no part, where a dtype has it."""
    shape = Shape((5, 4), (6, 7))
    a, b, labels = own_case(rank, shape, case)
    labels = labels.to(dtypes[rank])
    return fastassoc.walker_visit_loss(a, b, labels, ignore_index=-1, group="world").detach()


@pytest.mark.parametrize("dtypes", [[torch.int64, torch.uint8], [torch.int16, torch.uint64], [torch.int32, torch.bool]])
def test_ranks_with_labels_of_different_dtypes(ranks: Any, dtypes: list[torch.dtype]) -> None:
    case = make_case(9, 13, D, 2)
    case.labels[1] = -1
    exact = reference.walker_visit_loss(*case, ignore_index=-1)
    for loss in ranks(2, with_own_labels, dtypes, case):
        torch.testing.assert_close(loss, exact, rtol=1e-13, atol=0.0)


@pytest.mark.parametrize(("dtype", "roundings"), [(torch.float64, 8), (torch.float32, 8), (torch.bfloat16, 1)])
def test_a_single_labelled_row(ranks: Any, dtype: torch.dtype, roundings: int) -> None:
    shape = Shape((0, 1), (4, 5))
    case = make_case(1, 9, D, 1, dtype=dtype)
    mine = joined(ranks(2, step, shape, case, {}))
    assert_close(mine, evaluate(fastassoc.walker_visit_loss, case), roundings * torch.finfo(dtype).eps)


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


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("apart", [30.0, 3e4])
def test_squared_distances_of_clusters_far_apart(ranks: Any, apart: float, backend: str) -> None:
    # Products are not exact enough in float32, then not in float64 either: of one rank's rows, and all take that form.
    case = make_case(sum(TWO.rows), sum(TWO.columns), D, 2, dtype=torch.float32, scale=0.4)
    for x, counts in ((case.a, TWO.rows), (case.b, TWO.columns)):
        x[-counts[1] :] += apart
    options = {"similarity": "euclidean"}
    exact = evaluate(reference.walker_visit_loss, case, torch.float64, **options)
    mine = joined(ranks(2, step, TWO, case, {**options, "backend": backend}, backend=backend))
    assert_close(mine, exact, 4 * torch.finfo(torch.float32).eps)


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
