"""What passes have in common: arguments, shares of the work, and vector arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fastassoc.kernels.cpu.ir import Function, Value
from fastassoc.kernels.cpu.products import Shape, first_lanes

LOWEST_EXPONENT = -86.0
"""Its exponential, a few times over or under, is a normal number."""
FLUSH = 1.001 * math.exp(LOWEST_EXPONENT)
"""Below it, what the lowest exponential leaves is 0."""
_HIGHEST_EXPONENT = 88.8
"""Its exponential is inf here."""
_GROUP = 4
"""Columns that a vector pass takes at once, for the vectors it reads for all of them."""
_SUMMED = 512
"""Rows whose terms are added one after another, a lane at a time; sums of such sums are more exact than one sum."""
_HEAD = 3


class Pass:
    """A function ``void name(ptr arguments)`` that every thread runs, each for its parts of the work.

    The arguments are 64 bits each: functions that tell a thread its number and how many there are, the number of parts,
    then those with names: pointers (``_at``), doubles (``_number``) and integers. What a part is does not depend on the
    number of threads.
    """

    def __init__(self, name: str, arguments: str) -> None:
        self.function = Function(name, [("arguments", "ptr")])
        self.names = arguments.split()
        self._block = self.function.parameters[0]
        self._thread, self._threads = (self._ask(index) for index in range(2))
        self.parts = self.function.load("i64", self._block, 2, 8)

    def _ask(self, index: int) -> Value:
        pointer = self.function.load("ptr", self._block, index, 8)
        return self.function.convert("zext", self.function.emit("i32", f"call i32 {pointer.text}()"), "i64")

    def arguments(self) -> list[Value]:
        """All, in order; doubles as float."""
        values = []
        for index, name in enumerate(self.names):
            kind = "ptr" if name.endswith("_at") else "double" if name.endswith("_number") else "i64"
            x = self.function.load(kind, self._block, index + _HEAD, 8)
            values.append(self.function.convert("fptrunc", x, "float") if kind == "double" else x)
        return values

    def for_parts(self, body: Callable[[Value], None]) -> Function:
        """The function, with ``body`` for each part."""
        # Threads may be fewer than parts.
        rounds = self.function.divide_up(self.parts - self._thread, self._threads)
        with self.function.loop(0, rounds, 1) as loop:
            body(self._thread + self._threads * loop.index)
        return self.function

    def span(self, part: Value, count: Value, multiple: int = 1) -> tuple[Value, Value]:
        """First and last of a part's share of ``count``, in multiples."""
        share = self.function.divide_up(self.function.divide_up(count, multiple), self.parts) * multiple
        first = self.function.minimum(share * part, count)
        return first, self.function.minimum(first + share, count)


def sequence() -> Function:
    """``sequence``: passes one after another, threads waiting for each other in between.

    The arguments are the function that waits, the number of passes, then for each the pass and its arguments.
    """
    function = Function("sequence", [("arguments", "ptr")])
    (arguments,) = function.parameters
    wait = function.load("ptr", arguments, 0, 8)
    with function.loop(0, function.load("i64", arguments, 1, 8), 1) as loop:
        step, block = (function.load("ptr", arguments, loop.index * 2 + n, 8) for n in (2, 3))
        function.call_pointer(step, block)
        function.call_pointer(wait)
    return function


def exponential(function: Function, shape: Shape, x: Value) -> Value:
    """To 2 ulp, inf from 88.4 on; NaN stays NaN. Argument reduction and polynomial are those of Cephes' ``expf``."""

    def constant(number: float) -> Value:
        return function.constant(shape.vector, number)

    x = _bounded(function, x, constant(LOWEST_EXPONENT), constant(_HIGHEST_EXPONENT))
    # Added to a small number it leaves the nearest integer in the lowest bits.
    magic = constant(1.5 * 2.0**23)
    shifted = function.fma(x, constant(1.0 / math.log(2.0)), magic)
    count = shifted - magic
    x = function.fma(count, constant(-0.693359375), x)
    x = function.fma(count, constant(2.12194440e-4), x)
    coefficients = (
        1.9875691500e-4,
        1.3981999507e-3,
        8.3334519073e-3,
        4.1665795894e-2,
        1.6666665459e-1,
        5.0000001201e-1,
    )
    p = polynomial(function, x, (*coefficients, 1.0, 1.0))
    power = function.binary("shl", function.convert("bitcast", shifted, shape.integers), 23)
    return p * function.convert("bitcast", power + 0x3F800000, shape.vector)


