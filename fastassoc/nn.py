"""The loss as a module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Literal, cast, overload

from torch import Tensor, nn
from typing_extensions import TypeVar

from fastassoc import validation
from fastassoc.api import WalkStatistics, walker_visit_loss
from fastassoc.validation import Backend, GradientReduction, Similarity

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Result = TypeVar("Result", default=Tensor)
"""What a call returns: the loss, or, with ``return_stats``, the pair of it and `WalkStatistics`."""


class WalkerVisitLoss(nn.Module, Generic[Result]):
    """`fastassoc.walker_visit_loss` with its options fixed at construction; see there for every argument.

    A module with a process group itself cannot be copied or pickled; one with ``group="world"`` can.

    The options are checked when the module is made. A weight or temperature given as an ``nn.Parameter`` is registered
    and learned with the module.

    To type checkers it is generic in what a call returns, by default the loss alone: with ``return_stats`` it is a
    ``WalkerVisitLoss[tuple[Tensor, WalkStatistics]]``.
    """

    @overload
    def __init__(
        self: WalkerVisitLoss[Tensor],
        *,
        walker_weight: float | Tensor = ...,
        visit_weight: float | Tensor = ...,
        similarity: Similarity = ...,
        temperature: float | Tensor = ...,
        eps: float = ...,
        ignore_index: int | None = ...,
        return_stats: Literal[False] = ...,
        backend: Backend = ...,
        group: ProcessGroup | Literal["world"] | None = ...,
        gradient_reduction: GradientReduction = ...,
    ) -> None: ...

    @overload
    def __init__(
        self: WalkerVisitLoss[tuple[Tensor, WalkStatistics]],
        *,
        walker_weight: float | Tensor = ...,
        visit_weight: float | Tensor = ...,
        similarity: Similarity = ...,
        temperature: float | Tensor = ...,
        eps: float = ...,
        ignore_index: int | None = ...,
        return_stats: Literal[True],
        backend: Backend = ...,
        group: ProcessGroup | Literal["world"] | None = ...,
        gradient_reduction: GradientReduction = ...,
    ) -> None: ...

    @overload
    def __init__(
        self: WalkerVisitLoss[Tensor | tuple[Tensor, WalkStatistics]],
        *,
        walker_weight: float | Tensor = ...,
        visit_weight: float | Tensor = ...,
        similarity: Similarity = ...,
        temperature: float | Tensor = ...,
        eps: float = ...,
        ignore_index: int | None = ...,
        return_stats: bool,
        backend: Backend = ...,
        group: ProcessGroup | Literal["world"] | None = ...,
        gradient_reduction: GradientReduction = ...,
    ) -> None: ...

    def __init__(
        self,
        *,
        walker_weight: float | Tensor = 1.0,
        visit_weight: float | Tensor = 1.0,
        similarity: Similarity = "dot",
        temperature: float | Tensor = 1.0,
        eps: float = 1e-8,
        ignore_index: int | None = None,
        return_stats: bool = False,
        backend: Backend = "auto",
        group: ProcessGroup | Literal["world"] | None = None,
        gradient_reduction: GradientReduction = "mean",
    ) -> None:
        super().__init__()
        validation.check_options(walker_weight, visit_weight, similarity, temperature, eps, ignore_index, backend)
        validation.check_group(group)
        validation.check_gradient_reduction(gradient_reduction)
        self.walker_weight = walker_weight
        self.visit_weight = visit_weight
        self.similarity = similarity
        self.temperature = temperature
        self.eps = eps
        self.ignore_index = None if ignore_index is None else int(ignore_index)
        self.return_stats = return_stats
        self.backend = backend
        self.group = group
        self.gradient_reduction = gradient_reduction

    if TYPE_CHECKING:

        def __call__(self, a: Tensor, b: Tensor, labels: Tensor) -> Result:
            """`forward` with the hooks of ``nn.Module``."""

    def forward(self, a: Tensor, b: Tensor, labels: Tensor) -> Result:
        """The loss of embeddings ``a`` [N, D] with ``labels`` [N] and ``b`` [M, D]; with statistics if asked for."""
        result = walker_visit_loss(
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
            group=self.group,
            gradient_reduction=self.gradient_reduction,
        )
        return cast("Result", result)

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
            "group",
            "gradient_reduction",
        )
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
