"""The pictures of the suites: ``python -m benchmarks.pictures DIR`` draws those of saved results, and measures nothing.

Each is drawn from the JSON files of a folder, where they are there and matplotlib is installed; a suite that saves its
results draws them, too.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.batches import CLASSES, MEMORY, PAPER, Batch
from benchmarks.exchange import CONTENDERS
from benchmarks.providers import PROVIDERS

Row = dict[str, Any]
Results = tuple[Row, list[Row]]
"""The environment and the rows of a suite."""
_LABELS = {provider.name: provider.label for provider in PROVIDERS}
# Of Okabe and Ito's palette, which all common forms of colour vision tell apart.
_COLOURS = {"fastassoc": "#0072B2", "eager": "#D55E00", "compiled": "#009E73", "chunked": "#CC79A7"}
_RANKS_COLOURS = "#0072B2", "#D55E00", "#CC79A7"
"""Of the contenders of the suite over ranks."""
_KEPT_MIB = 256
"""Largest N x M matrix that is kept for the backward pass."""

_SIZES = (
    Batch(100, 100),
    Batch(100, 1000),
    Batch(1000, 1000),
    Batch(2048, 16384),
    Batch(4096, 16384, classes=100),
    Batch(512, 1_000_000),
    Batch(4096, 65536, classes=100),
)
_SHAPES = (
    *(Batch(2048, 16384, classes=classes) for classes in (10, 100, 2048)),
    Batch(2048, 16384, unbalanced=True),
    *(Batch(1024, 8192, d=d, classes=100) for d in (64, 128, 256, 512, 1024)),
)


def draw(folder: Path) -> list[Path]:
    """Every picture that the results in ``folder`` are enough for; returns their paths."""
    if importlib.util.find_spec("matplotlib") is None:
        print("matplotlib is not installed: no pictures.", file=sys.stderr)
        return []
    suites = {name: _read(folder / f"{name}.json") for name in ("paper", "large", "classes", "memory", "ranks")}
    drawn = []
    for name, picture in _PICTURES.items():
        figure = picture(suites)
        if figure is not None:
            figure.savefig(folder / name, dpi=130)
            drawn.append(folder / name)
    return drawn


def _read(path: Path) -> Results:
    if not path.exists():
        return {}, []
    record = json.loads(path.read_text())
    return record["environment"], record["rows"]


Suites = dict[str, Results]


def _speedup(suites: Suites) -> Any:
    (about, small), (other, large) = suites["paper"], suites["large"]
    if small and large and any(about[key] != other[key] for key in ("device", "threads", "torch", "dtype")):
        # Of different machines: these bars do not belong side by side.
        return None
    return speedup_figure(small + large, _SIZES, _environment(about or other))


def _speedup_small(suites: Suites) -> Any:
    about, rows = suites["paper"]
    return speedup_figure(rows, PAPER, _environment(about))


def _speedup_shapes(suites: Suites) -> Any:
    about, rows = suites["large"]
    return speedup_figure(rows, _SHAPES, _environment(about))


def _time_over_m(suites: Suites) -> Any:
    about, rows = suites["large"]
    mine = [row for row in rows if _hundred_classes(row) and row["batch"][0] == 1024]
    title = f"Time of a step with 1,024 labelled samples in 100 classes, 128 dimensions\n{_environment(about)}"
    return lines_figure(mine, lambda batch: batch.m, "median_ms", "unlabelled samples in the batch", title)


def _time_over_n(suites: Suites) -> Any:
    about, rows = suites["large"]
    mine = [row for row in rows if _hundred_classes(row) and row["batch"][1] == 8192]
    title = f"Time of a step with 8,192 unlabelled samples, 100 classes, 128 dimensions\n{_environment(about)}"
    return lines_figure(mine, lambda batch: batch.n, "median_ms", "labelled samples in the batch", title)


def _time_over_classes(suites: Suites) -> Any:
    about, rows = suites["classes"]
    mine = [row for row in rows if Batch(*row["batch"]) in CLASSES]
    title = f"Time of a step with 2,048 labelled and 8,192 unlabelled samples, 128 dimensions\n{_environment(about)}"
    return lines_figure(mine, lambda batch: batch.classes, "median_ms", "classes of equal size in the batch", title)


def _memory_over_m(suites: Suites) -> Any:
    about, rows = suites["memory"]
    mine = [row for row in rows if Batch(*row["batch"]) in MEMORY and row["batch"][0] == 1024]
    return memory_figure(mine, _environment(about))


def _ranks(suites: Suites) -> Any:
    about, rows = suites["ranks"]
    return ranks_figure(rows, _environment(about))


_PICTURES: dict[str, Callable[[Suites], Any]] = {
    "speedup.png": _speedup,
    "speedup_small.png": _speedup_small,
    "speedup_shapes.png": _speedup_shapes,
    "time_over_m.png": _time_over_m,
    "time_over_n.png": _time_over_n,
    "time_over_classes.png": _time_over_classes,
    "memory_over_m.png": _memory_over_m,
    "ranks.png": _ranks,
}


def _hundred_classes(row: Row) -> bool:
    batch = Batch(*row["batch"])
    return batch.d == 128 and batch.classes == 100


def _environment(about: Row) -> str:
    if not about:
        return ""
    threads = f"{about['threads']} thread{'s' if about['threads'] != 1 else ''}"
    torch = about["torch"].partition("+")[0]
    return f"{about['device']}, {threads}, PyTorch {torch}, {about['dtype']}"


def speedup_figure(rows: Iterable[Row], batches: Iterable[Batch], environment: str) -> Any:
    """How many times as long the contenders take, two bars for each batch; None where nothing was timed.

    A thin line across a bar is where it would end if a step took no longer than its useful operations
    (`benchmarks.batches.useful_operations`) do at the rate of a large matrix product. Where one of a batch's two lies
    far beyond the bars, arrows with numbers stand for both.
    """
    from matplotlib.figure import Figure

    timed = {(Batch(*row["batch"]), row["provider"]): row for row in rows if "median_ms" in row}
    shown = [batch for batch in batches if (batch, "fastassoc") in timed]
    bars: list[tuple[float, str, float, float]] = []  # y, contender, speed-up, and at the rate of products
    for place, batch in enumerate(shown):
        mine = timed[batch, "fastassoc"]
        for index, name in enumerate(("eager", "compiled")):
            if (batch, name) in timed:
                ratio = timed[batch, name]["median_ms"] / mine["median_ms"]
                if name == "eager":  # the median of the rounds' ratios, where both took turns
                    ratio = mine.get("times_eager", ratio)
                bars.append((place + 0.38 * (index - 0.5), name, ratio, ratio / mine["floor_over_time"]))
    if not bars:
        return None
    longest = max(times for _, _, times, _ in bars)
    far = {round(y) for y, _, _, floor in bars if floor > 1.6 * longest}
    figure = Figure(figsize=(7.6, 1.9 + 0.56 * len(shown)), layout="constrained")
    axes = figure.subplots()
    # Room for the arrows.
    end = (1.3 if far else 1.12) * longest
    for y, name, times, floor in bars:
        axes.barh(y, times, height=0.36, color=_COLOURS[name])
        # In a column beside the bars, where no line crosses them.
        axes.text(
            1.01, y, f"{times:.1f}x", transform=axes.get_yaxis_transform(), va="center", fontsize=10,
            color=_COLOURS[name], fontweight="bold",
        )  # fmt: skip
        if round(y) in far:
            axes.annotate(
                f"{floor:,.0f}x", (1.0, y), (-34, 0), xycoords=axes.get_yaxis_transform(), textcoords="offset points",
                va="center", ha="right", fontsize=8, arrowprops={"arrowstyle": "->", "linewidth": 1.2},
            )  # fmt: skip
        else:
            axes.plot([floor, floor], [y - 0.18, y + 0.18], color="black", linewidth=1.2)
            end = max(end, 1.03 * floor)
    axes.axvline(1.0, color="black", linewidth=0.8, linestyle=":")
    axes.set_xlim(0.0, end)
    axes.set_yticks(range(len(shown)), [_batch_label(batch) for batch in shown], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast (dotted line: 1, no gain)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    title = f"Speed-up of one step (forward and backward) with fastassoc\n{environment}"
    figure.suptitle(title, fontsize=11)
    _speedup_legend(figure, arrows=bool(far))
    return figure


def _speedup_legend(figure: Any, arrows: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Patch(color=_COLOURS["eager"], label="over eager PyTorch"),
        Patch(color=_COLOURS["compiled"], label="over torch.compile of the eager code"),
        Line2D(
            [],
            [],
            color="black",
            linestyle="none",
            marker="|",
            markersize=12,
            markeredgewidth=1.2,
            label="the arithmetic alone, at the rate of a large\nmatrix product"
            + (" (an arrow: beyond the axis)" if arrows else ""),
        ),
    ]
    figure.legend(handles=handles, fontsize=9, loc="outside lower center", ncols=2, frameon=False)


def _batch_label(batch: Batch) -> str:
    classes = f"{batch.classes:,} classes" + (" of unequal size" if batch.unbalanced else "")
    lines = [f"{batch.n:,} labelled x {batch.m:,} unlabelled", f"{classes}, {batch.d:,} dimensions"]
    if batch.scale != Batch(1, 1).scale:
        lines.append("large logits")
    if batch.new_labels:
        lines.append("labels in another order at each step")
    return "\n".join(lines)


def lines_figure(rows: Iterable[Row], x: Callable[[Batch], int], value: str, name: str, title: str) -> Any:
    """Milliseconds, a line for each contender, both axes logarithmic; None where fewer than two points are."""
    lines = _lines(rows, x, value)
    if max((len(points) for points in lines.values()), default=0) < 2:
        return None
    figure, axes = _logarithmic_figure(lines, name, "one step (forward and backward), ms", title)
    for provider, points in lines.items():
        width = 2.4 if provider == "fastassoc" else 1.5
        axes.plot(*zip(*points, strict=True), "o-", label=_LABELS[provider], color=_COLOURS[provider], linewidth=width)
    axes.legend(fontsize=9, frameon=False)
    return figure


def memory_figure(rows: Iterable[Row], environment: str) -> Any:
    """Peaks over M; the line breaks at the largest N x M matrix that fastassoc keeps. None without two points."""
    rows = list(rows)
    lines = _lines(rows, lambda batch: batch.m, "resident_mib")
    if max((len(points) for points in lines.values()), default=0) < 2:
        return None
    n, d = rows[0]["batch"][0], rows[0]["batch"][2]
    title = "Peak memory of a step, beyond inputs and gradients\n"
    title += f"{n:,} labelled samples in {rows[0]['batch'][3]} classes, {d} dimensions\n{environment}"
    figure, axes = _logarithmic_figure(lines, "unlabelled samples in the batch", "MiB", title)
    for provider, points in lines.items():
        mine = provider == "fastassoc"
        parts = [points]
        if mine:
            parts = [[p for p in points if (n * p[0] * 4 <= _KEPT_MIB * 2**20) is kept] for kept in (True, False)]
        style = {"color": _COLOURS[provider], "linewidth": 2.4 if mine else 1.5}
        for index, part in enumerate(part for part in parts if part):
            axes.plot(*zip(*part, strict=True), "o-", label=None if index else _LABELS[provider], **style)
        if mine:
            for m, peak in points:
                axes.annotate(
                    f"{peak:.0f}", (m, peak), (0, -14), textcoords="offset points", ha="center", fontsize=9,
                    color=_COLOURS[provider],
                )  # fmt: skip
    border = _KEPT_MIB * 2**20 / 4 / n
    axes.axvline(border * 1.12, color="black", linewidth=0.8, linestyle=":")
    lowest = min(y for points in lines.values() for _, y in points)
    axes.set_ylim(bottom=lowest / 2.2)
    for text, side, shift in (
        (f"one N x M matrix is at most {_KEPT_MIB} MiB:\nfastassoc keeps it for the backward pass", "right", -6),
        ("the matrix is larger:\nfastassoc computes\nit again, in parts", "left", 6),
    ):
        axes.annotate(
            text, (border * 1.12, 0.02), (shift, 0), xycoords=("data", "axes fraction"), textcoords="offset points",
            ha=side, va="bottom", fontsize=8,
        )  # fmt: skip
    axes.legend(fontsize=9, frameon=False)
    return figure


def ranks_figure(rows: Iterable[Row], environment: str) -> Any:
    """What a rank sends, and its peak memory, over the number of ranks; None without two numbers of them."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    rows = [row for row in rows if row["status"] == "ok"]
    numbers = sorted({row["ranks"] for row in rows})
    sizes = sorted({row["batch"][1] for row in rows}, reverse=True)
    if len(numbers) < 2:
        return None
    figure = Figure(figsize=(9.6, 5.0), layout="constrained")
    colours = dict(zip((x.name for x in CONTENDERS), _RANKS_COLOURS, strict=True))
    styles = dict(zip(sizes, ("-", "--", ":"), strict=False))
    panels = zip(
        figure.subplots(1, 2),
        (_sent_mib, lambda row: row["resident_mib"]),
        (numbers[1:] if numbers[0] == 1 else numbers, numbers),
        ("Sent by a rank in a step", "Peak memory of a rank,\nbeyond its own inputs and gradients"),
        ("ranks", "ranks (1: one process without a group)"),
        strict=True,
    )
    for axes, value, shown, title, x_name in panels:
        _make_logarithmic(axes, shown, x_name, "MiB", title)
        lines = _ranks_lines(rows, value)
        for (name, m), points in lines.items():
            number, last = points[-1]
            same = sum(points == x for (other, _), x in lines.items() if other == name) > 1
            axes.plot(*zip(*points, strict=True), "o", linestyle=styles[m], color=colours[name], linewidth=1.8)
            axes.annotate(
                f"{last:.3g}" + "\n(both sizes)" * same, (number, last), (7, 0), textcoords="offset points",
                fontsize=9, color=colours[name],
                va={"gathered": "top", "gathered_with_gradients": "bottom"}.get(name, "center"),
            )  # fmt: skip
        axes.set_xlim(shown[0] / 1.15, shown[-1] * 1.38)
    handles = [Line2D([], [], color=colours[x.name], linewidth=1.8, label=x.label) for x in CONTENDERS]
    handles += [
        Line2D([], [], color="black", linestyle=styles[m], label=f"{m:,} unlabelled samples in all") for m in sizes
    ]
    figure.legend(handles=handles, fontsize=9, loc="outside lower center", ncols=2, frameon=False)
    n, _, d, classes = rows[0]["batch"][:4]
    title = (
        f"The loss over the ranks of a gloo group, {n:,} labelled samples in {classes} classes in all, {d} dimensions"
    )
    figure.suptitle(f"{title}\n{environment}, in each rank", fontsize=11)
    return figure


