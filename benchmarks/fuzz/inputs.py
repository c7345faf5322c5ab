"""The tensors of a described batch."""

from __future__ import annotations

import math
import random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.fuzz.cases import Case, Weight

_GREATEST_FLOAT16 = 6e4
_HUGE = 25.0
"""The power of ten of the largest number of rows that are ignored."""


_OWN_DEVIATION = ("offset", "outlier", "sides apart")
"""Kinds whose `Case.deviation` is not that of logits."""


class Inputs(NamedTuple):
    """Arguments of the loss, and the memory that they are views of, NaN where they are not."""

    a: Tensor
    b: Tensor
    labels: Tensor
    temperature: float | Tensor
    walker_weight: float | Tensor
    visit_weight: float | Tensor
    ignore_index: int | None
    memory: tuple[Tensor, ...]

    def options(self, case: Case) -> dict[str, Any]:
        """Keyword arguments."""
        return {
            "walker_weight": self.walker_weight,
            "visit_weight": self.visit_weight,
            "similarity": case.similarity,
            "temperature": self.temperature,
            "eps": case.eps,
            "ignore_index": self.ignore_index,
            "return_stats": case.statistics,
        }

    def content(self) -> list[Tensor]:
        """A copy of every byte, to see whether any was written to."""
        return [raw_bytes(x).clone() for x in self.memory]


def raw_bytes(x: Tensor) -> Tensor:
    """The numbers bit by bit: NaN equals itself, and 0 is not -0."""
    return x.detach().reshape(-1).contiguous().view(torch.uint8)


def make_inputs(case: Case) -> Inputs:
    """From the seed and the number of the description; nothing requires a gradient yet but learned numbers."""
    draw = random.Random(f"{case.seed}:{case.number}:numbers")
    generator = torch.Generator().manual_seed(draw.getrandbits(62))
    labels, classes = _labels(case, draw)
    ignored = _ignore_index(case, labels, draw)
    a, b = _embeddings(case, draw, generator, classes)
    if case.kind == "ignored huge":
        huge = torch.tensor([x == ignored for x in labels.tolist()])
        a[huge] *= 10.0 ** draw.uniform(0.0, _HUGE) / a.abs().max().clamp_min(1e-30)
    dtype = getattr(torch, case.dtype)
    if case.dtype == "float16":
        a, b = (x.clamp(-_GREATEST_FLOAT16, _GREATEST_FLOAT16) for x in (a, b))
    (a, memory_a), (b, memory_b) = _laid_out(a.to(dtype), case.layout_a), _laid_out(b.to(dtype), case.layout_b)
    numbers = temperature, walker_weight, visit_weight = tuple(
        _number(x) for x in (case.temperature, case.walker_weight, case.visit_weight)
    )
    memory = [memory_a, memory_b, labels, *(x.detach().reshape(1) for x in numbers if isinstance(x, Tensor))]
    return Inputs(a, b, labels, temperature, walker_weight, visit_weight, ignored, tuple(memory))


def _number(weight: Weight) -> float | Tensor:
    if weight.learned is None:
        return weight.value
    return torch.tensor(weight.value, dtype=getattr(torch, weight.learned), requires_grad=True)


