"""The training loop: classification alone, or with walker and visit loss on unlabelled images (eq 5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

import fastassoc
from benchmarks.mnist.data import Digits
from benchmarks.mnist.network import MnistNetwork

EVALUATION_BATCH = 500

Progress = Callable[[dict[str, float]], None]


class DivergenceError(RuntimeError):
    """The loss is no longer a finite number."""


@dataclass(frozen=True)
class TrainingOptions:
    """How long and how fast to train, and the weights of the two association losses (eq 5)."""

    steps: int
    learning_rate: float
    walker_weight: float
    visit_weight: float
    eval_every: int


@dataclass(frozen=True)
class Curve:
    """Test error in percent after each of ``steps`` training steps, and the losses of the batch trained on last."""

    steps: list[int] = field(default_factory=list)
    test_error_percent: list[float] = field(default_factory=list)
    losses: list[dict[str, float]] = field(default_factory=list)


def train(
    network: MnistNetwork,
    labelled: Iterator[Digits],
    unlabelled: Iterator[Tensor] | None,
    test: Digits,
    options: TrainingOptions,
    progress: Progress,
) -> Curve:
    """Train ``network`` in place with Adam and return its test error over time, before the first step included.

    The loss is the cross-entropy of the labelled batch plus the L2 penalty, and with ``unlabelled`` batches also the
    walker and visit losses. ``progress`` is called after every step with the losses and the last test error.
    Raises `DivergenceError` when the loss is not finite.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=options.learning_rate)
    curve = Curve(steps=[0], test_error_percent=[error_percent(network, test)], losses=[{}])
    for step in range(1, options.steps + 1):
        loss, losses = batch_loss(network, next(labelled), None if unlabelled is None else next(unlabelled), options)
        if not math.isfinite(loss.item()):
            raise DivergenceError(f"the loss is {loss.item()} at step {step}; try a smaller learning rate")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % options.eval_every == 0 or step == options.steps:
            curve.steps.append(step)
            curve.test_error_percent.append(error_percent(network, test))
            curve.losses.append(losses)
        progress({**losses, "test error %": curve.test_error_percent[-1]})
    return curve


def batch_loss(
    network: MnistNetwork, labelled: Digits, unlabelled: Tensor | None, options: TrainingOptions
) -> tuple[Tensor, dict[str, float]]:
    """The loss of one batch to differentiate, and its parts (unweighted, without the L2 penalty) as numbers."""
    embeddings = network(labelled.images if unlabelled is None else torch.cat([labelled.images, unlabelled]))
    a, b = embeddings[: len(labelled)], embeddings[len(labelled) :]
    classification = functional.cross_entropy(network.classifier(a), labelled.labels)
    loss = classification + network.l2_penalty()
    parts = {"classification": classification.item()}
    if unlabelled is not None:
        association, stats = fastassoc.walker_visit_loss(
            a,
            b,
            labelled.labels,
            walker_weight=options.walker_weight,
            visit_weight=options.visit_weight,
            return_stats=True,
        )
        loss = loss + association
        parts |= {"walker": stats.walker.item(), "visit": stats.visit.item()}
    return loss, parts


@torch.inference_mode()
def error_percent(network: MnistNetwork, test: Digits) -> float:
    """Share of the ``test`` digits whose class the classifier gets wrong, in percent."""
    wrong = 0
    for images, labels in zip(test.images.split(EVALUATION_BATCH), test.labels.split(EVALUATION_BATCH), strict=True):
        wrong += int((network.classifier(network(images)).argmax(1) != labels).sum())
    return 100 * wrong / len(test)
