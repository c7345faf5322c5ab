"""Random batches against float64: what judges them finds planted faults, and machine code stays within its inputs."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastassoc
from benchmarks.fuzz import __main__ as command
from benchmarks.fuzz import campaign, cases, ways
from benchmarks.fuzz.campaign import Limits
from benchmarks.fuzz.cases import Case, Weight, describe
from benchmarks.fuzz.inputs import make_inputs
from benchmarks.fuzz.verdict import Outcome, judge
from fastassoc import computation, terms
from fastassoc.backends import cpu
from fastassoc.backends.cpu.native import machine

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("one_thread")

# A batch that every way takes and passes: eager code's error, and with it what is allowed, is then a few roundings.
PLAIN = dataclasses.replace(
    describe(0, 0),
    way="tiles",
    kind="ordinary",
    n=24,
    m=33,
    d=8,
    dtype="float64",
    similarity="dot",
    temperature=Weight(1.0),
    walker_weight=Weight(1.0),
    visit_weight=Weight(1.0),
    eps=1e-8,
    ignored="nothing",
    statistics=True,
    needs="both",
    upstream=1.0,
    layout_a="contiguous",
    layout_b="contiguous",
    label_dtype="int64",
    classes="balanced",
    class_count=4,
    deviation=1.0,
    poisoned=False,
    threads=1,
)
FLOAT32 = dataclasses.replace(PLAIN, dtype="float32")


class Spoiled(torch.autograd.Function):
    """The identity, whose gradient has one entry off by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.clone()
        largest = gradient.abs().argmax()
        gradient.view(-1)[largest] *= ctx.factor
        return gradient, None


def loss_of(a: Tensor, b: Tensor, labels: Tensor, **options: Any) -> Any:
    """What is judged, and what faults are planted in."""
    return fastassoc.walker_visit_loss(a, b, labels, **options)


def spoil_gradient(factor: float, name: str) -> Any:
    def faulty(a: Tensor, b: Tensor, labels: Tensor, **options: Any) -> Any:
        a, b = (Spoiled.apply(x, factor) if name == own else x for own, x in (("a", a), ("b", b)))
        return loss_of(a, b, labels, **options)

    return faulty


def spoil_result(change: Any) -> Any:
    def faulty(a: Tensor, b: Tensor, labels: Tensor, **options: Any) -> Any:
        loss, statistics = loss_of(a, b, labels, **options)
        return change(loss, statistics)

    return faulty


def writes_to_b(a: Tensor, b: Tensor, labels: Tensor, **options: Any) -> Any:
    results = loss_of(a, b, labels, **options)
    b.data[-1, -1] = 0.0
    return results


def unneeded_gradient(a: Tensor, b: Tensor, labels: Tensor, **options: Any) -> Any:
    return loss_of(a, b.requires_grad_(), labels, **options)


@pytest.mark.parametrize("case", [PLAIN, FLOAT32], ids=["float64", "float32"])
@pytest.mark.parametrize("fault", [0.0, 1e-4, -1e-4])
@pytest.mark.parametrize("name", ["a", "b"])
def test_one_entry_of_a_gradient(case: Case, fault: float, name: str) -> None:
    outcome = judge(case, spoil_gradient(1.0 + fault, name))
    assert [x.what.partition(",")[0] for x in outcome.problems] == ([f"d{name}"] if fault else []), outcome.line
    assert (outcome.ratio > 1.0) == bool(fault)


calls = itertools.count()


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (spoil_result(lambda loss, x: (loss * (1 + 1e-5), x)), "loss: error"),
        (spoil_result(lambda loss, x: (loss + 0.0 * loss.new_tensor(float("nan")), x)), "loss is not finite"),
        (spoil_result(lambda loss, x: (loss + next(calls) * 1e-15, x)), "loss is not the same to the bit"),
        (spoil_result(lambda loss, x: (loss.float(), x)), "loss is torch.float32"),
        (spoil_result(lambda loss, x: (loss, x._replace(walker=x.walker * (1 + 1e-5)))), "walker: error"),
        (spoil_result(lambda loss, x: (loss, x._replace(visit_probability=x.visit_probability[:-1]))), "visit_prob"),
        (writes_to_b, "an input was written to"),
    ],
    ids=["scaled", "NaN", "undetermined", "dtype", "statistic", "shape", "written"],
)
def test_a_planted_fault_is_found(fault: Any, expected: str) -> None:
    outcome = judge(PLAIN, fault)
    assert any(str(x).startswith(expected) for x in outcome.problems), outcome.line
    assert judge(PLAIN, loss_of).problems == ()