def _embeddings(case: Case, draw: random.Random, generator: torch.Generator, classes: Tensor) -> tuple[Tensor, Tensor]:
    """[N, D] and [M, D] in float64, before they are rounded."""
    n, m, d, kind = case.n, case.m, case.d, case.kind
    a, b = (torch.randn(rows, d, generator=generator, dtype=torch.float64) for rows in (n, m))
    if kind == "clusters":
        count = case.class_count
        if not 2 <= count <= 10:
            # Labels have nothing to do with them.
            count = draw.randint(2, 10)
            classes = torch.randint(0, count, (n,), generator=generator)
        centres = torch.randn(count, d, generator=generator, dtype=torch.float64) * case.deviation
        met = torch.randint(0, count, (m,), generator=generator)
        return a + centres[classes], b + centres[met]
    temperature = case.temperature.value
    deviation = math.exp(draw.uniform(-4.0, 2.0)) if kind in _OWN_DEVIATION else case.deviation
    if case.similarity == "euclidean":
        # |a - b|^2 of normal rows of size x has a standard deviation of 2 x^2 sqrt(2 D).
        size = math.sqrt(deviation * temperature / math.sqrt(8.0 * d))
    else:
        size = math.sqrt(deviation * temperature / math.sqrt(d))
    a, b = a * size, b * size
    if kind == "zeros":
        a, b = a * 0.0, b * 0.0
    elif kind == "identical":
        which = draw.choice(("a", "b", "ab"))
        a, b = (x[:1].repeat(len(x), 1) if name in which else x for name, x in (("a", a), ("b", b)))
        if draw.random() < 0.3:
            b = a[:1].repeat(m, 1)
    elif kind == "zero rows":
        for x in (a, b):
            x[torch.rand(len(x), generator=generator) < draw.choice((0.0, 0.2, 0.7))] = 0.0
    elif kind == "magnitudes":
        a, b = (
            x * 10.0 ** (6.0 * torch.rand(len(x), 1, generator=generator, dtype=torch.float64) - 4.0) for x in (a, b)
        )
    elif kind == "outlier":
        x = draw.choice((a, b))
        x[draw.randrange(len(x))] *= case.deviation
    elif kind == "sides apart":
        apart = torch.randn(d, generator=generator, dtype=torch.float64)
        a += apart * (case.deviation / apart.norm())
    elif kind == "offset":
        # Scores of dot products move by it: of all rows, or of each by its own share.
        share = (
            torch.rand(n, generator=generator, dtype=torch.float64) if draw.random() < 0.5 else torch.ones(n).double()
        )
        a[:, 0], b[:, 0] = share * case.deviation * temperature * draw.choice((1.0, -1.0)), 1.0
    return a, b


def _laid_out(x: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    """The matrix as a view, and the memory it is a view of."""
    rows, depth = x.shape
    if layout == "contiguous":
        return x, x
    if layout == "transposed":
        memory = x.t().contiguous()
        return memory.t(), memory
    if layout == "expanded rows":
        memory = x[:1].clone()
        return memory.expand(rows, depth), memory
    if layout == "expanded columns":
        memory = x[:, :1].clone()
        return memory.expand(rows, depth), memory
    shape, view = {
        "sliced": ((rows + 3, depth + 5), (slice(2, 2 + rows), slice(3, 3 + depth))),
        "columns apart": ((rows, 2 * depth), (slice(None), slice(None, None, 2))),
        "rows apart": ((2 * rows, depth), (slice(1, None, 2), slice(None))),
    }[layout]
    memory = torch.full(shape, math.nan, dtype=x.dtype)
    memory[view] = x
    return memory[view], memory


def _labels(case: Case, draw: random.Random) -> tuple[Tensor, Tensor]:
    """Labels of the dtype, any values it has, and the classes [N] that they stand for, counted from 0."""
    n, count = case.n, case.class_count
    if case.classes == "skewed":
        classes = [min(int(draw.expovariate(0.7)), count - 1) for _ in range(n)]
    else:
        classes = [i % count for i in range(n)]
    draw.shuffle(classes)
    if case.sorted_labels:
        classes.sort()
    if case.label_dtype == "bool":
        low, high = 0, 1
    else:
        limits = torch.iinfo(getattr(torch, case.label_dtype))
        low, high = limits.min, limits.max
    # The ends of the range are where conversions go wrong; small numbers are what people use.
    values = set(list(dict.fromkeys(x for x in (high, low, 0, 1, -1) if low <= x <= high))[: draw.randint(0, count)])
    while len(values) < count:
        values.add(draw.randint(low, high))
    order = list(values)
    draw.shuffle(order)
    labels = torch.tensor([order[x] for x in classes], dtype=getattr(torch, case.label_dtype))
    return labels, torch.tensor(classes)


def _ignore_index(case: Case, labels: Tensor, draw: random.Random) -> int | None:
    """None; a label that fits in int64 and leaves a row; or one that no row has, -1 where possible."""
    if case.ignored == "nothing":
        return None
    values: set[int] = {int(x) for x in labels.tolist()}
    if case.ignored == "some":
        fitting = sorted(x for x in values if -(2**63) <= x < 2**63)
        if len(values) > 1 and fitting:
            chosen: int = draw.choice(fitting)
            return chosen
    absent: int = next(x for x in (-1, -100, *range(300)) if x not in values)
    return absent
