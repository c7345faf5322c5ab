"""Where the numbers of a small batch are: two buffers of the accumulation dtype, their parts one after the other.

``NP`` and ``MP`` are the numbers of rows and columns rounded up to ``BLOCK``; ``TI`` and ``TJ`` are the tiles that they
make.

``saved``, for the backward pass:

| part | shape | |
|---|---|---|
| `P_AB`, `Q` | [NP, MP] | steps there, and back; 0 where there is no row or column |
| `G` | [NP, NP] | ``g``, 0 across classes |
| `H` | [MP] | ``h``; this and ``g`` at upstream gradients of 1 |

``scratch``, in the forward pass:

| part | shape | |
|---|---|---|
| scores | [NP, MP] | in units of log 2, -inf where there is no row or column |
| row parts | [2, TJ, NP] | maximum of a row in a tile, and its sum of exponentials relative to that |
| column parts | [2, TI, MP] | the same of columns |
| visit parts | [TI, MP] | shares of ``sum_i p_ab_ij`` |
| loss parts | [`LOSS_PARTS`, programs], room for TI | of the walker as ``walker_parts`` has them, then of the visits |
| trips | [shares, NP, NP] | shares of ``p_aba``; of pairs of tiles without a class in common nothing |

and in the backward pass:

| part | shape | |
|---|---|---|
| gradients | [NP, MP] | ``p_ab_ij (U_ij + h_j) + q_ij W_ij`` with ``U = G q``, ``W = G' p_ab`` |
| rho parts | [TJ, NP] | shares of ``rho_i = sum_j p_ab_ij (U_ij + h_j)`` |
| kappa parts | [TI, MP] | shares of ``kappa_j = sum_i q_ij W_ij`` |

these with ``G`` and ``h`` times their upstream gradients.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fastassoc.kernels.triton.buffers import WALKER_PART_FIELDS

LOSS_PARTS = WALKER_PART_FIELDS + 1
_LOSS_PARTS = tl.constexpr(LOSS_PARTS)


class Dense(NamedTuple):
    """Sizes and buffers, as an argument of a kernel."""

    labels_ptr: Any
    saved_ptr: Any
    """None where no gradient is wanted."""
    scratch_ptr: Any
    N: Any
    M: Any
    D: Any
    NP: Any
    MP: Any
    stride_label: Any
    ignore_index: Any
    """None where all rows take part."""


def saved_size(rows: int, columns: int) -> int:
    """Numbers in ``saved``, for ``NP`` rows and ``MP`` columns."""
    return 2 * rows * columns + rows * rows + columns


def forward_size(rows: int, columns: int, block: int, shares: int) -> int:
    """Numbers in ``scratch`` in the forward pass."""
    row_tiles, column_tiles = rows // block, columns // block
    vectors = 2 * column_tiles * rows + 3 * row_tiles * columns + LOSS_PARTS * row_tiles
    return rows * columns + vectors + shares * rows * rows


def backward_size(rows: int, columns: int, block: int) -> int:
    """Numbers in ``scratch`` in the backward pass."""
    return rows * columns + columns // block * rows + rows // block * columns


@triton.jit
def p_ab_part(x):
    """`P_AB`."""
    return x.saved_ptr


@triton.jit
def q_part(x):
    """`Q`."""
    return x.saved_ptr + x.NP * x.MP


@triton.jit
def g_part(x):
    """`G`."""
    return x.saved_ptr + 2 * x.NP * x.MP


@triton.jit
def h_part(x):
    """`H`."""
    return g_part(x) + x.NP * x.NP


@triton.jit
def matrix_part(x):
    """Scores, and gradients."""
    return x.scratch_ptr


@triton.jit
def row_parts(x):
    """Row parts."""
    return x.scratch_ptr + x.NP * x.MP


@triton.jit
def column_parts(x, BLOCK: tl.constexpr):
    """Column parts."""
    return row_parts(x) + 2 * (x.MP // BLOCK) * x.NP


@triton.jit
def visit_parts(x, BLOCK: tl.constexpr):
    """Visit parts."""
    return column_parts(x, BLOCK) + 2 * (x.NP // BLOCK) * x.MP


@triton.jit
def loss_parts(x, BLOCK: tl.constexpr):
    """Loss parts."""
    return visit_parts(x, BLOCK) + (x.NP // BLOCK) * x.MP


@triton.jit
def trips_part(x, BLOCK: tl.constexpr):
    """Trips."""
    return loss_parts(x, BLOCK) + _LOSS_PARTS * (x.NP // BLOCK)


@triton.jit
def rho_parts(x):
    """Rho parts."""
    return x.scratch_ptr + x.NP * x.MP


@triton.jit
def kappa_parts(x, BLOCK: tl.constexpr):
    """Kappa parts."""
    return rho_parts(x) + (x.MP // BLOCK) * x.NP


@triton.jit
def load_tile(ptr, i, j, width, BLOCK: tl.constexpr):
    """Tile (i, j) of a matrix of that width, [BLOCK, BLOCK]."""
    offs = tl.arange(0, BLOCK)
    return tl.load(ptr + (i * BLOCK + offs)[:, None] * width + (j * BLOCK + offs)[None, :])


@triton.jit
def store_tile(ptr, i, j, width, tile, BLOCK: tl.constexpr):
    """The reverse of `load_tile`."""
    offs = tl.arange(0, BLOCK)
    tl.store(ptr + (i * BLOCK + offs)[:, None] * width + (j * BLOCK + offs)[None, :], tile)


@triton.jit
def add_parts(ptr, COUNT, size, index, BLOCK_P: tl.constexpr):
    """``sum_p ptr[p, index]`` of [COUNT, size], in order."""
    total = tl.zeros([index.shape[0]], dtype=ptr.dtype.element_ty)
    for start in range(0, COUNT, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        total += tl.sum(tl.load(ptr + p[:, None] * size + index[None, :], mask=(p < COUNT)[:, None], other=0.0), 0)
    return total


@triton.jit
def rows_of(x, tile, BLOCK: tl.constexpr):
    """``(row of a, its label, whether it takes part)`` for a tile of rows."""
    row = tile * BLOCK + tl.arange(0, BLOCK)
    ok = row < x.N
    label = tl.load(x.labels_ptr + row.to(tl.int64) * x.stride_label, mask=ok, other=0).to(tl.int64)
    if x.ignore_index is not None:
        ok = ok & (label != x.ignore_index)
    return row, label, ok
