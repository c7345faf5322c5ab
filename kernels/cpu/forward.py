"""The forward passes.

Everything lies transposed, a row for each column j of the scores and ``row`` entries from one to the next, so that the
labelled samples i fill vectors, and every product has one operand whose entries are taken one by one and one whose rows
are read as vectors. Entries from N up to a multiple of the vector are there, and finite.

    e_ji = exp(s_ij + bias_b_j - r_i)     R_i = sum_j e_ji      C_j = sum_i e_ji u_i     y_j = C_j^-1/2
    t_ji = e_ji y_j                       g_j = 1 / y_j         v_j = 1 / (C_j y_j)      f_i = 1 / R_i
    S_ik = sum_j t_ji t_jk                p_aba_ik = S_ik f_i u_k
    visit_j = g_j sum_i t_ji f_i / N      h_j = -1 / (N M (eps + visit_j))               rho_i = f_i sum_j t_ji g_j h_j

With ``z`` constant and any shift of the rows, ``r_i = shift_i - bias_a_i`` and ``u_i = exp(shift_i - z)``; `prepare`
takes 0 for both. Of the rows that fill the last vector, ``u`` and ``f`` are 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from fastassoc.kernels.cpu.ir import Function, Value
from fastassoc.kernels.cpu.passes import (
    Pass,
    add_doubles,
    exponential,
    flushed,
    for_groups,
    lanes_left,
    sums_over_rows,
    transpose,
    tree,
)
from fastassoc.kernels.cpu.products import DEPTH_STEP, Shape

PAD = 1e30
"""``r`` of the rows that fill the last vector."""


def prepare(shape: Shape) -> Function:
    """Rows of ``a`` in order and scaled, as they are and in panels; ``r`` and ``u``; zeros to add to."""
    task = Pass(
        "prepare",
        "rows depth a_at a_row a_column order_at ordered bias_at biased scale_number own_at panels_at row r_at u_at "
        "zero_at sums_at sums s_at pairs",
    )
    function = task.function
    rows, depth, a, a_row, a_column, order, ordered, bias, biased, scale, own, panels, *rest = task.arguments()
    row, r, u, zero_at, sums, sum_count, s, pairs = rest
    width = shape.lanes * shape.vectors
    is_ordered = function.compare("ne", ordered, 0)
    scales = function.splat(shape.vector, scale)
    flat, strided = (function.compare(condition, a_column, 1) for condition in ("eq", "ne"))

    def body(part: Value) -> None:
        # The bias where there is none.
        function.store(function.constant("float", 0.0), zero_at)
        first, last = task.span(part, row, shape.lanes)
        with function.loop(first, function.minimum(last, rows), 1) as loop:
            i = loop.index
            source = function.select(is_ordered, function.load("i64", order, i * ordered, 8), i)
            function.store(function.load("float", bias, source * biased) * -1.0, r, i)
            function.store(function.constant("float", 1.0), u, i)
            source_row, own_row = function.address(a, source * a_row), function.address(own, i * depth)
            with function.when(flat), function.loop(0, depth, shape.lanes) as inner:
                mask = lanes_left(function, shape, depth - inner.index)
                x = function.masked_load(shape.vector, function.address(source_row, inner.index), mask) * scales
                function.masked_store(x, function.address(own_row, inner.index), mask)
            with function.when(strided), function.loop(0, depth, 1) as inner:
                function.store(function.load("float", source_row, inner.index * a_column) * scale, own_row, inner.index)
        with function.loop(function.maximum(first, rows), last, 1) as loop:
            function.store(function.constant("float", PAD), r, loop.index)
            function.store(function.constant("float", 0.0), u, loop.index)
        # A square block of vectors at a time.
        with function.loop(first, last, shape.lanes) as loop:
            panel = function.quotient(loop.index, width)
            place = function.address(panels, panel * depth * width + (loop.index - panel * width))
            with function.loop(0, depth, shape.lanes) as inner:
                mask = lanes_left(function, shape, depth - inner.index)
                block = []
                for n in range(shape.lanes):
                    inside = function.select(
                        function.compare("slt", loop.index + n, rows), mask, shape.no_lanes(function)
                    )
                    entries = function.address(own, (loop.index + n) * depth + inner.index)
                    block.append(function.masked_load(shape.vector, entries, inside))
                for n, x in enumerate(transpose(function, block)):
                    with function.when(function.compare("slt", inner.index + n, depth)):
                        function.store(x, place, (inner.index + n) * width)
        for x, count, kind in ((sums, sum_count, "double"), (s, pairs, "float")):
            first, last = task.span(part, count)
            with function.loop(first, last, 1) as loop:
                function.store(function.constant(kind, 0.0), x, loop.index)

    return task.for_parts(body)


def steps(shape: Shape, known: bool) -> Function:
    """``steps``: ``t``, its sums and factors; ``steps_again``: ``t`` from factors that are known."""
    task = Pass(
        "steps_again" if known else "steps",
        "columns rows depth b_at b_row panels_at t_at row r_at u_at bias_at biased y_at g_at v_at sums_at strip",
    )
    function = task.function
    columns, rows, depth, b, b_row, panels, t, row, r, u, bias, biased, *rest = task.arguments()
    y, g, v, sums, strip = rest

    def exponentials(own_sums: Value) -> Callable[[Value, int], None]:
        def body(j: Value, count: int) -> None:
            lines = [function.address(t, row * (j + n)) for n in range(count)]
            biases = [
                function.splat(shape.vector, function.load("float", bias, biased * (j + n))) for n in range(count)
            ]
            factors = []
            if known:
                factors = [function.splat(shape.vector, function.load("float", y, j + n)) for n in range(count)]

            def of_rows(i: Value, totals: list[Value]) -> list[Value]:
                shift = function.load(shape.vector, r, i)
                e = [
                    exponential(function, shape, function.load(shape.vector, line, i) + x - shift)
                    for line, x in zip(lines, biases, strict=True)
                ]
                if known:
                    e = [flushed(function, shape, x * factor) for x, factor in zip(e, factors, strict=True)]
                for x, line in zip(e, lines, strict=True):
                    function.store(x, line, i)
                if known:
                    return []
                add_doubles(function, shape, tree(e), own_sums, i)
                weight = function.load(shape.vector, u, i)
                return [function.fma(x, weight, total) for x, total in zip(e, totals, strict=True)]

            column_sums = sums_over_rows(function, shape, rows, 0 if known else count, of_rows)
            if known:
                return
            one = function.constant("float", 1.0)
            for n, totals in enumerate(column_sums):
                total = function.sum(totals)
                factor = function.binary("div", one, function.call("float", "llvm.sqrt.f32", total))
                function.store(factor, y, j + n)
                function.store(function.binary("div", one, factor), g, j + n)
                # In double: the columns of p_ba have to sum to one as exactly as they can.
                share = function.convert("fpext", total, "double") * function.convert("fpext", factor, "double")
                share = function.binary("div", function.constant("double", 1.0), share)
                function.store(function.convert("fptrunc", share, "float"), v, j + n)
                factors.append(function.splat(shape.vector, factor))
            with function.loop(0, rows, shape.lanes) as loop:
                for line, factor in zip(lines, factors, strict=True):
                    x = function.load(shape.vector, line, loop.index) * factor
                    function.store(flushed(function, shape, x), line, loop.index)

        return body

    def body(part: Value) -> None:
        own_sums = function.address(sums, row * part, "double")
        arguments = columns, rows, depth, b, b_row, panels, t, row, strip
        _for_scores(task, shape, part, arguments, exponentials(own_sums))

    return task.for_parts(body)


def extremes(shape: Shape) -> Function:
    """The highest score of each column, and for each part that of each row, if it is higher than what is there.

    NaN is passed over.
    """
    task = Pass(
        "extremes", "columns rows depth b_at b_row panels_at t_at row r_at bias_at biased highest_at rows_at strip"
    )
    function = task.function
    columns, rows, depth, b, b_row, panels, t, row, r, bias, biased, highest, of_rows, strip = task.arguments()

    def body(part: Value) -> None:
        own = function.address(of_rows, row * part)

        def of_columns(j: Value, count: int) -> None:
            lines = [function.address(t, row * (j + n)) for n in range(count)]
            biases = [
                function.splat(shape.vector, function.load("float", bias, biased * (j + n))) for n in range(count)
            ]
            lowest = function.constant(shape.vector, -math.inf)
            with function.loop(0, rows, shape.lanes, [lowest] * count) as loop:
                i = loop.index
                shift = function.load(shape.vector, r, i)
                best = function.load(shape.vector, own, i)
                for line, x, so_far in zip(lines, biases, loop.values, strict=True):
                    score = function.load(shape.vector, line, i) + x - shift
                    loop.next.append(function.higher(score, so_far))
                    best = function.higher(score, best)
                function.store(best, own, i)
            for n, x in enumerate(loop.values):
                function.store(function.highest(x), highest, j + n)

        _for_scores(task, shape, part, (columns, rows, depth, b, b_row, panels, t, row, strip), of_columns)

    return task.for_parts(body)


def _for_scores(
    task: Pass, shape: Shape, part: Value, arguments: tuple[Value, ...], of_columns: Callable[[Value, int], None]
) -> None:
    """The product of a part's columns with all rows, a strip at a time, and ``of_columns`` for groups of them."""
    function = task.function
    columns, rows, depth, b, b_row, panels, t, row, strip = arguments
    width = shape.lanes * shape.vectors
    first, last = task.span(part, columns, shape.rows)
    with function.loop(0, function.divide_up(last - first, strip), 1) as loop:
        j = first + strip * loop.index
        end = function.minimum(j + strip, last)
        function.call_void(
            "product",
            end - j, rows, depth,
            function.address(b, b_row * j), b_row, function.constant("i64", 1),
            panels, function.constant("i64", width), depth * width,
            function.address(t, row * j), row,
            function.constant("i1", 0), function.constant("i64", DEPTH_STEP),
        )  # fmt: skip
        for_groups(function, j, end, of_columns)


