"""Matrix products in IR: a microkernel that holds a block of the result in registers, and loops around it."""

from __future__ import annotations

from typing import NamedTuple

from fastassoc.kernels.cpu.ir import Function, Value

DEPTH_STEP = 128
"""Terms of a product's sums that a panel holds: a panel of them stays in the first cache."""


_ROWS_AHEAD = 8
"""Rows that are asked for before they are copied: short pieces far apart are no pattern that a processor foresees."""


class Shape(NamedTuple):
    """What a processor's vector registers hold."""

    lanes: int
    """float32 numbers in a register."""
    rows: int
    """Of the block of a product that the registers hold."""
    vectors: int
    """Its columns, in registers."""

    @property
    def vector(self) -> str:
        """The type of a register."""
        return f"<{self.lanes} x float>"

    @property
    def integers(self) -> str:
        """Integers of the same width."""
        return f"<{self.lanes} x i32>"

    @property
    def mask(self) -> str:
        """The type of a mask."""
        return f"<{self.lanes} x i1>"

    def no_lanes(self, function: Function) -> Value:
        """A mask."""
        return Value(function, self.mask, "zeroinitializer")


def first_lanes(function: Function, shape: Shape, count: Value) -> Value:
    """A mask of the first ``count`` lanes."""
    integer = f"i{shape.lanes}"
    ones = function.constant("i64", -1)
    bits = function.emit("i64", f"shl {ones}, {count.text}")
    bits = function.emit("i64", f"xor {bits}, -1")
    return function.convert("bitcast", function.convert("trunc", bits, integer), shape.mask)


def _block(shape: Shape, rows: int, vectors: int, whole: bool) -> Function:
    """``c (+)= a b`` for a block of rows and vectors, the last ``tail`` entries wide unless all are whole."""
    names = "a a_row a_column b b_row c c_row depth accumulate tail"
    kinds = {"a": "ptr", "b": "ptr", "c": "ptr", "accumulate": "i1"}
    parameters = [(name, kinds.get(name, "i64")) for name in names.split()]
    function = Function(_block_name(rows, vectors, whole), parameters, internal=True)
    a, a_row, a_column, b, b_row, c, c_row, depth, accumulate, tail = function.parameters
    mask = None if whole else first_lanes(function, shape, tail)

    def load(row: Value, vector: int) -> Value:
        # A mask costs the port of a multiplication.
        if mask is None or vector < vectors - 1:
            return function.load(shape.vector, row, vector * shape.lanes)
        return function.masked_load(shape.vector, function.address(row, vector * shape.lanes), mask)

    def store(x: Value, row: Value, vector: int) -> None:
        if mask is None or vector < vectors - 1:
            function.store(x, row, vector * shape.lanes)
        else:
            function.masked_store(x, function.address(row, vector * shape.lanes), mask)

    a_rows = [function.address(a, a_row * row) for row in range(rows)]
    c_rows = [function.address(c, c_row * row) for row in range(rows)]
    if rows == shape.rows:
        # The block below, which comes next.
        for row in range(rows):
            for vector in range(vectors):
                function.prefetch(function.address(c, c_row * (rows + row) + vector * shape.lanes), write=True)
    zero = function.constant(shape.vector, 0.0)
    with function.loop(0, depth, 1, [zero] * rows * vectors) as loop:
        line = function.address(b, b_row * loop.index)
        right = [load(line, vector) for vector in range(vectors)]
        offset = a_column * loop.index
        for row in range(rows):
            left = function.splat(shape.vector, function.load("float", a_rows[row], offset))
            for vector in range(vectors):
                loop.next.append(function.fma(left, right[vector], loop.values[row * vectors + vector]))
    places = [(row, vector) for row in range(rows) for vector in range(vectors)]
    # Added to what is there at the end: sums of sums are more exact.
    with function.when(accumulate):
        for (row, vector), x in zip(places, loop.values, strict=True):
            store(x + load(c_rows[row], vector), c_rows[row], vector)
    with function.when(function.binary("xor", accumulate, function.constant("i1", 1))):
        for (row, vector), x in zip(places, loop.values, strict=True):
            store(x, c_rows[row], vector)
    return function


