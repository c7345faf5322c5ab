"""The tests of the kernels, natively on a GPU, in a process of their own."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.plan import Context

ROOT = Path(__file__).parents[2]
SHARE = 0.4
"""Of the time left, at most."""
PROCESSES = 8
"""Where pytest-xdist is installed: most of the time goes into compiling kernels."""

# "tests/file.py::name PASSED [ 1%]", and with several processes "[gw0] [ 1%] PASSED tests/file.py::name".
_OUTCOME = re.compile(
    r"^(?:\[gw\d+\] \[ *\d+%\] (?P<first>[A-Z]+) (?P<name>tests/.*\S)"
    r"|(?P<test>tests/\S+::.*?) (?P<last>[A-Z]+)(?: \(.*\))? +\[)",
    re.MULTILINE,
)


def kernel_tests(context: Context, log: Path) -> Iterator[dict[str, Any]]:
    """Outcomes by number, with the names of those that failed; the whole output goes to ``log``."""
    if importlib.util.find_spec("pytest") is None:
        yield {"verdict": "pytest is not installed"}
        return
    command = [sys.executable, "-u", "-m", "pytest", "-v", "--tb=short", "-rN"]
    # The package `benchmarks` makes a checkout that is not installed importable.
    command += ["-p", "no:cacheprovider", "-p", "benchmarks", "-W", "ignore::RuntimeWarning", *context.plan.tests]
    if context.cuda and importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(PROCESSES)]
    # The tests poison fresh memory, for which torch wants deterministic algorithms, and cuBLAS this to be one.
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    start, limit = time.monotonic(), SHARE * context.clock.left()
    status: int | None
    with log.open("w") as output:
        try:
            status = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, timeout=limit, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            status = None
    yield summary(log.read_text(), status) | {"seconds": time.monotonic() - start}


def summary(output: str, status: int | None) -> dict[str, Any]:
    """Outcomes in the output of pytest; ``status`` is its exit status, None where it ran out of time."""
    outcomes = {x["name"] or x["test"]: x["first"] or x["last"] for x in _OUTCOME.finditer(output)}
    counts = Counter(outcomes.values())
    failures = sorted(name for name, outcome in outcomes.items() if outcome in ("FAILED", "ERROR"))
    row: dict[str, Any] = {name.lower(): counts[name] for name in ("PASSED", "FAILED", "ERROR", "SKIPPED")}
    if status is None:
        verdict = "wrong" if failures else "not finished: out of time"
    else:
        verdict = "ok" if status == 0 and counts["PASSED"] else "wrong"
    return row | {"exit_status": status, "failures": failures, "verdict": verdict}
