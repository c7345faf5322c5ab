"""Plots of test errors: by group and series, and over the steps of trainings."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.paper.experiments import Experiment
from benchmarks.paper.results import Measured
from benchmarks.paper.training import Curve

# Of Okabe and Ito's palette, which all common forms of colour vision tell apart.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
STYLES = ((VERMILION, "s", "--"), (BLUE, "o", "-"), (GREEN, "^", "-."), (PURPLE, "D", ":"))  # colour, marker, line
CURVE_WIDTHS = (5.0, 1.8)  # points: curves that coincide shall both be seen
LOGARITHMIC_FROM = 8  # largest error over smallest


def save_errors(path: Path, experiment: Experiment, measured: Sequence[Measured]) -> None:
    """The median error of every group, a line for each series, with a dot for each run."""
    groups = list(dict.fromkeys(item.cell.group for item in measured))
    series = list(dict.fromkeys(item.cell.series for item in measured))
    figure, axes = _new_figure()
    for index, name in enumerate(series):
        colour, marker, line = STYLES[index % len(STYLES)]
        if not experiment.ordered:
            line = "none"
        offset = 0.0 if len(series) == 1 else 0.12 * (index - (len(series) - 1) / 2)
        mine = [item for item in measured if item.cell.series == name]
        places = [groups.index(item.cell.group) + offset for item in mine]
        medians = [statistics.median(item.errors_percent) for item in mine]
        axes.plot(places, medians, color=colour, marker=marker, linestyle=line, markersize=7, linewidth=1.5, label=name)
        for place, item, middle in zip(places, mine, medians, strict=True):
            axes.scatter([place] * len(item.records), item.errors_percent, s=14, color=colour, alpha=0.45, zorder=3)
            # Beside its marker, away from those of the other series.
            side = "center" if offset == 0 and len(series) > 1 else "right" if offset < 0 else "left"
            shift = {"left": (8, 3), "center": (0, 9), "right": (-8, 3)}[side]
            number = axes.annotate(
                f"{middle:.1f}", (place, middle), shift, textcoords="offset points", ha=side, color=colour, fontsize=9
            )
            # Legible where a line passes behind it.
            number.set_path_effects([withStroke(linewidth=3, foreground="white")])
            number.set_zorder(2.5)  # over lines, under dots
    _error_axis(axes, [error for item in measured for error in item.errors_percent])
    axes.set_xticks(range(len(groups)), groups)
    axes.set_xlim(-0.4, len(groups) - 0.6)
    axes.set_xlabel(experiment.group_name)
    axes.legend(title=experiment.series_name, frameon=False)
    axes.set_title(f"{_title(experiment, measured)}\nlarge: medians, small: each run", fontsize=11)
    figure.savefig(path, dpi=150)


def save_learning_curves(path: Path, experiment: Experiment, measured: Sequence[Measured]) -> None:
    """The error over the steps of every run, as thin lines, and their median, with markers."""
    figure, axes = _new_figure()
    errors = []
    for item, (colour, marker, line), width in zip(measured, STYLES, CURVE_WIDTHS, strict=False):
        steps = item.records[0].curve.steps[1:]  # without the start, far above all that follows
        runs = [record.curve.test_error_percent[1:] for record in item.records]
        middle = [statistics.median(values) for values in zip(*runs, strict=True)]
        for run in runs:
            axes.plot(steps, run, color=colour, linestyle=line, linewidth=0.8, alpha=0.6)
        final = f"{item.cell.series}: median of {len(runs)} seeds, {middle[-1]:.2f} % at the end"
        axes.plot(steps, middle, color=colour, marker=marker, linewidth=width, markersize=2 * width, label=final)
        errors += [error for run in runs for error in run]
    _error_axis(axes, errors)
    axes.set_xlabel("training steps")
    axes.legend(frameon=False, title="thin lines: each seed")
    axes.set_title(_title(experiment, measured), fontsize=11)
    figure.savefig(path, dpi=150)


def save_error_curves(path: Path, curves: Mapping[str, Curve], subtitle: str) -> None:
    """Draw the test error of each run over its training steps and write it to ``path`` as PNG."""
    figure, axes = _new_figure()
    for (name, curve), (colour, marker, line) in zip(curves.items(), STYLES, strict=False):
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
            f"{final:.1f} %",
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


def _new_figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _error_axis(axes: Axes, errors: Sequence[float]) -> None:
    """Logarithmic where errors lie far apart, else from 0."""
    if min(errors) > 0 and max(errors) / min(errors) > LOGARITHMIC_FROM:
        axes.set_yscale("log")
        axes.set_ylabel("test error (% of the test images, logarithmic)")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylabel("test error (% of the test images)")
        axes.set_ylim(0, 1.15 * max(*errors, 1.0))


def _title(experiment: Experiment, measured: Sequence[Measured]) -> str:
    runs = len(measured[0].records)
    steps = sorted({item.cell.config.training.steps for item in measured})
    return f"{experiment.title}\n{runs} {'run' if runs == 1 else 'runs'} each, {steps[-1]:,} training steps"
