"""Tile mathematics that several passes share.

Scores are kept in units of log 2: ``s2_ij = (scale a_i . b_j + bias_a_i + bias_b_j) log2(e)``. A normaliser is the pair
of its maximum ``m`` (in those units) and the inverse ``1 / l`` of the sum of exponentials relative to it, never their
logarithm: a float32 logarithm of 10 is already off by 5e-7, and every gradient is a difference of nearly equal terms.
"""

import triton
import triton.language as tl

from fastassoc.kernels.triton.buffers import INVERSE_SUM, MAXIMUM

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def rounded(x, PRECISION: tl.constexpr):
    """What a product at ``PRECISION`` is to take for ``x``: at "tf32", float32 to the nearest of 10 binary places.

    Tensor cores drop the other 13, so every operand would become smaller. Written in integers, which is what
    ``cvt.rna.tf32.f32`` compiles to. NaN of all ones would become 0.
    """
    if PRECISION == "tf32" and x.dtype == tl.float32:
        bits = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x


@triton.jit
def load_rows(x_ptr, index, valid, d, D, stride_n, stride_d, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr):
    """``x[index, d : d + BLOCK_D]``, `rounded`, 0 where not ``valid`` or beyond ``D``: [len(index), BLOCK_D]."""
    offs_d = d + tl.arange(0, BLOCK_D)
    offsets = index.to(tl.int64)[:, None] * stride_n + offs_d.to(tl.int64)[None, :] * stride_d
    return rounded(tl.load(x_ptr + offsets, mask=valid[:, None] & (offs_d < D)[None, :], other=0.0), PRECISION)


@triton.jit
def product(x, y, acc, PRECISION: tl.constexpr):
    """``acc + x y``; operands made "bf16" or "fp16", else float32 or float64 at that precision of the unit.

    They are `rounded` before, as what takes part in several products need be only once.
    """
    if PRECISION == "bf16":
        acc = tl.dot(x.to(tl.bfloat16), y.to(tl.bfloat16), acc)
    elif PRECISION == "fp16":
        acc = tl.dot(x.to(tl.float16), y.to(tl.float16), acc)
    else:
        acc = tl.dot(x.to(acc.dtype), y.to(acc.dtype), acc, input_precision=PRECISION, out_dtype=acc.dtype)
    return acc


@triton.jit
def scores(
    a_tile, b_tile, a_ptr, b_ptr, row, row_ok, column, column_ok, bias_a_ptr, bias_b_ptr, D, scale,
    stride_an, stride_ad, stride_bm, stride_bd,
    ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, ONE_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """``s2`` [BLOCK_N, BLOCK_M], -inf where row or column is none; the tiles are what ``ONE_D`` multiplies.

    With ``PRECISION`` "differences", which is not for ``ONE_D``, ``s2_ij = -scale / 2 |a_i - b_j|^2 log2(e)``: the
    same, biases being ``-scale / 2 |a_i|^2`` and ``-scale / 2 |b_j|^2``, with all its digits far from the origin.
    """
    s = tl.zeros([BLOCK_N, BLOCK_M], dtype=ACC)
    if PRECISION == "differences":
        for d in range(0, D):
            a = tl.load(a_ptr + row.to(tl.int64) * stride_an + tl.cast(d, tl.int64) * stride_ad, mask=row_ok, other=0.0)
            b = tl.load(b_ptr + column * stride_bm + tl.cast(d, tl.int64) * stride_bd, mask=column_ok, other=0.0)
            difference = a.to(ACC)[:, None] - b.to(ACC)[None, :]
            s += difference * difference
        s *= -0.5
    elif ONE_D:
        s = product(a_tile, tl.trans(b_tile), s, PRECISION)
    else:
        for d in range(0, D, BLOCK_D):
            # [BLOCK_N, BLOCK_D], [BLOCK_M, BLOCK_D]
            a = load_rows(a_ptr, row, row_ok, d, D, stride_an, stride_ad, BLOCK_D, PRECISION)
            b = load_rows(b_ptr, column, column_ok, d, D, stride_bm, stride_bd, BLOCK_D, PRECISION)
            s = product(a, tl.trans(b), s, PRECISION)
    s *= tl.full([1, 1], scale, ACC) * LOG2E
    if bias_a_ptr is not None and PRECISION != "differences":
        bias_a = tl.load(bias_a_ptr + row, mask=row_ok, other=0.0)
        bias_b = tl.load(bias_b_ptr + column, mask=column_ok, other=0.0)
        s += (bias_a[:, None] + bias_b[None, :]) * LOG2E
    return tl.where(row_ok[:, None] & column_ok[None, :], s, -float("inf"))


@triton.jit
def finite_shift(m):
    """A maximum to subtract: 0 where nothing was there to take the maximum of, so that -inf is never minus -inf."""
    return tl.where(m == -float("inf"), 0.0, m)


@triton.jit
def load_normaliser(x_ptr, index, valid, size):
    """``(m, 1 / l)`` of ``rows`` or ``columns``, [.., size]; (inf, 0), a probability of 0, where not ``valid``."""
    m = tl.load(x_ptr + MAXIMUM * size + index, mask=valid, other=float("inf"))
    inverse = tl.load(x_ptr + INVERSE_SUM * size + index, mask=valid, other=0.0)
    return m, inverse


@triton.jit
def slot_rows(slots_ptr, tile, BLOCK_N: tl.constexpr):
    """``(row of a, whether there is one)`` for each slot of a class tile; see `fastassoc.kernels.triton.rows`."""
    row = tl.load(slots_ptr + tile * BLOCK_N + tl.arange(0, BLOCK_N))
    return tl.maximum(row, 0).to(tl.int64), row >= 0
