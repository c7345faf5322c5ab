"""Rules between rooms: data flows one way, from the public function to the kernels."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KERNELS = (ROOT / "fastassoc" / "kernels").resolve()
"""In a source distribution a folder, in the repository a link to one."""

# Room: what of the project it may import beside itself, "x.*" being all that is in x. A module belongs to the room with
# the longest name that is its own or that of a package around it; a front is that module alone.
FRONTS = ("fastassoc", "fastassoc.backends", "fastassoc.backends.cpu", "fastassoc.kernels")
RULES: dict[str, tuple[str, ...]] = {
    "fastassoc": (
        "fastassoc.api", "fastassoc.nn", "fastassoc.data", "fastassoc.ramps", "fastassoc.configuration",
        "fastassoc.version", "fastassoc.reference",
    ),
    "fastassoc.data": ("fastassoc.validation",),
    "fastassoc.ramps": (),
    # It says of every backend whether it can run.
    "fastassoc.configuration": ("fastassoc.backends", "fastassoc.backends.cpu.native.machine", "fastassoc.version"),
    "fastassoc.version": (),
    "fastassoc.nn": ("fastassoc.api", "fastassoc.validation"),
    "fastassoc.api": ("fastassoc.terms", "fastassoc.validation", "fastassoc.weights"),
    "fastassoc.weights": (),
    "fastassoc.terms": (
        "fastassoc.autograd", "fastassoc.operators", "fastassoc.computation", "fastassoc.distributed",
        "fastassoc.validation", "fastassoc.backends", "fastassoc.weights",
    ),
    "fastassoc.distributed": (),
    # The specification only when a second derivative is asked for.
    "fastassoc.autograd": (
        "fastassoc.operators", "fastassoc.computation", "fastassoc.validation", "fastassoc.reference",
    ),
    "fastassoc.operators": ("fastassoc.computation", "fastassoc.validation", "fastassoc.backends"),
    "fastassoc.computation": ("fastassoc.backends.protocol", "fastassoc.distributed"),
    "fastassoc.validation": (),
    "fastassoc.reference": (),
    "fastassoc.backends": ("fastassoc.backends.protocol", "fastassoc.backends.cpu", "fastassoc.backends.triton"),
    "fastassoc.backends.protocol": (),
    "fastassoc.backends.cpu": (
        "fastassoc.validation", "fastassoc.weights", "fastassoc.backends.protocol", "fastassoc.backends.cpu.*",
    ),
    "fastassoc.backends.cpu.memory": (),
    # Labels in the form of either way through.
    "fastassoc.backends.cpu.labels": (
        "fastassoc.backends.cpu.native.machine", "fastassoc.backends.cpu.operations.class_blocks",
        "fastassoc.kernels.cpu.layout",
    ),
    "fastassoc.backends.cpu.native": (
        "fastassoc.backends.protocol", "fastassoc.backends.cpu.labels", "fastassoc.backends.cpu.memory",
        "fastassoc.kernels.cpu", "fastassoc.kernels.cpu.*",
    ),
    "fastassoc.backends.cpu.operations": ("fastassoc.backends.protocol", "fastassoc.backends.cpu.memory"),
    "fastassoc.backends.triton": ("fastassoc.validation", "fastassoc.backends.protocol", "fastassoc.kernels.triton.*"),
    "fastassoc.kernels": (),
    "fastassoc.kernels.cpu": (),
    "fastassoc.kernels.triton": (),
    # Measurements and experiments see what users see, but for those that are about the kernels themselves.
    "benchmarks": ("fastassoc", "fastassoc.reference", "fastassoc.configuration"),
    **dict.fromkeys(
        (
            "benchmarks.compilation", "benchmarks.compile_report", "benchmarks.tune", "benchmarks.gpu.launches",
            "benchmarks.gpu.plan", "benchmarks.fuzz.ways", "benchmarks.host",
        ),
        ("fastassoc", "fastassoc.*", "benchmarks.*"),
    ),
}  # fmt: skip


def module_files() -> dict[str, Path]:
    files = {}
    folders = (ROOT / "fastassoc", "fastassoc"), (KERNELS, "fastassoc.kernels"), (ROOT / "benchmarks", "benchmarks")
    for folder, package in folders:
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            files[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return files


def imports(path: Path, modules: set[str]) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            # `from package import submodule` counts as the submodule, `from module import name` as the module.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in modules else str(node.module) for name in names}
    return found


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def room_of(module: str) -> str:
    rooms = [room for room in RULES if (module == room if room in FRONTS else is_in(module, room))]
    assert rooms, f"{module} is in no room: say in RULES what it may import"
    return max(rooms, key=len)


def broken_rules(module: str, imported: set[str]) -> set[str]:
    """What the module imports and its room may not."""
    room = room_of(module)
    broken = set()
    for name in imported:
        package = name.partition(".")[0]
        if package in ("fastassoc", "benchmarks", "tests"):
            own = room not in FRONTS and is_in(name, room)
            rules = RULES[room]
            if not own and not any(is_in(name, x[:-2]) if x.endswith(".*") else name == x for x in rules):
                broken.add(name)
        elif package == "triton" and is_in(module, "fastassoc"):
            if not (is_in(module, "fastassoc.backends.triton") or is_in(module, "fastassoc.kernels")):
                broken.add(name)
        elif package in ("torch", "numpy") and is_in(module, "fastassoc.kernels"):
            broken.add(name)
    return broken


def test_imports_keep_the_rules() -> None:
    files = module_files()
    assert len(files) > 100
    # No rule outlives its room.
    assert {room_of(name) for name in files} == set(RULES)
    for name, path in files.items():
        broken = broken_rules(name, imports(path, set(files)))
        assert not broken, f"{name} imports {sorted(broken)}"


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("fastassoc.reference", "fastassoc.validation"),
        ("fastassoc.nn", "fastassoc"),
        ("fastassoc.computation", "fastassoc.backends.cpu"),
        ("fastassoc.backends.protocol", "fastassoc.validation"),
        ("fastassoc.backends.cpu.memory", "fastassoc.api"),
        ("fastassoc.api", "fastassoc.backends.cpu.native.walk"),
        ("fastassoc.api", "triton"),
        ("fastassoc.operators", "fastassoc.backends.triton.forward"),
        ("fastassoc.backends", "fastassoc.backends.cpu.memory"),
        ("fastassoc.backends.cpu.memory", "triton"),
        ("fastassoc.backends.cpu.memory", "fastassoc.backends.cpu.operations.whole"),
        ("fastassoc.backends.cpu.labels", "fastassoc.backends.cpu"),
        ("fastassoc.backends.cpu.operations.whole", "fastassoc.backends.cpu.native.walk"),
        ("fastassoc.backends.cpu.native.walk", "fastassoc.backends.cpu.operations.tiles"),
        ("fastassoc.backends.cpu.labels", "fastassoc.backends.triton.labels"),
        ("fastassoc.backends.triton.forward", "fastassoc.kernels.cpu.ir"),
        ("fastassoc.kernels.cpu.ir", "torch"),
        ("fastassoc.kernels.triton.rows", "torch"),
        ("fastassoc.kernels.triton.rows", "fastassoc.kernels.cpu.ir"),
        ("fastassoc.validation", "benchmarks"),
        ("benchmarks.paper.training", "fastassoc.backends.cpu"),
        ("benchmarks.paper.training", "tests.cases"),
        ("benchmarks.fuzz.ways", "tests.cases"),
    ],
)
def test_an_import_against_the_flow_is_found(module: str, imported: str) -> None:
    assert broken_rules(module, {imported, "math"}) == {imported}


@pytest.mark.parametrize("module", ["fastassoc.backends.rocm", "fastassoc.kernels.metal.rows", "fastassoc.helpers"])
def test_a_new_room_needs_a_rule(module: str) -> None:
    with pytest.raises(AssertionError, match="in no room"):
        broken_rules(module, set())


def test_the_product_never_loads_the_specification_or_triton() -> None:
    script = "import sys, fastassoc; print(*(m for m in ('fastassoc.reference', 'triton') if m in sys.modules))"
    output = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == ""


@pytest.mark.skipif(KERNELS.parent != ROOT, reason="a source distribution has the kernels by their own name alone")
def test_the_kernels_refuse_another_name() -> None:
    output = subprocess.run([sys.executable, "-c", "import kernels"], cwd=ROOT, capture_output=True, text=True)
    assert output.returncode == 1
    assert "fastassoc.kernels" in output.stderr.splitlines()[-1]
