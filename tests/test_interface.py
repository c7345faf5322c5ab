"""The public function as its users meet it: statistics, dtypes, autocast, layouts, modules, and every error."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

import fastassoc
from fastassoc import reference
from fastassoc.backends import cpu
from fastassoc.backends.cpu.operations import whole
from tests.cases import Case, evaluate, make_case, relative_error

FLOAT32_STEPS = 32 * torch.finfo(torch.float32).eps


@pytest.mark.usefixtures("cpu_path")
@pytest.mark.parametrize("similarity", ["dot", "cosine", "euclidean"])
def test_statistics_are_those_of_the_specification(similarity: str) -> None:
    case = make_case(40, 90, 6, 4)
    loss, statistics = fastassoc.walker_visit_loss(
        *case, walker_weight=0.5, similarity=similarity, temperature=0.8, return_stats=True
    )
    terms = reference.walker_visit_terms(reference.similarity_matrix(case.a, case.b, similarity, 0.8), case.labels)
    for name, value in statistics._asdict().items():
        torch.testing.assert_close(value, terms[name], rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(loss, 0.5 * terms["walker"] + terms["visit"], rtol=1e-12, atol=0.0)


@pytest.mark.usefixtures("cpu_path")
@pytest.mark.parametrize("weights", [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (0, 1)])
def test_statistics_cover_terms_without_weight_and_carry_no_gradient(weights: tuple[float, float]) -> None:
    case = make_case(10, 30, 6, 3)
    a = case.a.requires_grad_()
    loss, statistics = fastassoc.walker_visit_loss(
        a, case.b, case.labels, walker_weight=weights[0], visit_weight=weights[1], return_stats=True
    )
    assert not any(value.requires_grad for value in statistics)
    expected = weights[0] * statistics.walker + weights[1] * statistics.visit
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-14, atol=0.0)
    loss.backward()
    plain = evaluate(fastassoc.walker_visit_loss, case, walker_weight=float(weights[0]), visit_weight=float(weights[1]))
    assert a.grad is not None
    assert relative_error(a.grad, plain.da) < 1e-14


def test_no_weight_at_all_still_backpropagates_zero() -> None:
    case = make_case(5, 9, 3, 2)
    result = evaluate(fastassoc.walker_visit_loss, case, walker_weight=0.0, visit_weight=0.0)
    assert all(float(x.abs().max()) == 0.0 for x in result)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16])
@pytest.mark.usefixtures("cpu_path")
def test_labels_of_any_integer_dtype(dtype: torch.dtype) -> None:
    case = make_case(30, 50, 4, 2, dtype=torch.float32)
    expected = fastassoc.walker_visit_loss(*case)
    assert torch.equal(fastassoc.walker_visit_loss(case.a, case.b, case.labels.to(dtype)), expected)


@pytest.mark.usefixtures("cpu_path")
def test_layouts_and_shared_memory() -> None:
    case = make_case(20, 50, 6, 3, dtype=torch.float32)
    plain = evaluate(fastassoc.walker_visit_loss, case)
    strided = Case(case.a.t().contiguous().t(), torch.cat([case.b, case.b], 1)[:, :6], case.labels)
    for mine, expected in zip(evaluate(fastassoc.walker_visit_loss, strided), plain, strict=True):
        assert relative_error(mine, expected) < FLOAT32_STEPS
    row = torch.randn(1, 6, requires_grad=True)
    expanded = fastassoc.walker_visit_loss(row.expand(20, 6), case.b, case.labels)
    expanded.backward()
    assert row.grad is not None
    repeated = row.detach().repeat(20, 1)
    summed = evaluate(fastassoc.walker_visit_loss, Case(repeated, case.b, case.labels)).da.sum(0, keepdim=True)
    assert float((row.grad - summed).abs().max()) < 1e-6


@pytest.mark.usefixtures("cpu_path")
def test_inputs_stay_as_they_are() -> None:
    case = make_case(20, 50, 6, 3, dtype=torch.float32)
    before = Case(*(x.clone() for x in case))
    a, b = case.a.requires_grad_(), case.b.requires_grad_()
    fastassoc.walker_visit_loss(a, b, case.labels).backward()
    assert all(torch.equal(x, y) for x, y in zip(case, before, strict=True))


@pytest.mark.usefixtures("cpu_path", "poisoned_memory")
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_every_entry_of_fresh_memory_is_written(similarity: str, weights: tuple[float, float]) -> None:
    case = make_case(33, 71, 5, 4)
    options: dict[str, Any] = {
        "similarity": similarity,
        "walker_weight": weights[0],
        "visit_weight": weights[1],
        "ignore_index": 2,
    }
    assert bool(torch.empty(3).isnan().all()), "the poison does not work"
    mine = evaluate(fastassoc.walker_visit_loss, case, **options)
    exact = evaluate(reference.walker_visit_loss, case, **options)
    assert all(relative_error(x, y) < 1e-11 for x, y in zip(mine, exact, strict=True))


@pytest.mark.usefixtures("cpu_path")
def test_autocast_changes_nothing_and_mixes_dtypes() -> None:
    case = make_case(20, 50, 6, 3, dtype=torch.float32)
    plain = evaluate(fastassoc.walker_visit_loss, case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = evaluate(fastassoc.walker_visit_loss, case)
        mixed = fastassoc.walker_visit_loss(case.a, case.b.bfloat16(), case.labels)
    assert all(torch.equal(x, y) for x, y in zip(inside, plain, strict=True))
    assert torch.equal(mixed, fastassoc.walker_visit_loss(case.a, case.b.bfloat16().float(), case.labels))


@pytest.mark.usefixtures("cpu_path")
@pytest.mark.parametrize("similarity", ["dot", "cosine", "euclidean"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_learned_temperature_of_embeddings_in_any_dtype(dtype: torch.dtype, similarity: str, autocast: bool) -> None:
    case = make_case(20, 30, 6, 3, dtype=dtype)
    results = []
    for loss, exact in ((fastassoc.walker_visit_loss, False), (reference.walker_visit_loss, True)):
        a, b = (x.detach().to(torch.float64 if exact else dtype).requires_grad_() for x in case[:2])
        temperature = torch.tensor(1.7, dtype=torch.float64 if exact else torch.float32, requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast and not exact):
            value = loss(a, b, case.labels, similarity=similarity, temperature=temperature)
        gradients = torch.autograd.grad(value, (a, b, temperature))
        assert [x.dtype for x in gradients] == [a.dtype, b.dtype, temperature.dtype]
        results.append([value.detach().double(), *(x.double() for x in gradients)])
    for mine, true in zip(*results, strict=True):
        assert relative_error(mine, true) < 2 * torch.finfo(dtype).eps + FLOAT32_STEPS


@pytest.mark.usefixtures("cpu_path")
def test_labels_that_change_in_place() -> None:
    case = make_case(16, 30, 6, 2, dtype=torch.float32)
    fastassoc.walker_visit_loss(*case)
    case.labels.copy_(torch.arange(16) // 4)
    expected = reference.walker_visit_loss(*case)
    torch.testing.assert_close(fastassoc.walker_visit_loss(*case), expected)


@pytest.mark.usefixtures("cpu_path")
def test_labels_of_other_dtypes_are_other_labels() -> None:
    """Layouts of labels are remembered: as bytes, int8 [0, 0, 0, 1, ...] would be an int64 2^24."""
    case = make_case(16, 30, 6, 2, dtype=torch.float32)
    expected = fastassoc.walker_visit_loss(*case)
    for dtype in (torch.int8, torch.bool, torch.int32, torch.int64):
        assert torch.equal(fastassoc.walker_visit_loss(case.a, case.b, case.labels.to(dtype)), expected)
    pairs = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([2**32])
    for labels in (*pairs, *pairs):
        mine = fastassoc.walker_visit_loss(case.a[: len(labels)], case.b, labels)
        true = reference.walker_visit_loss(case.a[: len(labels)].double(), case.b.double(), labels)
        assert relative_error(mine.double(), true) < FLOAT32_STEPS


@pytest.mark.usefixtures("cpu_path")
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("fake_labels", [False, True])
def test_fake_tensors_leave_nothing_behind(fake_labels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (cpu, whole):
        monkeypatch.setattr(module, "_latest", None)
    case = make_case(17, 30, 6, 3, dtype=torch.float32)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        a, b = torch.randn(17, 6), torch.randn(30, 6)
        with suppress(RuntimeError):
            fastassoc.walker_visit_loss(a, b, mode.from_tensor(case.labels) if fake_labels else case.labels)
    exact = evaluate(reference.walker_visit_loss, case, torch.float64)
    for mine, true in zip(evaluate(fastassoc.walker_visit_loss, case), exact, strict=True):
        assert relative_error(mine, true) < FLOAT32_STEPS


class _Labelled(torch.Tensor):
    pass


@pytest.mark.usefixtures("cpu_path")
def test_subclasses_of_tensor_leave_nothing_behind() -> None:
    case = make_case(18, 30, 6, 3, dtype=torch.float32)
    expected = fastassoc.walker_visit_loss(case.a, case.b, case.labels)
    shifted = case.labels + 1
    loss = fastassoc.walker_visit_loss(case.a, case.b, shifted.as_subclass(_Labelled))
    # As PyTorch's own operations have it.
    assert type(loss) is _Labelled
    assert torch.equal(loss, expected)
    assert type(fastassoc.walker_visit_loss(case.a, case.b, shifted)) is torch.Tensor


class _Basic(torch.Tensor):
    """Wraps a tensor, and knows no operators that torch puts together from others."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> _Basic:
        wrapper: _Basic = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)  # type: ignore[attr-defined]
        wrapper.inner = inner
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            raise NotImplementedError(str(func))
        result = func(*tree_map_only(cls, _inner, args), **tree_map_only(cls, _inner, kwargs or {}))
        return tree_map_only(torch.Tensor, cls, result)


