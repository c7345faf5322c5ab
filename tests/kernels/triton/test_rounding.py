"""What `fastassoc.kernels.triton.primitives.rounded` makes of any float32, bit by bit."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from fastassoc.kernels.triton.primitives import rounded
from tests.kernels.triton.support import DEVICE


@triton.jit
def round_all(x_ptr, y_ptr, PRECISION: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, rounded(tl.load(x_ptr + i), PRECISION))


def run(x: Tensor, precision: str) -> Tensor:
    x = x.to(DEVICE)
    y = torch.empty_like(x)
    round_all[(x.numel() // 256,)](x, y, precision, 256)
    return y.cpu()


def test_float32_at_tf32() -> None:
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (1 << 14,), generator=generator)
    # Halfway, one below and one above; the largest numbers, infinity, the ends of NaN, the smallest numbers.
    special = [
        0x3F801000,
        0x3F800FFF,
        0x3F801001,
        0x3F803000,
        0x7F7FFFFF,
        0x7F7FEFFF,
        0x7F800000,
        0x7F800001,
        0x7FFFFFFF,
    ]
    for n, value in enumerate([*special, 0x00000001, 0x00001000, 0x007FFFFF]):
        bits[2 * n], bits[2 * n + 1] = value, value - 2**31
    x = bits.to(torch.int32).view(torch.float32)
    y = run(x, "tf32")
    assert torch.equal(y.isnan(), x.isnan())
    number = ~x.isnan()
    # By float64: in units of the last of 10 binary places, to the nearest, a half away from 0.
    exact = x[number].to(torch.float64)
    unit = torch.maximum(torch.frexp(exact.abs()).exponent - 11, torch.tensor(-136)).to(torch.float64).exp2()
    expected = (exact.sign() * (exact.abs() / unit + 0.5).floor() * unit).to(torch.float32)
    expected = expected.where(exact.isfinite(), exact.to(torch.float32))
    assert torch.equal(y[number], expected)


@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.float16, "tf32"), (torch.float32, "ieee"), (torch.float64, "ieee")]
)
def test_left_alone(dtype: torch.dtype, precision: str) -> None:
    x = torch.randn(512, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    assert torch.equal(run(x, precision), x)