def row_factors(shape: Shape) -> Function:
    """``f_i = 1 / R_i``, from the parts' sums."""
    task = Pass("row_factors", "rows row sums_at f_at")
    function = task.function
    rows, row, sums, f = task.arguments()

    def body(part: Value) -> None:
        first, last = task.span(part, row)
        with function.loop(first, last, 1) as loop:
            total = _over_parts(task, sums, row, loop.index)
            factor = function.convert(
                "fptrunc", function.binary("div", function.constant("double", 1.0), total), "float"
            )
            inside = function.compare("slt", loop.index, rows)
            function.store(function.select(inside, factor, function.constant("float", 0.0)), f, loop.index)

    return task.for_parts(body)


def row_sums(shape: Shape) -> Function:
    """``rho_i = f_i`` times the parts' sums."""
    task = Pass("row_sums", "row sums_at f_at rho_at")
    function = task.function
    row, sums, f, rho = task.arguments()

    def body(part: Value) -> None:
        first, last = task.span(part, row)
        with function.loop(first, last, 1) as loop:
            total = function.convert("fptrunc", _over_parts(task, sums, row, loop.index), "float")
            function.store(total * function.load("float", f, loop.index), rho, loop.index)

    return task.for_parts(body)


def _over_parts(task: Pass, sums: Value, row: Value, index: Value) -> Value:
    function = task.function
    with function.loop(0, task.parts, 1, [function.constant("double", 0.0)]) as loop:
        loop.next = [loop.values[0] + function.load("double", sums, row * loop.index + index, 8)]
    return loop.values[0]


