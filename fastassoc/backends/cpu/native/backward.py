"""The backward pass by machine code."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from fastassoc.backends.cpu.native import buffers
from fastassoc.backends.cpu.native.machine import Machine, double
from fastassoc.backends.cpu.native.walk import Walk
from fastassoc.backends.protocol import Gradients, Inputs, Needs

_LARGE_ROWS, _WIDE_BLOCKS = 256, 16
"""Kernels of classes of more rows do not stay in a cache: read for so many blocks of columns at once."""
_CPU = torch.device("cpu")


def gradients(
    own: Machine,
    inputs: Inputs,
    memory: Tensor,
    upstream_walker: float | None,
    upstream_visit: float | None,
    needs: Needs,
) -> Gradients:
    """See `fastassoc.backends.protocol.Backend`."""
    walk = Walk(own, inputs, True, memory)
    sizes, layout, program, at = walk.sizes, walk.layout, walk.program, walk.at
    rows, columns, depth, row = sizes.rows, sizes.columns, sizes.depth, sizes.row
    # Sums in float64, rho, h, K, what is packed, and ds, each at the begin of a vector.
    lengths = 2 * row, row, columns, layout.kernels, sizes.parts * walk.packed_row, sizes.tile * row
    places = [0, *itertools.accumulate(-(-length // own.lanes) * own.lanes for length in lengths)]
    scratch = buffers.large(places[-1])
    trips_at, rho, h, kernels, packed, ds_at, _ = (scratch.data_ptr() + 4 * place for place in places)
    ds = scratch[places[-2] :]
    da = buffers.floats(rows * depth).view(rows, depth) if needs[0] else None
    own_db = db = None
    converts = inputs.b.dtype != torch.float32
    if needs[1]:
        own_db = buffers.floats((sizes.tile if converts else columns) * depth)
        db = torch.empty_like(inputs.b, memory_format=torch.contiguous_format) if converts else own_db.view(-1, depth)
    dbias_a = torch.zeros(rows, dtype=torch.float32, device=_CPU) if needs[2] else None
    dbias_b = buffers.floats(columns) if needs[3] else None
    f, u, eps = at(sizes.f), at(sizes.u), double(inputs.eps)
    several, single, singles, single_kernel = layout.several, layout.single, layout.singles, layout.single_kernel
    if upstream_walker is None:
        # No products with the kernels of classes: each row alone, with a kernel of 0.
        several, single, singles, single_kernel = 0, 0, rows, 0
        scratch[places[0] : places[1]].zero_()
        scratch[places[3] : places[3] + rows].zero_()
    else:
        program.add(
            "kernels", rows, layout.classes, layout.number, at(sizes.trips), f, u, kernels, trips_at, eps,
            double(upstream_walker),
        )  # fmt: skip
    upstream_visit = upstream_visit or 0.0
    # Without a visit term its factors are 0, and any finite numbers do.
    program.add(
        "terms", rows, row, trips_at, at(sizes.rho) if inputs.visit else f, f, double(upstream_visit), rho,
        columns, at(sizes.visit) if inputs.visit else at(sizes.y), at(sizes.g), eps,
        double(-upstream_visit / (rows * columns)), h,
    )  # fmt: skip
    large, wide_strip = 0, sizes.strip
    if several and layout.longest > _LARGE_ROWS:
        large = int((layout.class_table()[:, 1] > _LARGE_ROWS).sum())
        wide_strip = max(sizes.strip, _WIDE_BLOCKS * own.rows)
    t_scratch = walk.scratch() if walk.kept_columns < columns else None
    da_at = 0 if da is None else da.data_ptr()
    for start, count in walk.tiles():
        t = walk.known_steps(start, count, 0 if t_scratch is None else t_scratch.data_ptr())
        db_at = 0 if own_db is None else own_db.data_ptr() + (0 if converts else 4 * start * depth)
        program.add(
            "brackets", count, sizes.vectors, rows, depth, t, ds_at, row,
            layout.classes, several, large, kernels, single, singles, kernels + 4 * single_kernel,
            f, rho, u, at(sizes.g, start), h + 4 * start, at(sizes.v, start), at(sizes.a), db_at, int(db is not None),
            sizes.strip, wide_strip,
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
        in_order, da = da, buffers.floats(total * depth).view(total, depth)
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
