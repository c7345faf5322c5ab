"""Plots of test errors: by group and series, and over the steps of trainings."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.paper.experiments import ASSOCIATION, EAGER, FASTASSOC, FINAL, LABELS_ONLY, Experiment
from benchmarks.paper.reported import NO_SUCH_NUMBER
from benchmarks.paper.results import Measured
from benchmarks.paper.training import Curve

# Of Okabe and Ito's palette, which all common forms of colour vision tell apart.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
GREY = "0.25"
STYLES = {
    **dict.fromkeys((LABELS_ONLY, "supervised only", "0", EAGER), (VERMILION, "s", "--")),
    **dict.fromkeys((ASSOCIATION, "all", FINAL, FASTASSOC), (BLUE, "o", "-")),
    "20,000": (PURPLE, "D", ":"),
}
OTHER_STYLE = (GREEN, "^", "-.")
"""Colour, marker and line of a series by its name, the same in every picture, and of those that have no own."""
SEED_LINES = ("-", "--", ":", "-.")
LANE_INCHES = 0.5
LOGARITHMIC_FROM = 8  # largest error over smallest


def save_errors(path: Path, experiment: Experiment, measured: Sequence[Measured]) -> None:
    """The error of every group: each series has a lane of its own with its median, its runs and the paper's number."""
    groups = list(dict.fromkeys(item.cell.group for item in measured))
    series = list(dict.fromkeys(item.cell.series for item in measured))
    figure, axes = _new_figure(width=max(8.0, 1.5 + LANE_INCHES * len(groups) * (len(series) + 1)))
    errors = [error for item in measured for error in item.errors_percent]
    papers = [_paper(item) for item in measured] if experiment.comparable else []
    errors += [paper for paper in papers if paper is not None]
    _error_axis(axes, errors, linear=experiment.linear)
    lane = 1 / (len(series) + 1)
    for item in measured:
        colour, marker, _ = _style(item.cell.series)
        place = groups.index(item.cell.group) + (series.index(item.cell.series) - (len(series) - 1) / 2) * lane
        runs, middle = item.errors_percent, statistics.median(item.errors_percent)
        axes.plot(place, middle, color=colour, marker=marker, markersize=8, linestyle="none")
        if len(runs) > 1:
            axes.scatter([place + lane / 3] * len(runs), runs, s=14, color="white", edgecolors=colour, zorder=3)
        # The numbers stand outside of all marks of their lane, the paper's on its side of the median.
        paper = _paper(item) if experiment.comparable else None
        up = paper is None or paper < middle
        end = max(runs) if up else min(runs)
        _number(axes, f"{middle:.2f}", (place, end), up=up, color=colour, fontweight="bold")
        if paper is not None:
            axes.plot(place, paper, color=GREY, marker="_", markersize=16, markeredgewidth=2, linestyle="none")
            end = min(paper, *runs) if up else max(paper, *runs)
            _number(axes, f"{paper:.2f}", (place, end), up=not up, color=GREY)
    for border in range(1, len(groups)):
        axes.axvline(border - 0.5, color="0.85", linewidth=0.8)
    axes.grid(visible=False, axis="x")
    axes.tick_params(axis="x", length=0)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.set_xlabel(experiment.group_name)
    several = any(len(item.records) > 1 for item in measured)
    handles = _lane_handles(series, several=several, paper=any(papers))
    axes.legend(
        handles=handles, title=experiment.series_name, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0)
    )
    figure.suptitle(_title(experiment, measured) + several * "; numbers are medians", fontsize=11)
    figure.savefig(path, dpi=150)


def save_learning_curves(path: Path, experiment: Experiment, measured: Sequence[Measured]) -> None:
    """The error over the steps of every run, from the start: a colour for each code, a line for each seed."""
    figure, axes = _new_figure()
    errors = []
    for item in measured:
        colour, marker, _ = _style(item.cell.series)
        # Large and hollow under small and full: curves that coincide are both seen.
        size, fill = (8, "none") if item.cell.series == EAGER else (4, colour)
        for record in item.records:
            curve = record.curve
            name = f"{item.cell.series}, seed {record.config.seed}: {record.error_percent:.2f} % at the end"
            axes.plot(
                curve.steps,
                curve.test_error_percent,
                color=colour,
                marker=marker,
                markersize=size,
                markerfacecolor=fill,
                linestyle=SEED_LINES[record.config.seed % len(SEED_LINES)],
                linewidth=1.4,
                label=name,
            )
            errors += curve.test_error_percent
    _error_axis(axes, errors)
    axes.set_xlabel("training steps")
    axes.legend(frameon=False)
    figure.suptitle(_title(experiment, measured), fontsize=11)
    figure.savefig(path, dpi=150)


