"""Labels to rows in the order of their classes, and to the tables that passes read.

A sampler that shuffles gives new labels at each step; laying them out in Python takes as long as a small step.
"""

from __future__ import annotations

from fastassoc.kernels.cpu.ir import Function, Value
from fastassoc.kernels.cpu.passes import Pass
from fastassoc.kernels.cpu.products import Shape

CLASS_NUMBERS = 5
"""Of a class: its first row, its size, the place of its first pair, that of the first entry of its kernel, and the
length of the kernel's rows, which begin at vectors unless they are of one entry. The largest class comes first."""
TASK_NUMBERS = 6
"""Of a task of the round trips: the first row, the rows from there to the end of the class, the class's size, the place
of the first row's pair with itself, how many panels of columns it has, and the part that does it."""
RESULTS = 6
"""Classes, those of several rows, tasks, pairs, entries of kernels, and rows that do not stay where they are."""
_CLASSES_FOR_EACH_PART = 4
"""With so many a task is a whole class, with fewer a panel of one."""


def layout(shape: Shape) -> Function:
    """``order``: the row of ``a`` at each place; classes, tasks, and `RESULTS` numbers. For one part.

    ``sorted`` are the places of the labels in ascending order; ``chosen``, unless it ``chooses`` 0, the rows of ``a``
    that the labels are of. ``scratch`` has room for ``3 rows + 3 + owners`` numbers, each table for one row more.
    """
    task = Pass(
        "layout",
        "rows labels_at sorted_at chosen_at chooses owners order_at classes_at tasks_at scratch_at results_at",
    )
    function = task.function
    rows, labels, sorted_rows, chosen, chooses, owners, order, classes, tasks, scratch, results = task.arguments()
    zero, one = (function.constant("i64", x) for x in (0, 1))
    width = shape.lanes * shape.vectors

    def load(table: Value, index: Value | int) -> Value:
        return function.load("i64", table, index, 8)

    def store(x: Value, table: Value, index: Value | int) -> None:
        function.store(x, table, index, 8)

    def number(condition: Value) -> Value:
        return function.convert("zext", condition, "i64")

    starts = scratch
    counts = function.address(starts, rows + 1, "i64")
    by_size = function.address(counts, rows + 1, "i64")
    loads = function.address(by_size, rows + 1, "i64")

    def size_of(index: Value) -> Value:
        return load(starts, index + 1) - load(starts, index)

    def body(part: Value) -> None:
        # 1. Where classes begin among the sorted labels.
        store(zero, starts, 0)
        with function.loop(1, rows, 1, [one]) as loop:
            label, before = (load(labels, load(sorted_rows, loop.index - n)) for n in range(2))
            store(loop.index, starts, loop.values[0])
            loop.next = [loop.values[0] + number(function.compare("ne", label, before))]
        count = loop.values[0]
        store(rows, starts, count)
        # 2. Classes by size, counted.
        with function.loop(0, rows + 1, 1) as loop:
            store(zero, counts, loop.index)
        with function.loop(0, count, 1) as loop:
            size = size_of(loop.index)
            store(load(counts, size) + 1, counts, size)
        with function.loop(0, rows, 1, [zero]) as loop:
            size = rows - loop.index
            of_size = load(counts, size)
            store(loop.values[0], counts, size)
            loop.next = [loop.values[0] + of_size]
        with function.loop(0, count, 1) as loop:
            size = size_of(loop.index)
            rank = load(counts, size)
            store(rank + 1, counts, size)
            store(loop.index, by_size, rank)
        # 3. Where everything of a class lies.
        with function.loop(0, count, 1, [zero] * 5) as each:
            start, place, kernel, several, moved = each.values
            own = load(by_size, each.index)
            first, size = load(starts, own), size_of(own)
            alone = function.compare("eq", size, 1)
            kernel_row = function.select(alone, one, function.divide_up(size, shape.lanes) * shape.lanes)
            for n, x in enumerate((start, size, place, kernel, kernel_row)):
                store(x, classes, each.index * CLASS_NUMBERS + n)
            with function.loop(0, size, 1, [moved]) as loop:
                place_of_row = start + loop.index
                row = load(sorted_rows, first + loop.index)
                row = function.select(function.compare("ne", chooses, 0), load(chosen, row * chooses), row)
                store(row, order, place_of_row)
                loop.next = [loop.values[0] + number(function.compare("ne", row, place_of_row))]
            each.next = [
                start + size,
                place + size * size,
                kernel + size * kernel_row,
                several + number(function.compare("sgt", size, 1)),
                loop.values[0],
            ]
        _, pairs, kernels, several, moved = each.values
        # 4. Tasks, each to the part that has least to do; which part it is changes no result.
        with function.loop(0, owners, 1) as loop:
            store(zero, loads, loop.index)
        whole = function.compare("sge", several, owners * _CLASSES_FOR_EACH_PART)
        rounds = function.select(whole, one, function.divide_up(load(classes, 1), width))
        with function.loop(0, rounds, 1, [zero]) as outer:
            skipped = outer.index * width
            with function.loop(0, several, 1, [outer.values[0]]) as inner:
                start, size, place = (load(classes, inner.index * CLASS_NUMBERS + n) for n in range(3))
                left = size - skipped
                inside = number(function.compare("sgt", left, 0))
                panels = function.select(whole, function.divide_up(size, width), one)
                with function.loop(1, owners, 1, [zero, load(loads, 0)]) as loop:
                    other = load(loads, loop.index)
                    less = function.compare("slt", other, loop.values[1])
                    loop.next = [
                        function.select(less, x, y) for x, y in zip((loop.index, other), loop.values, strict=True)
                    ]
                owner, least = loop.values
                store(least + left * function.minimum(left, panels * width) * inside, loads, owner)
                # What lies outside is written over by the next.
                numbers = start + skipped, left, size, place + skipped * (size + 1), panels, owner
                for n, x in enumerate(numbers):
                    store(x, tasks, inner.values[0] * TASK_NUMBERS + n)
                inner.next = [inner.values[0] + inside]
            outer.next = [inner.values[0]]
        for n, x in enumerate((count, several, outer.values[0], pairs, kernels, moved)):
            store(x, results, n)

    return task.for_parts(body)