def _sent_mib(row: Row) -> float:
    return float(row["forward_bytes"] + row["backward_bytes"]) / 2**20


def _ranks_lines(rows: list[Row], value: Callable[[Row], float]) -> dict[tuple[str, int], list[tuple[int, float]]]:
    """Points by contender and M; one process is where all of them begin."""
    lines: dict[tuple[str, int], list[tuple[int, float]]] = {}
    alone = {row["batch"][1]: value(row) for row in rows if row["ranks"] == 1}
    for row in rows:
        m = row["batch"][1]
        if row["ranks"] > 1:
            start = [(1, alone[m])] if alone.get(m, 0.0) > 0.0 else []
            lines.setdefault((row["provider"], m), start).append((row["ranks"], value(row)))
    return lines


def _lines(rows: Iterable[Row], x: Callable[[Batch], int], value: str) -> dict[str, list[tuple[int, float]]]:
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row.get(value) and row[value] > 0 and row["provider"] in _COLOURS:
            lines.setdefault(row["provider"], []).append((x(Batch(*row["batch"])), row[value]))
    return {name: sorted(points) for name, points in lines.items()}


def _logarithmic_figure(
    lines: dict[str, list[tuple[int, float]]], x_name: str, y_name: str, title: str
) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    measured = sorted({place for points in lines.values() for place, _ in points})
    _make_logarithmic(axes, measured, x_name, y_name, title)
    return figure, axes


def _make_logarithmic(axes: Any, measured: list[int], x_name: str, y_name: str, title: str) -> None:
    """Both axes, with the measured places marked."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set(xscale="log", yscale="log", xlabel=x_name, ylabel=y_name)
    axes.set_xticks(measured, [f"{place:,}" for place in measured])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.set_title(title, fontsize=11)


def main(arguments: list[str] | None = None) -> int:
    """Draws, and prints the names of what was drawn."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures", description="Draw saved results again.")
    parser.add_argument("folder", type=Path, help="with the JSON files of `python -m benchmarks --out`")
    drawn = draw(parser.parse_args(arguments).folder)
    for path in drawn:
        print(path)
    return 0 if drawn else 1


if __name__ == "__main__":
    sys.exit(main())
