"""Peak memory of a batch whose N x M matrix alone would be 512 MiB."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak resident size from /proc")
def test_large_batch_stays_under_64_mib() -> None:
    command = [sys.executable, "-m", "benchmarks.memory", "--n", "2048", "--m", "65536", "--provider", "fastassoc"]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
    assert float(output.stdout.split()[-1]) < 64.0, output.stdout
