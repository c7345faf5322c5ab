# pyright: strict, reportUnnecessaryTypeIgnoreComment=error
"""What a user's type checker has to accept and to refuse; never run, checked against installations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import assert_type

import fastassoc
from fastassoc import WalkerVisitLoss, WalkerVisitLosses, WalkStatistics, walker_visit_loss, walker_visit_losses

WithStatistics = tuple[Tensor, WalkStatistics]
TermsWithStatistics = tuple[WalkerVisitLosses, WalkStatistics]


def function(a: Tensor, b: Tensor, labels: Tensor, flag: bool) -> None:
    assert_type(walker_visit_loss(a, b, labels), Tensor)
    assert_type(walker_visit_loss(a, b, labels, return_stats=False), Tensor)
    assert_type(walker_visit_loss(a, b, labels, return_stats=True), WithStatistics)
    assert_type(walker_visit_loss(a, b, labels, return_stats=flag), Tensor | WithStatistics)
    walker_visit_loss(
        a,
        b,
        labels,
        walker_weight=torch.ones(()),
        visit_weight=1,
        similarity="cosine",
        temperature=torch.nn.Parameter(torch.ones(())),
        eps=0.0,
        ignore_index=-1,
        backend="cpu",
    )


def statistics(a: Tensor, b: Tensor, labels: Tensor) -> float:
    loss, stats = walker_visit_loss(a, b, labels, similarity="euclidean", return_stats=True, backend="triton")
    assert_type(loss, Tensor)
    assert_type(stats, WalkStatistics)
    for field in (stats.walker, stats.visit, stats.p_correct, stats.accuracy_estimate, stats.visit_probability):
        assert_type(field, Tensor)
    return stats.p_correct.item()


def terms(a: Tensor, b: Tensor, labels: Tensor, flag: bool) -> Tensor:
    losses = walker_visit_losses(a, b, labels, similarity="cosine", temperature=0.1, eps=0.0, ignore_index=-1)
    assert_type(losses, WalkerVisitLosses)
    assert_type(walker_visit_losses(a, b, labels, return_stats=False, backend="cpu"), WalkerVisitLosses)
    assert_type(walker_visit_losses(a, b, labels, return_stats=True), TermsWithStatistics)
    assert_type(walker_visit_losses(a, b, labels, return_stats=flag), WalkerVisitLosses | TermsWithStatistics)
    walker, visit = losses
    assert_type(walker, Tensor)
    return walker + 0.5 * visit + losses.visit


def module(a: Tensor, b: Tensor, labels: Tensor, flag: bool) -> None:
    criterion = WalkerVisitLoss(similarity="dot", temperature=0.1, backend="auto")
    assert_type(criterion, WalkerVisitLoss[Tensor])
    assert_type(criterion(a, b, labels), Tensor)
    assert_type(criterion.forward(a, b, labels), Tensor)
    loss, stats = WalkerVisitLoss(return_stats=True)(a, b, labels)
    assert_type(loss, Tensor)
    assert_type(stats.p_correct, Tensor)
    assert_type(WalkerVisitLoss(return_stats=False)(a, b, labels), Tensor)
    assert_type(WalkerVisitLoss(return_stats=flag)(a, b, labels), Tensor | WithStatistics)
    torch.nn.Sequential(criterion)


class Learned(WalkerVisitLoss):
    def __init__(self) -> None:
        super().__init__(temperature=torch.nn.Parameter(torch.ones(())))


class Logged(WalkerVisitLoss[WithStatistics]):
    def __init__(self) -> None:
        super().__init__(return_stats=True)


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        # Without a parameter, the class is the one that returns the loss alone.
        self.criterion: WalkerVisitLoss = WalkerVisitLoss()
        self.logged: WalkerVisitLoss[WithStatistics] = Logged()

    def forward(self, a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
        _, stats = self.logged(a, b, labels)
        return self.criterion(a, b, labels) + Learned()(a, b, labels) + stats.walker


def helpers(images: Tensor, labels: Tensor, step: int) -> float:
    sampler = fastassoc.data.ClassBalancedBatchSampler(labels, samples_per_class=10, num_batches=5, ignore_index=-1)
    fastassoc.data.ClassBalancedBatchSampler([0, 1, 1], 2, classes_per_batch=1, seed=3, num_replicas=2, rank=0)
    sampler.set_epoch(1)
    DataLoader(TensorDataset(images), batch_sampler=sampler, num_workers=2)
    assert_type(len(sampler), int)
    fastassoc.show_config()
    return fastassoc.ramps.linear_rampup(step, 100) * fastassoc.ramps.sigmoid_rampup(step, 1e3)


def specification(a: Tensor, b: Tensor, labels: Tensor) -> None:
    assert_type(fastassoc.__version__, str)
    assert_type(fastassoc.reference.walker_visit_loss(a, b, labels), Tensor)


def refused(a: Tensor, b: Tensor, labels: Tensor, name: str) -> None:
    walker_visit_loss(a, b, labels, similarity="euclid")  # type: ignore[call-overload]
    walker_visit_loss(a, b, labels, similarity=name)  # type: ignore[call-overload]
    walker_visit_loss(a, b, labels, backend="cuda")  # type: ignore[call-overload]
    walker_visit_loss(a, b, labels, 0.5)  # type: ignore[call-overload]
    walker_visit_losses(a, b, labels, visit_weight=0.5)  # type: ignore[call-overload]
    print(walker_visit_loss(a, b, labels).p_correct)  # type: ignore[attr-defined]
    WalkerVisitLoss(similarity="euclid")  # type: ignore[call-overload]
    WalkerVisitLoss(return_stats=True, backend="cuda")  # type: ignore[call-overload]
    WalkerVisitLoss()(a, b)  # type: ignore[call-arg]
    print(WalkerVisitLoss()(a, b, labels).p_correct)  # type: ignore[attr-defined]
    fastassoc.data.ClassBalancedBatchSampler(labels, samples_per_class="ten")  # type: ignore[arg-type]
    print(fastassoc.walker_loss)  # type: ignore[attr-defined]
