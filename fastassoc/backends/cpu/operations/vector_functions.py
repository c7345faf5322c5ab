"""Exponentials, logarithms and roots in full precision from the first call on.

MKL looks for the variant of a vector function when the function is first called. Where several threads do that at once,
one of them may compute its share of that call by the variant of least precision, with errors of 1e-4
(https://github.com/pytorch/pytorch/issues/188792).
"""

from __future__ import annotations

import torch


def resolve_vector_functions() -> None:
    """Calls every function that the CPU backend uses on one number, which takes one thread."""
    for dtype in (torch.float32, torch.float64):
        one = torch.ones(1, dtype=dtype, device="cpu")
        for function in (torch.exp, torch.log, torch.sqrt):
            function(one)
