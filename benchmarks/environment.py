"""What measurements depend on: the machine, the versions, the commit, the date."""

from __future__ import annotations

import platform
import subprocess
from datetime import date
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import fastassoc
from fastassoc.configuration import processor


def environment(device: torch.device) -> dict[str, Any]:
    """For the head of a result file."""
    return {
        "date": date.today().isoformat(),
        "commit": commit(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton") if find_spec("triton") else "none",
        "fastassoc": fastassoc.__version__,
    }


@cache  # the code in memory is that of the first call, whatever is committed meanwhile
def commit() -> str:
    """The commit of this code, with "-dirty" where files that git tracks were changed; "unknown" outside git."""
    # No tag matches: with one, the commit would be the tag and a distance.
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        described = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:  # git is not installed
        return "unknown"
    return described.stdout.strip() or "unknown"


def memory_mib() -> int:
    """Memory that the system says is available, in MiB."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) // 1024
    raise RuntimeError("/proc/meminfo has no MemAvailable")
