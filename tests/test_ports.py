"""Coming from another port: what its loss is beside ours, on code written from the equations of both.

Several ports take a Kullback-Leibler divergence where the paper has a cross-entropy. With T the target of a row, 1 / n
for each of the n rows of its class, and V = 1 / M the target of the visits,

    KL(T || P) = H(T, P) - H(T)        mean_i H(T_i) = mean_i log n_class(i)        H(V) = log M

so that our value is larger by a constant and gradients are the same. One port divides scores by the square root of D.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastassoc
from tests.cases import Case, evaluate, make_case, relative_error


def divergences(
    a: Tensor, b: Tensor, labels: Tensor, walker_weight: float, visit_weight: float, eps: float, divisor: float = 1.0
) -> Tensor:
    """The loss of a port with divergences in the place of cross-entropies."""
    scores = a @ b.T / divisor
    p_ab, p_ba = F.softmax(scores, 1), F.softmax(scores.T, 1)
    same = (labels[:, None] == labels[None, :]).to(a.dtype)
    target = same / same.sum(1, keepdim=True)
    walker = F.kl_div(torch.log(p_ab @ p_ba + eps), target, reduction="batchmean")
    visits = p_ab.mean(0, keepdim=True)
    visit = F.kl_div(torch.log(visits + eps), torch.full_like(visits, 1.0 / len(b)), reduction="batchmean")
    return walker_weight * walker + visit_weight * visit


def constant(case: Case, walker_weight: float, visit_weight: float) -> float:
    """By how much our value is larger."""
    of_classes = torch.bincount(case.labels)[case.labels].double().log().mean()
    return walker_weight * float(of_classes) + visit_weight * math.log(len(case.b))


# Classes of several sizes, of one, and all rows apart; without eps, and with a small and a large one.
@pytest.mark.parametrize(("n", "m", "classes"), [(40, 90, 4), (30, 17, 1), (12, 50, 0), (64, 64, 3)])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.1), (0.3, 2.0)])
@pytest.mark.parametrize("eps", [0.0, 1e-8, 1e-3])
def test_divergences_differ_by_a_constant(
    n: int, m: int, classes: int, weights: tuple[float, float], eps: float
) -> None:
    case = make_case(n, m, 6, classes, scale=0.7)
    walker, visit = weights
    mine = evaluate(fastassoc.walker_visit_loss, case, walker_weight=walker, visit_weight=visit, eps=eps)
    port = evaluate(divergences, case, walker_weight=walker, visit_weight=visit, eps=eps)
    larger = float(mine.loss - port.loss)
    # Probabilities with eps sum to 1 + N eps and 1 + M eps, by which the original code divides, and so do we.
    of_eps = walker * math.log1p(n * eps) + visit * math.log1p(m * eps)
    assert larger == pytest.approx(constant(case, *weights) + of_eps, abs=1e-12)
    assert relative_error(mine.da, port.da) < 1e-11
    assert relative_error(mine.db, port.db) < 1e-11


# The figures that the table of ports gives.
@pytest.mark.parametrize(
    ("n", "m", "classes", "visit_weight", "figure"), [(100, 1000, 10, 0.1, 2.99), (64, 64, 3, 1.0, 7.22)]
)
def test_how_large_the_constant_is(n: int, m: int, classes: int, visit_weight: float, figure: float) -> None:
    case = make_case(n, m, 6, 1)._replace(labels=torch.arange(n) % classes)
    assert constant(case, 1.0, visit_weight) == pytest.approx(figure, abs=0.005)


def terms_over_the_root_of_d(a: Tensor, b: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The pair of terms, cross-entropies, of a port whose scores are divided by the square root of D."""
    scores = a @ b.T / math.sqrt(a.shape[1])
    p_ab, p_ba = F.softmax(scores, 1), F.softmax(scores.T, 1)
    same = (labels[:, None] == labels[None, :]).to(a.dtype)
    walker = -(same / same.sum(1, keepdim=True) * torch.log(p_ab @ p_ba + 1e-8)).sum(1).mean()
    return walker, -torch.log(p_ab.mean(0) + 1e-8).mean()


@pytest.mark.parametrize("d", [16, 100])
def test_both_terms_of_scores_over_the_root_of_d(d: int) -> None:
    case = make_case(40, 90, d, 4, scale=0.7)
    mine = fastassoc.walker_visit_losses(case.a, case.b, case.labels, temperature=case.a.shape[1] ** 0.5)
    for term, port in zip(mine, terms_over_the_root_of_d(case.a, case.b, case.labels), strict=True):
        # The original code divides by the sum of probabilities with eps, 1 + N eps and 1 + M eps.
        assert float(term) == pytest.approx(float(port), abs=2e-6)


@pytest.mark.parametrize("d", [16, 100])
def test_scores_over_the_root_of_d_are_a_temperature(d: int) -> None:
    case = make_case(40, 90, d, 4, scale=0.7)
    root = math.sqrt(d)
    mine = evaluate(fastassoc.walker_visit_loss, case, temperature=root)
    port = evaluate(divergences, case, walker_weight=1.0, visit_weight=1.0, eps=1e-8, divisor=root)
    assert float(mine.loss - port.loss) == pytest.approx(constant(case, 1.0, 1.0), abs=2e-6)
    assert relative_error(mine.da, port.da) < 1e-11
    assert relative_error(mine.db, port.db) < 1e-11
