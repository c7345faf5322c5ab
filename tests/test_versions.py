"""What is said of versions in several places is the same in all of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fastassoc
from fastassoc.kernels.cpu.machine_code import NEWEST

ROOT = Path(__file__).parent.parent


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_is_the_one_that_is_cited_and_described() -> None:
    assert re.findall(r"^version: (.*)$", read("CITATION.cff"), re.MULTILINE) == [fastassoc.__version__]
    assert re.findall(r"^## (\S+)", read("CHANGELOG.md"), re.MULTILINE)[0] == fastassoc.__version__


def test_the_versions_of_python_are_those_of_the_metadata() -> None:
    classifiers = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', read("pyproject.toml"))
    assert f'requires-python = ">={classifiers[0]}"' in read("pyproject.toml")
    assert f"Python {classifiers[0]} to {classifiers[-1]}" in read("constraints.txt")


def test_machine_code_is_installed_with_a_triton_that_it_takes() -> None:
    assert f'cpu = ["triton>=3.6,<{NEWEST[0]}.{NEWEST[1] + 1};' in read("pyproject.toml")


def test_constraints_name_each_package_once_for_each_python() -> None:
    requirements = pytest.importorskip("packaging.requirements")
    lines = [line for line in read("constraints.txt").splitlines() if line and not line.startswith("#")]
    parsed = [requirements.Requirement(line) for line in lines]
    for python in ("3.10", "3.11", "3.12", "3.13"):
        used = [x.name for x in parsed if x.marker is None or x.marker.evaluate({"python_version": python})]
        assert len(used) == len(set(used))
        assert {"torch", "triton", "numpy", "pytest"} <= set(used)
