"""What `fastassoc.kernels.triton.primitives.split` makes of numbers, and `joined` of their parts."""

from __future__ import annotations

import os

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from fastassoc.kernels.triton.primitives import joined, part_count, split, store_parts
from tests.cases import seeded
from tests.kernels.triton.support import DEVICE

BLOCK = 256
PARTS = {"bf16": 1, "bf16x3": 3, "fp16": 1, "tf32": 1, "ieee": 1}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@triton.jit
def split_and_join(x_ptr, parts_ptr, joined_ptr, N, PRECISION: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    parts = split(tl.load(x_ptr + i), PRECISION)
    store_parts(parts_ptr, N, i, parts, None)
    tl.store(joined_ptr + i, joined(parts, joined_ptr.dtype.element_ty))


def run(x: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """Parts, each as a number of the accumulation dtype, and what they add up to."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    size = x.numel()
    assert size % BLOCK == 0
    parts = torch.empty(PARTS[precision], size, dtype=dtype, device=DEVICE)
    total = torch.empty(size, dtype=dtype, device=DEVICE)
    split_and_join[(size // BLOCK,)](x.to(DEVICE), parts, total, size, precision, BLOCK)
    return parts.cpu(), total.cpu()


def float32(size: int = 1 << 14) -> Tensor:
    """Of every magnitude whose 24 digits are normal numbers and that does not round to infinity in bfloat16."""
    generator = seeded()
    bits = torch.randint(0, 2**23, (size,), generator=generator)
    # Halfway between two bfloat16 numbers, one below and one above; all digits; powers of two.
    special = torch.tensor([0x8000, 0x7FFF, 0x8001, 0x18000, 0x7FFFFF, 0x7F8000, 0x7F7FFF, 0, 1])
    bits[: len(special)] = special
    x = (bits + 2**23).double() * 2.0**-23
    exponents = torch.randint(-103, 127, (size,), generator=generator)
    signs = 1 - 2 * torch.randint(0, 2, (size,), generator=generator)
    return (x * exponents.double().exp2() * signs).float()


@pytest.mark.parametrize("precision", ["bf16", "bf16x3"])
def test_parts_of_float32(precision: str) -> None:
    x = float32()
    parts, total = run(x, precision)
    assert torch.equal(parts, parts.bfloat16().float())
    # Of x = 1.b1 .. b23 2^e the first part leaves at most 2^(e - 8), the second 2^(e - 17), a half of its last digit,
    # and the third nothing: what is left for it are 7 digits. The interpreter cuts digits off, a whole last digit each.
    digits = {"bf16": 8, "bf16x3": 24}[precision]
    if INTERPRETED:
        digits = {"bf16": 7, "bf16x3": 24}[precision]
    last = torch.frexp(x).exponent.double().sub(1 + digits).exp2()
    error = (total.double() - x.double()).abs()
    assert bool((error <= last).all())
    if precision == "bf16x3":
        assert torch.equal(total, x)
    # Every part is so much smaller than the one before, and products leave out what is below the last digit.
    for k in range(1, len(parts)):
        assert bool((parts[k].abs() <= parts[k - 1].abs() * 2.0 ** -(7 if INTERPRETED else 8)).all())


def test_tf32_is_the_nearest_number_of_11_digits() -> None:
    x = float32()
    (rounded,), total = run(x, "tf32")
    assert torch.equal(rounded, total)
    exponent = torch.frexp(x).exponent
    digits = rounded.double() * (11 - exponent).double().exp2()
    assert torch.equal(digits, digits.round())
    assert bool(((rounded.double() - x.double()).abs() <= (exponent - 12).double().exp2()).all())
    # Canonical NaN has all its bits set: nothing may carry into the sign.
    nan = torch.full((BLOCK,), 0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    assert run(nan, "tf32")[1].isnan().all()


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [
        *((torch.bfloat16, x) for x in ("bf16", "bf16x3", "tf32", "ieee")),
        *((torch.float16, x) for x in ("fp16", "bf16x3", "tf32", "ieee")),
        (torch.float32, "ieee"),
        (torch.float64, "ieee"),
    ],
    ids=str,
)
def test_numbers_with_fewer_digits_are_exact(dtype: torch.dtype, precision: str) -> None:
    x = torch.randn(1 << 12, generator=seeded(), dtype=torch.float64).to(dtype)
    parts, total = run(x, precision)
    assert torch.equal(total, x.to(total.dtype))
    if dtype == torch.bfloat16:
        assert not parts[1:].any()


@pytest.mark.parametrize("precision", PARTS)
def test_what_is_not_finite_stays_so(precision: str) -> None:
    values = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0])
    _, total = run(values.repeat_interleave(BLOCK // 4), precision)
    *others, zeros = total.chunk(4)
    assert not torch.cat(others).isfinite().any()
    assert not zeros.any()


def test_number_of_parts() -> None:
    assert {x: part_count(x) for x in PARTS} == PARTS
