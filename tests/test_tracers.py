"""What looks at a call from outside sees operators: tracers, transforms, fake tensors, subclasses of tensors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo import compiled_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor

import fastassoc
from tests.cases import Case, make_case, relative_error
from tests.conftest import take_path

SIMILARITIES = ("dot", "cosine", "euclidean")


@pytest.fixture(params=SIMILARITIES)
def similarity(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def loss(similarity: str) -> Callable[..., Any]:
    def function(a: Tensor, b: Tensor, labels: Tensor, **options: Any) -> Any:
        return fastassoc.walker_visit_loss(a, b, labels, similarity=similarity, **options)

    return function


def plain(loss: Callable[..., Any], a: Tensor, b: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients by a backward pass."""
    a, b = (x.detach().clone().requires_grad_() for x in (a, b))
    loss(a, b, labels).backward()
    assert a.grad is not None
    assert b.grad is not None
    return a.grad, b.grad


def assert_equal(mine: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for x, y in zip(mine, expected, strict=True):
        assert torch.equal(x, y), relative_error(x, y)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Three problems, [3, N, D], [3, M, D], [3, N], whose ways through the backend may differ."""
    cases = [make_case(20, 70, 5, 3, scale=scale, seed=seed) for seed, scale in enumerate((1.0, 12.0, 0.1))]
    a, b, labels = (torch.stack(parts) for parts in zip(*cases, strict=True))
    return a, b, labels


# "Merged" saves other tensors than "plain", and tiles others still.
@pytest.mark.parametrize("path", ["dense", "whole", "tiles"])
def test_grad_and_jacrev(loss: Callable[..., Any], path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take_path(monkeypatch, path)
    a, b, labels = make_case(20, 70, 5, 3)
    expected = plain(loss, a, b, labels)
    assert_equal(torch.func.grad(loss, argnums=(0, 1))(a, b, labels), expected)
    assert_equal(torch.func.jacrev(loss, argnums=(0, 1))(a, b, labels), expected)


def test_grad_by_machine_code() -> None:
    case = make_case(70, 80, 16, 4, dtype=torch.float32)
    expected = plain(fastassoc.walker_visit_loss, *case)
    assert_equal(torch.func.grad(fastassoc.walker_visit_loss, argnums=(0, 1))(*case), expected)


@pytest.mark.parametrize("own_labels", [False, True])
def test_vmap(loss: Callable[..., Any], batch: tuple[Tensor, Tensor, Tensor], own_labels: bool) -> None:
    a, b, labels = batch
    given, dims = (labels, (0, 0, 0)) if own_labels else (labels[0], (0, 0, None))
    singles = [(x, y, z if own_labels else labels[0]) for x, y, z in zip(a, b, labels, strict=True)]
    values = torch.func.vmap(loss, in_dims=dims)(a, b, given)
    assert torch.equal(values, torch.stack([loss(*single) for single in singles]))
    expected = tuple(torch.stack(parts) for parts in zip(*(plain(loss, *single) for single in singles), strict=True))
    gradients = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=dims)(a, b, given)
    assert_equal(gradients, expected)

    def total(a: Tensor, b: Tensor) -> Tensor:
        return torch.func.vmap(loss, in_dims=dims)(a, b, given).sum()

    assert_equal(torch.func.grad(total, argnums=(0, 1))(a, b), expected)
    a.requires_grad_()
    b.requires_grad_()
    total(a, b).backward()
    assert a.grad is not None
    assert b.grad is not None
    assert_equal((a.grad, b.grad), expected)


def test_vmap_over_dimensions_and_statistics(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    a, b, labels = batch

    def function(a: Tensor, b: Tensor, weight: Tensor) -> Any:
        return fastassoc.walker_visit_loss(a, b, labels[0], walker_weight=weight, return_stats=True)

    weights = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    values, statistics = torch.func.vmap(function, in_dims=(1, 2, 0))(a.movedim(0, 1), b.movedim(0, 2), weights)
    for number, value in enumerate(values):
        expected, expected_statistics = function(a[number], b[number], weights[number])
        torch.testing.assert_close(value, expected, rtol=0.0, atol=0.0)
        for x, y in zip(statistics, expected_statistics, strict=True):
            assert torch.equal(x[number], y)


def test_functional_call() -> None:
    case = make_case(20, 70, 5, 3)
    temperature = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
    module = fastassoc.WalkerVisitLoss(temperature=temperature)

    def function(parameters: dict[str, Tensor]) -> Tensor:
        result: Tensor = torch.func.functional_call(module, parameters, tuple(case))
        return result

    gradients = torch.func.grad(function)({"temperature": temperature.detach() * 2.0})
    with torch.no_grad():
        temperature *= 2.0
    loss = module(*case)
    loss.backward()
    torch.testing.assert_close(gradients["temperature"], temperature.grad, rtol=1e-14, atol=0.0)


def test_second_derivatives_by_transforms(similarity: str) -> None:
    case = make_case(5, 7, 3, 2)

    def value(loss: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda a: loss(a, case.b, case.labels, similarity=similarity)

    mine = torch.func.jacrev(torch.func.jacrev(value(fastassoc.walker_visit_loss)))(case.a)
    exact = torch.autograd.functional.hessian(value(fastassoc.reference.walker_visit_loss), case.a)
    assert relative_error(mine, exact) < 1e-12


# The graph of the issue: it must not hold the first call's loss.
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(loss: Callable[..., Any], similarity: str, mode: str) -> None:
    case = make_case(64, 128, 16, 8, dtype=torch.float32)
    graph = make_fx(lambda a, b, labels: loss(a, b, labels), tracing_mode=mode)(*case)
    for factor in (1.0, 2.0):
        found, expected = graph(case.a * factor, case.b, case.labels), loss(case.a * factor, case.b, case.labels)
        # Of squared distances both terms may be in float64 when they are added; operators round them first.
        rtol = torch.finfo(torch.float32).eps if similarity == "euclidean" else 0.0
        torch.testing.assert_close(found, expected, rtol=rtol, atol=0.0)


def test_make_fx_of_a_gradient() -> None:
    case = make_case(20, 70, 5, 3)
    gradient = torch.func.grad(lambda a, b, labels: fastassoc.walker_visit_loss(a, b, labels))
    graph = make_fx(gradient)(*case)
    assert torch.equal(graph(case.a * 2.0, *case[1:]), gradient(case.a * 2.0, *case[1:]))


# The forward pass was an ordinary one; what looks on comes later.
def test_backward_passes_that_are_watched(loss: Callable[..., Any]) -> None:
    case = make_case(20, 70, 5, 3)
    (expected,) = plain(loss, *case)[:1]
    a = case.a.requires_grad_()
    value = loss(a, case.b, case.labels)
    upstream = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)
    batched = torch.func.vmap(lambda x: torch.autograd.grad(value, a, x, retain_graph=True)[0])(upstream)
    torch.testing.assert_close(batched, upstream[:, None, None] * expected, rtol=1e-12, atol=1e-16)
    with pytest.raises(RuntimeError, match="does not support is_grads_batched=True"):
        torch.autograd.grad(value, a, upstream, is_grads_batched=True, retain_graph=True)
    graph = make_fx(lambda x: torch.autograd.grad(value, a, x, retain_graph=True)[0])(upstream[0])
    torch.testing.assert_close(graph(upstream[1]), -2.0 * expected, rtol=1e-12, atol=1e-16)
    case.labels.zero_()
    with pytest.raises(RuntimeError, match="labels were changed"):
        make_fx(lambda x: torch.autograd.grad(value, a, x, retain_graph=True)[0])(upstream[0])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_jit_trace(loss: Callable[..., Any]) -> None:
    case = make_case(300, 1200, 16, 8, scale=0.5, dtype=torch.float32)
    traced = torch.jit.trace(loss, tuple(case), check_trace=False)
    assert torch.equal(traced(case.a * 2.0, *case[1:]), loss(case.a * 2.0, *case[1:]))


@pytest.mark.parametrize("shapes", [False, True])
def test_fake_tensors(loss: Callable[..., Any], shapes: bool) -> None:
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    case = make_case(20, 70, 5, 3, dtype=torch.float32)
    with FakeTensorMode(shape_env=ShapeEnv() if shapes else None) as mode:
        a, b, labels = (mode.from_tensor(x) for x in case)
        a.requires_grad_()
        value, statistics = loss(a, b, labels, return_stats=True)
        value.backward()
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert statistics.visit_probability.shape == (70,)
    assert a.grad is not None
    assert a.grad.shape == a.shape


def test_a_subclass_of_two_components(loss: Callable[..., Any]) -> None:
    case = make_case(64, 128, 16, 8, dtype=torch.float32)
    a = TwoTensor(case.a, 2.0 * case.a).requires_grad_()
    value = loss(a, TwoTensor(case.b, case.b), case.labels)
    assert isinstance(value, TwoTensor)
    assert torch.equal(value.b, loss(2.0 * case.a, case.b, case.labels))
    value.backward()
    assert isinstance(a.grad, TwoTensor)
    assert torch.equal(a.grad.b, plain(loss, 2.0 * case.a, case.b, case.labels)[0])


def test_what_is_not_supported_is_said_in_a_sentence() -> None:
    a, b, labels = make_case(6, 9, 3, 2)
    with pytest.raises(TypeError, match="a is a nested tensor, which is not supported"):
        fastassoc.walker_visit_loss(torch.nested.nested_tensor([a, a], layout=torch.jagged), b, labels)
    with pytest.raises(TypeError, match=r"b is of layout torch.sparse_coo.*pass b.to_dense\(\)"):
        fastassoc.walker_visit_loss(a, b.to_sparse(), labels)


def test_a_distributed_tensor_is_refused() -> None:
    script = """
import os, torch, torch.distributed as dist, fastassoc
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
a = distribute_tensor(torch.randn(8, 3), init_device_mesh("cpu", (1,)), [Shard(0)])
try:
    fastassoc.walker_visit_loss(a, torch.randn(9, 3), torch.arange(8))
except TypeError as error:
    print(error)
"""
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    # Behind what the library for processes may print.
    assert "a is a DTensor, which is not supported: pass a.to_local() with group where its rows" in output.stdout


# The plain form, the plain form with a visit term, machine code.
@pytest.mark.parametrize(("n", "m"), [(8, 8), (30, 100), (300, 1200)])
@pytest.mark.filterwarnings("ignore")
def test_compiled_autograd(loss: Callable[..., Any], n: int, m: int) -> None:
    torch._dynamo.reset()
    first = make_case(n, m, 16, 4, dtype=torch.float32)
    # Other numbers and labels through the same graph.
    for case in (first, Case(first.a * 2.0, first.b, first.labels.flip(0))):
        a, b = (x.clone().requires_grad_() for x in case[:2])
        value = loss(a, b, case.labels)
        with compiled_autograd._enable(torch.compile(backend="aot_eager")):
            value.backward()
        assert a.grad is not None
        assert b.grad is not None
        assert_equal((a.grad, b.grad), plain(loss, *case))


def test_temperatures_and_weights_of_one_element() -> None:
    case = make_case(12, 30, 5, 3)
    number = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    for option in ("temperature", "walker_weight", "visit_weight"):
        loss = fastassoc.walker_visit_loss(*case, **{option: number})
        assert loss.shape == ()
        (mine,) = torch.autograd.grad(loss, number)
        scalar = number.detach().reshape(()).requires_grad_()
        (expected,) = torch.autograd.grad(fastassoc.walker_visit_loss(*case, **{option: scalar}), scalar)
        assert torch.equal(mine, expected.reshape(1))
        whole = fastassoc.walker_visit_loss(*case, **{option: torch.tensor(2)})
        torch.testing.assert_close(whole, fastassoc.walker_visit_loss(*case, **{option: 2.0}))


def test_the_module_checks_its_options_when_it_is_made() -> None:
    with pytest.raises(ValueError, match="unknown similarity 'euclid'"):
        fastassoc.WalkerVisitLoss(similarity="euclid")


def test_a_temperature_that_training_drove_below_zero() -> None:
    temperature = torch.nn.Parameter(torch.tensor(-0.5))
    with pytest.raises(ValueError, match="learn its logarithm instead"):
        fastassoc.walker_visit_loss(torch.eye(3), torch.eye(3), torch.arange(3), temperature=temperature)


def test_forward_mode_is_refused_in_a_sentence() -> None:
    case = make_case(5, 7, 3, 2)
    with pytest.raises(RuntimeError, match="has no forward-mode derivative"):
        torch.func.hessian(lambda a: fastassoc.walker_visit_loss(a, case.b, case.labels))(case.a)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(case.a, torch.ones_like(case.a))
        with pytest.raises(RuntimeError, match="has no forward-mode derivative"):
            fastassoc.walker_visit_loss(dual, case.b, case.labels)


def test_an_empty_batch_of_problems_is_refused() -> None:
    with pytest.raises(RuntimeError, match="vmap over an empty batch"):
        torch.func.vmap(fastassoc.walker_visit_loss)(
            *(torch.zeros(0, *x.shape, dtype=x.dtype) for x in make_case(4, 5, 3, 2))
        )
