"""The backward passes; see `fastassoc.kernels.cpu.forward` for the names, and for how things lie.

G_ik = target_ik / (eps + p_aba_ik)      K_ik = G_ik f_i u_k + G_ki f_k u_i      kappa_j = sum_i t_ji (K t)_ji / 2
ds_ji = t_ji [(K t)_ji + f_i g_j h_j - f_i rho_i g_j - u_i v_j kappa_j]          da = ds' b          db = ds a
"""

from __future__ import annotations

from fastassoc.kernels.cpu.ir import Function, Value
from fastassoc.kernels.cpu.layout import CLASS_NUMBERS
from fastassoc.kernels.cpu.passes import Pass, as_doubles, for_groups, lanes_left, sums_over_rows
from fastassoc.kernels.cpu.products import DEPTH_STEP, Shape
from fastassoc.kernels.cpu.round_trips import minus_target

PACKED_ROWS = 96
"""Of the transpose of ``ds``, that are taken at once: a multiple of a block's and of a vector's."""


def kernels(shape: Shape) -> Function:
    """``K``, and ``sum_k G_ik p_aba_ik`` for every row. ``classes``: see `CLASS_NUMBERS`."""
    task = Pass("kernels", "rows classes_at class_count s_at f_at u_at k_at trips_at eps_number upstream_number")
    function = task.function
    rows, classes, class_count, s, f, u, out, trips, eps, upstream = task.arguments()
    eps, upstream = (function.splat(shape.vector, x) for x in (eps, upstream))
    zero = function.constant(f"<{shape.lanes // 2} x double>", 0.0)

    def body(part: Value) -> None:
        first, last = task.span(part, class_count)
        with function.loop(first, last, 1) as each:
            start, size, place, kernel, kernel_row = (
                function.load("i64", classes, each.index * CLASS_NUMBERS + n, 8) for n in range(CLASS_NUMBERS)
            )
            weight = minus_target(function, shape, rows, size) * upstream
            with function.loop(0, size, 1) as i:
                line = function.address(s, place + i.index * size)
                out_row = function.address(out, kernel + i.index * kernel_row)
                f_i, u_i = (function.splat(shape.vector, function.load("float", x, start + i.index)) for x in (f, u))
                with function.loop(0, size, shape.lanes, [zero, zero]) as loop:
                    k = loop.index
                    mask = lanes_left(function, shape, size - k)
                    product, f_k, u_k = (
                        function.masked_load(shape.vector, function.address(x, at), mask)
                        for x, at in ((line, k), (f, start + k), (u, start + k))
                    )
                    there, back = f_i * u_k, f_k * u_i
                    # Where nothing is, the denominator is eps.
                    probability = product * there
                    derivative = function.binary("div", weight, probability + eps)
                    mirrored = function.binary("div", weight, product * back + eps)
                    function.masked_store(
                        function.fma(derivative, there, mirrored * back), function.address(out_row, k), mask
                    )
                    halves = as_doubles(function, shape, derivative * probability)
                    loop.next = [total + half for total, half in zip(loop.values, halves, strict=True)]
                function.store(function.sum(loop.values[0] + loop.values[1]), trips, start + i.index, 8)

    return task.for_parts(body)


def terms(shape: Shape) -> Function:
    """``f_i rho_i``, from both terms' shares of ``rho``, and ``g_j h_j``."""
    task = Pass(
        "terms",
        "rows row trips_at rho_at f_at upstream_number out_at columns visit_at g_at eps_number factor_number h_at",
    )
    function = task.function
    rows, row, trips, rho, f, upstream, out, columns, visit, g, eps, factor, h = task.arguments()

    def body(part: Value) -> None:
        first, last = task.span(part, row)
        with function.loop(first, last, 1) as loop:
            i = loop.index
            with function.when(function.compare("slt", i, rows)):
                walked = function.convert("fptrunc", function.load("double", trips, i, 8), "float")
                total = function.fma(function.load("float", rho, i), upstream, walked)
                function.store(total * function.load("float", f, i), out, i)
            with function.when(function.compare("sge", i, rows)):
                function.store(function.constant("float", 0.0), out, i)
        first, last = task.span(part, columns)
        with function.loop(first, last, 1) as loop:
            gain = function.binary("div", factor, function.load("float", visit, loop.index) + eps)
            function.store(gain * function.load("float", g, loop.index), h, loop.index)

    return task.for_parts(body)


