"""Measurements and experiments around `fastassoc`; run from the root of the repository, installed or not."""

from importlib.util import find_spec
from pathlib import Path

import fastassoc

if find_spec("fastassoc.kernels") is None:
    # An installation puts the folder kernels/ into the package; a bare checkout has it beside the package.
    fastassoc.__path__.append(str(Path(__file__).parents[1]))
