"""Scores from differences of the embeddings: the same numbers, exact for neighbours far from the origin."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastassoc import reference
from fastassoc.backends import cpu
from fastassoc.backends.cpu.operations import tiles
from fastassoc.backends.protocol import Inputs
from tests.cases import make_case, relative_error, seeded
from tests.conftest import use_small_tiles

SCALE = 0.7


def by_backend(a: Tensor, b: Tensor, labels: Tensor, scale: float = SCALE) -> list[Tensor]:
    """Walker, visit, and the gradients of their sum by ``a`` and ``b``."""
    bias_a, bias_b = (x.square().sum(1) * (-scale / 2.0) for x in (a, b))
    own_labels = cpu.prepare_labels(labels, None, b, a.dtype)
    inputs = Inputs(
        a, b, bias_a, bias_b, own_labels, scale, 1e-8, walker=True, visit=True, dtype=a.dtype, differences=True
    )
    losses = cpu.losses(inputs, needs_gradient=True, statistics=False)
    assert losses.walker is not None
    assert losses.visit is not None
    one = torch.ones((), dtype=a.dtype)
    da, db, dbias_a, dbias_b = cpu.gradients(inputs, losses.saved, one, one, (True, True, True, True))
    assert da is not None
    assert db is not None
    # They are whole.
    assert dbias_a is None
    assert dbias_b is None
    return [losses.walker, losses.visit, da, db]


def by_reference(a: Tensor, b: Tensor, labels: Tensor, scale: float = SCALE) -> list[Tensor]:
    """The same by the specification, whose distances are those of differences."""
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    terms = reference.walker_visit_terms(reference.similarity_matrix(a, b, "euclidean", 2.0 / scale), labels)
    da, db = torch.autograd.grad(terms["walker"] + terms["visit"], (a, b))
    return [terms["walker"].detach(), terms["visit"].detach(), da, db]


@pytest.fixture(params=["tiles", "small tiles"])
def _tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "small tiles":
        use_small_tiles(monkeypatch, kept=2)


@pytest.mark.usefixtures("_tiles")
@pytest.mark.parametrize(("n", "m", "d", "classes"), [(1, 1, 1, 1), (7, 19, 3, 2), (60, 130, 17, 4), (40, 90, 128, 0)])
# From near 0, all by one exponential, to where it leaves float64.
@pytest.mark.parametrize("spread", [0.1, 1.0, 20.0])
def test_the_specifications_numbers(n: int, m: int, d: int, classes: int, spread: float) -> None:
    case = make_case(n, m, d, classes, scale=spread)
    for mine, right in zip(by_backend(*case), by_reference(*case), strict=True):
        # A score of the reference is rounded to an eps of itself.
        assert relative_error(mine, right, floor=1.0) <= 1e-14 * (100 + d * spread**2)


@pytest.mark.usefixtures("_tiles")
@pytest.mark.parametrize("radius", [1.0, 1e2, 1e4, 1e6, 1e9])
def test_tight_clusters_far_apart(radius: float) -> None:
    generator = seeded()
    centres = torch.randn(4, 8, generator=generator, dtype=torch.float64) * radius
    labels, others = (torch.arange(count) % 4 for count in (40, 90))
    a, b = (centres[of] + torch.randn(len(of), 8, generator=generator, dtype=torch.float64) for of in (labels, others))
    exact = by_reference(a, b, labels)
    mine = by_backend(a, b, labels)
    for x, y in zip(mine, exact, strict=True):
        assert relative_error(x, y) <= 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_only_tiles_take_them(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """Whatever the size of the batch and its dtype."""
    used = []
    gradients = tiles.gradients

    def noting(*arguments):  # type: ignore[no-untyped-def]
        used.append(arguments[0].differences)
        return gradients(*arguments)

    monkeypatch.setattr(tiles, "gradients", noting)
    case = make_case(80, 100, 8, 4, dtype=dtype)
    for mine, right in zip(by_backend(*case), by_reference(case.a.double(), case.b.double(), case.labels), strict=True):
        assert relative_error(mine.double(), right) <= 50 * torch.finfo(dtype).eps
    assert used == [True]
