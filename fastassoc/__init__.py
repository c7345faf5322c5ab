"""Fast, exact losses for "Learning by Association" (Haeusser, Mordvintsev, Cremers, CVPR 2017)."""

from typing import TYPE_CHECKING, Any

from fastassoc import data, ramps
from fastassoc.api import WalkerVisitLosses, WalkStatistics, walker_visit_loss, walker_visit_losses
from fastassoc.configuration import show_config
from fastassoc.nn import WalkerVisitLoss
from fastassoc.version import __version__

__all__ = [
    "WalkStatistics",
    "WalkerVisitLoss",
    "WalkerVisitLosses",
    "__version__",
    "data",
    "ramps",
    "reference",
    "show_config",
    "walker_visit_loss",
    "walker_visit_losses",
]

if TYPE_CHECKING:
    from fastassoc import reference
else:

    def __getattr__(name: str) -> Any:
        # The specification is there for comparison; of the product only second derivatives load it.
        if name == "reference":
            import importlib

            return importlib.import_module("fastassoc.reference")
        raise AttributeError(f"module 'fastassoc' has no attribute {name!r}")
