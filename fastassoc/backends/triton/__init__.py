"""The Triton backend: what every kernel of `fastassoc.kernels` reads and writes, its grid, and its launch.

Seven kernels forward and at most four backward. Up to `MAX_ROWS_WITHOUT_SYNC` rows nothing waits for the device, as
buffers are as large as any classes could need; above, one number is read back, the number of pairs of class tiles.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastassoc import validation
from fastassoc.backends.protocol import Gradients, Inputs, Losses, Needs, Saved
from fastassoc.backends.triton.launch import Machine, interpreted, launch, machine
from fastassoc.kernels.triton.class_sizes import class_sizes
from fastassoc.kernels.triton.column_gradients import column_gradients
from fastassoc.kernels.triton.configs import Config, Tile, choose_config
from fastassoc.kernels.triton.kappa import kappa as kappa_kernel
from fastassoc.kernels.triton.losses import losses as losses_kernel
from fastassoc.kernels.triton.normalisers import normalisers
from fastassoc.kernels.triton.round_trips import round_trips
from fastassoc.kernels.triton.row_gradients import add_shares, row_gradients
from fastassoc.kernels.triton.rows import rows as rows_kernel
from fastassoc.kernels.triton.visits import visits
from fastassoc.kernels.triton.walker import walker as walker_kernel

MAX_ROWS_WITHOUT_SYNC = 2048
"""Up to this many rows, buffers for the worst classes are small: two of at most 27 MB in float32, 40 in float64."""
_PROGRAMS_PER_PROCESSOR = 4
"""Work is split until every multiprocessor has this many programs, where there is so much."""
_MAX_SPLITS = 128
"""Shares of one round trip; more would take longer to add than to compute."""
_WALKER_ROWS = 16
"""Rows of a class tile that one program of the walker's part of the loss adds up."""


class Labels(NamedTuple):
    """Labels on the device of the embeddings."""

    values: Tensor
    ignore_index: int | None
    float32_products: str = "ieee"
    """As they were set when the forward pass began; the backward pass must not see another setting."""


class Precision(NamedTuple):
    """Operands of the products; see `fastassoc.kernels.triton.primitives.product`."""

    scores: str
    """Also "differences"; see `fastassoc.kernels.triton.primitives.scores`."""
    others: str
    """Products of probabilities and of gradients."""


def check_can_run(device: torch.device) -> None:
    """RuntimeError where kernels cannot run, with what is missing."""
    if device.type == "cuda":
        if torch.version.hip is None and torch.cuda.get_device_capability(device) < (7, 0):
            capability = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
            raise RuntimeError(
                f"backend 'triton' cannot run: it needs a GPU of sm_70 or newer; {device} is {capability}"
            )
    elif not interpreted():
        raise RuntimeError(
            f"backend 'triton' cannot run on {device}: it takes tensors on a CUDA GPU, "
            "or on the CPU with TRITON_INTERPRET=1 set before Triton is imported"
        )


def prepare_labels(labels: Tensor, ignore_index: int | None, b: Tensor, dtype: torch.dtype) -> Labels:
    """Labels beside ``b``. Those on the CPU must leave a row that takes part; those on a device are not read."""
    if labels.dtype in (torch.uint16, torch.uint32, torch.uint64):
        # Kernels take none of them. Beyond int64 values wrap around, one to one.
        labels = labels.to(torch.int64)
    if ignore_index is not None and labels.device.type == "cpu":
        # An index beyond a narrower dtype would wrap around.
        validation.check_rows_left(int((labels.to(torch.int64) != ignore_index).sum()), ignore_index)
    return Labels(labels.to(b.device, non_blocking=True), ignore_index, float32_products())