def limits(shape: Shape) -> Function:
    """The lowest, the highest and the sum of two vectors: six numbers. A sum of something not finite is not finite."""
    task = Pass("limits", "f_at rows y_at columns out_at")
    function = task.function
    f, rows, y, columns, out = task.arguments()

    def body(part: Value) -> None:
        with function.when(function.compare("eq", part, 0)):
            for number, (x, count) in enumerate(((f, rows), (y, columns))):
                first = function.load("float", x, 0)
                with function.loop(0, count, 1, [first, first, function.constant("float", 0.0)]) as loop:
                    low, high, total = loop.values
                    entry = function.load("float", x, loop.index)
                    low = function.select(function.compare("olt", entry, low), entry, low)
                    high = function.select(function.compare("ogt", entry, high), entry, high)
                    loop.next = [low, high, total + entry]
                for place, result in enumerate(loop.values):
                    function.store(result, out, number * 3 + place)

    return task.for_parts(body)


def visits(shape: Shape) -> Function:
    """``visit`` and the parts' sums for ``rho``."""
    task = Pass("visits", "columns rows t_at row f_at g_at visit_at sums_at weight_number eps_number factor_number")
    function = task.function
    columns, rows, t, row, f, g, visit, sums, weight, eps, factor = task.arguments()

    def of_columns(own_sums: Value) -> Callable[[Value, int], None]:
        def body(j: Value, count: int) -> None:
            lines = [function.address(t, row * (j + n)) for n in range(count)]

            def shares(i: Value, totals: list[Value]) -> list[Value]:
                share = function.load(shape.vector, f, i)
                return [
                    function.fma(function.load(shape.vector, line, i), share, total)
                    for line, total in zip(lines, totals, strict=True)
                ]

            gains = []
            for n, total in enumerate(sums_over_rows(function, shape, rows, count, shares)):
                gain = function.load("float", g, j + n)
                probability = function.sum(total) * weight * gain
                function.store(probability, visit, j + n)
                h = function.binary("div", factor, probability + eps)
                gains.append(function.splat(shape.vector, h * gain))
            with function.loop(0, rows, shape.lanes) as loop:
                products = [
                    function.load(shape.vector, line, loop.index) * x for line, x in zip(lines, gains, strict=True)
                ]
                add_doubles(function, shape, tree(products), own_sums, loop.index)

        return body

    def body(part: Value) -> None:
        first, last = task.span(part, columns, shape.rows)
        for_groups(function, first, last, of_columns(function.address(sums, row * part, "double")))

    return task.for_parts(body)


def clear(shape: Shape) -> Function:
    """Zero for the sums."""
    task = Pass("clear", "sums_at sums")
    function = task.function
    sums, count = task.arguments()

    def body(part: Value) -> None:
        first, last = task.span(part, count)
        with function.loop(first, last, 1) as loop:
            function.store(function.constant("double", 0.0), sums, loop.index)

    return task.for_parts(body)


def functions(shape: Shape) -> list[Function]:
    """The forward passes but for those over round trips."""
    passes = [prepare, extremes, row_factors, row_sums, limits, visits, clear]
    return [steps(shape, False), steps(shape, True), *(make(shape) for make in passes)]