def logarithm(function: Function, shape: Shape, x: Value) -> Value:
    """Of normal positive numbers, to 2 ulp; the polynomial is that of Cephes' ``logf``."""

    def constant(number: float) -> Value:
        return function.constant(shape.vector, number)

    bits = function.convert("bitcast", x, shape.integers)
    # The mantissa lies between the root of one half and that of two.
    offset = bits - 0x3F3504F3
    count = function.convert("sitofp", function.binary("ashr", offset, 23), shape.vector)
    mantissa = function.binary("and", offset, 0x007FFFFF) + 0x3F3504F3
    x = function.convert("bitcast", mantissa, shape.vector) - 1.0
    coefficients = (
        7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
        2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
    )  # fmt: skip
    square = x * x
    y = polynomial(function, x, coefficients) * x * square
    y = function.fma(count, constant(-2.12194440e-4), y)
    y = function.fma(square, constant(-0.5), y)
    return function.fma(count, constant(0.693359375), x + y)


def polynomial(function: Function, x: Value, coefficients: Sequence[float]) -> Value:
    """The highest power first."""
    p = function.constant(x.type, coefficients[0])
    for coefficient in coefficients[1:]:
        p = function.fma(p, x, function.constant(x.type, coefficient))
    return p


def _bounded(function: Function, x: Value, low: Value, high: Value) -> Value:
    """NaN stays NaN."""
    x = function.select(function.compare("olt", x, low), low, x)
    return function.select(function.compare("ogt", x, high), high, x)


def flushed(function: Function, shape: Shape, x: Value) -> Value:
    """0 for what the lowest exponential leaves."""
    below = function.compare("olt", x, function.constant(shape.vector, FLUSH))
    return function.select(below, function.constant(shape.vector, 0.0), x)


def as_doubles(function: Function, shape: Shape, x: Value) -> list[Value]:
    """The halves of a vector."""
    half = shape.lanes // 2
    halves = []
    for part in range(2):
        lanes = ", ".join(f"i32 {lane}" for lane in range(part * half, (part + 1) * half))
        piece = function.emit(
            f"<{half} x float>", f"shufflevector {x}, {shape.vector} poison, <{half} x i32> <{lanes}>"
        )
        halves.append(function.convert("fpext", piece, f"<{half} x double>"))
    return halves


def add_doubles(function: Function, shape: Shape, x: Value, sums: Value, index: Value) -> None:
    """``sums[index ...] += x``."""
    for part, wide in enumerate(as_doubles(function, shape, x)):
        at = index + part * (shape.lanes // 2)
        function.store(function.load(wide.type, sums, at, 8) + wide, sums, at, 8)


def sums_over_rows(
    function: Function, shape: Shape, rows: Value, count: int, body: Callable[[Value, list[Value]], list[Value]]
) -> list[Value]:
    """``count`` sums, lane by lane; ``body(index, totals)`` adds what is there at a vector of rows to its totals."""
    zeros = [function.constant(shape.vector, 0.0)] * count
    with function.loop(0, rows, _SUMMED, zeros) as outer:
        end = function.minimum(outer.index + _SUMMED, rows)
        with function.loop(outer.index, end, shape.lanes, zeros) as inner:
            inner.next = body(inner.index, inner.values)
        outer.next = [total + x for total, x in zip(outer.values, inner.values, strict=True)]
    return outer.values


def for_groups(function: Function, first: Value, last: Value, body: Callable[[Value, int], None]) -> None:
    """``body(column, count)`` for groups of columns, then for each of those left over."""
    whole = function.emit("i64", f"udiv {last - first}, {_GROUP}") * _GROUP
    with function.loop(first, first + whole, _GROUP) as loop:
        body(loop.index, _GROUP)
    with function.loop(first + whole, last, 1) as loop:
        body(loop.index, 1)


def transpose(function: Function, rows: list[Value]) -> list[Value]:
    """Of a square of as many vectors as a vector has lanes."""
    half = len(rows) // 2
    for _ in range(half.bit_length()):
        rows = [x for pair in zip(rows[:half], rows[half:], strict=True) for x in function.interleave(*pair)]
    return rows


def tree(values: list[Value]) -> Value:
    """Their sum, in pairs."""
    while len(values) > 1:
        values = [x + y for x, y in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def lanes_left(function: Function, shape: Shape, count: Value) -> Value:
    """A mask of the lanes that hold the first ``count`` entries."""
    return first_lanes(function, shape, function.minimum(count, shape.lanes))
