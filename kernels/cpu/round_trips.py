"""The passes over round trips; see `fastassoc.kernels.cpu.forward` for the names, and for how things lie."""

from __future__ import annotations

from fastassoc.kernels.cpu.ir import Function, Value
from fastassoc.kernels.cpu.layout import CLASS_NUMBERS, TASK_NUMBERS
from fastassoc.kernels.cpu.passes import Pass, as_doubles, lanes_left, logarithm
from fastassoc.kernels.cpu.products import DEPTH_STEP, Shape


def trips(shape: Shape) -> Function:
    """``S_ik += sum_j t_ji t_jk`` for ``i >= k`` of a class.

    ``tasks``: see `TASK_NUMBERS`. ``singles`` rows from ``single`` on are alone in their classes.
    """
    task = Pass("trips", "columns t_at row s_at tasks_at task_count single singles single_s_at scratch_at scratch_row")
    function = task.function
    columns, t, row, s, tasks, task_count, single, singles, single_s, scratch, scratch_row = task.arguments()
    one = function.constant("i64", 1)
    width = function.constant("i64", shape.lanes * shape.vectors)

    def body(part: Value) -> None:
        packed = function.address(scratch, scratch_row * part)
        with function.loop(0, task_count, 1) as loop:
            start, left, size, place, panels, owner = (
                function.load("i64", tasks, loop.index * TASK_NUMBERS + n, 8) for n in range(TASK_NUMBERS)
            )
            with function.when(function.compare("eq", owner, part)):
                packed_row = function.divide_up(left, shape.lanes) * shape.lanes
                step = function.minimum(function.quotient(scratch_row, packed_row), DEPTH_STEP)
                with function.loop(0, function.divide_up(columns, step), 1) as chunk:
                    j = step * chunk.index
                    depth = function.minimum(columns - j, step)
                    function.call_void(
                        "pack", depth, left, function.address(t, row * j + start), row, packed, packed_row
                    )
                    with function.loop(0, panels, 1) as panel:
                        skipped = width * panel.index
                        x, rows = function.address(packed, skipped), left - skipped
                        function.call_void(
                            "product",
                            rows, function.minimum(rows, width), depth,
                            x, one, packed_row,
                            x, packed_row, width,
                            function.address(s, place + skipped * (size + 1)), size,
                            function.constant("i1", 1), step,
                        )  # fmt: skip
        first, last = task.span(part, singles, shape.lanes)
        with function.loop(first, last, shape.lanes) as loop:
            mask = lanes_left(function, shape, singles - loop.index)
            out = function.address(single_s, loop.index)
            # Sums of sums: more exact than one.
            with function.loop(0, columns, DEPTH_STEP, [function.masked_load(shape.vector, out, mask)]) as outer:
                end = function.minimum(outer.index + DEPTH_STEP, columns)
                with function.loop(outer.index, end, 1, [function.constant(shape.vector, 0.0)]) as inner:
                    place = function.address(t, row * inner.index + single + loop.index)
                    x = function.masked_load(shape.vector, place, mask)
                    inner.next = [function.fma(x, x, inner.values[0])]
                outer.next = [outer.values[0] + inner.values[0]]
            function.masked_store(outer.values[0], out, mask)

    return task.for_parts(body)


def flush(shape: Shape) -> Function:
    """``total += S``, and zero for S."""
    task = Pass("flush", "s_at total_at pairs")
    function = task.function
    s, total, pairs = task.arguments()

    def body(part: Value) -> None:
        first, last = task.span(part, pairs)
        with function.loop(first, last, 1) as loop:
            x = function.load("float", total, loop.index) + function.load("float", s, loop.index)
            function.store(x, total, loop.index)
            function.store(function.constant("float", 0.0), s, loop.index)

    return task.for_parts(body)


def mirror(shape: Shape) -> Function:
    """``S_ki = S_ik`` for ``k < i``. ``classes``: see `CLASS_NUMBERS`; of those of several rows."""
    task = Pass("mirror", "classes_at class_count s_at")
    function = task.function
    classes, class_count, s = task.arguments()

    def body(part: Value) -> None:
        with function.loop(0, class_count, 1) as each:
            size, place = (function.load("i64", classes, each.index * CLASS_NUMBERS + n, 8) for n in (1, 2))
            first, last = task.span(part, size)
            with function.loop(first, last, 1) as i, function.loop(0, i.index, 1) as k:
                x = function.load("float", s, place + i.index * size + k.index)
                function.store(x, s, place + k.index * size + i.index)

    return task.for_parts(body)


