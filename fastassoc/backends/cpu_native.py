"""The losses by machine code of our own (`fastassoc.kernels.cpu`): the merged form of `fastassoc.backends.cpu_blocked`,
``t`` transposed, ``row`` entries for each column of the scores. For float32.
"""

from __future__ import annotations

import ctypes
import itertools
import math

import torch
from torch import Tensor

from fastassoc.backends import Gradients, Inputs, Losses, Needs, Saved, cpu_walk
from fastassoc.backends.cpu_machine import Machine, double
from fastassoc.backends.cpu_walk import RANGE, Walk

SMALLEST_EPS = 1e-10
"""Below it the merged form leaves too much to underflow."""
_FEWEST_ROWS, _FEWEST_COLUMNS = 3, 16
"""Walks between fewer are nearly certain, and the forms that normalise both of their steps more exact."""
SAVED = 12
"""Tensors saved, more than any other form saves; the last tells that they are of this one."""
_LARGE_ROWS, _WIDE_BLOCKS = 256, 16
"""Kernels of classes of more rows do not stay in a cache: read for so many blocks of columns at once."""
_CHECKED_SCORES = 2**16
"""From so many scores on the first tile is looked at before work goes on."""
_PAIR_RANGE = 2.0**80
"""``f_i u_k`` is not below its inverse: ``K_ik``, that times ``G_ik``, has to stay a normal number for upstream
gradients within `_UPSTREAM` of `fastassoc.backends.cpu`. It is not above `RANGE` either, for ``G_ik`` may be large."""
_LOWEST_EXPONENT = -86.0
"""That of `fastassoc.kernels.cpu.passes`."""
_UNDERFLOW = torch.finfo(torch.float32).eps / math.exp(_LOWEST_EXPONENT)
"""The roundoff over the lowest exponential."""
_CPU = torch.device("cpu")


def takes(inputs: Inputs) -> bool:
    """Whether the batch is one for this form, its numbers apart."""
    if inputs.eps < SMALLEST_EPS or inputs.labels.rows < _FEWEST_ROWS or inputs.b.shape[0] < _FEWEST_COLUMNS:
        return False
    tensors = (inputs.a, inputs.b, inputs.bias_a, inputs.bias_b)
    return all(_is_readable(x) for x in tensors if x is not None)


def _is_readable(x: Tensor) -> bool:
    """Whether its address is that of its numbers: not so for subclasses, and where an operation is still to be done."""
    plain = type(x) in (Tensor, torch.nn.Parameter) and x.layout == torch.strided
    return plain and not x.is_neg() and not x._is_zerotensor()


def losses(own: Machine, inputs: Inputs, needs_gradient: bool, statistics: bool) -> Losses | None:
    """See `fastassoc.backends.Backend`. None where the merged form does not hold."""
    walk = Walk(own, inputs, needs_gradient)
    found = _forward(walk, needs_gradient, statistics, shifted=False)
    return _forward(walk, needs_gradient, statistics, shifted=True) if found is None else found


