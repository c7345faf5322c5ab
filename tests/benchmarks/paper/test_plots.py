"""The pictures of test errors: what they say lies within them."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

from matplotlib.figure import Figure

from benchmarks.paper.experiments import (
    ASSOCIATION,
    EAGER,
    EXPERIMENTS,
    FASTASSOC,
    LABELS_ONLY,
    Experiment,
    with_seed,
    with_steps,
)
from benchmarks.paper.plans import Settings
from benchmarks.paper.plots import BLUE, VERMILION, save_errors, save_learning_curves
from benchmarks.paper.results import Measured
from benchmarks.paper.runs import Record
from benchmarks.paper.training import Curve

EMBEDDED = ("table1", "table3", "table4", "table5", "curves")
STEPS = (300, 20_000)  # of each seed


def measured(experiment: Experiment) -> list[Measured]:
    """Every cell with invented errors of two runs of different length."""
    return [
        Measured(
            cell,
            tuple(
                Record(with_seed(with_steps(cell.config, steps), seed), {}, {}, Curve([0, steps], [90.0, 12.25]), 0.0)
                for seed, steps in enumerate(STEPS)
            ),
        )
        for cell in experiment.cells
    ]


def drawn(experiment: Experiment, items: list[Measured], monkeypatch: pytest.MonkeyPatch) -> Figure:
    """The figure of `save_errors` or `save_learning_curves`, laid out but not written."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    save = save_learning_curves if experiment.name == "curves" else save_errors
    save(Path("not written.png"), experiment, items)
    (figure,) = figures
    figure.draw_without_rendering()
    return figure


@pytest.mark.parametrize(
    ("name", "published"), [*((name, False) for name in EMBEDDED), *((name, True) for name in ("table2", *EMBEDDED))]
)
def test_titles_fit_into_their_pictures(
    name: str, published: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = EXPERIMENTS[name](Settings(data=tmp_path if published else None))
    figure = drawn(experiment, measured(experiment), monkeypatch)
    (title,) = figure.texts
    assert title.get_text().startswith(f"{experiment.title}\n2 runs each, 300 to 20,000 training steps")
    box = title.get_window_extent()
    assert figure.bbox.x0 < box.x0
    assert box.x1 < figure.bbox.x1
    assert box.y1 < figure.bbox.y1


@pytest.mark.parametrize(
    ("name", "series", "colour"),
    [
        ("table1", LABELS_ONLY, VERMILION),
        ("table1", ASSOCIATION, BLUE),
        ("curves", EAGER, VERMILION),
        ("curves", FASTASSOC, BLUE),
    ],
)
def test_a_series_keeps_its_colour_without_the_others(
    name: str, series: str, colour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = EXPERIMENTS[name](Settings())
    for items in (measured(experiment), [item for item in measured(experiment) if item.cell.series == series]):
        (axes,) = drawn(experiment, items, monkeypatch).axes
        legend = axes.get_legend()
        assert legend is not None
        marks = zip(legend.get_texts(), legend.get_lines(), strict=True)
        colours = [line.get_color() for text, line in marks if text.get_text().startswith(series)]
        assert colours
        assert set(colours) == {colour}


@pytest.mark.parametrize("name", EMBEDDED)
def test_series_of_one_picture_differ_in_colour(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = EXPERIMENTS[name](Settings())
    series = {cell.series for cell in experiment.cells}
    (axes,) = drawn(experiment, measured(experiment), monkeypatch).axes
    medians = [line for line in axes.get_lines() if line.get_markersize() in (8, 4)]
    assert len({line.get_color() for line in medians}) == len(series)