def test_gradients_that_are_there_or_not() -> None:
    only_a = dataclasses.replace(PLAIN, needs="a")
    assert judge(only_a, loss_of).problems == ()
    assert [x.what for x in judge(only_a, unneeded_gradient).problems] == ["db is there"]
    missing = judge(PLAIN, lambda a, b, labels, **options: loss_of(a, b.detach(), labels, **options))
    assert [x.what for x in missing.problems] == ["db is None"]


def test_an_exception_is_a_failure() -> None:
    def raising(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no way")

    assert judge(PLAIN, raising).line.endswith(": raised RuntimeError: no way")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_gradient_that_is_rounded_twice(dtype: str) -> None:
    case = dataclasses.replace(PLAIN, dtype=dtype)
    assert judge(case, loss_of).problems == ()

    def rounded_twice(a: Tensor, b: Tensor, labels: Tensor, **options: Any) -> Any:
        # Not a factor of two: each rounds.
        return loss_of(a * 1.37 / 1.37, b, labels, **options)

    assert "da" in [x.what.partition(",")[0] for x in judge(case, rounded_twice).problems]


def test_learned_numbers_are_judged() -> None:
    learned = {"temperature": Weight(0.7, "float32"), "visit_weight": Weight(0.5, "float64")}
    case = dataclasses.replace(PLAIN, **learned)
    assert judge(case, loss_of).problems == ()

    def wrong(a: Tensor, b: Tensor, labels: Tensor, **options: Any) -> Any:
        options["visit_weight"] = Spoiled.apply(options["visit_weight"], 1.0 + 1e-6)
        options["temperature"] = Spoiled.apply(options["temperature"], 1.0 + 1e-6)
        return loss_of(a, b, labels, **options)

    assert {x.what for x in judge(case, wrong).problems} == {"dtemperature", "dvisit_weight"}


ORIGINAL = {
    (owner, name): getattr(owner, name)
    for owner, names in (
        (computation, ("_digits_needed", "_NEAR", "_ROUNDINGS", "_LARGEST")),
        (cpu, ("_UPSTREAM",)),
        (terms, ("_unit_rows",)),
    )
    for name in names
}
"""What faults are planted in."""


def plant(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """A fault of the library itself; all that this file knows of what it is made of."""
    if fault == "quick products":
        monkeypatch.setattr(computation, "_digits_needed", lambda form: 0.0)
    elif fault == "lax bounds":
        for name in ("_NEAR", "_ROUNDINGS", "_LARGEST"):
            monkeypatch.setattr(computation, name, 10.0 * getattr(computation, name))
    elif fault == "no rescaling":
        monkeypatch.setattr(cpu, "_UPSTREAM", 2.0**200)
    elif fault == "rounded unit rows":
        unit_rows = terms._unit_rows
        monkeypatch.setattr(terms, "_unit_rows", lambda x, dtype: unit_rows(x, dtype).to(x.dtype).to(dtype))
    else:
        raise ValueError(fault)


@pytest.mark.parametrize(
    ("fault", "only", "seed"),
    [
        ("quick products", "clusters", 3),
        ("lax bounds", "clusters", 5),
        ("no rescaling", "faint", 3),
        ("rounded unit rows", "cosine", 3),
    ],
)
def test_a_fault_of_the_library_is_found(fault: str, only: str, seed: int) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        plant(monkeypatch, fault)
        for outcome in campaign.outcomes(Limits(seed, 1.0, cases=300, only=only), loss_of):
            if outcome.problems:
                with pytest.MonkeyPatch.context() as without:
                    for name, value in ORIGINAL.items():
                        without.setattr(*name, value)
                    if not judge(outcome.case, loss_of).problems:
                        return
    pytest.fail("not found")


def test_labels_are_told_apart_by_python() -> None:
    # 2^64 - 1 is -1 to a conversion to int64, and no row has the label -1.
    for number in itertools.count():
        case = dataclasses.replace(PLAIN, seed=3, number=number, label_dtype="uint64", ignored="absent")
        inputs = make_inputs(case)
        if 2**64 - 1 in inputs.labels.tolist():
            break
    assert inputs.ignore_index == -1

    def converting(a: Tensor, b: Tensor, labels: Tensor, **options: Any) -> Any:
        return loss_of(a, b, labels.to(torch.int64), **options)

    assert judge(case, converting).problems != ()


def test_a_line_repeats_its_case(capsys: pytest.CaptureFixture[str]) -> None:
    fault = spoil_gradient(1.0 + 1e-3, "a")
    (failed, *_) = (x for x in campaign.outcomes(Limits(7, 1.0, cases=60), _forgiving(fault)) if x.problems)
    assert isinstance(failed, Outcome)
    arguments = failed.line.partition("#")[0].split()
    assert arguments[:3] == ["python", "-m", "benchmarks.fuzz"]
    assert command.main(arguments[3:], _forgiving(fault)) == 1
    printed, line = capsys.readouterr().out.splitlines()
    assert printed == str(failed.case)
    assert line == failed.line


def _forgiving(loss: Any) -> Any:
    """Statistics or not, ``a`` with a gradient or not."""

    def called(a: Tensor, b: Tensor, labels: Tensor, **options: Any) -> Any:
        return (loss if a.requires_grad else loss_of)(a, b, labels, **options)

    return called


def test_the_command_counts_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    def raising(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no way")

    assert command.main(["--cases", "5", "--seed", "4", "--only", "cosine"], raising) == 1
    output = capsys.readouterr().out
    assert output.count("--case 4:") == 5
    assert "5 batches, 5 failures" in output


def test_descriptions_are_a_function_of_seed_and_number() -> None:
    assert [describe(2, x) for x in range(50)] == [describe(2, x) for x in reversed(range(50))][::-1]
    assert describe(2, 3) != describe(3, 2)
    for number in range(20):
        first, second = (make_inputs(describe(5, number)) for _ in range(2))
        assert all(torch.equal(x, y) for x, y in zip(first.content(), second.content(), strict=True))


def test_descriptions_cover_every_option() -> None:
    drawn = [describe(0, number) for number in range(2000)]
    for name, values, least in (
        ("way", cases.CPU_WAYS, 100),
        ("kind", cases.KINDS, 100),
        ("similarity", cases.SIMILARITIES, 200),
        ("dtype", cases.DTYPES, 100),
        ("layout_a", cases.LAYOUTS, 50),
        ("layout_b", cases.LAYOUTS, 50),
        ("label_dtype", cases.LABEL_DTYPES, 20),
        ("classes", cases.CLASSES, 100),
        ("needs", cases.NEEDS, 50),
        ("ignored", cases.IGNORED, 100),
        ("eps", cases.EPS, 20),
        ("statistics", (True, False), 100),
        ("sorted_labels", (True, False), 100),
        ("poisoned", (True, False), 100),
        ("threads", (1, 2), 50),
    ):
        counts = Counter(getattr(case, name) for case in drawn)
        assert min(counts[value] for value in values) >= least, (name, counts)
    for name in ("temperature", "walker_weight", "visit_weight"):
        weights = [getattr(case, name) for case in drawn]
        assert sum(x.learned is not None for x in weights) > 100
        if name != "temperature":
            assert sum(x.skips for x in weights) > 50
            assert sum(x.learned is not None and x.value == 0.0 for x in weights) > 5
    assert all(case.temperature.value > 0.0 for case in drawn)
    sizes = [abs(case.upstream) for case in drawn]
    assert min(sizes) < 1e-28
    assert max(sizes) > 1e18
    for size in (1, 2, 3, 15, 17, 63, 65, 127, 129, 257):
        assert any(case.n == size for case in drawn), size
        assert any(case.m == size for case in drawn), size
    products = [case.n * case.m for case in drawn]
    for border in set(cases.SCORES):
        assert any(x < border <= x + case.n for x, case in zip(products, drawn, strict=True))
        assert any(border <= x < border + case.n for x, case in zip(products, drawn, strict=True))
    assert max(products) >= 2**20
    assert max(case.d for case in drawn) == 300
    tiny = [describe(0, number, interpreted=True) for number in range(200)]
    assert {case.way for case in tiny} == {"triton"}
    assert max(case.n * case.m for case in tiny) <= cases.INTERPRETED_SCORES


@pytest.mark.parametrize("way", cases.CPU_WAYS)
def test_every_way_can_be_taken(way: str) -> None:
    reason = ways.missing(way)
    if reason == "machine code cannot run here":
        pytest.skip(reason)
    assert reason is None
    case = dataclasses.replace(FLOAT32, way=way, n=40, m=64)
    outcome = judge(case, loss_of)
    assert outcome.machine_code == way.startswith(("auto", "native"))


def test_a_slice_of_the_campaign() -> None:
    failed = [x.line for x in campaign.outcomes(Limits(1, 10.0, cases=300), loss_of) if x.problems]
    assert failed == [], "\n".join(["", *failed])


# Inputs that end where a page begins that cannot be read, or begin where one ends; a child, which a fault kills.
GUARDED = """
import ctypes, itertools, mmap, sys
import torch, fastassoc
from benchmarks.fuzz import ways

PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
kept = []

def guarded(x, at_end):
    size = 4 * x.numel()
    pages = -(-size // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    kept.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for guard in (start, start + (pages + 1) * PAGE):
        assert libc.mprotect(guard, PAGE, 0) == 0
    place = (pages + 1) * PAGE - size if at_end else PAGE
    y = torch.frombuffer(memory, dtype=torch.float32, count=x.numel(), offset=place).view(x.shape).copy_(x)
    return y

if sys.argv[1] == "beyond":
    x = guarded(torch.zeros(3, 5), sys.argv[2] == "end")
    place = x.data_ptr() + (60 if sys.argv[2] == "end" else -4)
    print(ctypes.c_float.from_address(place - 60 if sys.argv[2] == "end" else place + 4).value, flush=True)
    ctypes.c_float.from_address(place).value
    sys.exit("the guard does not work")

from fastassoc import computation
form = computation._form
at_end = sys.argv[2] == "end"

def guarded_form(*arguments):
    # What squared distances become is guarded, too.
    x = form(*arguments)
    if x.bias_a is None:
        return x
    return x._replace(**{name: guarded(getattr(x, name), at_end) for name in ("a", "b", "bias_a", "bias_b")})

computation._form = guarded_form
torch.set_num_threads(2)
for (n, m, d), similarity in itertools.product(
    ((3, 16, 1), (7, 19, 3), (16, 17, 16), (33, 63, 31), (65, 131, 33), (97, 300, 128), (130, 257, 129)),
    ("dot", "euclidean"),
):
    generator = torch.Generator().manual_seed(n)
    a, b = (torch.randn(rows, d, generator=generator) * 0.3 / d**0.25 for rows in (n, m))
    a, b = (guarded(x, at_end).requires_grad_() for x in (a, b))
    labels = torch.arange(n) % 4
    print(f"{sys.argv[1]}: {n} x {m} x {d}, {similarity}", flush=True)
    with ways.taking(sys.argv[1]), ways.counting_machine_code() as given:
        fastassoc.walker_visit_loss(a, b, labels, similarity=similarity).backward()
        assert given, "not by machine code"
    assert a.grad.isfinite().all() and b.grad.isfinite().all()
"""


def run_guarded(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", GUARDED, *arguments], cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="protects pages by mprotect")
@pytest.mark.parametrize("where", ["begin", "end"])
def test_reading_past_the_guard_kills(where: str) -> None:
    child = run_guarded("beyond", where)
    assert child.stdout == "0.0\n", child.stderr
    assert child.returncode < 0, child.stderr


@pytest.mark.skipif(machine.machine() is None, reason="machine code cannot run here")
@pytest.mark.parametrize("way", ["native", "native narrow", "native tiles", "native shifted"])
@pytest.mark.parametrize("where", ["begin", "end"])
def test_machine_code_reads_nothing_beyond_its_inputs(way: str, where: str) -> None:
    child = run_guarded(way, where)
    last = child.stdout.splitlines()[-1:]
    assert child.returncode == 0, f"died of signal {-child.returncode} in {last}\n{child.stderr}"
