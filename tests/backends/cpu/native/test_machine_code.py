"""Machine code of our own: what it reads and writes, how work is shared, and where it gives way."""

from __future__ import annotations

import ctypes
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

import fastassoc
from benchmarks import eager
from fastassoc import reference
from fastassoc.backends.cpu import memory
from fastassoc.backends.cpu.labels import Labels
from fastassoc.backends.cpu.native import backward, buffers, machine, walk
from fastassoc.backends.protocol import Inputs
from tests.cases import assert_as_exact_as, evaluate, make_case
from tests.conftest import spy_on_gradients, take_native

pytestmark = pytest.mark.skipif(machine.machine() is None, reason="machine code cannot run here")


# Off the block's 6 rows and 64 columns, the vector's 16 and 8, the 128 terms of a step and the 96 packed rows.
SHAPES = [(1, 1, 1, 1), (7, 19, 3, 2), (16, 17, 16, 4), (65, 131, 33, 3), (97, 300, 128, 1), (130, 257, 129, 130)]


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(("n", "m", "d", "classes"), [*SHAPES, (210, 1000, 20, 40)])
@pytest.mark.parametrize(
    "options", [{}, {"similarity": "euclidean"}, {"visit_weight": 0.0}, {"walker_weight": 0.0}], ids=str
)
def test_ragged_sizes(
    monkeypatch: pytest.MonkeyPatch, n: int, m: int, d: int, classes: int, options: dict[str, object]
) -> None:
    used = spy_on_gradients(monkeypatch)
    if n < 3 and "similarity" in options:
        # The bound knows the size of the terms of dot products only; this gradient is a difference of equal ones.
        return
    # Distances far from 0 are beyond the range.
    case = make_case(n, m, d, classes, scale=0.2 if "similarity" in options else 0.5, dtype=torch.float32)
    mine = evaluate(fastassoc.walker_visit_loss, case, **options)
    # Fewer are for the other forms.
    assert bool(used) == (n >= 3 and m >= 16)
    exact = evaluate(reference.walker_visit_loss, case, torch.float64, **options)
    assert_as_exact_as(mine, evaluate(reference.walker_visit_loss, case, torch.float32, **options), exact, case)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("options", [{}, {"similarity": "euclidean"}], ids=str)
