"""How the commands end: with which exit status, and what they say of each failure."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from benchmarks import INSTALL_DEMO
from benchmarks.paper.data import DataError
from benchmarks.paper.training import DivergenceError

EXIT_FAILED, EXIT_UNUSABLE, EXIT_INTERRUPTED = 1, 2, 130  # argparse uses 2 too; 130: what shells say after Ctrl-C


def run(module: str, work: Callable[[], None], out: Path, *, interrupted: str) -> int:
    """Do the ``work`` of ``python -m module``, which writes to the folder ``out``, and return the exit status.

    What failed is told on the standard error; ``interrupted`` is told after Ctrl-C.
    """
    try:
        work()
    except KeyboardInterrupt:
        message, status = interrupted, EXIT_INTERRUPTED
    except ModuleNotFoundError as error:
        message = f"the package {error.name} is missing; to install it: {INSTALL_DEMO}"
        status = EXIT_UNUSABLE
    except DataError as error:
        message, status = str(error), EXIT_UNUSABLE
    except OSError as error:
        message = f"--out {out}: cannot be written to ({error})" if _is_of(error, out) else str(error)
        status = EXIT_UNUSABLE
    except DivergenceError as error:
        message, status = str(error), EXIT_FAILED
    except BrokenProcessPool:
        message = "a process ended without a word, perhaps for lack of memory; try fewer --workers"
        status = EXIT_FAILED
    else:
        return 0
    print(f"python -m {module}: error: {message}", file=sys.stderr)
    return status


def _is_of(error: OSError, folder: Path) -> bool:
    """Whether ``error`` names ``folder``, something in it, or a folder above that could not be made."""
    if not isinstance(error.filename, (str, os.PathLike)):
        return False
    path, folder = Path(error.filename).resolve(), folder.resolve()
    return path.is_relative_to(folder) or folder.is_relative_to(path)
