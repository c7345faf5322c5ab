"""Peak memory of a batch whose N x M matrix alone would be 512 MiB."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak resident size from /proc")
def test_large_batch_stays_under_64_mib() -> None:
    task = {"kind": "memory", "batch": [2048, 65536], "provider": "fastassoc", "dtype": "float32", "device": "cpu"}
    command = [sys.executable, "-m", "benchmarks.worker", json.dumps(task | {"live": False, "limit_mib": None})]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
    answer = json.loads(output.stdout)
    assert answer["status"] == "ok", answer
    assert answer["resident_mib"] < 64.0
