"""The loss from its two terms."""

from __future__ import annotations

import math

from torch import Tensor

Weight = float | Tensor


def is_zero(weight: Weight) -> bool:
    """Whether a term's work is to be left out."""
    return not isinstance(weight, Tensor) and weight == 0.0


def weighted_sum(walker: Tensor | None, walker_weight: Weight, visit: Tensor | None, visit_weight: Weight) -> Tensor:
    """The loss from the terms that were computed: those with a weight, or both where statistics want them."""
    if visit is None:
        assert walker is not None
        return _scaled(walker, walker_weight)
    if walker is None:
        return _scaled(visit, visit_weight)
    # A term of weight 0 was computed for the statistics only; it may be the one that saw an input that is not finite.
    if is_zero(walker_weight):
        return _scaled(visit, visit_weight).masked_fill(walker.detach().isnan(), math.nan)
    if is_zero(visit_weight):
        return _scaled(walker, walker_weight).masked_fill(visit.detach().isnan(), math.nan)
    return _scaled(walker, walker_weight) + _scaled(visit, visit_weight)


def _scaled(term: Tensor, weight: Weight) -> Tensor:
    if isinstance(weight, Tensor):
        return (term * weight.reshape(())).to(term.dtype)
    return term if weight == 1.0 else term * float(weight)
