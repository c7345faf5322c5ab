"""Tile mathematics that several passes share.

Scores are kept in units of log 2: ``s2_ij = (scale a_i . b_j + bias_a_i + bias_b_j) log2(e)``. A normaliser is the pair
of its maximum ``m`` (in those units) and the inverse ``1 / l`` of the sum of exponentials relative to it, not their
logarithm: a float32 logarithm of 10 is already off by 5e-7, and every gradient is a difference of nearly equal terms.
(`fastassoc.kernels.triton.forms` makes an exception for bfloat16.)

Operands of products are tuples of parts. A ``PRECISION`` is "bf16" or "bf16x3", one or three parts in bfloat16, 8
binary digits each; "fp16", one part in float16, 11 digits; "tf32", one part in float32 that is rounded to 11 digits; or
"ieee", one part in float32 or float64.
"""

import triton
import triton.language as tl
from triton.runtime import JITFunction

from fastassoc.kernels.triton.buffers import INVERSE_SUM, MAXIMUM

LOG2E = tl.constexpr(1.4426950408889634)


@triton.constexpr_function
def part_count(precision):
    """Parts of an operand."""
    return 3 if precision == "bf16x3" else 1


@triton.jit
def rounded_to_tf32(x):
    """float32 with 11 digits: tensor cores leave out the others, which would make every number smaller."""
    bits = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
    # The addition makes a zero of some NaN.
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)


@triton.jit
def split(x, PRECISION: tl.constexpr):
    """``x`` as an operand: the parts that add up to it, each the rounded rest of those before."""
    if PRECISION == "bf16":
        parts = (x.to(tl.bfloat16),)
    elif PRECISION == "fp16":
        parts = (x.to(tl.float16),)
    elif PRECISION == "tf32":
        # Of 16 bits no number has more digits.
        parts = (rounded_to_tf32(x) if x.dtype == tl.float32 else x.to(tl.float32),)
    elif PRECISION == "ieee":
        parts = (x if x.dtype == tl.float64 else x.to(tl.float32),)
    else:
        first = x.to(tl.bfloat16)
        rest = x.to(tl.float32) - first.to(tl.float32)
        second = rest.to(tl.bfloat16)
        parts = (first, second, (rest - second.to(tl.float32)).to(tl.bfloat16))
    return parts


@triton.jit
def joined(parts, ACC: tl.constexpr):
    """The number that the parts of an operand add up to."""
    x = parts[0].to(ACC)
    for part in tl.static_range(1, len(parts)):
        x += parts[part].to(ACC)
    return x


@triton.jit
def transposed(parts):
    """The transpose of an operand."""
    if len(parts) == 1:  # noqa: SIM108
        result = (tl.trans(parts[0]),)
    else:
        result = (tl.trans(parts[0]), tl.trans(parts[1]), tl.trans(parts[2]))
    return result


INTERPRETED = tl.constexpr(not isinstance(split, JITFunction))


@triton.jit
def product(x, y, acc, PRECISION: tl.constexpr):
    """``x y``, plus ``acc`` unless that is None: of parts, the products not below the last digit, smallest first.

    As exact as float32, a score must be the same number wherever it is computed: if it is not, logits of 1,000 give
    probabilities that are off a sum of 1 by 1e-4. And the six products of three parts are added up on their own: each
    that was added to ``acc`` would round it again, which makes gradients of flat batches twice as far off.
    """
    total = acc
    if len(x) == 3:
        total = tl.dot(x[2], y[0], tl.dot(x[1], y[1], tl.dot(x[0], y[2])))
        total = tl.dot(x[1], y[0], tl.dot(x[0], y[1], total))
    if PRECISION == "tf32":
        total = tl.dot(x[0], y[0], total, input_precision="tf32")
    elif PRECISION != "ieee":
        total = tl.dot(x[0], y[0], total)
    elif INTERPRETED:
        # NumPy's library adds up the same terms in another order where the shape of a tile is another one.
        start = None if total is None else total.to(tl.float64)
        exact = tl.dot(x[0].to(tl.float64), y[0].to(tl.float64), start, out_dtype=tl.float64)
        total = exact.to(x[0].dtype)
    else:
        total = tl.dot(x[0], y[0], total, input_precision="ieee", out_dtype=x[0].dtype)
    if len(x) == 3 and acc is not None:
        total += acc
    return total


