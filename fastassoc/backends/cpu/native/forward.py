"""The forward passes by machine code (`fastassoc.kernels.cpu`): the merged form of
`fastassoc.backends.cpu.operations.sweeps`, ``t`` transposed, ``row`` entries for each column of the scores.
"""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from fastassoc.backends.cpu.native import buffers
from fastassoc.backends.cpu.native.machine import Machine, double
from fastassoc.backends.cpu.native.walk import RANGE, Walk
from fastassoc.backends.protocol import Inputs, Losses
from fastassoc.kernels.cpu.passes import LOWEST_EXPONENT

SMALLEST_EPS = 1e-10
"""Below it the merged form leaves too much to underflow."""
_FEWEST_ROWS, _FEWEST_COLUMNS = 3, 16
"""Walks between fewer are nearly certain, and the forms that normalise both of their steps more exact."""
_CHECKED_SCORES = 2**16
"""From so many scores on the first tile is looked at before work goes on."""
_PAIR_RANGE = 2.0**80
"""``f_i u_k`` is not below its inverse: ``K_ik``, that times ``G_ik``, has to stay a normal number for upstream
gradients within `_UPSTREAM` of `fastassoc.backends.cpu`. It is not above `RANGE` either, for ``G_ik`` may be large."""
_UNDERFLOW = torch.finfo(torch.float32).eps / math.exp(LOWEST_EXPONENT)
"""The roundoff over the lowest exponential."""
_CPU = torch.device("cpu")


def takes(inputs: Inputs) -> bool:
    """Whether the batch is one for machine code, its numbers apart."""
    if inputs.dtype != torch.float32 or inputs.differences or inputs.ranks is not None:
        return False
    if inputs.eps < SMALLEST_EPS or inputs.labels.rows < _FEWEST_ROWS or inputs.b.shape[0] < _FEWEST_COLUMNS:
        return False
    tensors = (inputs.a, inputs.b, inputs.bias_a, inputs.bias_b)
    return all(_is_readable(x) for x in tensors if x is not None)


def _is_readable(x: Tensor) -> bool:
    """Whether its address is that of its numbers: not so for subclasses, and where an operation is still to be done."""
    plain = type(x) in (Tensor, torch.nn.Parameter) and x.layout == torch.strided
    return plain and not x.is_neg() and not x._is_zerotensor()


def losses(own: Machine, inputs: Inputs, needs_gradient: bool, statistics: bool) -> Losses | None:
    """See `fastassoc.backends.protocol.Backend`. None where the merged form does not hold."""
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
    if inputs.walker and columns > sizes.flushed:
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
        if collected is not None and (added >= sizes.flushed or end == columns):
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
    returns = buffers.floats(rows) if statistics else None
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
    saved = (walk.memory,) if needs_gradient else ()
    return Losses(None, walker, visit, p_correct, accuracy_estimate, visit_probability, saved)


def _holds(eps: float, found: ctypes.Array[ctypes.c_float], u_limits: tuple[float, float], all_columns: bool) -> bool:
    """Whether sums lie in their range, and what underflows stays below ``eps`` times the roundoff of a probability.

    As in `fastassoc.backends.cpu.operations.sweeps`. What the first columns say of y is final, of f it is not.
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