def _block_name(rows: int, vectors: int, whole: bool) -> str:
    return f"block_{rows}_{vectors}{'_whole' if whole else ''}"


def pack(shape: Shape) -> Function:
    """``pack``: rows copied to where they lie closer, ``out_row`` a multiple of the vector, the rest of a vector 0."""
    names = "rows columns x x_row out out_row"
    function = Function(
        "pack", [(name, "ptr" if name in ("x", "out") else "i64") for name in names.split()], internal=True
    )
    rows, columns, x, x_row, out, out_row = function.parameters
    whole = function.quotient(columns, shape.lanes) * shape.lanes
    mask = first_lanes(function, shape, columns - whole)
    with function.loop(0, rows, 1) as row:
        source, target = function.address(x, x_row * row.index), function.address(out, out_row * row.index)
        ahead = function.address(source, x_row * _ROWS_AHEAD)
        with function.loop(0, whole, shape.lanes) as column:
            function.prefetch(function.address(ahead, column.index))
            function.store(function.load(shape.vector, source, column.index), target, column.index)
        with function.when(function.compare("ne", whole, columns)):
            function.prefetch(function.address(ahead, whole))
            entries = function.masked_load(shape.vector, function.address(source, whole), mask)
            function.store(entries, target, whole)
    return function


def product_functions(shape: Shape) -> list[Function]:
    """``product``: ``c_ij (+)= sum_k a_ik b_kj``, with strides for ``a`` and contiguous rows of ``b`` and ``c``.

    Columns of ``b`` go in panels as wide as a block, ``b_panel`` entries apart: as many as a block is wide in an
    ordinary matrix. ``depth`` goes in steps, so that a panel of a step stays in the first cache.
    """
    blocks = {
        (high * (shape.vectors + 2) + wide): (high, min(wide, shape.vectors), wide > shape.vectors)
        for high in range(1, shape.rows + 1)
        for wide in range(1, shape.vectors + 2)
    }
    names = "rows columns depth a a_row a_column b b_row b_panel c c_row accumulate step"
    kinds = {"a": "ptr", "b": "ptr", "c": "ptr", "accumulate": "i1"}
    function = Function("product", [(name, kinds.get(name, "i64")) for name in names.split()], internal=True)
    rows, columns, depth, a, a_row, a_column, b, b_row, b_panel, c, c_row, accumulate, step = function.parameters
    width = shape.lanes * shape.vectors
    with function.loop(0, function.divide_up(depth, step), 1) as outer:
        k = outer.index * step
        part = function.minimum(depth - k, step)
        adds = function.emit("i1", f"or {accumulate}, {function.compare('sgt', k, 0).text}")
        a_k = function.address(a, a_column * k)
        b_k = function.address(b, b_row * k)
        with function.loop(0, function.divide_up(columns, width), 1) as panel:
            first = panel.index * width
            wide = function.minimum(columns - first, width)
            vectors = function.divide_up(wide, shape.lanes)
            tail = wide - (vectors - 1) * shape.lanes
            whole = function.compare("eq", wide, width)
            kind = function.select(whole, vectors + 1, vectors)
            right = function.address(b_k, b_panel * panel.index)
            c_panel = function.address(c, first)
            with function.loop(0, rows, shape.rows) as row:
                left = function.address(a_k, a_row * row.index)
                result = function.address(c_panel, c_row * row.index)
                high = function.minimum(rows - row.index, shape.rows)
                with function.case(high * (shape.vectors + 2) + kind, list(blocks)) as arms:
                    for number in arms:
                        block = _block_name(*blocks[number])
                        function.call_void(block, left, a_row, a_column, right, b_row, result, c_row, part, adds, tail)
    return [*(_block(shape, *block) for block in blocks.values()), function, pack(shape)]