def _inner(wrapper: _Basic) -> torch.Tensor:
    return wrapper.inner


def test_subclasses_of_tensor_meet_basic_operators_only() -> None:
    case = make_case(12, 20, 6, 3, dtype=torch.float32)
    a, b = (_Basic(x).requires_grad_() for x in (case.a, case.b))
    loss = fastassoc.walker_visit_loss(a, b, case.labels)
    loss.backward()
    expected = evaluate(fastassoc.walker_visit_loss, case)
    assert isinstance(a.grad, _Basic)
    assert isinstance(b.grad, _Basic)
    for x, y in zip((loss, a.grad, b.grad), expected, strict=True):
        assert torch.equal(_inner(x).double(), y)


@pytest.mark.usefixtures("cpu_path")
def test_without_gradients_the_value_is_the_same() -> None:
    case = make_case(20, 50, 6, 3, dtype=torch.float32)
    a = case.a.requires_grad_()
    tracked = fastassoc.walker_visit_loss(a, case.b, case.labels)
    with torch.no_grad():
        untracked = fastassoc.walker_visit_loss(a, case.b, case.labels)
    assert tracked.requires_grad
    assert not untracked.requires_grad
    assert torch.equal(tracked.detach(), untracked)


@pytest.mark.usefixtures("cpu_path")
def test_zero_rows_have_cosine_zero_and_a_finite_gradient() -> None:
    case = make_case(6, 20, 4, 2)
    case.a[2] = 0.0
    case.b[5] = 0.0
    result = evaluate(fastassoc.walker_visit_loss, case, similarity="cosine")
    assert all(bool(x.isfinite().all()) for x in result)


