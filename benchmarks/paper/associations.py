"""The paper's Figure 2: which unlabelled images the labelled ones are associated with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from PIL import Image

from benchmarks.paper.data import Images
from benchmarks.paper.networks import AssociationNetwork
from benchmarks.paper.plots import BLUE, VERMILION
from benchmarks.paper.training import embed

SHOWN_LABELLED_PER_CLASS = SHOWN_UNLABELLED_PER_CLASS = 2

LEFT, MIDDLE, RIGHT = 0.0, 1.0, 2.0  # columns of the association graph
FEW_IMAGES = 10  # in a column: up to so many are drawn large
ZOOM = {True: 1.25, False: 0.85}  # by whether there are few
HALF_WIDTH = {True: 0.078, False: 0.055}  # of a digit in its frame: lines end there
MINIMUM_LINE_WIDTH, MAXIMUM_LINE_WIDTH = 0.4, 6.0  # points, of steps of probability 0 and 1
LEGEND_PROBABILITIES = (1.0, 0.5, 0.1)

FloatArray = npt.NDArray[np.floating[Any]]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Associations:
    """Steps between shown images: ``p_ab`` [N, M] to the unlabelled, ``p_ba`` [M, N] back, and the classes of both."""

    p_ab: FloatArray
    p_ba: FloatArray
    labels_a: npt.NDArray[np.int64]
    labels_b: npt.NDArray[np.int64]

    @property
    def correct_percent(self) -> float:
        """Probability that a round trip ends on a digit of the class it started from, in percent (eq 4)."""
        same_class = self.labels_a[:, None] == self.labels_a[None, :]
        return 100 * float((self.p_ab @ self.p_ba)[same_class].sum()) / len(self.labels_a)


def associate(network: AssociationNetwork, labelled: Images, unlabelled: Images) -> Associations:
    """The walk between the shown images alone (eq 1, 2)."""
    similarity = embed(network, labelled.images) @ embed(network, unlabelled.images).T
    return Associations(
        similarity.softmax(1).numpy(),
        similarity.T.softmax(1).numpy(),
        labelled.labels.cpu().numpy(),
        unlabelled.labels.cpu().numpy(),
    )


def save_association_graph(
    path: Path, labelled: Images, unlabelled: Images, panels: Mapping[str, Associations]
) -> None:
    """Draw the walk labelled -> unlabelled -> labelled once per panel, side by side, and write it as PNG."""
    figure = Figure(figsize=(7 * len(panels), 9.5), dpi=110)
    canvas = FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.02, right=0.98, top=0.84, bottom=0.06, wspace=0.06)
    for column, (title, associations) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), column)
        axes.set_title(
            f"{title}\n{associations.correct_percent:.0f} % of the round trips end in the class they started from",
            fontsize=13,
            pad=28,
        )
        _draw_walk(axes, labelled.images[:, 0].cpu().numpy(), unlabelled.images[:, 0].cpu().numpy(), associations)
    figure.suptitle(
        "Learning by association: from a labelled digit to similar unlabelled digits, and back to a labelled one",
        fontsize=15,
        fontweight="bold",
    )
    figure.legend(handles=_legend_handles(), loc="lower center", ncols=5, frameon=False, fontsize=11)
    canvas.draw()
    # Hundreds of translucent lines cross in so many shades that true colour takes 1.7 MB, a palette 0.3 MB.
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    pixels.quantize(method=Image.Quantize.FASTOCTREE).save(path, optimize=True)


def _draw_walk(axes: Axes, images_a: Pixels, images_b: Pixels, associations: Associations) -> None:
    heights_a, heights_b = _heights(len(images_a)), _heights(len(images_b))
    same_class = associations.labels_a[:, None] == associations.labels_b[None, :]
    _draw_steps(axes, (LEFT, MIDDLE), heights_a, heights_b, associations.p_ab, same_class)
    _draw_steps(axes, (MIDDLE, RIGHT), heights_b, heights_a, associations.p_ba, same_class.T)

    columns = (
        (LEFT, heights_a, images_a, "labelled"),
        (MIDDLE, heights_b, images_b, "unlabelled"),
        (RIGHT, heights_a, images_a, "labelled"),
    )
    for x, heights, images, name in columns:
        axes.text(x, 1.02, name, ha="center", va="bottom", fontsize=12, fontweight="bold")
        for y, image in zip(heights, images, strict=True):
            thumbnail = OffsetImage(image, zoom=ZOOM[len(images) <= FEW_IMAGES], cmap="gray_r")
            axes.add_artist(AnnotationBbox(thumbnail, (x, y), pad=0.1, bboxprops={"edgecolor": "0.6"}))
    for x, step in ((0.5, r"step out $p^{ab}\ \longrightarrow$"), (1.5, r"step back $p^{ba}\ \longrightarrow$")):
        axes.text(x, 1.02, step, ha="center", va="bottom", fontsize=11, color="0.3")
    axes.set_xlim(LEFT - 0.12, RIGHT + 0.12)
    axes.set_ylim(-0.03, 1.01)
    axes.set_axis_off()


def _draw_steps(
    axes: Axes,
    columns: tuple[float, float],
    heights_from: FloatArray,
    heights_to: FloatArray,
    probability: FloatArray,
    same_class: npt.NDArray[np.bool_],
) -> None:
    start, end = (
        x + sign * HALF_WIDTH[len(heights) <= FEW_IMAGES]
        for x, sign, heights in zip(columns, (1, -1), (heights_from, heights_to), strict=True)
    )
    order = np.argsort(probability, axis=None)  # the likeliest on top
    rows, cols = np.unravel_index(order, probability.shape)
    segments = [[(start, heights_from[i]), (end, heights_to[j])] for i, j in zip(rows, cols, strict=True)]
    p = probability[rows, cols]
    colours = np.where(same_class[rows, cols], BLUE, VERMILION)
    axes.add_collection(
        LineCollection(
            segments,
            colors=to_rgba_array(colours, _opacity(p)),
            linewidths=_line_width(p),
        )
    )


def _line_width(probability: FloatArray) -> FloatArray:
    return MINIMUM_LINE_WIDTH + (MAXIMUM_LINE_WIDTH - MINIMUM_LINE_WIDTH) * probability


def _opacity(probability: FloatArray) -> FloatArray:
    opacity: FloatArray = np.sqrt(probability.clip(0, 1))
    return opacity


def _legend_handles() -> list[Line2D]:
    examples = np.array(LEGEND_PROBABILITIES)
    return [
        Line2D([], [], color=BLUE, linewidth=4, label="to the same digit (right)"),
        Line2D([], [], color=VERMILION, linewidth=4, label="to another digit (wrong)"),
        *(
            Line2D([], [], color="black", alpha=alpha, linewidth=width, label=f"probability {100 * p:.0f} %")
            for p, width, alpha in zip(examples, _line_width(examples), _opacity(examples), strict=True)
        ),
    ]


def _heights(count: int) -> FloatArray:
    return 1 - (np.arange(count) + 0.5) / count