def losses(inputs: Inputs, needs_gradient: bool, statistics: bool) -> Losses:
    """See `fastassoc.backends.protocol.Backend`; saves what `gradients` unpacks in its first lines."""
    plan = _Plan(inputs)
    new, dtype = inputs.a.new_empty, inputs.dtype
    n, m = plan.n, plan.m
    classes = new(3, n, dtype=torch.int32)
    slots = new(2, plan.max_tiles * plan.class_rows, dtype=torch.int32)
    tiles = new(3, plan.max_tiles, dtype=torch.int32)
    counts = new(3, dtype=torch.int32)
    rows = new(4, n, dtype=dtype)
    columns = new(3, m, dtype=dtype)
    with plan.device_guard():
        _rows_and_columns(plan, classes, slots, tiles, counts, rows, columns)
        visit_probability = visit_parts = None
        if inputs.visit:
            visit_probability, visit_parts = _visits(plan, rows, counts, columns)
        walker_parts = g = None
        if inputs.walker or needs_gradient:
            pairs = plan.max_pairs
            if n > MAX_ROWS_WITHOUT_SYNC:
                _, exact_tiles, pairs = counts.tolist()
                slots, tiles = slots[:, : exact_tiles * plan.class_rows], tiles[:, :exact_tiles]
            walker_parts, g = _walks(plan, needs_gradient, pairs, classes, slots, tiles, counts, rows, columns)
        results = _losses(plan, walker_parts, visit_parts, counts, statistics)
    saved = (rows, columns, slots, tiles, counts, g) if needs_gradient else ()
    return Losses(*results, visit_probability if statistics else None, saved)


def gradients(
    inputs: Inputs, saved: Saved, grad_walker: Tensor | None, grad_visit: Tensor | None, needs: Needs
) -> Gradients:
    """See `fastassoc.backends.protocol.Backend`."""
    plan = _Plan(inputs)
    rows, columns, slots, tiles, counts, g = _shaped(saved, plan.class_rows)
    state = {
        "rows_ptr": rows,
        "columns_ptr": columns,
        "slots_ptr": slots,
        "tiles_ptr": tiles,
        "counts_ptr": counts,
        "g_ptr": g,
        "TILES": tiles.stride(0),
        "ONE_TILE": g is None or g.shape[0] == tiles.shape[1],
    }
    da = db = dbias_a = dbias_b = None
    with plan.device_guard():
        kappa = None
        if grad_walker is not None:
            kappa = inputs.a.new_empty(plan.m, dtype=inputs.dtype)
            _kappa(plan, state, kappa)
        state |= {"kappa_ptr": kappa, "grad_walker_ptr": grad_walker, "grad_visit_ptr": grad_visit}
        if needs[1] or needs[3]:
            db, dbias_b = _column_gradients(plan, state, needs[3])
        if needs[0] or needs[2]:
            da, dbias_a = _row_gradients(plan, state, tiles.shape[1], needs[2])
    return Gradients(da if needs[0] else None, db if needs[1] else None, dbias_a, dbias_b)


def saved_dtypes(a: Tensor, dtype: torch.dtype) -> list[torch.dtype]:
    """See `fastassoc.backends.protocol.Backend`."""
    return [
        dtype,
        dtype,
        torch.int32,
        torch.int32,
        torch.int32,
        _g_dtype(_precision(a.dtype, machine(a.device), float32_products()), dtype),
    ]