def test_the_default_device_does_not_matter() -> None:
    case = make_case(100, 300, 6, 3, dtype=torch.float32)
    for rows in (10, 100):
        small = Case(case.a[:rows], case.b, case.labels[:rows])
        expected = evaluate(fastassoc.walker_visit_loss, small)
        with torch.device("meta"):
            result = evaluate(fastassoc.walker_visit_loss, small)
        assert all(torch.equal(x, y) for x, y in zip(result, expected, strict=True))


def test_a_weight_of_another_dtype_keeps_the_dtype_of_the_loss() -> None:
    case = make_case(10, 30, 6, 3, dtype=torch.float32)
    loss = fastassoc.walker_visit_loss(*case, visit_weight=torch.tensor(2.0, dtype=torch.float64))
    assert loss.dtype == torch.float32


def test_module_passes_every_option_on() -> None:
    case = make_case(20, 50, 6, 3)
    options: dict[str, Any] = {
        "walker_weight": 0.4,
        "visit_weight": 1.7,
        "similarity": "euclidean",
        "temperature": 2.0,
        "eps": 1e-3,
        "ignore_index": 1,
        "return_stats": True,
        "backend": "cpu",
    }
    module = fastassoc.WalkerVisitLoss(**options)
    loss, statistics = module(a=case.a, b=case.b, labels=case.labels)
    expected, expected_statistics = fastassoc.walker_visit_loss(*case, **options)
    assert torch.equal(loss, expected)
    assert all(torch.equal(x, y) for x, y in zip(statistics, expected_statistics, strict=True))
    assert "similarity='euclidean'" in repr(module)


def test_module_learns_its_parameters() -> None:
    case = make_case(20, 50, 6, 3)
    module = fastassoc.WalkerVisitLoss(temperature=torch.nn.Parameter(torch.tensor(0.7)))
    module(*case).backward()
    (temperature,) = module.parameters()
    assert temperature.grad is not None
    assert float(temperature.grad) != 0.0


def test_an_ignored_label_may_be_of_numpy() -> None:
    case = make_case(20, 50, 6, 3)
    found = fastassoc.walker_visit_loss(*case, ignore_index=np.int64(1))  # type: ignore[arg-type]
    assert torch.equal(found, fastassoc.walker_visit_loss(*case, ignore_index=1))
    # A module makes it an int, which torch.compile takes.
    assert type(fastassoc.WalkerVisitLoss(ignore_index=np.int64(1)).ignore_index) is int  # type: ignore[arg-type]


