"""The record of a run as a Markdown page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Rows = list[dict[str, Any]]
CONTENDERS = ("fastassoc", "eager", "compiled")


def markdown(record: dict[str, Any]) -> str:
    """Every stage that has begun, in order."""
    title = (
        "Smoke run: the interpreter on a CPU, tiny sizes; its times mean nothing" if record["smoke"] else "On the GPU"
    )
    lines = [f"# {title}", "", *(f"- {name}: {value}" for name, value in record["environment"].items())]
    writers = {
        "kernel tests": _kernel_tests,
        "errors": _errors,
        "determinism": _determinism,
        "launches": _launches,
        "ranks": _ranks,
        "speed": _speed,
        "kernel times": _kernel_times,
        "memory": _memory,
        "fractions": _fractions,
        "plots": _plots,
    }
    for name, stage in record["stages"].items():
        lines += ["", f"## {name.capitalize()}", ""]
        if stage["rows"]:
            lines += writers[name](stage["rows"])
        if stage["failure"]:
            lines += ["", f"This stage broke off: `{stage['failure']}`"]
    problems = found_problems(record)
    lines += ["", "## Problems", "", *([f"- {x}" for x in problems] or ["None."])]
    return "\n".join(lines) + "\n"


def found_problems(record: dict[str, Any]) -> list[str]:
    """Everything that makes the run a failure."""
    problems = []
    for name, stage in record["stages"].items():
        if stage["failure"]:
            problems.append(f"{name}: {stage['failure']}")
        for row in stage["rows"]:
            verdict = str(row.get("verdict"))
            # What befalls a contender is no fault of the library.
            if verdict == "wrong" or (verdict.startswith(("failed", "out of memory")) and _ours(row)):
                told = {key: value for key, value in row.items() if key != "reference"}
                problems.append(f"{name}: " + ", ".join(f"{key} {_number(value)}" for key, value in told.items()))
    return problems


def _ours(row: dict[str, Any]) -> bool:
    return str(row.get("contender", "fastassoc")) == "fastassoc"


def _table(head: Sequence[str], body: list[list[Any]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return lines + ["| " + " | ".join(_number(cell) for cell in cells) + " |" for cells in body]


def _number(value: Any) -> str:
    """Three digits of a float; nothing for None."""
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else f"{value:.3g}"
    return "" if value is None else str(value)


def _size(row: dict[str, Any]) -> str:
    return f"{row['n']} x {row['m']}, {row['classes']}"


def _kernel_tests(rows: Rows) -> list[str]:
    (row,) = rows
    lines = [f"{row['verdict']}"]
    if "passed" in row:
        counts = ", ".join(f"{row[name]} {name}" for name in ("passed", "failed", "error", "skipped"))
        lines = [f"{row['verdict']}: {counts} in {row['seconds']:.0f} s", *(f"- {x}" for x in row["failures"])]
    return lines


def _errors(rows: Rows) -> list[str]:
    head = ("products in", "N x M, classes", "logits", "value", "error", "eager's error", "verdict", "eager")
    note = "Relative to float64 on the same inputs. Good: at most twice eager's, and a band for rounding.\n"
    cells = ("logits", "value", "error", "eager_error", "verdict", "eager_failure")
    return [note, *_table(head, [[row["mode"], _size(row), *(row[cell] for cell in cells)] for row in rows])]


def _determinism(rows: Rows) -> list[str]:
    body = [[row["mode"], _size(row), row["runs"], row["equal"], row["verdict"]] for row in rows]
    return _table(("products in", "N x M, classes", "runs", "equal to the bit", "verdict"), body)


def _launches(rows: Rows) -> list[str]:
    body = [[row["check"], row.get("value"), row.get("limit"), row["verdict"], row.get("failure")] for row in rows]
    return _table(("check", "found", "at most", "verdict", "failure"), body)


def _ranks(rows: Rows) -> list[str]:
    if "mode" not in rows[0]:
        return [str(rows[0]["verdict"])]
    head = ("products in", "N x M, classes", "processes", "value", "error", "eager's error", "same loss", "verdict")
    cells = ("ranks", "value", "error", "eager_error", "same_on_all", "verdict")
    note = "As errors above, the rows dealt out to processes; eager code has them all in one.\n"
    return [note, *_table(head, [[row["mode"], _size(row), *(row[cell] for cell in cells)] for row in rows])]


def _speed(rows: Rows) -> list[str]:
    """A line for each size and mode, contenders side by side."""
    groups: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((_size(row), row["mode"]), {})[row["contender"]] = row
    body = []
    for (size, mode), group in groups.items():
        mine = group.get("fastassoc", {}).get("median_ms")
        times = [_time(group.get(name)) for name in CONTENDERS]
        ratios = [_ratio(group.get(name), mine) for name in CONTENDERS[1:]]
        memory = [group.get(name, {}).get("peak_mib") for name in CONTENDERS]
        body.append([size, mode, *times, *ratios, *memory, group.get("fastassoc", {}).get("error")])
    head = ["N x M, classes", "products in", *(f"{name}, ms" for name in CONTENDERS), "times eager", "times compiled"]
    head += [*(f"{name}, MiB" for name in CONTENDERS), "error of the gradients"]
    note = "Forward and backward: median (20th to 80th percentile) of rounds in which the contenders run in turn, the "
    note += "GPU idle before each. Memory: peak beyond inputs and gradients. Error: against fp32-highest.\n"
    return [note, *_table(head, body)]


def _time(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if "median_ms" not in row:
        return str(row["verdict"])
    text = f"{row['median_ms']:.3g} ({row['p20_ms']:.3g} to {row['p80_ms']:.3g})"
    return text if row["verdict"] == "ok" else f"{row['verdict']}: {text}"


def _ratio(row: dict[str, Any] | None, mine: float | None) -> str:
    return f"{row['median_ms'] / mine:.1f}" if row is not None and mine and "median_ms" in row else ""


def _kernel_times(rows: Rows) -> list[str]:
    cells = ("mode", "kernel", "launches", "ms")
    body = [[_size(row), *(row[cell] for cell in cells), f"{row['share']:.0%}"] for row in rows]
    return _table(("N x M, classes", "products in", "kernel", "launches", "ms", "share"), body)


def _memory(rows: Rows) -> list[str]:
    cells = [[row["m"], row["mode"], row["contender"], row.get("peak_mib"), row["verdict"]] for row in rows]
    note = f"Peak beyond inputs and gradients of forward and backward, {rows[0]['n']} labelled rows.\n"
    return [note, *_table(("M", "products in", "contender", "MiB", "verdict"), cells)]


def _fractions(rows: Rows) -> list[str]:
    lines = [
        f"- {row['mode']}: `torch.mm` of {row['product']} cubed runs at {row['product_tflops']:.3g} TFLOP/s"
        for row in rows
        if "product" in row
    ]
    body = [
        [_size(row), row["mode"], row["useful_tflops"], f"{row['fraction_of_product']:.1%}"]
        for row in rows
        if "useful_tflops" in row
    ]
    note = "\nUseful operations of a pass, 6 N M D + 3 M sum of the classes' sizes squared, over its time:\n"
    return [*lines, note, *_table(("N x M, classes", "products in", "TFLOP/s", "of torch.mm"), body)]


def _plots(rows: Rows) -> list[str]:
    return [f"- {row['file']}: {row['verdict']}" for row in rows]
