"""Kernels for x86-64 processors, in LLVM IR."""

from __future__ import annotations

import functools

from fastassoc.kernels.cpu import backward, forward, ir, layout, machine_code, passes, round_trips
from fastassoc.kernels.cpu.products import Shape, product_functions

WIDE = Shape(lanes=16, rows=6, vectors=4)
"""24 of 32 registers hold a block of a product."""
NARROW = Shape(lanes=8, rows=6, vectors=2)
"""12 of 16."""


def compile_kernels(wide: bool) -> tuple[machine_code.Library, Shape]:
    """For processors with AVX-512, or with AVX2 and FMA; OSError or MemoryError where there is no memory for them."""
    return machine_code.Library(_compiled(wide)), WIDE if wide else NARROW


@functools.cache
def _compiled(wide: bool) -> bytes:
    """Kept, so that one who tries again for memory need not wait again."""
    shape = WIDE if wide else NARROW
    bits = 32 * shape.lanes
    attributes = [f'"min-legal-vector-width"="{bits}"', f'"prefer-vector-width"="{bits}"', "nounwind"]
    functions = [
        *product_functions(shape),
        passes.sequence(),
        layout.layout(shape),
        *forward.functions(shape),
        *round_trips.functions(shape),
        *backward.functions(shape),
    ]
    text = ir.module(functions, attributes)
    return machine_code.compile_module(text, "x86-64-v4" if wide else "x86-64-v3")
