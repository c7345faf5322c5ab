"""The paper's Figure 3: the labelled images, which class is taken for which, and the images classified wrongly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.paper.data import Images

MAXIMUM_SHOWN = 60  # images classified wrongly
SHOWN_IN_ROW = 6
SHOWN_LABELLED = 10  # of each class
GREY_FROM = 0.5  # of a class: darker squares get white digits


def confusion_matrix(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """[classes, classes] int64: how many images of each class (row) were taken for each class (column)."""
    return (labels * classes + predictions).bincount(minlength=classes**2).view(classes, classes)


def save_confusion(path: Path, title: str, labelled: Images, test: Images, predictions: Tensor, classes: int) -> None:
    """Write the picture to ``path`` as PNG."""
    figure = Figure(figsize=(17, 7), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1.25, 1))
    _draw_labelled(left, labelled, classes)
    _draw_matrix(middle, confusion_matrix(test.labels, predictions, classes))
    wrong = (predictions != test.labels).nonzero().squeeze(1)
    _draw_wrong(right, test[wrong[:MAXIMUM_SHOWN]], predictions[wrong[:MAXIMUM_SHOWN]])
    shown = f"the first {MAXIMUM_SHOWN} of them, " if len(wrong) > MAXIMUM_SHOWN else ""
    right.set_title(f"{len(wrong):,} of {len(test):,} test images classified wrongly\n({shown}true class → predicted)")
    figure.suptitle(title, fontsize=14, fontweight="bold")
    figure.savefig(path, dpi=110)


def _draw_labelled(axes: Axes, labelled: Images, classes: int) -> None:
    side = labelled.images.shape[-1]
    columns = min(SHOWN_LABELLED, len(labelled) // classes)
    sheet = np.zeros((classes * side, columns * side), np.uint8)
    for label in range(classes):
        images = labelled.images[labelled.labels == label][:columns, 0].cpu().numpy()
        sheet[label * side : (label + 1) * side] = np.concatenate(list(images), axis=1)
    axes.imshow(sheet, cmap="gray_r")
    axes.set_yticks((np.arange(classes) + 0.5) * side, [str(label) for label in range(classes)])
    axes.set_xticks([])
    axes.set_ylabel("class")
    axes.set_title(f"the labelled images\n({columns} of each class shown, {len(labelled):,} in all)")


def _draw_matrix(axes: Axes, matrix: Tensor) -> None:
    share = matrix.double() / matrix.sum(1, keepdim=True).clamp(min=1)
    axes.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix.numpy()):
        if count:
            colour = "white" if share[row, column] > GREY_FROM else "black"
            axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=10)
    axes.set_xticks(range(len(matrix)))
    axes.set_yticks(range(len(matrix)))
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title("confusion matrix: test images of each true class\nby the class they are taken for")


def _draw_wrong(axes: Axes, wrong: Images, predictions: Tensor) -> None:
    axes.set_axis_off()
    rows = max(1, -(-len(wrong) // SHOWN_IN_ROW))
    for index, image in enumerate(wrong.images[:, 0].cpu().numpy()):
        row, column = divmod(index, SHOWN_IN_ROW)
        cell = axes.inset_axes((column / SHOWN_IN_ROW, 1 - (row + 1) / rows, 0.8 / SHOWN_IN_ROW, 0.72 / rows))
        cell.imshow(image, cmap="gray_r")
        cell.set_axis_off()
        cell.set_title(f"{wrong.labels[index]} → {predictions[index]}", fontsize=9, pad=2)


def labelled_images(train: Images, labelled: list[Tensor]) -> Images:
    """The labelled images of a run, class after class."""
    return train[torch.cat(labelled)]
