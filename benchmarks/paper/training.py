"""The training loop: classification alone, or with walker and visit loss on unlabelled images (eq 5).

The loss of a step is classification + L2 penalty + walker weight * walker + visit weight * visit, and Adam follows it.
A training that writes checkpoints and is interrupted goes on from the last one with the numbers that it would have had.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import fastassoc
from benchmarks import eager
from benchmarks.paper.data import Images
from benchmarks.paper.networks import AssociationNetwork
from benchmarks.paper.sampling import Batches
from benchmarks.paper.schedules import LearningRate, Weight

EVALUATION_BATCH = 500
LOSSES = ("fastassoc", "eager")
PRECISIONS = ("float32", "bf16")

Progress = Callable[[dict[str, float]], None]
ScalarLog = Callable[[int, dict[str, float]], None]


class DivergenceError(RuntimeError):
    """The loss is no longer a finite number."""


@dataclass(frozen=True)
class TrainingOptions:
    """How long and how fast to train, the weights of the two association losses (eq 5), and which code computes them.

    ``loss``: "fastassoc", or "eager" for the plain PyTorch of `benchmarks.eager`. ``precision``: "float32", or "bf16"
    for embeddings computed in bfloat16 while training; weights, losses and tests are in float32 with both.
    """

    steps: int
    learning_rate: LearningRate
    walker: Weight
    visit: Weight
    eval_every: int
    loss: str = "fastassoc"
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"unknown precision {self.precision!r}; expected one of {', '.join(PRECISIONS)}")
        if self.loss not in LOSSES:
            raise ValueError(f"unknown loss {self.loss!r}; expected one of {', '.join(LOSSES)}")

    def scaled(self, steps: int) -> TrainingOptions:
        """The same in ``steps`` steps: schedules and the intervals of evaluation shrink or grow alike."""
        ratio = steps / self.steps
        return replace(
            self,
            steps=steps,
            learning_rate=self.learning_rate.scaled(ratio),
            walker=self.walker.scaled(ratio),
            visit=self.visit.scaled(ratio),
            eval_every=max(1, round(self.eval_every * ratio)),
        )


@dataclass(frozen=True)
class Curve:
    """Test error in percent after each of ``steps`` training steps, and the losses of the batch trained on last."""

    steps: list[int] = field(default_factory=list)
    test_error_percent: list[float] = field(default_factory=list)
    losses: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Trained:
    """The curve of a training, and the seconds that it took, over all its sittings."""

    curve: Curve
    seconds: float


def train(
    network: AssociationNetwork,
    batches: Batches,
    test: Images,
    options: TrainingOptions,
    progress: Progress,
    *,
    checkpoint: Path | None = None,
    log: ScalarLog | None = None,
) -> Trained:
    """Train ``network`` in place and return its test error over time, before the first step included.

    ``progress`` is called after every step with the losses and the last test error, ``log`` at every evaluation. With
    ``checkpoint``, everything that the rest of the training depends on is written to that file at every evaluation but
    the last; where the file exists already, training goes on from it. Raises `DivergenceError` when the loss is not
    finite.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=options.learning_rate.at(0))
    done, earlier_seconds = 0, 0.0
    if checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        batches.restore(saved["batches"])
        curve, done, earlier_seconds = Curve(**saved["curve"]), saved["step"], saved["seconds"]
    else:
        curve = Curve(steps=[0], test_error_percent=[error_percent(network, test)], losses=[{}])

    start = time.perf_counter()
    for step in range(done + 1, options.steps + 1):
        learning_rate = options.learning_rate.at(step - 1)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        loss, losses = batch_loss(network, *batches.draw(), options, step - 1)
        if not math.isfinite(loss.item()):
            raise DivergenceError(f"the loss is {loss.item()} at step {step}; try a smaller learning rate")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % options.eval_every == 0 or step == options.steps:
            curve.steps.append(step)
            curve.test_error_percent.append(error_percent(network, test))
            curve.losses.append(losses)
            if log is not None:
                log(step, {**losses, "test error %": curve.test_error_percent[-1], "learning rate": learning_rate})
            if checkpoint is not None and step < options.steps:
                state = {
                    "step": step,
                    "seconds": earlier_seconds + time.perf_counter() - start,
                    "network": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "batches": batches.state(),
                    "curve": asdict(curve),
                }
                save_whole(checkpoint, state)
        progress({**losses, "test error %": curve.test_error_percent[-1]})
    return Trained(curve, earlier_seconds + time.perf_counter() - start)


def save_whole(path: Path, content: dict[str, Any]) -> None:
    """``torch.save``, so that an interruption leaves the old file or the new one."""
    unfinished = path.with_name(path.name + ".unfinished")
    torch.save(content, unfinished)
    unfinished.replace(path)


def batch_loss(
    network: AssociationNetwork, labelled: Images, unlabelled: Tensor | None, options: TrainingOptions, step: int
) -> tuple[Tensor, dict[str, float]]:
    """The loss of one batch to differentiate, and its parts (unweighted, without the L2 penalty) as numbers.

    The eager loss has its two parts only as their weighted sum, "association".
    """
    with torch.autocast(labelled.images.device.type, torch.bfloat16, enabled=options.precision == "bf16"):
        a, b = _embed(network, labelled.images, unlabelled)
    a, b = a.float(), None if b is None else b.float()
    classification = functional.cross_entropy(network.classifier(a), labelled.labels)
    loss = classification + network.l2_penalty()
    parts = {"classification": classification.item()}
    if b is not None:
        walker, visit = options.walker.at(step), options.visit.at(step)
        if options.loss == "eager":
            association = eager.walker_visit_loss(a, b, labelled.labels, walker_weight=walker, visit_weight=visit)
            parts["association"] = association.item()
        else:
            association, stats = fastassoc.walker_visit_loss(
                a, b, labelled.labels, walker_weight=walker, visit_weight=visit, return_stats=True
            )
            parts |= {"walker": stats.walker.item(), "visit": stats.visit.item()}
        loss = loss + association
    return loss, parts


def _embed(network: AssociationNetwork, labelled: Tensor, unlabelled: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if unlabelled is None:
        return network(labelled), None
    if not network.joint_batches:
        return network(labelled), network(unlabelled)
    embeddings = network(torch.cat([labelled, unlabelled]))
    return embeddings[: len(labelled)], embeddings[len(labelled) :]


def error_percent(network: AssociationNetwork, test: Images) -> float:
    """Share of the ``test`` images whose class the classifier gets wrong, in percent."""
    return 100 * float((predict(network, test.images) != test.labels).double().mean())


def predict(network: AssociationNetwork, images: Tensor) -> Tensor:
    """The likeliest class of each image, on the CPU."""
    return _in_parts(network, images, lambda embeddings: network.classifier(embeddings).argmax(1))


def embed(network: AssociationNetwork, images: Tensor) -> Tensor:
    """The embedding [N, 128] of each image, on the CPU."""
    return _in_parts(network, images, lambda embeddings: embeddings)


@torch.inference_mode()
def _in_parts(network: AssociationNetwork, images: Tensor, finish: Callable[[Tensor], Tensor]) -> Tensor:
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    parts = [finish(network(part.to(device))).cpu() for part in images.split(EVALUATION_BATCH)]
    network.train(training)
    return torch.cat(parts)