A, B, LABELS = torch.zeros(4, 3), torch.zeros(5, 3), torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize("name", ["walker_weight", "visit_weight", "temperature", "eps", "ignore_index"])
def test_options_are_remembered_with_their_types(name: str) -> None:
    one = 1 if name == "ignore_index" else 1.0
    fastassoc.walker_visit_loss(A, B, LABELS, **{name: one})
    with pytest.raises(TypeError, match=name):
        fastassoc.walker_visit_loss(A, B, LABELS, **{name: True})


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (([[1.0]], B, LABELS), {}, TypeError, ["a", "torch.Tensor", "list"]),
        ((A[0], B, LABELS), {}, ValueError, ["a", "2 dimensions", "(3,)"]),
        ((A, B[None], LABELS), {}, ValueError, ["b", "2 dimensions", "(1, 5, 3)"]),
        ((A, B[:, :2], LABELS), {}, ValueError, ["embedding size", "3", "2"]),
        ((A.long(), B, LABELS), {}, TypeError, ["a", "float32", "torch.int64"]),
        ((A, B.double(), LABELS), {}, TypeError, ["same dtype", "torch.float32", "torch.float64"]),
        ((A[:0], B, LABELS[:0]), {}, ValueError, ["a", "empty", "(0, 3)"]),
        ((A, B[:0], LABELS), {}, ValueError, ["b", "empty", "(0, 3)"]),
        ((A[:, :0], B[:, :0], LABELS), {}, ValueError, ["a", "empty", "(4, 0)"]),
        ((A, B.to("meta"), LABELS), {}, RuntimeError, ["same device", "cpu", "meta"]),
        ((A, B, LABELS.float()), {}, TypeError, ["labels", "integer or bool", "torch.float32"]),
        ((A, B, LABELS[:, None]), {}, ValueError, ["labels", "1 dimension", "(4, 1)"]),
        ((A, B, LABELS[:3]), {}, ValueError, ["labels", "3 labels", "4 rows"]),
        ((A, B, [0, 0, 1, 1]), {}, TypeError, ["labels", "torch.Tensor", "list"]),
        ((A, B, LABELS.to("meta")), {}, RuntimeError, ["labels", "cpu", "meta"]),
        ((A, B, LABELS), {"similarity": "euclid"}, ValueError, ["similarity", "'euclid'", "'euclidean'"]),
        ((A, B, LABELS), {"backend": "cuda"}, ValueError, ["backend", "'cuda'", "'triton'"]),
        ((A, B, LABELS), {"backend": "triton"}, RuntimeError, ["triton", "cannot run"]),
        ((A.to("meta"), B.to("meta"), LABELS), {"backend": "cpu"}, RuntimeError, ["'cpu'", "meta", "CPU only"]),
        ((A, B, LABELS), {"temperature": 0.0}, ValueError, ["temperature", "greater than 0", "0.0"]),
        ((A, B, LABELS), {"temperature": -1}, ValueError, ["temperature", "greater than 0", "-1"]),
        ((A, B, LABELS), {"temperature": math.inf}, ValueError, ["temperature", "finite", "inf"]),
        ((A, B, LABELS), {"temperature": torch.ones(2)}, TypeError, ["temperature", "one element", "(2,)"]),
        ((A, B, LABELS), {"eps": -1e-8}, ValueError, ["eps", "between 0 and 1", "-1e-08"]),
        ((A, B, LABELS), {"eps": 1e300}, ValueError, ["eps", "between 0 and 1", "1e+300"]),
        ((A, B, LABELS), {"eps": math.nan}, ValueError, ["eps", "finite", "nan"]),
        ((A, B, LABELS), {"eps": torch.tensor(1e-8)}, TypeError, ["eps", "float", "Tensor"]),
        ((A, B, LABELS), {"walker_weight": math.nan}, ValueError, ["walker_weight", "finite", "nan"]),
        ((A, B, LABELS), {"visit_weight": torch.tensor(math.nan)}, ValueError, ["visit_weight", "finite", "nan"]),
        ((A, B, LABELS), {"visit_weight": torch.tensor(True)}, TypeError, ["visit_weight", "real", "bool"]),
        ((A, B, LABELS), {"visit_weight": "1"}, TypeError, ["visit_weight", "number", "str"]),
        ((A, B, LABELS), {"ignore_index": 1.0}, TypeError, ["ignore_index", "int", "float"]),
        ((A, B, LABELS), {"ignore_index": 2**70}, ValueError, ["ignore_index", "int64", "1180591620717411303424"]),
        ((A, B, LABELS), {"eps": "1"}, TypeError, ["eps", "float", "str"]),
        ((A, B, LABELS * 0), {"ignore_index": 0}, ValueError, ["ignore_index=0", "at least one row"]),
    ],
)
def test_bad_input_is_named(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error) as raised:
        fastassoc.walker_visit_loss(*arguments, **options)
    message = str(raised.value)
    assert all(word in message for word in words), message