def brackets(shape: Shape) -> Function:
    """``ds`` and ``db``, the latter unless ``wants_b`` is 0. ``h`` has ``g``, and ``rho`` ``f`` as a factor.

    ``classes``: see `CLASS_NUMBERS`; of those of several rows. The first ``large_count`` take ``wide_strip`` columns at
    once, for their kernels do not stay in a cache; everything else takes ``strip``.
    """
    task = Pass(
        "brackets",
        "columns rows labelled depth t_at ds_at row classes_at class_count large_count k_at single singles single_k_at "
        "f_at rho_at u_at g_at h_at v_at own_at db_at wants_b strip wide_strip",
    )
    function = task.function
    (
        columns,
        rows,
        labelled,
        depth,
        t,
        ds,
        row,
        classes,
        class_count,
        large_count,
        k,
        single,
        singles,
        single_k,
        *rest,
    ) = task.arguments()
    f, rho, u, g, h, v, own, db, wants_b, strip, wide_strip = rest
    one, step = function.constant("i64", 1), function.constant("i64", DEPTH_STEP)
    never = function.constant("i1", 0)
    width = function.constant("i64", shape.lanes * shape.vectors)

    def of_columns(j: Value, count: int) -> None:
        lines = [(function.address(t, row * (j + n)), function.address(ds, row * (j + n))) for n in range(count)]

        def products(i: Value, totals: list[Value]) -> list[Value]:
            return [
                function.fma(function.load(shape.vector, line, i), function.load(shape.vector, out, i), total)
                for (line, out), total in zip(lines, totals, strict=True)
            ]

        factors = []
        for n, total in enumerate(sums_over_rows(function, shape, rows, count, products)):
            kappa = function.sum(total) * function.load("float", v, j + n) * -0.5
            numbers = function.load("float", h, j + n), function.load("float", g, j + n) * -1.0, kappa
            factors.append([function.splat(shape.vector, x) for x in numbers])
        with function.loop(0, rows, shape.lanes) as loop:
            of_rows = [function.load(shape.vector, x, loop.index) for x in (f, rho, u)]
            for (line, out), of_column in zip(lines, factors, strict=True):
                x = function.load(shape.vector, out, loop.index)
                for of_row, factor in zip(of_rows, of_column, strict=True):
                    x = function.fma(of_row, factor, x)
                function.store(x * function.load(shape.vector, line, loop.index), out, loop.index)

    def round_trips(first: Value | int, last: Value, j: Value, end: Value) -> None:
        line, out = (function.address(x, row * j) for x in (t, ds))
        with function.loop(first, last, 1) as each:
            start, size, _, kernel, kernel_row = (
                function.load("i64", classes, each.index * CLASS_NUMBERS + n, 8) for n in range(CLASS_NUMBERS)
            )
            function.call_void(
                "product",
                end - j, size, size,
                function.address(line, start), row, one,
                function.address(k, kernel), kernel_row, width,
                function.address(out, start), row,
                never, step,
            )  # fmt: skip

    def of_strip(j: Value, end: Value) -> None:
        line, out = (function.address(x, row * j) for x in (t, ds))
        round_trips(large_count, class_count, j, end)
        with function.loop(0, singles, shape.lanes) as each:
            mask = lanes_left(function, shape, singles - each.index)
            kernel = function.masked_load(shape.vector, function.address(single_k, each.index), mask)
            at = single + each.index
            with function.loop(0, end - j, 1) as inner:
                source, target = (function.address(x, row * inner.index + at) for x in (line, out))
                function.masked_store(function.masked_load(shape.vector, source, mask) * kernel, target, mask)
        with function.loop(labelled, rows, 1) as each, function.loop(0, end - j, 1) as inner:
            function.store(function.constant("float", 0.0), out, row * inner.index + each.index)
        for_groups(function, j, end, of_columns)
        with function.when(function.compare("ne", wants_b, 0)):
            function.call_void(
                "product",
                end - j, depth, labelled,
                out, row, one,
                own, depth, width,
                function.address(db, depth * j), depth,
                never, step,
            )  # fmt: skip

    def body(part: Value) -> None:
        first, last = task.span(part, columns, shape.rows)
        with function.loop(0, function.divide_up(last - first, wide_strip), 1) as outer:
            begin = first + wide_strip * outer.index
            stop = function.minimum(begin + wide_strip, last)
            round_trips(0, large_count, begin, stop)
            with function.loop(0, function.divide_up(stop - begin, strip), 1) as inner:
                j = begin + strip * inner.index
                of_strip(j, function.minimum(j + strip, stop))

    return task.for_parts(body)


def row_gradients(shape: Shape) -> Function:
    """``da_i = sum_j ds_ji b_j``, added to what is there if ``adds``."""
    task = Pass("row_gradients", "columns labelled depth ds_at row b_at b_row da_at adds scratch_at scratch_row")
    function = task.function
    columns, labelled, depth, ds, row, b, b_row, da, adds, scratch, scratch_row = task.arguments()
    one, step, high = (function.constant("i64", x) for x in (1, DEPTH_STEP, PACKED_ROWS))
    width = function.constant("i64", shape.lanes * shape.vectors)
    adds = function.convert("trunc", adds, "i1")

    def body(part: Value) -> None:
        packed = function.address(scratch, scratch_row * part)
        first, last = task.span(part, labelled, shape.rows)
        with function.loop(0, columns, DEPTH_STEP) as chunk:
            j = chunk.index
            terms = function.minimum(columns - j, step)
            # The first terms are added to nothing, unless told so.
            more = function.emit("i1", f"or {adds}, {function.compare('sgt', j, 0).text}")
            with function.loop(first, last, PACKED_ROWS) as group:
                i = group.index
                count = function.minimum(last - i, high)
                function.call_void("pack", terms, count, function.address(ds, row * j + i), row, packed, high)
                function.call_void(
                    "product",
                    count, depth, terms,
                    packed, one, high,
                    function.address(b, b_row * j), b_row, width,
                    function.address(da, depth * i), depth,
                    more, step,
                )  # fmt: skip

    return task.for_parts(body)


def rows_back(shape: Shape) -> Function:
    """Rows to where ``order`` says that they came from."""
    task = Pass("rows_back", "rows depth x_at order_at out_at")
    function = task.function
    rows, depth, x, order, out = task.arguments()

    def body(part: Value) -> None:
        first, last = task.span(part, rows)
        with function.loop(first, last, 1) as loop:
            source = function.address(x, depth * loop.index)
            target = function.address(out, depth * function.load("i64", order, loop.index, 8))
            with function.loop(0, depth, shape.lanes) as inner:
                mask = lanes_left(function, shape, depth - inner.index)
                entries = function.masked_load(shape.vector, function.address(source, inner.index), mask)
                function.masked_store(entries, function.address(target, inner.index), mask)

    return task.for_parts(body)


def functions(shape: Shape) -> list[Function]:
    """All of the backward passes."""
    return [make(shape) for make in (kernels, terms, brackets, row_gradients, rows_back)]