def _shaped(saved: Saved, class_rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """What `losses` saved, in the shapes it had."""
    rows, columns, slots, tiles, counts, g = saved
    assert rows is not None
    assert columns is not None
    assert slots is not None
    assert tiles is not None
    assert counts is not None
    slots, tiles = slots.view(2, -1), tiles.view(3, -1)
    if slots.shape[1] != tiles.shape[1] * class_rows:
        raise RuntimeError(
            "torch.get_float32_matmul_precision() changed between the forward and the backward pass of a compiled "
            "fastassoc.walker_visit_loss"
        )
    g = None if g is None else g.view(-1, class_rows, class_rows)
    return rows.view(4, -1), columns.view(3, -1), slots, tiles, counts, g


class _Plan:
    """Sizes, tiles and grids of a call, and the arguments that most kernels share."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self.n, self.m, self.d = inputs.a.shape[0], inputs.b.shape[0], inputs.a.shape[1]
        self.machine = machine(inputs.a.device)
        self.precision = _precision(inputs.a.dtype, self.machine, inputs.labels.float32_products)
        if inputs.differences:
            self.precision = self.precision._replace(scores="differences")
        self.config: Config = choose_config(
            self.machine.architecture, _tiles(inputs.a.dtype, self.precision.others), self.d
        )
        self.class_rows = self.config.class_rows
        self.programs = _PROGRAMS_PER_PROCESSOR * self.machine.processors
        # Fewer than half of the slots are empty (`fastassoc.kernels.triton.rows`).
        self.max_tiles = _ceil(2 * self.n, self.class_rows)
        # As many as if all rows were one class, and one for each tile.
        whole_tiles = _ceil(self.n, self.class_rows)
        self.max_pairs = self.max_tiles + (whole_tiles**2 if whole_tiles > 1 else 0)
        self.tiny = torch.finfo(inputs.dtype).tiny

    def items(self, pairs: int, column_tiles: int) -> int:
        """Programs that up to ``pairs`` pairs need, split as `column_splits` of the kernel does."""
        return min(pairs + self.programs, pairs * min(column_tiles, _MAX_SPLITS))

    def device_guard(self) -> Any:
        """The device of the tensors, which Triton launches on."""
        return torch.cuda.device_of(self.inputs.a)

    def embeddings(self, tile: Tile, products: bool = False, hold: bool = True) -> dict[str, Any]:
        """Embeddings, biases, sizes, strides, and the constants of a tile.

        ``hold`` keeps tiles of the embeddings for later. Where a class may have other tiles, registers are short.
        """
        x = self.inputs
        depth = min(tile.depth, max(16, _power_of_two(self.d)))
        shared = {
            "a_ptr": x.a,
            "b_ptr": x.b,
            "bias_a_ptr": x.bias_a,
            "bias_b_ptr": x.bias_b,
            "N": self.n,
            "M": self.m,
            "D": self.d,
            "scale": x.scale,
            "stride_an": x.a.stride(0),
            "stride_ad": x.a.stride(1),
            "stride_bm": x.b.stride(0),
            "stride_bd": x.b.stride(1),
            "BLOCK_N": tile.rows,
            "BLOCK_M": tile.columns,
            "BLOCK_D": depth,
            "ONE_D": hold and depth >= self.d and not x.differences,
            "PRECISION": self.precision.scores,
        }
        return shared | {"PRODUCT": self.precision.others} if products else shared


def _rows_and_columns(
    plan: _Plan, classes: Tensor, slots: Tensor, tiles: Tensor, counts: Tensor, rows: Tensor, columns: Tensor
) -> None:
    """Class layout and normalisers: kernels 1 to 3."""
    values, ignore_index, _ = plan.inputs.labels
    layout = {
        "labels_ptr": values,
        "classes_ptr": classes,
        "slots_ptr": slots,
        "tiles_ptr": tiles,
        "N": plan.n,
        "SLOTS": slots.shape[1],
        "TILES": plan.max_tiles,
        "stride_label": values.stride(0),
        "WALKER": plan.inputs.walker,
        "CLASS_ROWS": plan.class_rows,
        "BLOCK_N": 32,
        "BLOCK_K": 128,
    }
    launch(
        class_sizes,
        (_ceil(max(plan.n, slots.shape[1]), 32),),
        **layout,
        ignore_index=0 if ignore_index is None else ignore_index,
        HAS_IGNORED=ignore_index is not None,
    )
    tile = plan.config.normalisers
    programs = min(_ceil(plan.m, tile.columns), plan.programs)
    row_parts = rows.new_empty(2, programs, plan.n)
    launch(
        normalisers,
        (programs,),
        tile,
        **plan.embeddings(tile),
        classes_ptr=classes,
        row_parts_ptr=row_parts,
        columns_ptr=columns,
    )
    launch(
        rows_kernel,
        (_ceil(plan.n, 32),),
        **layout,
        row_parts_ptr=row_parts,
        rows_ptr=rows,
        counts_ptr=counts,
        PARTS=programs,
        BLOCK_P=64,
    )


def _visits(plan: _Plan, rows: Tensor, counts: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Visit probabilities and shares of the visit loss."""
    tile = plan.config.visits
    programs = _ceil(plan.m, tile.columns)
    visit_probability, parts = columns.new_empty(plan.m), columns.new_empty(programs)
    launch(
        visits,
        (programs,),
        tile,
        **plan.embeddings(tile),
        rows_ptr=rows,
        counts_ptr=counts,
        columns_ptr=columns,
        visit_ptr=visit_probability,
        parts_ptr=parts,
        eps=plan.inputs.eps,
        tiny=plan.tiny,
    )
    return visit_probability, parts


def _walks(
    plan: _Plan,
    needs_gradient: bool,
    pairs: int,
    classes: Tensor,
    slots: Tensor,
    tiles: Tensor,
    counts: Tensor,
    rows: Tensor,
    columns: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """Shares of the walker loss and its gradient by every round trip; completes ``rows``."""
    inputs, tile = plan.inputs, plan.config.round_trips
    column_tiles = _ceil(plan.m, tile.columns)
    items = plan.items(pairs, column_tiles)
    block = (plan.class_rows, plan.class_rows)
    trips = rows.new_empty(items, *block) if inputs.walker else None
    g_dtype = _g_dtype(plan.precision, inputs.dtype)
    g = rows.new_empty(pairs, *block, dtype=g_dtype) if inputs.walker and needs_gradient else None
    terms = {"WALKER": inputs.walker, "VISIT": inputs.visit and needs_gradient}
    shared: dict[str, Any] = {
        "rows_ptr": rows,
        "slots_ptr": slots,
        "tiles_ptr": tiles,
        "counts_ptr": counts,
        "trips_ptr": trips,
        "rho_ptr": rows.new_empty(items, plan.class_rows) if terms["VISIT"] else None,
        "TILES": tiles.stride(0),
        "ITEMS": plan.programs,
        "MAX_SPLITS": _MAX_SPLITS,
        **terms,
    }
    one_tile = pairs == tiles.shape[1]
    launch(
        round_trips,
        (items,),
        tile,
        **plan.embeddings(tile, products=True, hold=one_tile),
        **shared,
        columns_ptr=columns,
        ONE_TILE=one_tile,
    )
    programs = tiles.shape[1] * (plan.class_rows // _WALKER_ROWS)
    parts = rows.new_empty(3, programs)
    launch(
        walker_kernel,
        (programs,),
        **shared,
        classes_ptr=classes,
        g_ptr=g,
        parts_ptr=parts,
        N=plan.n,
        eps=inputs.eps,
        tiny=plan.tiny,
        SLOTS=slots.stride(0),
        COLUMN_TILES=column_tiles,
        CLASS_ROWS=plan.class_rows,
        BLOCK_N=_WALKER_ROWS,
        BLOCK_S=4,
    )
    return parts, g


def _losses(
    plan: _Plan,
    walker_parts: Tensor | None,
    visit_parts: Tensor | None,
    counts: Tensor,
    statistics: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Walker, visit, and the two statistics of the walker."""
    wanted = plan.inputs.walker, plan.inputs.visit, plan.inputs.walker and statistics, plan.inputs.walker and statistics
    walker, visit, p_correct, accuracy_estimate = (
        plan.inputs.a.new_empty((), dtype=plan.inputs.dtype) if x else None for x in wanted
    )
    launch(
        losses_kernel,
        (1,),
        walker_parts_ptr=walker_parts,
        visit_parts_ptr=visit_parts,
        counts_ptr=counts,
        walker_ptr=walker,
        p_correct_ptr=p_correct,
        accuracy_ptr=accuracy_estimate,
        visit_ptr=visit,
        M=plan.m,
        WALKER_PARTS=0 if walker_parts is None else walker_parts.shape[1],
        VISIT_PARTS=0 if visit_parts is None else visit_parts.shape[0],
        eps=plan.inputs.eps,
        BLOCK=1024,
    )
    return walker, visit, p_correct, accuracy_estimate


def _kappa(plan: _Plan, state: dict[str, Any], kappa: Tensor) -> None:
    tile = plan.config.kappa
    launch(
        kappa_kernel,
        (_ceil(plan.m, tile.columns),),
        tile,
        **plan.embeddings(tile, products=True, hold=state["ONE_TILE"]),
        **state,
        kappa_ptr=kappa,
    )


def _column_gradients(plan: _Plan, state: dict[str, Any], bias: bool) -> tuple[Tensor, Tensor | None]:
    """``db`` and ``dbias_b``."""
    tile, inputs = plan.config.column_gradients, plan.inputs
    db = inputs.b.new_empty(plan.m, plan.d)
    dbias_b = inputs.b.new_empty(plan.m, dtype=inputs.dtype) if bias else None
    shared = plan.embeddings(tile, products=True, hold=state["ONE_TILE"])
    grid = (_ceil(plan.m, tile.columns), _ceil(plan.d, shared["BLOCK_D"]))
    launch(column_gradients, grid, tile, **shared, **state, db_ptr=db, dbias_b_ptr=dbias_b)
    return db, dbias_b


def _row_gradients(plan: _Plan, state: dict[str, Any], tiles: int, bias: bool) -> tuple[Tensor, Tensor | None]:
    """``da`` and ``dbias_a``, in ranges of columns where the class tiles alone are too few programs."""
    tile, inputs = plan.config.row_gradients, plan.inputs
    shared = plan.embeddings(tile, products=True, hold=state["ONE_TILE"])
    depths = _ceil(plan.d, shared["BLOCK_D"])
    splits = min(_ceil(plan.m, tile.columns), _ceil(plan.programs, max(1, tiles * depths)))
    # One range writes the result itself, but not the rows that take no part.
    allocate = inputs.a.new_empty if splits > 1 or inputs.labels.ignore_index is None else inputs.a.new_zeros
    da = allocate(plan.n, plan.d)
    dbias_a = allocate(plan.n, dtype=inputs.dtype) if bias else None
    da_parts, dbias_a_parts = da, dbias_a
    if splits > 1:
        da_parts = da.new_empty(splits, plan.n, plan.d, dtype=inputs.dtype)
        dbias_a_parts = da_parts.new_empty(splits, plan.n) if bias else None
    grid = (tiles, splits, depths)
    launch(row_gradients, grid, tile, **shared, **state, da_ptr=da_parts, dbias_a_ptr=dbias_a_parts)
    if splits > 1:
        launch(
            add_shares,
            (_ceil(plan.n, 16), _ceil(plan.d, 128)),
            da_parts_ptr=da_parts,
            dbias_a_parts_ptr=dbias_a_parts,
            rows_ptr=state["rows_ptr"],
            da_ptr=da,
            dbias_a_ptr=dbias_a,
            N=plan.n,
            D=plan.d,
            SPLITS=splits,
            BLOCK_N=16,
            BLOCK_D=128,
        )
    return da, dbias_a


def float32_products() -> str:
    """What PyTorch's own float32 products on a GPU are set to: "ieee", "tf32" or "bf16"."""
    try:
        return {"highest": "ieee", "high": "tf32", "medium": "bf16"}[torch.get_float32_matmul_precision()]
    except RuntimeError:
        # Set by PyTorch's newer switch, after which the older one refuses to answer.
        return "tf32" if getattr(torch.backends.cuda.matmul, "fp32_precision", "ieee") == "tf32" else "ieee"


def _precision(dtype: torch.dtype, machine: Machine, float32_products: str) -> Precision:
    exact = Precision("ieee", "ieee")
    if machine.architecture == "interpreter" or dtype == torch.float64:
        # The interpreter multiplies bfloat16 wrongly.
        return exact
    if machine.architecture in ("sm_70", "sm_72", "sm_75"):
        # Tensor cores for float16 alone.
        return Precision("fp16", "ieee") if dtype == torch.float16 else exact
    if dtype == torch.bfloat16:
        return Precision("bf16", "bf16")
    if dtype == torch.float16:
        # Probabilities and gradients underflow in float16; tf32 has its digits and the range of float32.
        return Precision("fp16", "tf32")
    return Precision(float32_products, float32_products)


def _tiles(dtype: torch.dtype, products: str) -> str:
    """What `choose_config` calls these products. Float32 fills twice the registers before it is rounded to bf16."""
    if dtype == torch.float64:
        return "fp64"
    return "fp32-bf16" if dtype == torch.float32 and products == "bf16" else products


def _g_dtype(precision: Precision, dtype: torch.dtype) -> torch.dtype:
    """As the products round it."""
    return torch.bfloat16 if precision.others == "bf16" else dtype


def _ceil(x: int, y: int) -> int:
    return -(-x // y)


def _power_of_two(x: int) -> int:
    return 1 << (x - 1).bit_length()
