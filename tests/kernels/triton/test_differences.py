"""Scores by differences: squared distance with all its digits where tight clusters lie far from the origin and apart.

Compared at the backend, as the caller of `Inputs.differences` composes gradients: the biases are functions of the
embeddings, so ``da - scale a dbias_a`` and ``db - scale b dbias_b`` are the whole gradients.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fastassoc import reference
from fastassoc.backends import triton
from fastassoc.backends.protocol import Inputs
from fastassoc.backends.triton.labels import Labels
from tests.cases import Case, evaluate, relative_error, seeded
from tests.kernels.triton.support import DEVICE, FLOAT64, run

EPS = 1e-8


class Result(NamedTuple):
    walker: Tensor
    visit: Tensor
    da: Tensor
    db: Tensor


def clusters(n: int, m: int, d: int, distance: float) -> Case:
    """Unit noise around points that far from the origin, in as many directions; labels are of the clusters."""
    generator = seeded(1)
    centres = torch.nn.functional.normalize(torch.randn(4, d, generator=generator, dtype=torch.float64)) * distance
    which_a, which_b = (torch.randint(0, 4, (size,), generator=generator) for size in (n, m))
    a, b = (centres[w] + torch.randn(len(w), d, generator=generator, dtype=torch.float64) for w in (which_a, which_b))
    return Case(a, b, which_a)


def exact(case: Case, scale: float) -> Result:
    """The loss of scores ``s_ij = -scale / 2 |a_i - b_j|^2``, differentiated by autograd."""
    a, b = case.a.clone().requires_grad_(), case.b.clone().requires_grad_()
    p_ab, q = ((-scale / 2 * (a[:, None] - b).square().sum(2)).softmax(axis) for axis in (1, 0))
    p_aba, visit = p_ab @ q.T, p_ab.mean(0)
    same = case.labels[:, None] == case.labels
    target = same.double() / same.sum(1, keepdim=True)
    walker = -(target * ((EPS + p_aba) / (1 + len(a) * EPS)).log()).sum(1).mean()
    visits = -((EPS + visit) / (1 + len(b) * EPS)).log().mean()
    return Result(walker.detach(), visits.detach(), *torch.autograd.grad(0.7 * walker + 1.3 * visits, (a, b)))


def by_kernels(case: Case, scale: float, differences: bool, ignore_index: int | None = None) -> Result:
    a, b = case.a.to(DEVICE), case.b.to(DEVICE)
    bias_a, bias_b = (-scale / 2 * x.square().sum(1) for x in (a, b))
    labels = Labels(case.labels.to(DEVICE), ignore_index)
    inputs = Inputs(a, b, bias_a, bias_b, labels, scale, EPS, True, True, a.dtype, differences)
    losses = triton.losses(inputs, True, False)
    upstream = (torch.tensor(x, dtype=a.dtype, device=DEVICE) for x in (0.7, 1.3))
    da, db, dbias_a, dbias_b = triton.gradients(inputs, losses.saved, *upstream, (True, True, True, True))
    assert losses.walker is not None
    assert losses.visit is not None
    assert da is not None
    assert db is not None
    assert dbias_a is not None
    assert dbias_b is not None
    composed = da - scale * a * dbias_a[:, None], db - scale * b * dbias_b[:, None]
    return Result(*(x.cpu() for x in (losses.walker, losses.visit, *composed)))


def excess(case: Case, scale: float, distance: float, differences: bool) -> float:
    """The largest error over what is allowed: for gradients also eight roundings of the terms that cancel in them."""
    result, true = by_kernels(case, scale, differences), exact(case, scale)
    composition = 8 * torch.finfo(torch.float64).eps * distance
    allowed = FLOAT64, FLOAT64, FLOAT64 + composition, FLOAT64 + composition
    return max(relative_error(x, y) / most for x, y, most in zip(result, true, allowed, strict=True))


# Off every multiple of a tile; embeddings of one column, and below, off and above a tile.
SIZES = [(37, 45, 1), (33, 50, 8), (37, 41, 37), (21, 34, 130)]


@pytest.mark.parametrize(("n", "m", "d"), SIZES)
@pytest.mark.parametrize("distance", [1.0, 1e2, 1e4, 1e6])
def test_tight_clusters_far_apart(n: int, m: int, d: int, distance: float) -> None:
    assert excess(clusters(n, m, d, distance), 2.0 / d, distance, differences=True) <= 1.0


@pytest.mark.parametrize(("n", "m", "d"), SIZES)
@pytest.mark.usefixtures("tiles")
def test_any_tiles(n: int, m: int, d: int) -> None:
    assert excess(clusters(n, m, d, 1e4), 2.0 / d, 1e4, differences=True) <= 1.0


@pytest.mark.parametrize(("n", "m", "d"), SIZES)
def test_products_would_not_do(n: int, m: int, d: int) -> None:
    for distance in (1e4, 1e6):
        assert excess(clusters(n, m, d, distance), 2.0 / d, distance, differences=False) > 10.0


def test_ignored_rows_and_strides() -> None:
    case = clusters(37, 45, 8, 1e4)
    a, b = (torch.full((len(x), 19), float("nan"), dtype=x.dtype) for x in case[:2])
    a[:, 1:17:2], b[:, 1:17:2] = case.a, case.b
    kept = case.labels != 2
    a[~kept] = float("nan")
    strided = by_kernels(Case(a[:, 1:17:2], b[:, 1:17:2], case.labels), 0.25, True, ignore_index=2)
    plain = by_kernels(Case(case.a[kept], case.b, case.labels[kept]), 0.25, True)
    for x, y in zip(strided._replace(da=strided.da[kept]), plain, strict=True):
        assert relative_error(x, y) <= FLOAT64 + 8e4 * torch.finfo(torch.float64).eps


# In float32: by products, by products in float64, by differences.
@pytest.mark.parametrize("distance", [1.0, 1e2, 1e6])
def test_the_loss_chooses(distance: float) -> None:
    case = clusters(37, 45, 8, distance)
    case = Case(case.a.float(), case.b.float(), case.labels)
    true = evaluate(reference.walker_visit_loss, case, torch.float64, similarity="euclidean")
    eager = evaluate(reference.walker_visit_loss, case, similarity="euclidean")
    for x, y, z in zip(run(case, similarity="euclidean"), eager, true, strict=True):
        assert relative_error(x, z) <= 2 * relative_error(y, z) + 8 * torch.finfo(torch.float32).eps