def test_nothing_is_read_or_written_beyond_what_is_there(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    guard = 1000
    allocated: list[torch.Tensor] = []

    def guarded(length: int) -> torch.Tensor:
        # NaN inside, too: what is read before it is written shows.
        block = torch.full((length + 2 * guard,), float("nan"))
        block.view(torch.int32)[:guard] = block.view(torch.int32)[guard + length :] = 0x7FC12345
        allocated.append(block)
        return block[guard : guard + length]

    monkeypatch.setattr(buffers, "large", guarded)
    monkeypatch.setattr(buffers, "floats", guarded)
    for n, m, d, count in SHAPES:
        # Distances far from 0 are for operations.
        case = make_case(n, m, d, count, scale=0.2 if options else 0.5, dtype=torch.float32)
        a, b = (guarded(x.numel()).view(x.shape).copy_(x) for x in (case.a, case.b))
        before = len(allocated)
        for x in evaluate(fastassoc.walker_visit_loss, case._replace(a=a, b=b), **options):
            assert x.isfinite().all()
        assert (len(allocated) > before) == (n > 2)
    for block in allocated:
        for zone in (block[:guard], block[-guard:]):
            assert (zone.view(torch.int32) == 0x7FC12345).all()


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embeddings_however_they_lie(dtype: torch.dtype) -> None:
    case = make_case(40, 90, 24, 4, dtype=dtype)
    expected = evaluate(fastassoc.walker_visit_loss, case)
    wide = torch.full((24, 200), float("nan"), dtype=dtype)
    wide[:, ::4][:, :40], wide[:, 1::2][:, :90] = case.a.t(), case.b.t()
    scattered = case._replace(a=wide[:, ::4][:, :40].t(), b=wide[:, 1::2][:, :90].t())
    assert torch.equal(scattered.a, case.a)
    assert torch.equal(scattered.b, case.b)
    for x, y in zip(evaluate(fastassoc.walker_visit_loss, scattered), expected, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("path", ["native", "native tiles"])
@pytest.mark.parametrize("teams", [(1, 3), (3, 1), (2, 5)])
def test_other_threads_may_run_the_backward_pass(
    monkeypatch: pytest.MonkeyPatch, path: str, teams: tuple[int, int]
) -> None:
    take_native(monkeypatch, path)
    if path == "native tiles":
        # Some tiles kept, some not.
        monkeypatch.setattr(walk, "_WORKSPACE_BYTES", 2**17)
    threads = torch.get_num_threads()
    case = make_case(64, 500, 16, 4, dtype=torch.float32)
    a, b = case.a.clone().requires_grad_(), case.b.clone().requires_grad_()
    try:
        torch.set_num_threads(teams[0])
        loss = fastassoc.walker_visit_loss(a, b, case.labels)
        torch.set_num_threads(teams[1])
        da, db = torch.autograd.grad(loss, (a, b))
    finally:
        torch.set_num_threads(threads)
    exact_a, exact_b = case.a.double().requires_grad_(), case.b.double().requires_grad_()
    exact = torch.autograd.grad(reference.walker_visit_loss(exact_a, exact_b, case.labels), (exact_a, exact_b))
    for mine, right in zip((da, db), exact, strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=1e-4, atol=1e-5 * right.abs().max().item())


def test_parts_do_not_depend_on_the_threads_there_are() -> None:
    """A team may be smaller than was asked for; each thread then takes several parts."""
    own = machine.machine()
    assert own is not None
    sums, factors = torch.rand(5, 16, dtype=torch.float64), torch.zeros(16)
    program = machine.Program(own, parts=5)
    program.add("row_factors", 13, 16, sums.data_ptr(), factors.data_ptr())
    program.run()
    expected = sums.sum(0).reciprocal().float()
    expected[13:] = 0.0
    torch.testing.assert_close(factors, expected)
    # Five parts, and this thread alone.
    factors.zero_()
    block = (ctypes.c_int64 * 11)(
        own.threads, 1, own.addresses["row_factors"], 0, own.thread, own.threads, 5, 13, 16, sums.data_ptr(),
        factors.data_ptr(),
    )  # fmt: skip
    block[3] = ctypes.addressof(block) + 32
    own.sequence(block)
    torch.testing.assert_close(factors, expected)


def test_classes_of_wide_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of large classes are taken for more columns at once, with the same results."""
    take_native(monkeypatch)
    labels = torch.cat([torch.full((count,), number) for number, count in enumerate((300, 270, 90, 40, 1, 1))])
    case = make_case(702, 500, 20, 1, scale=0.4, dtype=torch.float32)._replace(labels=labels)
    mine = evaluate(fastassoc.walker_visit_loss, case)
    monkeypatch.setattr(backward, "_LARGE_ROWS", 10**9)
    for x, y in zip(mine, evaluate(fastassoc.walker_visit_loss, case), strict=True):
        assert torch.equal(x, y)
    exact = evaluate(reference.walker_visit_loss, case, torch.float64)
    assert_as_exact_as(mine, evaluate(eager.walker_visit_loss, case), exact, case)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("what", ["nothing", "logits", "overflow", "nan", "inf", "eps", "float64", "subclass"])
def test_gives_way(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Where the form does not hold, the loss is that of the other ways."""
    used = spy_on_gradients(monkeypatch)
    case = make_case(30, 50, 8, 3, dtype=torch.float64 if what == "float64" else torch.float32)
    a, b = case.a, case.b
    if what in ("logits", "overflow"):
        a = a * (30.0 if what == "logits" else 300.0)
    elif what in ("nan", "inf"):
        b[7, 3] = float(what)
    elif what == "subclass":
        b = b.as_subclass(type("Own", (torch.Tensor,), {}))
    a.requires_grad_()
    eps = 0.0 if what == "eps" else 1e-8
    loss = fastassoc.walker_visit_loss(a, b, case.labels, eps=eps)
    loss.backward()
    assert bool(used) == (what == "nothing")
    if what in ("nan", "inf"):
        assert loss.isnan()
    else:
        exact = reference.walker_visit_loss(a.detach().double(), b.double(), case.labels, eps=eps)
        # A subclass gives one of its own.
        mine, right = (x.detach().double().as_subclass(torch.Tensor) for x in (loss, exact))
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=0)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("options", [{}, {"similarity": "euclidean"}], ids=str)
def test_any_subset_of_inputs_and_a_second_backward_pass(options: dict[str, str]) -> None:
    case = make_case(40, 90, 9, 4, scale=0.3, dtype=torch.float32)
    expected = evaluate(fastassoc.walker_visit_loss, case, **options)
    for wanted in ("a", "b", "ab"):
        a, b = (x.clone().requires_grad_(name in wanted) for name, x in (("a", case.a), ("b", case.b)))
        inputs = [x for x in (a, b) if x.requires_grad]
        loss = fastassoc.walker_visit_loss(a, b, case.labels, **options)  # type: ignore[call-overload]
        first = torch.autograd.grad(loss, inputs, retain_graph=True)
        second = torch.autograd.grad(loss, inputs)
        right = [x for name, x in (("a", expected.da), ("b", expected.db)) if name in wanted]
        for x, y, z in zip(first, second, right, strict=True):
            assert torch.equal(x, y)
            assert torch.equal(x.double(), z)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("power", [-30, 30])
def test_powers_of_two_are_factors(dtype: torch.dtype, power: int) -> None:
    case = make_case(40, 90, 24, 4, dtype=dtype)
    plain = evaluate(fastassoc.walker_visit_loss, case)
    factor = 2.0**power
    scaled = evaluate(fastassoc.walker_visit_loss, case, walker_weight=factor, visit_weight=factor)
    for x, y in zip(plain, scaled, strict=True):
        assert torch.equal(x * factor, y)


def test_a_row_of_the_largest_class_can_be_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    take_native(monkeypatch)
    monkeypatch.setattr(walk, "_PACKED", 16)
    monkeypatch.setattr(walk, "DEPTH_STEP", 1)
    monkeypatch.setattr(walk, "PACKED_ROWS", 1)
    labels = Labels(np.zeros(700, np.int64), torch.float32, 3, None)
    a, b = torch.zeros(700, 4), torch.zeros(3, 4)
    inputs = Inputs(a, b, None, None, labels, 1.0, 1e-8, walker=True, visit=True, dtype=torch.float32)
    own = machine.machine()
    assert own is not None
    assert walk.Walk(own, inputs, True).packed_row >= 700


@pytest.mark.parametrize("what", ["negative", "zero"])
def test_operations_that_are_still_to_be_done(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """A tensor's memory may hold the negative of its numbers, or nothing at all."""
    take_native(monkeypatch)
    case = make_case(40, 50, 8, 4, dtype=torch.float32)
    lazy = torch._neg_view(-case.b) if what == "negative" else torch._efficientzerotensor((50, 8))
    expected = fastassoc.walker_visit_loss(case.a, lazy + 0.0, case.labels)
    torch.testing.assert_close(fastassoc.walker_visit_loss(case.a, lazy, case.labels), expected)


@pytest.mark.parametrize(("n", "m", "kept"), [(4096, 16384, True), (1, 20_000_000, False), (256, 260_000, True)])
def test_what_is_kept_is_bounded(n: int, m: int, kept: bool) -> None:
    sizes = walk._sizes(n, m, 2, 2, 16, 6, 64)
    assert (sizes.keep == m) == kept
    assert sizes.keep * sizes.row * 4 <= 272 * 2**20


def test_long_sums_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows and many columns: rho is the difference of sums over all columns that nearly cancel."""
    take_native(monkeypatch)
    case = make_case(10, 60_000, 16, 5, scale=0.5, dtype=torch.float32)
    mine = evaluate(fastassoc.walker_visit_loss, case)
    exact = evaluate(reference.walker_visit_loss, case, torch.float64)
    assert_as_exact_as(mine, evaluate(eager.walker_visit_loss, case), exact, case)


@pytest.mark.parametrize("path", ["native", "native narrow"])
def test_sums_over_many_equal_rows_are_exact(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    take_native(monkeypatch, path)
    used = spy_on_gradients(monkeypatch)
    rows, columns, eps = 16_000, 16, 1e-8
    a, b = torch.full((rows, 2), 0.1, requires_grad=True), torch.zeros(columns, 2)
    b[:, 0] = torch.linspace(0.0, 30.0, columns)
    labels = torch.arange(rows) % 2000
    losses = [
        fastassoc.walker_visit_loss(a, b, labels, walker_weight=walker, visit_weight=1.0 - walker, eps=eps)
        for walker in (1.0, 0.0)
    ]
    losses[0].backward()
    assert used
    walks = (a[:1].detach().double() @ b.double().T).softmax(1)
    walker = -math.log((1.0 / rows + eps) / (1.0 + rows * eps))
    visit = -float(((walks + eps) / (1.0 + columns * eps)).log().mean())
    for loss, exact in zip(losses, (walker, visit), strict=True):
        assert loss.item() == pytest.approx(exact, rel=2 * torch.finfo(torch.float32).eps)


def test_memory_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """No page faults in a training: the large memory of a step is that of the step before."""
    take_native(monkeypatch)
    case = make_case(500, 500, 16, 5, dtype=torch.float32)
    a, b = case.a.requires_grad_(), case.b.requires_grad_()
    missed = []
    take = memory._take

    def noting(size: int) -> np.ndarray | None:
        found = take(size)
        if found is None:
            missed.append(size)
        return found

    monkeypatch.setattr(memory, "_take", noting)
    for number in range(5):
        if number == 2:
            missed.clear()
        fastassoc.walker_visit_loss(a, b, case.labels).backward()
    assert not missed


NO_LONGER = "it could not be compiled or loaded"


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("sys.modules['triton'] = None; importlib.util.find_spec = lambda name: None", "pip install 'triton<3.10'"),
        ("pathlib.Path.glob = lambda self, pattern: iter(())", "needs a PyTorch with GNU OpenMP"),
        ("torch.backends.cpu.get_cpu_capability = lambda: 'DEFAULT'", "PyTorch reports the processor as DEFAULT"),
        ("platform.system = lambda: 'Darwin'", "this is Darwin on x86_64"),
        # The compiler's interface is not a public one: another Triton may have none, or other functions.
        ("import triton; triton.__version__ = '3.10.0'", f"{NO_LONGER} (RuntimeError: Triton 3.10.0 is newer than "),
        ("import triton._C.libtriton as t; t.llvm.translate_to_asm = lambda: None", f"{NO_LONGER} (TypeError: "),
        ("import triton._C.libtriton as t; t.llvm.translate_to_asm = lambda *_: ''", f"{NO_LONGER} (TypeError: "),
        ("import triton._C.libtriton as t; t.llvm.translate_to_asm = lambda *_: b''", f"{NO_LONGER} (error: "),
        ("import triton._C.libtriton as t; del t.llvm.translate_to_asm", f"{NO_LONGER} (AttributeError: "),
        ("import triton._C.libtriton as t; del t.llvm.init_targets", f"{NO_LONGER} (AttributeError: "),
        (
            "import triton._C.libtriton as t; del t.llvm, sys.modules['triton._C.libtriton.llvm']",
            f"{NO_LONGER} (ImportError: ",
        ),
        ("sys.modules['triton._C'] = None", f"{NO_LONGER} (ModuleNotFoundError: "),
        ("mmap.mmap = lambda *_, **__: (_ for _ in ()).throw(OSError(1, 'not permitted'))", "(PermissionError: "),
    ],
)
def test_runs_without(broken: str, reason: str) -> None:
    """Each in a process of its own, as the way is chosen once. What is missing is said, and another way is taken."""
    script = f"""
import importlib.util, mmap, pathlib, platform, sys, torch, fastassoc
{broken}
from fastassoc.backends.cpu.native import machine
a, b = torch.randn(100, 8), torch.randn(100, 8)
print(machine.machine(), fastassoc.walker_visit_loss(a, b, torch.arange(100) % 5).item() > 0)
fastassoc.show_config()
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
    first, *lines = done.stdout.splitlines()
    assert first == "None True"
    (line,) = (line for line in lines if line.startswith("machine code:"))
    assert "not used for the CPU, PyTorch operations are: " in line
    assert reason in line
    assert done.stderr == ""


def run_alone(script: str) -> list[str]:
    """The words that a process of its own prints: code is compiled once in a process."""
    command = [sys.executable, "-W", "ignore", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.split()


COUNTED = """
import errno, mmap, os, threading, time
import triton._C.libtriton as t
from fastassoc.backends.cpu.native import machine
compilations = []
def counted(*arguments, compile=t.llvm.translate_to_asm):
    compilations.append(1)
    return compile(*arguments)
t.llvm.translate_to_asm = counted
"""


def test_threads_compile_once() -> None:
    script = """
found = []
threads = [threading.Thread(target=lambda: found.append(machine.machine())) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(compilations), len(found), len(set(map(id, found))), None in found)
"""
    assert run_alone(COUNTED + script) == ["1", "8", "1", "False"]


@pytest.mark.parametrize("error", ["OSError(errno.ENOMEM, 'no memory')", "MemoryError()"])
def test_short_memory_is_asked_for_again(error: str) -> None:
    script = f"""
def short(*arguments, map=mmap.mmap, **options):
    mmap.mmap = map
    raise {error}
mmap.mmap = short
print(machine.machine() is None, machine.machine() is None, len(compilations))
"""
    assert run_alone(COUNTED + script) == ["True", "False", "1"]


def test_an_interrupted_compilation_starts_again() -> None:
    script = """
def interrupted(*arguments, compile=t.llvm.translate_to_asm):
    t.llvm.translate_to_asm = compile
    raise KeyboardInterrupt
t.llvm.translate_to_asm = interrupted
try:
    machine.machine()
except KeyboardInterrupt:
    print("interrupted")
print(machine.machine() is None)
"""
    assert run_alone(COUNTED + script) == ["interrupted", "False"]


def test_a_fork_during_the_compilation_compiles_for_itself() -> None:
    script = """
begun, done = threading.Event(), threading.Event()
def slow(wide):
    begun.set()
    done.wait()
compile_machine, machine.compile_machine = machine.compile_machine, slow
thread = threading.Thread(target=machine.machine)
thread.start()
begun.wait()
child = os.fork()
if child == 0:
    machine.compile_machine = compile_machine
    os._exit(7 if machine.machine() is not None else 1)
deadline = time.monotonic() + 60
while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < deadline:
    time.sleep(0.05)
if not ended[0]:
    os.kill(child, 9)
done.set()
print(os.waitstatus_to_exitcode(ended[1]))
"""
    assert run_alone(COUNTED + script) == ["7"]


def test_a_relocation_that_is_not_known_is_refused() -> None:
    from fastassoc.kernels.cpu import machine_code

    calls_another = """
target triple = "x86_64-unknown-linux-gnu"
declare void @elsewhere()
define void @here() { call void @elsewhere() ret void }
"""
    with pytest.raises(RuntimeError, match=r"relocation .* refers to elsewhere"):
        machine_code.Library(machine_code.compile_module(calls_another, "x86-64-v3"))