@triton.jit
def load_or_zero(ptr, mask):
    """Numbers, 0 where not ``mask``, which may be None."""
    return tl.load(ptr, mask=mask, other=None if mask is None else 0.0)


@triton.jit
def load_parts(ptr, stride_part, offsets, mask, PARTS: tl.constexpr):
    """An operand whose parts are ``stride_part`` apart, 0 where not ``mask``, which may be None."""
    first = load_or_zero(ptr + offsets, mask)
    if PARTS == 1:
        parts = (first,)
    else:
        second = load_or_zero(ptr + stride_part + offsets, mask)
        parts = (first, second, load_or_zero(ptr + 2 * stride_part + offsets, mask))
    return parts


@triton.jit
def store_parts(ptr, stride_part, offsets, parts, mask):
    """The reverse of `load_parts`."""
    for part in tl.static_range(len(parts)):
        tl.store(ptr + part * stride_part + offsets, parts[part].to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def power(largest_ptr):
    """``(2^k, 2^-k)``: times the former, a largest absolute value is from 2^14 to 2^15; k = 0 if it is not finite."""
    exponent = tl.load(largest_ptr).to(tl.int32, bitcast=True) >> 23
    # Neither power leaves the range of float32.
    exponent = tl.where(exponent == 255, 127 + 14, tl.maximum(exponent, 30))
    there = (2 * 127 + 14 - exponent) << 23
    back = (exponent - 14) << 23
    return there.to(tl.float32, bitcast=True), back.to(tl.float32, bitcast=True)


@triton.jit
def load_rows(x, index, valid, d, D, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr):
    """``x[index, d : d + BLOCK_D]`` as an operand, 0 where not ``valid`` or beyond ``D``: [len(index), BLOCK_D].

    All are valid where ``valid`` is None. With ``largest``, an operand in float16 is times its `power`.
    """
    offs_d = d + tl.arange(0, BLOCK_D)
    offsets = index.to(tl.int64)[:, None] * x.stride_n + offs_d.to(tl.int64)[None, :] * x.stride_d
    mask = (offs_d < D)[None, :]
    if valid is not None:
        mask &= valid[:, None]
    if x.ptr.dtype.element_ty == tl.bfloat16 and part_count(PRECISION) > 1:
        parts = load_parts(x.ptr, tl.cast(x.stride_part, tl.int64), offsets, mask, part_count(PRECISION))
    else:
        rows = load_or_zero(x.ptr + offsets, mask)
        if x.largest_ptr is not None:
            there, back = power(x.largest_ptr)
            if PRECISION == "fp16" and rows.dtype == tl.float32:
                rows *= there
            elif PRECISION != "fp16" and rows.dtype == tl.float16:
                rows = rows.to(tl.float32) * back
        parts = split(rows, PRECISION)
    return parts


@triton.jit
def of_scores(parts, x, PRECISION: tl.constexpr, PRODUCT: tl.constexpr):
    """Rows of ``x``, an operand of products in ``PRECISION``, as one of products in ``PRODUCT``.

    Where these differ, the former are "fp16" and the latter take float32.
    """
    if PRECISION == PRODUCT:
        result = parts
    else:
        rows = parts[0].to(tl.float32)
        if x.largest_ptr is not None:
            _, back = power(x.largest_ptr)
            rows *= back
        result = (rows,)
    return result


@triton.jit
def raw_scores(
    x_tile, y_tile, x, y, x_index, x_ok, y_index, y_ok, D, scale,
    ACC: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_D: tl.constexpr, ONE_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """``(s, unit)`` of rows of ``x`` and of ``y``, one ``a`` and one ``b``: ``s2 = s unit``, and ``unit > 0``.

    ``s`` is [BLOCK_X, BLOCK_Y], finite where either is none. ``x_tile`` and ``y_tile`` are what ``ONE_D`` multiplies.
    An index that is valid throughout has None.

    With ``PRECISION`` "differences", which is not for ``ONE_D``, ``s2 = -scale / 2 |x - y|^2 log2(e)``: the same, with
    biases of ``-scale / 2 |x|^2`` and ``-scale / 2 |y|^2``, and with all its digits far from the origin.
    """
    if PRECISION == "differences":
        s = tl.zeros([BLOCK_X, BLOCK_Y], dtype=ACC)
        for d in range(0, D):
            offs_d = tl.cast(d, tl.int64)
            u = load_or_zero(x.ptr + x_index.to(tl.int64) * x.stride_n + offs_d * x.stride_d, x_ok)
            v = load_or_zero(y.ptr + y_index.to(tl.int64) * y.stride_n + offs_d * y.stride_d, y_ok)
            difference = u.to(ACC)[:, None] - v.to(ACC)[None, :]
            s += difference * difference
        s *= -0.5
    elif ONE_D:
        s = product(x_tile, transposed(y_tile), None, PRECISION)
    else:
        s = tl.zeros([BLOCK_X, BLOCK_Y], dtype=ACC)
        for d in range(0, D, BLOCK_D):
            u = load_rows(x, x_index, x_ok, d, D, BLOCK_D, PRECISION)  # [BLOCK_X, BLOCK_D]
            v = load_rows(y, y_index, y_ok, d, D, BLOCK_D, PRECISION)  # [BLOCK_Y, BLOCK_D]
            s = product(u, transposed(v), s, PRECISION)
    unit = tl.full([1, 1], scale, ACC) * LOG2E
    if x.largest_ptr is not None:
        _, of_x = power(x.largest_ptr)
        _, of_y = power(y.largest_ptr)
        unit = tl.maximum(unit * of_x * of_y, 2.0**-126)
    if x.bias_ptr is not None and PRECISION != "differences":
        x_bias = load_or_zero(x.bias_ptr + x_index, x_ok)
        y_bias = load_or_zero(y.bias_ptr + y_index, y_ok)
        s = tl.fma(s, unit, (x_bias[:, None] + y_bias[None, :]) * LOG2E)
        unit = tl.full([1, 1], 1.0, ACC)
    elif PRECISION == "ieee" or PRECISION == "bf16x3" or PRECISION == "differences":
        # Rounded here: a product that the compiler joins with what is added to it is another number in every pass. Of
        # other precisions that is below the last digit.
        s = tl.fma(s, unit, 0.0)
        unit = tl.full([1, 1], 1.0, ACC)
    return s, unit


@triton.jit
def scores(
    x_tile, y_tile, x, y, x_index, x_ok, y_index, y_ok, D, scale,
    ACC: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_D: tl.constexpr, ONE_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """``s2_ij`` as `raw_scores` has it."""
    s, unit = raw_scores(
        x_tile, y_tile, x, y, x_index, x_ok, y_index, y_ok, D, scale, ACC, BLOCK_X, BLOCK_Y, BLOCK_D, ONE_D, PRECISION
    )
    return s * unit


@triton.jit
def finite_shift(m):
    """A maximum to subtract: 0 where nothing was there to take the maximum of, so that -inf is never minus -inf."""
    return tl.where(m == -float("inf"), 0.0, m)


@triton.jit
def load_normaliser(x_ptr, index, valid, size):
    """``(m, 1 / l)`` of ``rows`` or ``columns``, [.., size]; (inf, 0), a probability of 0, where not ``valid``.

    All are valid where ``valid`` is None.
    """
    m = tl.load(x_ptr + MAXIMUM * size + index, mask=valid, other=None if valid is None else float("inf"))
    inverse = tl.load(x_ptr + INVERSE_SUM * size + index, mask=valid, other=None if valid is None else 0.0)
    return m, inverse
