"""The tests in tests/kernels/triton where there is no GPU: in the interpreter, chosen before Triton is imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/kernels/triton run natively")
def test_kernels_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    # Arithmetic on the NaN of poisoned memory is not worth a warning.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    output = subprocess.run(
        [*command, "tests/kernels/triton"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert output.returncode == 0, output.stdout[-20000:] + output.stderr[-2000:]
    passed = re.search(r"(\d+) passed", output.stdout)
    assert passed is not None
    assert int(passed[1]) >= 80, output.stdout[-2000:]
