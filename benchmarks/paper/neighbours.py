"""The paper's Figure 4: the nearest images by cosine similarity of their embeddings, with the values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.paper.data import Images
from benchmarks.paper.plots import BLUE, VERMILION

NEIGHBOURS = 5
QUERIES_AT_ONCE = 1000  # bounds the memory of their similarities


@dataclass(frozen=True)
class Neighbours:
    """Of each image: the ``indices`` [N, 5] of the nearest other images, nearest first, and their ``similarity``."""

    indices: Tensor
    similarity: Tensor

    def agreement_percent(self, labels: Tensor) -> float:
        """How many of the neighbours are of the class of the image they are near to, in percent."""
        return 100 * float((labels[self.indices] == labels[:, None]).double().mean())


def nearest(embeddings: Tensor) -> Neighbours:
    """Among ``embeddings`` [N, D], without each image itself."""
    directions = normalize(embeddings)
    indices, similarity = [], []
    for start in range(0, len(directions), QUERIES_AT_ONCE):
        cosine = directions[start : start + QUERIES_AT_ONCE] @ directions.T
        rows = torch.arange(len(cosine))
        cosine[rows, start + rows] = -torch.inf
        best = cosine.topk(min(NEIGHBOURS, len(directions) - 1), dim=1)
        indices.append(best.indices)
        similarity.append(best.values)
    return Neighbours(torch.cat(indices), torch.cat(similarity))


def save_neighbours(path: Path, title: str, images: Images, neighbours: Neighbours) -> None:
    """Write the first image of each class and its neighbours to ``path`` as PNG."""
    queries = [int((images.labels == label).nonzero()[0]) for label in images.labels.unique().tolist()]
    columns = 1 + neighbours.indices.shape[1]
    figure = Figure(figsize=(1.25 * columns + 1, 1.42 * len(queries) + 1.3), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(queries), columns, squeeze=False)
    for row, query in zip(grid, queries, strict=True):
        _draw(row[0], images.images[query], f"class {images.labels[query]}", "0.2")
        for axes, index, value in zip(row[1:], neighbours.indices[query], neighbours.similarity[query], strict=True):
            same = bool(images.labels[index] == images.labels[query])
            _draw(axes, images.images[index], f"{value:.3f}", BLUE if same else VERMILION)
    grid[0, 0].set_title(f"test image\n{grid[0, 0].get_title()}", fontsize=10)
    figure.suptitle(
        f"{title}\nleft: a test image of each class; then its {columns - 1} nearest other test images\n"
        "with the cosine similarity of the embeddings\nblue frame: same class, orange frame: another class",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)


def _draw(axes: Axes, image: Tensor, title: str, colour: str) -> None:
    pixels = image.cpu().numpy()
    if len(pixels) == 1:
        axes.imshow(pixels[0], cmap="gray_r")
    else:
        axes.imshow(pixels.transpose(1, 2, 0))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=10, color=colour, pad=3)
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=2.5)
