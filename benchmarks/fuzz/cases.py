"""Descriptions of random batches, each a function of a seed and a number alone."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

KINDS = {
    "ordinary": "logits of a standard deviation from 0.01 to 10",
    "faint": "such logits, and an upstream gradient from 1e-34 to 1e-28",
    "shifts": "logits of a standard deviation from 4 to 60: where rows are shifted, and where machine code gives way",
    "huge": "logits of a standard deviation from 60 to 10,000",
    "zeros": "all embeddings 0",
    "identical": "all rows of a, of b, or of both the same",
    "zero rows": "some rows 0",
    "clusters": "2 to 10 tight clusters, their centres 1 to 100,000,000 apart",
    "outlier": "one row of a or b 1e3 to 1e18 times as large as the others",
    "sides apart": "a and b apart by a common vector of length 1 to 1,000",
    "ignored huge": "rows of the label that is ignored hold numbers up to 1e25",
    "magnitudes": "rows that differ in size by up to six powers of ten",
    "offset": "a common offset of all scores, or one for each row",
}
CPU_WAYS = (
    "auto", "native", "native narrow", "native tiles", "native shifted",
    "dense", "whole", "tiles", "small tiles", "plain tiles",
)  # fmt: skip
WAYS = (*CPU_WAYS, "triton")
SIMILARITIES = ("dot", "cosine", "euclidean")
DTYPES = ("float32", "float16", "bfloat16", "float64")
LOW_PRECISION = ("float16", "bfloat16")
LAYOUTS = ("contiguous", "transposed", "sliced", "columns apart", "rows apart", "expanded rows", "expanded columns")
LABEL_DTYPES = ("int64", "int32", "int16", "int8", "uint8", "bool", "uint16", "uint32", "uint64")
CLASSES = ("balanced", "skewed", "one", "distinct")
NEEDS = ("both", "a", "b", "none", "frozen")
IGNORED = ("nothing", "absent", "some")
EPS = (1e-8, 0.0, 1e-6, 1e-12, 1e-3, 1e-10, 9e-11, 1e-50)

# On both sides of the tiles of all ways, of vectors, of blocks of rows, and of what is remembered or kept dense.
SIZES = (
    1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 63, 64, 65, 95, 96, 97, 127, 128, 129, 255, 256, 257,
    511, 512, 513, 1023, 1024, 1025,
)  # fmt: skip
DEPTHS = (1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 300)
# N M where another way begins: the first look of machine code, tiles in float64 and in float32; or columns where sums
# are flushed.
SCORES = (2**16, 2**16, 2**17, 2**18)
MANY_SCORES = 2**20
SMALL_SCORES = 2**13
TINY_UPSTREAM = 1e-34
"""Times the least weight it is still a normal number; what is made of it on the way to a gradient may not be."""
ENTRIES = 2**19
"""Of both embeddings, at most."""
FLUSHED_COLUMNS = (2**13 - 1, 2**13, 2**13 + 1)
DIFFERENCES = 4 * 10**6
"""N M D of Euclidean batches, at most: the oracle holds as many differences."""
NARROW_COLUMNS = 1000
"""Of batches in tiles of 16 columns, at most: each tile takes as many operations as a batch."""
INTERPRETED_SCORES = 3000


@dataclass(frozen=True)
class Weight:
    """A weight or temperature: a float, or a 0-d tensor of a dtype that requires its gradient."""

    value: float
    learned: str | None = None

    @property
    def skips(self) -> bool:
        """Whether it is the float 0, which leaves its term out."""
        return self.learned is None and self.value == 0.0


@dataclass(frozen=True)
class Case:
    """A batch in words: everything random about it but the numbers themselves, whose seed it is."""

    seed: int
    number: int
    way: str
    kind: str
    n: int
    m: int
    d: int
    dtype: str
    similarity: str
    temperature: Weight
    walker_weight: Weight
    visit_weight: Weight
    eps: float
    ignored: str
    statistics: bool
    needs: str
    upstream: float
    layout_a: str
    layout_b: str
    label_dtype: str
    classes: str
    class_count: int
    sorted_labels: bool
    deviation: float
    """Of the logits where the kind has one; how far clusters, offsets and sides are apart; the factor of an outlier."""
    poisoned: bool
    """Whether fresh memory holds NaN."""
    threads: int

    @property
    def accumulation(self) -> str:
        """The dtype it is computed in."""
        return "float64" if self.dtype == "float64" else "float32"

    @property
    def words(self) -> str:
        """What a line about it says."""
        sizes = f"{self.n} x {self.m} x {self.d}"
        return f"{self.kind}, {self.way}, {self.similarity}, {self.dtype}, {sizes}, eps {self.eps:g}"

    @property
    def command(self) -> str:
        """What repeats it."""
        interpreter = "TRITON_INTERPRET=1 " if self.way == "triton" else ""
        return f"{interpreter}python -m benchmarks.fuzz --case {self.seed}:{self.number}"


def describe(seed: int, number: int, interpreted: bool = False) -> Case:
    """The batch of that number; ``interpreted``: a tiny one for backend "triton"."""
    draw = random.Random(f"{seed}:{number}:{interpreted}")
    way = "triton" if interpreted else draw.choice(CPU_WAYS)
    kind = draw.choice(tuple(KINDS))
    dtype = _mostly(draw, "float32", DTYPES, 0.5)
    eps = _mostly(draw, 1e-8, EPS, 0.5)
    if kind == "faint" and dtype == "float16":
        # Which holds nothing of it.
        dtype = "float32"
    if interpreted and dtype == "bfloat16":
        # Triton's interpreter does not round to it as a GPU does.
        dtype = "float32"
    if way.startswith("native") and draw.random() < 0.8:
        # What machine code takes; the rest sees that it gives way.
        dtypes = [x for x in DTYPES[:3] if (kind, x) != ("faint", "float16")]
        dtype, eps = _mostly(draw, "float32", dtypes, 0.6), _mostly(draw, 1e-8, (1e-6, 1e-3, 1e-10), 0.7)
    similarity = _similarity(draw, kind, dtype)
    n, m, d = _sizes(draw, way, similarity)
    classes, class_count = _classes(draw, kind, n)
    low, high = _deviations(kind, dtype, similarity)
    other = _log_uniform(draw, 0.03, 30.0)
    usual = 1.0
    if kind == "clusters" and similarity == "euclidean" and draw.random() < 0.7:
        # Distances within a cluster are 2 D: neither flat nor one-hot.
        usual = other = d * _log_uniform(draw, 0.3, 30.0)
    return Case(
        seed=seed,
        number=number,
        way=way,
        kind=kind,
        n=n,
        m=m,
        d=d,
        dtype=dtype,
        similarity=similarity,
        temperature=_weight(draw, usual, other),
        walker_weight=_weight(draw, 1.0, draw.choice((0.0, _log_uniform(draw, 1e-3, 1e3), -0.5))),
        visit_weight=_weight(draw, 0.5, draw.choice((0.0, _log_uniform(draw, 1e-3, 1e3), -0.5))),
        eps=eps,
        ignored="some" if kind == "ignored huge" else _mostly(draw, "nothing", IGNORED, 0.6),
        statistics=draw.random() < 0.35,
        needs=_mostly(draw, "both", NEEDS, 0.6),
        upstream=_log_uniform(draw, TINY_UPSTREAM, 1e-28) if kind == "faint" else _upstream(draw, dtype),
        # Rows that repeat the first could all be of the label that is ignored.
        layout_a=_mostly(draw, "contiguous", LAYOUTS[: -2 if kind == "ignored huge" else None], 0.5),
        layout_b=_mostly(draw, "contiguous", LAYOUTS, 0.5),
        label_dtype=_mostly(draw, "int64", _label_dtypes(class_count), 0.4),
        classes=classes,
        class_count=class_count,
        sorted_labels=draw.random() < 0.4,
        deviation=_log_uniform(draw, low, high),
        poisoned=draw.random() < 0.4,
        threads=2 if n * m <= SMALL_SCORES and draw.random() < 0.06 else 1,
    )


def _similarity(draw: random.Random, kind: str, dtype: str) -> str:
    """Distances for what is a hazard to them; unit rows often for dtypes that do not hold them."""
    if kind in ("outlier", "sides apart"):
        return "euclidean"
    if dtype in LOW_PRECISION and draw.random() < 0.3:
        return "cosine"
    return _mostly(draw, "euclidean" if kind == "clusters" else "dot", SIMILARITIES, 0.6)


def _classes(draw: random.Random, kind: str, n: int) -> tuple[str, int]:
    """How labels are distributed, and over how many classes."""
    classes = draw.choice(CLASSES)
    if kind == "clusters" and (classes in CLASSES[:2] or draw.random() < 0.6):
        # Those of the clusters.
        return draw.choice(CLASSES[:2]), min(n, draw.randint(2, 10))
    if kind == "ignored huge":
        return "balanced" if classes == "one" else classes, n if classes == "distinct" else min(n, draw.randint(2, 10))
    return classes, {"one": 1, "distinct": n}.get(classes, draw.randint(1, min(n, 40)))


def _deviations(kind: str, dtype: str, similarity: str) -> tuple[float, float]:
    """The least and the largest `Case.deviation`."""
    if kind == "clusters":
        # Of products beyond it nothing is left; float16 ends at 65,504.
        largest = {"float64": 1e6, "float16": 1e4}.get(dtype, 1e8)
        return 1.0, min(largest, 100.0) if similarity == "dot" else largest
    if kind == "outlier":
        return 1e3, 1e5 if dtype == "float16" else 1e18
    return {"shifts": (4.0, 60.0), "huge": (60.0, 1e4), "offset": (0.1, 300.0), "sides apart": (1.0, 1e3)}.get(
        kind, (0.01, 10.0)
    )


def _sizes(draw: random.Random, way: str, similarity: str) -> tuple[int, int, int]:
    """N, M and D: mostly small, some at the borders between ways, a few large."""
    d = draw.choice(DEPTHS) if draw.random() < 0.7 else draw.randint(1, 300)
    if way == "triton":
        n = draw.choice([size for size in SIZES if size <= 129])
        return n, draw.choice([size for size in SIZES if size <= 129 and n * size <= INTERPRETED_SCORES]), min(d, 65)
    least = 3 if way.startswith("native") and draw.random() < 0.9 else 1
    lot = draw.random()
    if lot < 0.88:
        n = draw.choice([size for size in SIZES if least <= size <= 257])
        m = draw.choice([size for size in SIZES if n * size <= SMALL_SCORES and (size >= 16 or least == 1)])
    elif lot < 0.89:
        n, m = draw.choice((3, 4, 17)), draw.choice(FLUSHED_COLUMNS)
    else:
        limit = draw.choice(SCORES) if lot < 0.995 else MANY_SCORES
        n = draw.choice([size for size in SIZES if least <= size and size * size <= 16 * limit])
        m = max(1, -(-limit // n) + draw.choice((-1, 0, 0, 1)))
    if way in ("small tiles", "plain tiles", "native tiles"):
        m = min(m, NARROW_COLUMNS)
    d = min(d, max(1, ENTRIES // (n + m)))
    return n, m, max(1, min(d, DIFFERENCES // (n * m))) if similarity == "euclidean" else d


def _weight(draw: random.Random, usual: float, other: float) -> Weight:
    learned = draw.choice(("float32", "float32", "float64", "float16")) if draw.random() < 0.2 else None
    return Weight(usual if draw.random() < 0.6 else other, learned)


def _upstream(draw: random.Random, dtype: str) -> float:
    """From 1e-34 to 1e20, often tiny; what float16 holds of a gradient lies between 6e-8 and 65,504."""
    if draw.random() < 0.4:
        return 1.0
    if dtype != "float16" and draw.random() < 0.3:
        return _log_uniform(draw, 1e-30, 1e-20) * draw.choice((1.0, -1.0))
    low, high = (1e-6, 1e6) if dtype == "float16" and draw.random() < 0.8 else (1e-30, 1e20)
    return _log_uniform(draw, low, high) * draw.choice((1.0, -1.0))


def _label_dtypes(classes: int) -> tuple[str, ...]:
    """Those with a value for each class."""
    return tuple(x for x in LABEL_DTYPES if classes <= {"bool": 2, "int8": 256, "uint8": 256}.get(x, 2**16))


def _mostly(draw: random.Random, usual: T, values: Sequence[T], share: float) -> T:
    return usual if draw.random() < share else draw.choice(values)


def _log_uniform(draw: random.Random, low: float, high: float) -> float:
    return math.exp(draw.uniform(math.log(low), math.log(high)))
