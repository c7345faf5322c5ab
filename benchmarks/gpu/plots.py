"""Time by size and memory by M, as pictures, where matplotlib is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.report import CONTENDERS

Rows = list[dict[str, Any]]
_COLOURS = {"fastassoc": "#1b6ca8", "eager": "#c8553d", "compiled": "#7a9e7e"}
_LABELS = {"fastassoc": "fastassoc", "eager": "eager PyTorch", "compiled": "torch.compile of eager"}
_MODES = {"bf16": "bf16", "fp32-high": 'float32 at "high"'}


def draw(record: dict[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each picture: saved, or why not."""
    pictures = {"time.png": ("speed", "median_ms", _time_figure), "memory.png": ("memory", "peak_mib", _memory_figure)}
    for name, (stage, field, figure) in pictures.items():
        rows = [row for row in record["stages"].get(stage, {"rows": []})["rows"] if row.get(field) is not None]
        if importlib.util.find_spec("matplotlib") is None:
            yield {"file": name, "verdict": "not drawn: matplotlib is not installed"}
        elif not rows:
            yield {"file": name, "verdict": "not drawn: nothing was measured"}
        else:
            drawn = figure(rows, record["environment"]["device"])
            drawn.savefig(folder / name, dpi=130, bbox_inches="tight")
            yield {"file": name, "verdict": "drawn"}


def _panels(rows: Rows, stacked: bool) -> tuple[Any, list[tuple[Any, Rows]]]:
    """A figure with a panel for each mode that was measured, one above the other or side by side."""
    from matplotlib.figure import Figure

    modes = [mode for mode in _MODES if any(row["mode"] == mode for row in rows)]
    size, shape = ((9.5, 3.6 * len(modes)), (len(modes), 1)) if stacked else ((5.2 * len(modes), 4.6), (1, len(modes)))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(*shape, sharex=stacked, sharey=True, squeeze=False).ravel()
    panels = []
    for mode, axis in zip(modes, axes, strict=True):
        axis.set_title(_MODES[mode], fontsize=11)
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axis.grid(axis="y", which="major", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        panels.append((axis, [row for row in rows if row["mode"] == mode]))
    return figure, panels


def _time_figure(rows: Rows, device: str) -> Any:
    """Points side by side for each size, and beside them how many times as long as fastassoc."""
    sizes = list(dict.fromkeys((row["n"], row["m"], row["classes"]) for row in rows))
    figure, panels = _panels(rows, stacked=True)
    for axis, mine in panels:
        base = {(r["n"], r["m"], r["classes"]): r["median_ms"] for r in mine if r["contender"] == "fastassoc"}
        for row in mine:
            key, name, middle = (row["n"], row["m"], row["classes"]), row["contender"], row["median_ms"]
            x = sizes.index(key) + 0.22 * (CONTENDERS.index(name) - 1)
            spread = [[middle - row["p20_ms"]], [row["p80_ms"] - middle]]
            axis.errorbar(x, middle, yerr=spread, fmt="o", color=_COLOURS[name], markersize=8, capsize=3)
            if name != "fastassoc" and key in base:
                text = f"{middle / base[key]:.2g}x"
                axis.annotate(text, (x, row["p80_ms"]), (0, 6), textcoords="offset points", ha="center", fontsize=8)
        labels = [f"{n:,} x\n{m:,}\n{classes:,} classes" for n, m, classes in sizes]
        axis.set_xticks(range(len(sizes)), labels, fontsize=8)
        axis.set_xlim(-0.6, len(sizes) - 0.4)
        axis.margins(y=0.12)
        axis.set_ylabel("forward and backward, ms")
    _legend(figure, {row["contender"] for row in rows})
    title = f"Time of one step, labelled x unlabelled rows, on {device}: lower is better\n"
    title += "median and 20th to 80th percentile; 22x: 22 times as long as fastassoc"
    figure.suptitle(title, fontsize=11)
    return figure


def _memory_figure(rows: Rows, device: str) -> Any:
    """Lines over M."""
    figure, panels = _panels(rows, stacked=False)
    for axis, mine in panels:
        for name in CONTENDERS:
            points = sorted((row["m"], row["peak_mib"]) for row in mine if row["contender"] == name)
            if points:
                axis.plot(*zip(*points, strict=True), "o-", color=_COLOURS[name])
            for m, peak in points:
                axis.annotate(
                    f"{peak:,.0f}" if peak >= 100 else f"{peak:.3g}",
                    (m, peak),
                    (0, 6),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                )
        ticks = sorted({row["m"] for row in rows})
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [f"{m:,}" for m in ticks], fontsize=8)
        axis.minorticks_off()
        axis.margins(y=0.12)
        axis.set_xlabel("unlabelled rows M")
    panels[0][0].set_ylabel("peak beyond inputs and gradients, MiB")
    _legend(figure, {row["contender"] for row in rows})
    title = f"Memory of one step with {rows[0]['n']:,} labelled rows on {device}: lower is better"
    figure.suptitle(title, fontsize=11)
    return figure


def _legend(figure: Any, names: set[str]) -> None:
    from matplotlib.patches import Patch

    shown = [name for name in CONTENDERS if name in names]
    handles = [Patch(color=_COLOURS[name], label=_LABELS[name]) for name in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(shown), frameon=False)
