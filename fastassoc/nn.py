"""The loss as a module."""

from __future__ import annotations

from torch import Tensor, nn

from fastassoc import validation
from fastassoc.api import WalkStatistics, walker_visit_loss


class WalkerVisitLoss(nn.Module):
    """`fastassoc.walker_visit_loss` with its options fixed at construction; see there for every argument.

    The options are checked when the module is made. A weight or temperature given as an ``nn.Parameter`` is registered
    and learned with the module.
    """

    def __init__(
        self,
        *,
        walker_weight: float | Tensor = 1.0,
        visit_weight: float | Tensor = 1.0,
        similarity: str = "dot",
        temperature: float | Tensor = 1.0,
        eps: float = 1e-8,
        ignore_index: int | None = None,
        return_stats: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        validation.check_options(walker_weight, visit_weight, similarity, temperature, eps, ignore_index, backend)
        self.walker_weight = walker_weight
        self.visit_weight = visit_weight
        self.similarity = similarity
        self.temperature = temperature
        self.eps = eps
        self.ignore_index = ignore_index
        self.return_stats = return_stats
        self.backend = backend

    def forward(self, a: Tensor, b: Tensor, labels: Tensor) -> Tensor | tuple[Tensor, WalkStatistics]:
        """The loss of embeddings ``a`` [N, D] with ``labels`` [N] and ``b`` [M, D]; with statistics if asked for."""
        return walker_visit_loss(
            a,
            b,
            labels,
            walker_weight=self.walker_weight,
            visit_weight=self.visit_weight,
            similarity=self.similarity,
            temperature=self.temperature,
            eps=self.eps,
            ignore_index=self.ignore_index,
            return_stats=self.return_stats,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """The options, for printing."""
        names = (
            "walker_weight",
            "visit_weight",
            "similarity",
            "temperature",
            "eps",
            "ignore_index",
            "return_stats",
            "backend",
        )
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