def _forward(walk: Walk, needs_gradient: bool, statistics: bool, shifted: bool) -> Losses | None:
    inputs = walk.inputs
    sizes, layout, program, at = walk.sizes, walk.layout, walk.program, walk.at
    rows, columns, row, parts, pairs = sizes.rows, sizes.columns, sizes.row, sizes.parts, layout.pairs
    a = inputs.a if inputs.a.dtype == torch.float32 else inputs.a.to(torch.float32)
    scratch = walk.scratch() if walk.kept_columns < columns else None
    scratch_at = 0 if scratch is None else scratch.data_ptr()
    sums_at, trips_at, s_at, f, u = at(walk.sums), at(sizes.trips), at(sizes.trips), at(sizes.f), at(sizes.u)
    found, shares = (ctypes.c_float * 6)(), (ctypes.c_double * (2 * parts))()
    collected = None
    if inputs.walker and columns > cpu_walk.FLUSHED_COLUMNS:
        collected = torch.zeros(pairs, dtype=torch.float32, device=_CPU)
        trips_at = collected.data_ptr()
    bias = inputs.bias_a
    program.add(
        "prepare", rows, sizes.depth, a.data_ptr(), a.stride(0), a.stride(1), layout.order, int(layout.moves),
        at(sizes.zero) if bias is None else bias.data_ptr(), int(bias is not None), double(inputs.scale), at(sizes.a),
        at(sizes.panels), row, at(sizes.r), u, at(sizes.zero), sums_at, parts * row, s_at, pairs,
    )  # fmt: skip
    u_limits = 1.0, 1.0
    if shifted:
        program.run()
        limits_of_shifts = walk.shift(at(walk.kept) if walk.kept_columns >= min(sizes.tile, columns) else scratch_at)
        if limits_of_shifts is None:
            return None
        u_limits = limits_of_shifts
    added = 0
    for start, count in walk.tiles():
        end = start + count
        t = at(walk.kept, start * row) if end <= walk.kept_columns else scratch_at
        walk.steps("steps", start, count, t, sums_at)
        looked_at = start == 0 and rows * columns >= _CHECKED_SCORES
        if looked_at or end == columns:
            program.add("row_factors", rows, row, sums_at, f)
            program.add("limits", f, rows, at(sizes.y), end, ctypes.addressof(found))
        if looked_at:
            program.run()
            # Most batches that this form is not for end here.
            if not _holds(inputs.eps, found, u_limits, all_columns=end == columns):
                return None
        if not inputs.walker:
            continue
        program.add(
            "trips", count, t, row, trips_at, layout.tasks, layout.task_number, layout.single, layout.singles,
            trips_at + 4 * layout.single_place, at(walk.packed), walk.packed_row,
        )  # fmt: skip
        added += count
        if collected is not None and (added >= cpu_walk.FLUSHED_COLUMNS or end == columns):
            program.add("flush", trips_at, s_at, pairs)
            added = 0
    if inputs.walker:
        program.add("mirror", layout.classes, layout.several, s_at)
    eps = double(inputs.eps)
    if inputs.visit:
        program.add("clear", sums_at, parts * row)
        weight, factor = double(1.0 / rows), double(-1.0 / (rows * columns))
        for start, count in walk.tiles():
            t = walk.known_steps(start, count, scratch_at)
            program.add(
                "visits", count, sizes.vectors, t, row, f, at(sizes.g, start), at(sizes.visit, start), sums_at,
                weight, eps, factor,
            )  # fmt: skip
        program.add("row_sums", row, sums_at, f, at(sizes.rho))
    program.add(
        "logarithms", rows, layout.classes, layout.several, s_at, f, u, layout.single,
        layout.singles if inputs.walker else 0,
        s_at + 4 * layout.single_place, at(sizes.visit), columns if inputs.visit else 0, eps, ctypes.addressof(shares),
    )  # fmt: skip
    returns = cpu_walk.floats(rows) if statistics else None
    if returns is not None:
        program.add("returns", layout.classes, layout.number, s_at, f, u, returns.data_ptr())
    program.run()
    if not _holds(inputs.eps, found, u_limits, all_columns=True):
        return None
    walker = _scalar(math.log1p(rows * inputs.eps) + sum(shares[::2])) if inputs.walker else None
    visit = visit_probability = p_correct = accuracy_estimate = None
    if inputs.visit:
        visit = _scalar(math.log1p(columns * inputs.eps) - sum(shares[1::2]) / columns)
    if returns is not None:
        p_correct, accuracy_estimate = returns.mean(), returns.sqrt().mean()
        if inputs.visit:
            visit_probability = walk.memory[sizes.visit : sizes.visit + columns].clone()
    saved: Saved = (*(None,) * (SAVED - 1), walk.memory) if needs_gradient else ()
    return Losses(walker, visit, p_correct, accuracy_estimate, visit_probability, saved)


