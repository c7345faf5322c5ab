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
_MODES = {"bf16": "bf16", "fp32-high": "float32, products in tf32"}


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


def _panels(rows: Rows, width: float) -> tuple[Any, list[tuple[Any, Rows]]]:
    """A figure with a panel for each mode that was measured."""
    from matplotlib.figure import Figure

    modes = [mode for mode in _MODES if any(row["mode"] == mode for row in rows)]
    figure = Figure(figsize=(width * len(modes), 4.6), layout="constrained")
    axes = figure.subplots(1, len(modes), sharey=True, squeeze=False)[0]
    panels = []
    for mode, axis in zip(modes, axes, strict=True):
        axis.set_title(_MODES[mode], fontsize=11)
        axis.set_yscale("log")
        axis.grid(axis="y", which="major", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        panels.append((axis, [row for row in rows if row["mode"] == mode]))
    return figure, panels


def _time_figure(rows: Rows, device: str) -> Any:
    """Bars side by side for each size, with how many times slower than fastassoc written above."""
    sizes = list(dict.fromkeys((row["n"], row["m"], row["classes"]) for row in rows))
    figure, panels = _panels(rows, width=max(5.0, 1.15 * len(sizes)))
    for axis, mine in panels:
        base = {(r["n"], r["m"], r["classes"]): r["median_ms"] for r in mine if r["contender"] == "fastassoc"}
        for offset, name in enumerate(CONTENDERS):
            for row in (row for row in mine if row["contender"] == name):
                key = (row["n"], row["m"], row["classes"])
                x = sizes.index(key) + 0.27 * (offset - 1)
                spread = [[row["median_ms"] - row["p20_ms"]], [row["p80_ms"] - row["median_ms"]]]
                axis.bar(x, row["median_ms"], 0.26, color=_COLOURS[name], yerr=spread, ecolor="0.3")
                if name != "fastassoc" and key in base:
                    text = f"{row['median_ms'] / base[key]:.2g}x"
                    axis.annotate(text, (x, row["p80_ms"]), (0, 3), textcoords="offset points", ha="center", fontsize=8)
        axis.set_xticks(
            range(len(sizes)), [f"{n:,} x\n{m:,}\n{classes:,} classes" for n, m, classes in sizes], fontsize=8
        )
        axis.set_xlim(-0.6, len(sizes) - 0.4)
    panels[0][0].set_ylabel("forward and backward, ms (median, 20th to 80th percentile)")
    _legend(figure, {row["contender"] for row in rows})
    figure.suptitle(f"Time of one step by size, labelled x unlabelled rows: lower is better ({device})", fontsize=12)
    return figure


def _memory_figure(rows: Rows, device: str) -> Any:
    """Lines over M."""
    figure, panels = _panels(rows, width=5.2)
    for axis, mine in panels:
        for name in CONTENDERS:
            points = sorted((row["m"], row["peak_mib"]) for row in mine if row["contender"] == name)
            if points:
                axis.plot(*zip(*points, strict=True), "o-", color=_COLOURS[name])
            for m, peak in points:
                axis.annotate(f"{peak:,.3g}", (m, peak), (0, 6), textcoords="offset points", ha="center", fontsize=8)
        ticks = sorted({row["m"] for row in rows})
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [f"{m:,}" for m in ticks], fontsize=8)
        axis.minorticks_off()
        axis.margins(y=0.12)
        axis.set_xlabel("unlabelled rows M")
    panels[0][0].set_ylabel("peak beyond inputs and gradients, MiB")
    _legend(figure, {row["contender"] for row in rows})
    title = f"Memory of one step, {rows[0]['n']:,} labelled rows: lower is better ({device})"
    figure.suptitle(title, fontsize=12)
    return figure


def _legend(figure: Any, names: set[str]) -> None:
    from matplotlib.patches import Patch

    shown = [name for name in CONTENDERS if name in names]
    handles = [Patch(color=_COLOURS[name], label=_LABELS[name]) for name in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(shown), frameon=False)