def returns(shape: Shape) -> Function:
    """``sum_k p_aba_ik`` over the class of each row. ``classes``: see `CLASS_NUMBERS`."""
    task = Pass("returns", "classes_at class_count s_at f_at u_at out_at")
    function = task.function
    classes, class_count, s, f, u, out = task.arguments()

    def body(part: Value) -> None:
        first, last = task.span(part, class_count)
        with function.loop(first, last, 1) as each:
            start, size, place = (function.load("i64", classes, each.index * CLASS_NUMBERS + n, 8) for n in range(3))
            with function.loop(0, size, 1) as i:
                line, row = function.address(s, place + i.index * size), start + i.index
                f_i = function.load("float", f, row)
                with function.loop(0, size, 1, [function.constant("double", 0.0)]) as k:
                    factor = f_i * function.load("float", u, start + k.index)
                    x = function.load("float", line, k.index) * factor
                    k.next = [k.values[0] + function.convert("fpext", x, "double")]
                function.store(function.convert("fptrunc", k.values[0], "float"), out, row)

    return task.for_parts(body)


def logarithms(shape: Shape) -> Function:
    """For each part its share of ``-sum target log(eps + p_aba)`` and of ``sum_j log(eps + visit_j)``.

    ``classes``: see `CLASS_NUMBERS`; of those of several rows. ``singles`` rows from ``single`` on are alone.
    """
    task = Pass(
        "logarithms",
        "rows classes_at class_count s_at f_at u_at single singles single_s_at visit_at columns eps_number out_at",
    )
    function = task.function
    rows, classes, class_count, s, f, u, single, singles, single_s, visit, columns, eps, out = task.arguments()
    eps = function.splat(shape.vector, eps)
    zeros = [function.constant(f"<{shape.lanes // 2} x double>", 0.0)] * 2

    def added(before: list[Value], x: Value, mask: Value, weight: Value | None = None) -> list[Value]:
        x = logarithm(function, shape, x + eps)
        if weight is not None:
            x *= weight
        halves = as_doubles(function, shape, function.select(mask, x, function.constant(shape.vector, 0.0)))
        return [total + half for total, half in zip(before, halves, strict=True)]

    def body(part: Value) -> None:
        def vectors(first: Value, at: Value, mask: Value, *pointers: Value) -> list[Value]:
            return [function.masked_load(shape.vector, function.address(x, first + at), mask) for x in pointers]

        with function.loop(0, class_count, 1, zeros) as each:
            start, size, place = (function.load("i64", classes, each.index * CLASS_NUMBERS + n, 8) for n in range(3))
            weight = minus_target(function, shape, rows, size)
            first, last = task.span(part, size)
            with function.loop(first, last, 1, each.values) as i:
                f_i = function.splat(shape.vector, function.load("float", f, start + i.index))
                line = function.address(s, place + i.index * size)
                with function.loop(0, size, shape.lanes, i.values) as loop:
                    mask = lanes_left(function, shape, size - loop.index)
                    x = function.masked_load(shape.vector, function.address(line, loop.index), mask)
                    (u_k,) = vectors(start, loop.index, mask, u)
                    loop.next = added(loop.values, x * (f_i * u_k), mask, weight)
                i.next = loop.values
            each.next = i.values
        weight = minus_target(function, shape, rows, function.constant("i64", 1))
        first, last = task.span(part, singles, shape.lanes)
        with function.loop(first, last, shape.lanes, each.values) as loop:
            mask = lanes_left(function, shape, singles - loop.index)
            x = function.masked_load(shape.vector, function.address(single_s, loop.index), mask)
            f_i, u_i = vectors(single, loop.index, mask, f, u)
            loop.next = added(loop.values, x * (f_i * u_i), mask, weight)
        walks = loop.values
        first, last = task.span(part, columns, shape.lanes)
        with function.loop(first, last, shape.lanes, zeros) as loop:
            mask = lanes_left(function, shape, columns - loop.index)
            x = function.masked_load(shape.vector, function.address(visit, loop.index), mask)
            loop.next = added(loop.values, x, mask)
        for number, totals in enumerate((walks, loop.values)):
            function.store(function.sum(totals[0] + totals[1]), out, part * 2 + number, 8)

    return task.for_parts(body)


def minus_target(function: Function, shape: Shape, rows: Value, size: Value) -> Value:
    """``-1 / (N n_i)``, what a pair of a class of ``size`` rows has as its weight (eq 7 over N), in all lanes."""
    product = function.convert("sitofp", rows * size, "double")
    weight = function.binary("div", function.constant("double", -1.0), product)
    return function.splat(shape.vector, function.convert("fptrunc", weight, "float"))


def functions(shape: Shape) -> list[Function]:
    """All of these passes."""
    return [make(shape) for make in (trips, flush, mirror, returns, logarithms)]
