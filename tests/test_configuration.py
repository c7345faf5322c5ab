"""What a bug report carries. Reasons against machine code are tested with the machine code."""

from __future__ import annotations

import importlib.util
import os
import platform
import types
from importlib import metadata

import pytest
import torch

import fastassoc
from fastassoc import configuration
from fastassoc.backends.cpu.native import machine


def lines() -> dict[str, str]:
    pairs = (line.split(":", 1) for line in configuration.config_text().splitlines())
    return {name: what.strip() for name, what in pairs}


def test_it_prints_the_text_and_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    fastassoc.show_config()
    printed, errors = capfd.readouterr()
    assert printed == configuration.config_text() + "\n"
    assert errors == ""


def test_versions_and_machine() -> None:
    found = lines()
    assert list(found) == [
        "fastassoc", "Python", "PyTorch", "Triton", "processor", "machine code",
        *(name for name in found if name.startswith("GPU")), "threads",
    ]  # fmt: skip
    assert found["fastassoc"] == fastassoc.__version__
    assert found["Python"].startswith(platform.python_version())
    assert found["PyTorch"] == torch.__version__
    assert found["processor"]
    assert found["threads"].startswith(f"{torch.get_num_threads()} of PyTorch, ")


@pytest.mark.parametrize("told", [True, False])
def test_processors_are_those_that_may_be_used(told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    if told:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    else:
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert lines()["threads"].endswith(f"of PyTorch, {2 if told else 64} processors")


def test_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    knobs = pytest.importorskip("triton.knobs")
    for value in ("", "0", "false", "off", "2", "1", "True", "on", "y", "yes"):
        monkeypatch.setenv("TRITON_INTERPRET", value)
        interpreted = ", kernels interpreted because TRITON_INTERPRET is set" if knobs.runtime.interpret else ""
        assert lines()["Triton"] == metadata.version("triton") + interpreted
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert lines()["Triton"] == "not installed"


@pytest.mark.parametrize(("lanes", "name"), [(16, "AVX-512"), (8, "AVX2")])
def test_machine_code_that_is_used(lanes: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "machine", lambda: types.SimpleNamespace(lanes=lanes))
    assert lines()["machine code"] == f"used for float32 on the CPU, compiled for {name}"


def test_machine_code_without_memory_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def short() -> machine.Machine:
        raise MemoryError

    monkeypatch.setattr(machine, "_found", None)
    monkeypatch.setattr(machine, "_compile_for_processor", short)
    assert lines()["machine code"].endswith("are: there is not enough memory now")


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for cuda, hip, build in ((None, None, "CPUs"), ("13.0", None, "CUDA 13.0"), (None, "6.4", "ROCm 6.4")):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.version, "hip", hip)
        assert lines()["GPU"] == f"none with CUDA or ROCm (PyTorch for {build})"


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose_backend(name: str, device: torch.device) -> None:
        assert name == "triton"
        if device.index == 1:
            raise RuntimeError("it needs a newer card")

    def get_device_name(index: int) -> str:
        if index == 2:
            raise RuntimeError("CUDA error: out of memory")
        return ("New card", "Old card")[index]

    monkeypatch.setattr(configuration, "choose_backend", choose_backend)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", get_device_name)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.version, "hip", None)
    found = lines()
    assert found["GPU 0"] == "New card (PyTorch for CUDA 13.0), Triton kernels"
    assert found["GPU 1"] == "Old card (PyTorch for CUDA 13.0), cannot be used: it needs a newer card"
    assert found["GPU 2"] == "cannot be used (PyTorch for CUDA 13.0): CUDA error: out of memory"