def gradients(
    own: Machine,
    inputs: Inputs,
    saved: Saved,
    upstream_walker: float | None,
    upstream_visit: float | None,
    needs: Needs,
) -> Gradients:
    """See `fastassoc.backends.Backend`."""
    walk = Walk(own, inputs, True, saved[-1])
    sizes, layout, program, at = walk.sizes, walk.layout, walk.program, walk.at
    rows, columns, depth, row = sizes.rows, sizes.columns, sizes.depth, sizes.row
    # Sums in float64, rho, h, K, what is packed, and ds, each at the begin of a vector.
    lengths = 2 * row, row, columns, layout.kernels, sizes.parts * walk.packed_row, sizes.tile * row
    places = [0, *itertools.accumulate(-(-length // own.lanes) * own.lanes for length in lengths)]
    scratch = cpu_walk.large(places[-1])
    trips_at, rho, h, kernels, packed, ds_at, _ = (scratch.data_ptr() + 4 * place for place in places)
    ds = scratch[places[-2] :]
    da = cpu_walk.floats(rows * depth).view(rows, depth) if needs[0] else None
    own_db = db = None
    converts = inputs.b.dtype != torch.float32
    if needs[1]:
        own_db = cpu_walk.floats((sizes.tile if converts else columns) * depth)
        db = torch.empty_like(inputs.b, memory_format=torch.contiguous_format) if converts else own_db.view(-1, depth)
    dbias_a = torch.zeros(rows, dtype=torch.float32, device=_CPU) if needs[2] else None
    dbias_b = cpu_walk.floats(columns) if needs[3] else None
    upstream_walker, upstream_visit = upstream_walker or 0.0, upstream_visit or 0.0
    f, u, eps = at(sizes.f), at(sizes.u), double(inputs.eps)
    program.add(
        "kernels", rows, layout.classes, layout.number, at(sizes.trips), f, u, kernels, trips_at, eps,
        double(upstream_walker),
    )  # fmt: skip
    # Without a visit term its factors are 0, and any finite numbers do.
    program.add(
        "terms", rows, row, trips_at, at(sizes.rho) if inputs.visit else f, f, double(upstream_visit), rho,
        columns, at(sizes.visit) if inputs.visit else at(sizes.y), at(sizes.g), eps,
        double(-upstream_visit / (rows * columns)), h,
    )  # fmt: skip
    large, wide_strip = 0, sizes.strip
    if layout.longest > _LARGE_ROWS:
        large = int((layout.class_table()[:, 1] > _LARGE_ROWS).sum())
        wide_strip = max(sizes.strip, _WIDE_BLOCKS * own.rows)
    t_scratch = walk.scratch() if walk.kept_columns < columns else None
    da_at = 0 if da is None else da.data_ptr()
    for start, count in walk.tiles():
        t = walk.known_steps(start, count, 0 if t_scratch is None else t_scratch.data_ptr())
        db_at = 0 if own_db is None else own_db.data_ptr() + (0 if converts else 4 * start * depth)
        program.add(
            "brackets", count, sizes.vectors, rows, depth, t, ds_at, row,
            layout.classes, layout.several, large, kernels, layout.single, layout.singles,
            kernels + 4 * layout.single_kernel, f, rho, u, at(sizes.g, start), h + 4 * start, at(sizes.v, start),
            at(sizes.a), db_at, int(db is not None), sizes.strip, wide_strip,
        )  # fmt: skip
        if da is not None:
            b, b_at = walk.rows_of_b(start, count)
            program.add(
                "row_gradients", count, rows, depth, ds_at, row, b_at, b.stride(0), da_at, int(start > 0),
                packed, walk.packed_row,
            )  # fmt: skip
            walk.run_if_converted()
        if converts and own_db is not None and db is not None:
            program.run()
            db[start : start + count] = own_db[: count * depth].view(count, depth)
        if dbias_a is not None or dbias_b is not None:
            program.run()
            tile_ds = ds[: count * row].view(count, row)[:, :rows]
            if dbias_a is not None:
                dbias_a += tile_ds.sum(0)
            if dbias_b is not None:
                torch.sum(tile_ds, 1, out=dbias_b[start : start + count])
    total = inputs.a.shape[0]
    if da is not None and (layout.moves or rows < total):
        in_order, da = da, cpu_walk.floats(total * depth).view(total, depth)
        if rows < total:
            da.zero_()
        program.add("rows_back", rows, depth, in_order.data_ptr(), layout.order, da.data_ptr())
    program.run()
    if dbias_a is not None and (layout.moves or rows < total):
        order = torch.from_numpy(layout.memory[:rows])
        dbias_a = dbias_a.new_zeros(total).index_copy_(0, order, dbias_a)
    if da is not None and inputs.scale != 1.0:
        da *= inputs.scale
    return Gradients(da, db, dbias_a, dbias_b)


def _holds(eps: float, found: ctypes.Array[ctypes.c_float], u_limits: tuple[float, float], all_columns: bool) -> bool:
    """Whether sums lie in their range, and what underflows stays below ``eps`` times the roundoff of a probability.

    As in `fastassoc.backends.cpu_blocked`. What the first columns say of y is final, of f it is not.
    """
    limit = eps * _UNDERFLOW
    f_low, f_high, f_sum, y_low, y_high, y_sum = found
    u_low, u_high = u_limits
    y_over = y_high * max(1.0, y_high)
    columns_hold = y_over * u_high <= limit and y_over <= RANGE and y_low * y_low * RANGE >= 1.0
    rows_hold = (
        f_high * max(1.0, u_high) <= min(limit, RANGE)
        and f_high <= limit * y_low
        and f_low * RANGE >= 1.0
        and f_low * u_low * _PAIR_RANGE >= 1.0
    )
    return math.isfinite(f_sum + y_sum) and columns_hold and (rows_hold or not all_columns)


def _scalar(x: float) -> Tensor:
    return torch.scalar_tensor(x, dtype=torch.float32, device=_CPU)
