"""What the paper's figures show: associations, confusions, neighbours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")

from matplotlib.colors import to_rgb
from PIL import Image

from benchmarks.paper.associations import Associations, associate, save_association_graph
from benchmarks.paper.confusion import confusion_matrix
from benchmarks.paper.data import Images
from benchmarks.paper.neighbours import nearest
from benchmarks.paper.networks import MnistNetwork
from benchmarks.paper.plots import BLUE, VERMILION
from tests.cases import seeded


def test_associations_are_the_walk_of_the_shown_digits() -> None:
    images = torch.randint(0, 256, (6, 1, 28, 28), generator=seeded(), dtype=torch.uint8)
    digits = Images(images, torch.arange(6) % 3)
    walk = associate(MnistNetwork(3, seeded()), digits[torch.arange(3)], digits)
    assert walk.p_ab.shape == (3, 6)
    assert walk.p_ba.shape == (6, 3)
    np.testing.assert_allclose(walk.p_ab.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(walk.p_ba.sum(1), 1, rtol=1e-5)
    assert walk.correct_percent == pytest.approx(100 / 3 * float(np.trace(walk.p_ab @ walk.p_ba)))


def test_the_association_graph_is_small_and_keeps_its_colours(tmp_path: Path) -> None:
    """All of the lines of 20 digits, each as likely as the others, cross in more shades than a palette has."""
    images = torch.randint(0, 256, (20, 1, 28, 28), generator=seeded(), dtype=torch.uint8)
    digits = Images(images, torch.arange(20) // 2)
    uniform, labels = np.full((20, 20), 1 / 20), digits.labels.numpy()
    walk = Associations(uniform, uniform, labels, labels)
    path = tmp_path / "figure2.png"
    save_association_graph(path, digits, digits, {"Before training": walk, "After": walk})
    assert path.stat().st_size < 500_000
    with Image.open(path) as picture:
        assert picture.size == (1540, 1045)
        counted = picture.convert("RGB").getcolors()
    assert counted is not None
    colours = np.array([colour for _, colour in counted])
    for colour in ("white", "black", BLUE, VERMILION):
        distance = np.abs(colours - 255 * np.array(to_rgb(colour))).max(axis=1)
        assert distance.min() <= 8, colour


def test_confusion_matrix_by_hand() -> None:
    matrix = confusion_matrix(torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 1, 1, 0, 0]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [2, 0, 0]]


def test_nearest_by_cosine_similarity_by_hand() -> None:
    embeddings = torch.tensor([[1.0, 0.0], [10.0, 1.0], [0.0, 2.0], [-1.0, 0.0]])
    neighbours = nearest(embeddings)
    assert neighbours.indices[0].tolist() == [1, 2, 3]
    expected = [10 / 101**0.5, 0.0, -1.0]
    assert neighbours.similarity[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert neighbours.agreement_percent(torch.tensor([0, 0, 0, 1])) == pytest.approx(100 * 6 / 12)


def test_nearest_in_parts_is_nearest_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = torch.randn(50, 8, generator=seeded())
    whole = nearest(embeddings)
    monkeypatch.setattr("benchmarks.paper.neighbours.QUERIES_AT_ONCE", 7)
    assert torch.equal(nearest(embeddings).indices, whole.indices)
