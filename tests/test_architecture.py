"""The import graph is one-way, and the package imports from wherever it is installed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

# Module: what of the project it may import (DESIGN of the house). Data flows from the public function to the kernels.
ALLOWED = {
    "fastassoc": {"fastassoc.api", "fastassoc.nn", "fastassoc.version"},
    "fastassoc.version": set(),
    "fastassoc.api": {
        "fastassoc.validation",
        "fastassoc.autograd",
        "fastassoc.operators",
        "fastassoc.computation",
        "fastassoc.backends",
    },
    "fastassoc.nn": {"fastassoc.api", "fastassoc.validation"},
    "fastassoc.reference": set(),
    "fastassoc.validation": set(),
    "fastassoc.backends.cpu.operations.class_blocks": set(),
    # The specification only when a second derivative is asked for.
    "fastassoc.autograd": {
        "fastassoc.backends",
        "fastassoc.computation",
        "fastassoc.operators",
        "fastassoc.reference",
        "fastassoc.validation",
    },
    "fastassoc.operators": {"fastassoc.computation", "fastassoc.validation", "fastassoc.backends"},
    "fastassoc.computation": {"fastassoc.backends"},
    "fastassoc.backends": {
        "fastassoc.backends.cpu.operations.class_blocks",
        "fastassoc.backends.cpu",
        "fastassoc.backends.cpu.operations.vector_functions",
        "fastassoc.backends.triton",
    },
    "fastassoc.backends.cpu.operations.vector_functions": set(),
    "fastassoc.backends.cpu.operations.losses": {
        "fastassoc.backends",
        "fastassoc.backends.cpu.operations.class_blocks",
    },
    "fastassoc.backends.cpu": {
        "fastassoc.validation",
        "fastassoc.backends",
        "fastassoc.backends.cpu.operations.losses",
        "fastassoc.backends.cpu.operations.tiles",
        "fastassoc.backends.cpu.labels",
        "fastassoc.backends.cpu.native.machine",
        "fastassoc.backends.cpu.native.forward",
        "fastassoc.backends.cpu.operations.whole",
    },
    "fastassoc.backends.cpu.labels": {
        "fastassoc.backends.cpu.native.machine",
        "fastassoc.backends.cpu.operations.class_blocks",
    },
    "fastassoc.backends.cpu.native.machine": {"fastassoc.kernels.cpu"},
    "fastassoc.backends.cpu.native.forward": {
        "fastassoc.backends",
        "fastassoc.backends.cpu.native.machine",
        "fastassoc.backends.cpu.native.walk",
    },
    "fastassoc.backends.cpu.native.walk": {
        "fastassoc.backends",
        "fastassoc.backends.cpu.labels",
        "fastassoc.backends.cpu.native.machine",
        "fastassoc.backends.cpu.memory",
    },
    "fastassoc.backends.cpu.operations.whole": {
        "fastassoc.backends",
        "fastassoc.backends.cpu.operations.losses",
        "fastassoc.backends.cpu.memory",
        "fastassoc.backends.cpu.operations.products",
        "fastassoc.backends.cpu.operations.class_blocks",
    },
    "fastassoc.backends.cpu.operations.tiles": {
        "fastassoc.backends",
        "fastassoc.backends.cpu.operations.products",
        "fastassoc.backends.cpu.operations.tiling",
    },
    "fastassoc.backends.cpu.operations.products": {"fastassoc.backends.cpu.operations.class_blocks"},
    "fastassoc.backends.cpu.operations.tiling": {"fastassoc.backends", "fastassoc.backends.cpu.memory"},
    "fastassoc.backends.cpu.memory": set(),
    "fastassoc.backends.triton.launch": {"fastassoc.kernels.triton.class_sizes", "fastassoc.kernels.triton.configs"},
    "fastassoc.backends.triton.shipped": {
        "fastassoc.backends",
        "fastassoc.backends.triton",
        "fastassoc.backends.triton.launch",
    },
    "fastassoc.backends.triton": {
        "fastassoc.validation",
        "fastassoc.backends",
        "fastassoc.backends.triton.launch",
        "fastassoc.kernels.triton.class_sizes",
        "fastassoc.kernels.triton.column_gradients",
        "fastassoc.kernels.triton.configs",
        "fastassoc.kernels.triton.kappa",
        "fastassoc.kernels.triton.losses",
        "fastassoc.kernels.triton.normalisers",
        "fastassoc.kernels.triton.round_trips",
        "fastassoc.kernels.triton.row_gradients",
        "fastassoc.kernels.triton.rows",
        "fastassoc.kernels.triton.visits",
        "fastassoc.kernels.triton.walker",
    },
    "fastassoc.kernels": set(),
    "fastassoc.kernels.triton.class_sizes": set(),
    "fastassoc.kernels.triton.column_gradients": {
        "fastassoc.kernels.triton.gradients",
        "fastassoc.kernels.triton.primitives",
    },
    "fastassoc.kernels.triton.configs": set(),
    "fastassoc.kernels.cpu": {
        "fastassoc.kernels.cpu.backward",
        "fastassoc.kernels.cpu.forward",
        "fastassoc.kernels.cpu.ir",
        "fastassoc.kernels.cpu.layout",
        "fastassoc.kernels.cpu.machine_code",
        "fastassoc.kernels.cpu.passes",
        "fastassoc.kernels.cpu.products",
        "fastassoc.kernels.cpu.round_trips",
    },
    "fastassoc.kernels.cpu.backward": {
        "fastassoc.kernels.cpu.ir",
        "fastassoc.kernels.cpu.layout",
        "fastassoc.kernels.cpu.passes",
        "fastassoc.kernels.cpu.products",
        "fastassoc.kernels.cpu.round_trips",
    },
    "fastassoc.kernels.cpu.forward": {
        "fastassoc.kernels.cpu.ir",
        "fastassoc.kernels.cpu.passes",
        "fastassoc.kernels.cpu.products",
    },
    "fastassoc.kernels.cpu.ir": set(),
    "fastassoc.kernels.cpu.layout": {
        "fastassoc.kernels.cpu.ir",
        "fastassoc.kernels.cpu.passes",
        "fastassoc.kernels.cpu.products",
    },
    "fastassoc.kernels.cpu.machine_code": set(),
    "fastassoc.kernels.cpu.passes": {"fastassoc.kernels.cpu.ir", "fastassoc.kernels.cpu.products"},
    "fastassoc.kernels.cpu.products": {"fastassoc.kernels.cpu.ir"},
    "fastassoc.kernels.cpu.round_trips": {
        "fastassoc.kernels.cpu.ir",
        "fastassoc.kernels.cpu.layout",
        "fastassoc.kernels.cpu.passes",
        "fastassoc.kernels.cpu.products",
    },
    "fastassoc.kernels.triton.gradients": {"fastassoc.kernels.triton.primitives"},
    "fastassoc.kernels.triton.kappa": {"fastassoc.kernels.triton.gradients", "fastassoc.kernels.triton.primitives"},
    "fastassoc.kernels.triton.losses": set(),
    "fastassoc.kernels.triton.normalisers": {"fastassoc.kernels.triton.primitives"},
    "fastassoc.kernels.triton.primitives": set(),
    "fastassoc.kernels.triton.round_trips": {"fastassoc.kernels.triton.primitives"},
    "fastassoc.kernels.triton.row_gradients": {
        "fastassoc.kernels.triton.gradients",
        "fastassoc.kernels.triton.primitives",
    },
    "fastassoc.kernels.triton.rows": {"fastassoc.kernels.triton.class_sizes", "fastassoc.kernels.triton.primitives"},
    "fastassoc.kernels.triton.visits": {"fastassoc.kernels.triton.primitives"},
    "fastassoc.kernels.triton.walker": {"fastassoc.kernels.triton.primitives", "fastassoc.kernels.triton.round_trips"},
}


def module_files() -> dict[str, Path]:
    files = {}
    for folder, package in ((ROOT / "fastassoc", "fastassoc"), (ROOT / "kernels", "fastassoc.kernels")):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *(part for part in parts if part != "__init__")))
            files[name] = path
    return files


def project_imports(path: Path, modules: set[str]) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            # `from package import submodule` counts as the submodule, `from module import name` as the module.
            names = [name if name in modules else str(node.module) for name in submodules]
        else:
            continue
        found |= {name for name in names if name.partition(".")[0] in ("fastassoc", "benchmarks", "tests")}
    return found


def test_imports_are_the_table() -> None:
    files = module_files()
    assert set(files) == set(ALLOWED)
    for name, path in files.items():
        imported = project_imports(path, set(files))
        assert imported <= ALLOWED[name], f"{name} imports {sorted(imported - ALLOWED[name])}"


def test_the_product_never_loads_the_specification_or_triton() -> None:
    script = "import sys, fastassoc; print(*(m for m in ('fastassoc.reference', 'triton') if m in sys.modules))"
    output = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == ""


def test_the_kernels_refuse_another_name() -> None:
    output = subprocess.run([sys.executable, "-c", "import kernels"], cwd=ROOT, capture_output=True, text=True)
    assert output.returncode == 1
    assert "fastassoc.kernels" in output.stderr.splitlines()[-1]