def save_error_curves(path: Path, curves: Mapping[str, Curve], subtitle: str) -> None:
    """Draw the test error of each run over its training steps and write it to ``path`` as PNG."""
    figure, axes = _new_figure()
    for name, curve in curves.items():
        colour, marker, line = _style(name)
        final = curve.test_error_percent[-1]
        axes.plot(
            curve.steps,
            curve.test_error_percent,
            color=colour,
            marker=marker,
            linestyle=line,
            label=name,
            markersize=4,
            linewidth=2,
        )
        axes.annotate(
            f"{final:.2f} %",
            (curve.steps[-1], final),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontweight="bold",
        )
    axes.set_xlabel("training steps")
    axes.set_ylabel("test error (% of test digits classified wrongly)")
    start = next(iter(curves.values())).test_error_percent[0]
    highest = max(max(curve.test_error_percent[1:]) for curve in curves.values())
    axes.set_ylim(0, min(100.0, 1.5 * highest + 1))  # without the start, far above all that follows
    axes.set_xlim(left=0)
    axes.legend(frameon=False)
    axes.set_title(f"MNIST: test error over training\n{subtitle}; both start at {start:.0f} %", fontsize=11)
    figure.savefig(path, dpi=150)


def _style(series: str) -> tuple[str, str, str]:
    return STYLES.get(series, OTHER_STYLE)


def _number(axes: Axes, text: str, point: tuple[float, float], *, up: bool, **style: Any) -> None:
    """``text`` above or below ``point``."""
    shift, side = ((0, 8), "bottom") if up else ((0, -8), "top")
    axes.annotate(text, point, shift, textcoords="offset points", ha="center", va=side, fontsize=9, **style)


def _lane_handles(series: Sequence[str], *, several: bool, paper: bool) -> list[Line2D]:
    marks: list[tuple[str, str, dict[str, Any]]] = [
        (name, colour, {"marker": marker, "markersize": 8})
        for name, (colour, marker, _) in zip(series, map(_style, series), strict=True)
    ]
    if several:
        marks.append(("each run", GREY, {"marker": "o", "markerfacecolor": "white", "markersize": 4}))
    if paper:
        marks.append(("the paper", GREY, {"marker": "_", "markersize": 14, "markeredgewidth": 2}))
    return [Line2D([], [], color=colour, linestyle="none", label=name, **style) for name, colour, style in marks]


def _paper(item: Measured) -> float | None:
    """The paper's number without what stands in brackets."""
    paper = item.cell.paper
    return None if paper == NO_SUCH_NUMBER else float(paper.split(" ")[0])


def _new_figure(width: float = 8.0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _error_axis(axes: Axes, errors: Sequence[float], *, linear: bool = False) -> None:
    """Logarithmic where errors lie far apart and ratios matter, else from 0; with room for numbers at the ends."""
    if not linear and min(errors) > 0 and max(errors) / min(errors) > LOGARITHMIC_FROM:
        axes.set_yscale("log")
        axes.set_ylabel("test error (% of the test images, logarithmic)")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(min(errors) / 1.5, 1.5 * max(errors))
    else:
        axes.set_ylabel("test error (% of the test images)")
        axes.set_ylim(0, 1.15 * max(*errors, 1.0))


def _title(experiment: Experiment, measured: Sequence[Measured]) -> str:
    runs, steps = (
        sorted(values)
        for values in (
            {len(item.records) for item in measured},
            {steps for item in measured for steps in item.steps},
        )
    )
    counts = f"{runs[0]} to {runs[-1]} runs" if len(runs) > 1 else f"{runs[0]} {'run' if runs == [1] else 'runs'}"
    lengths = f"{steps[0]:,} to {steps[-1]:,}" if len(steps) > 1 else f"{steps[0]:,}"
    return f"{experiment.title}\n{counts} each, {lengths} training steps"
