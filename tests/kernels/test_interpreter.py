"""The tests in tests/kernels/triton where there is no GPU: in the interpreter, chosen before Triton is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
FILES = sorted(str(x.relative_to(ROOT)) for x in (ROOT / "tests/kernels/triton").glob("test_*.py"))


# A file at a time, which workers share.
@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/kernels/triton run natively")
@pytest.mark.parametrize("file", FILES)
def test_kernels_in_the_interpreter(file: str) -> None:
    pytest.importorskip("triton")
    # Arithmetic on the NaN of poisoned memory is not worth a warning.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    output = subprocess.run([*command, file], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert output.returncode == 0, output.stdout[-20000:] + output.stderr[-2000:]
    assert " passed" in output.stdout


def test_there_are_kernel_tests() -> None:
    assert FILES
