"""The backward passes; see `fastassoc.kernels.cpu.forward` for the names, and for how things lie.

G_ik = target_ik / (eps + p_aba_ik)      K_ik = G_ik f_i + G_ki f_k              kappa_j = sum_i t_ji (K t)_ji / 2
ds_ji = t_ji [(K t)_ji + f_i g_j h_j - f_i rho_i g_j - u_i v_j kappa_j]          da = ds' b          db = ds a
"""

from __future__ import annotations

from fastassoc.kernels.cpu.forward import CLASS_NUMBERS
from fastassoc.kernels.cpu.ir import Function, Value
from fastassoc.kernels.cpu.passes import Pass, as_doubles, for_groups, lanes_left
from fastassoc.kernels.cpu.products import DEPTH_STEP, Shape

PACKED_ROWS = 96
"""Of the transpose of ``ds``, that are taken at once: a multiple of a block's and of a vector's."""


def kernels(shape: Shape) -> Function:
    """``K``, and ``sum_k G_ik p_aba_ik`` for every row. ``p_aba_ki`` is ``p_aba_ik f_k / f_i``."""
    task = Pass("kernels", "classes_at class_count p_at target_at f_at k_at trips_at eps_number upstream_number")
    function = task.function
    classes, class_count, p, target, f, out, trips, eps, upstream = task.arguments()
    eps, upstream = (function.splat(shape.vector, x) for x in (eps, upstream))
    zero = function.constant(f"<{shape.lanes // 2} x double>", 0.0)

    def body(part: Value) -> None:
        first, last = task.span(part, class_count)
        with function.loop(first, last, 1) as each:
            start, size, place, kernel, kernel_row = (
                function.load("i64", classes, each.index * CLASS_NUMBERS + n, 8) for n in range(CLASS_NUMBERS)
            )
            with function.loop(0, size, 1) as i:
                p_row, target_row = (function.address(x, place + i.index * size) for x in (p, target))
                out_row = function.address(out, kernel + i.index * kernel_row)
                f_i = function.load("float", f, start + i.index)
                inverse = function.splat(shape.vector, function.binary("div", function.constant("float", 1.0), f_i))
                f_i = function.splat(shape.vector, f_i)
                with function.loop(0, size, shape.lanes, [zero, zero]) as loop:
                    k = loop.index
                    mask = lanes_left(function, shape, size - k)
                    probability, factor, f_k = (
                        function.masked_load(shape.vector, function.address(x, at), mask)
                        for x, at in ((p_row, k), (target_row, k), (f, start + k))
                    )
                    factor *= upstream
                    # Where nothing is, the denominator is eps.
                    derivative = function.binary("div", factor, probability + eps)
                    mirrored = function.binary("div", factor, probability * inverse * f_k + eps)
                    function.masked_store(
                        function.fma(derivative, f_i, mirrored * f_k), function.address(out_row, k), mask
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

    ``classes``: see `fastassoc.kernels.cpu.forward.probabilities`; the first ``class_count`` are those of several rows.
    """
    task = Pass(
        "brackets",
        "columns rows labelled depth t_at ds_at row classes_at class_count k_at single singles single_k_at "
        "f_at rho_at u_at g_at h_at v_at own_at db_at wants_b strip",
    )
    function = task.function
    columns, rows, labelled, depth, t, ds, row, classes, class_count, k, single, singles, single_k, *rest = (
        task.arguments()
    )
    f, rho, u, g, h, v, own, db, wants_b, strip = rest
    one, step = function.constant("i64", 1), function.constant("i64", DEPTH_STEP)
    never = function.constant("i1", 0)
    width = function.constant("i64", shape.lanes * shape.vectors)

    def of_columns(j: Value, count: int) -> None:
        lines = [(function.address(t, row * (j + n)), function.address(ds, row * (j + n))) for n in range(count)]
        with function.loop(0, rows, shape.lanes, [function.constant(shape.vector, 0.0)] * count) as loop:
            loop.next = [
                function.fma(*(function.load(shape.vector, x, loop.index) for x in pair), total)
                for pair, total in zip(lines, loop.values, strict=True)
            ]
        factors = []
        for n, total in enumerate(loop.values):
            kappa = function.sum(total) * function.load("float", v, j + n) * -0.5
            of_column = function.load("float", h, j + n), function.load("float", g, j + n) * -1.0, kappa
            factors.append([function.splat(shape.vector, x) for x in of_column])
        with function.loop(0, rows, shape.lanes) as loop:
            of_rows = [function.load(shape.vector, x, loop.index) for x in (f, rho, u)]
            for (line, out), of_column in zip(lines, factors, strict=True):
                x = function.load(shape.vector, out, loop.index)
                for of_row, factor in zip(of_rows, of_column, strict=True):
                    x = function.fma(of_row, factor, x)
                function.store(x * function.load(shape.vector, line, loop.index), out, loop.index)

    def body(part: Value) -> None:
        first, last = task.span(part, columns, shape.rows)
        with function.loop(0, function.divide_up(last - first, strip), 1) as loop:
            j = first + strip * loop.index
            end = function.minimum(j + strip, last)
            line, out = (function.address(x, row * j) for x in (t, ds))
            with function.loop(0, class_count, 1) as each:
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


def functions(shape: Shape) -> list[Function]:
    """All of the backward passes."""
    return [make(shape) for make in (kernels, terms, brackets, row_gradients)]
