"""`python -m benchmarks.paper` where an option, a file, a package or a training fails: its message and exit status."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("mlxtend")
pytest.importorskip("scipy")
pytest.importorskip("sklearn")
pytest.importorskip("tqdm")

from benchmarks.paper import training
from benchmarks.paper.__main__ import main
from tests.benchmarks.paper.test_command import QUICK, write_mnist

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table6"], "invalid choice: 'table6'"),
        (["table5", "--source", "stl10"], "--source: 'table5' takes svhn, usps, mnist, got 'stl10'"),
        (["table1", "--source", "mnist"], "--source: 'table1' has none"),
        (["figure4", "--target", "mnist"], "--target: 'figure4' has none"),
        (["table1", "--runs", "0"], "--runs: expected an integer of at least 1, got '0'"),
        (["table1", "--device", "tpu9"], "--device: expected cpu, cuda or cuda:N, got 'tpu9'"),
        (["all", "--data", "somewhere"], "'all' runs on the embedded data"),
    ],
)
def test_wrong_option_ends_with_a_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_source_and_target_are_of_published_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table5", *QUICK, "--source", "usps", "--out", str(tmp_path)]) == 2
    assert "--source and --target choose among published files" in capsys.readouterr().err
    options = ["--source", "mnist", "--data", str(tmp_path), "--out", str(tmp_path)]
    assert main(["table5", *QUICK, *options]) == 2
    assert "no adaptation from mnist to mnist; expected one of svhn to mnist, usps to" in capsys.readouterr().err


def test_svhn_needs_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table2", *QUICK, "--out", str(tmp_path)]) == 2
    assert "SVHN is not embedded; give the folder" in capsys.readouterr().err


def test_stl10_needs_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stl10", *QUICK, "--out", str(tmp_path)]) == 2
    assert "STL-10 is not embedded; give the folder" in capsys.readouterr().err
    assert main(["figure4", *QUICK, "--source", "stl10", "--out", str(tmp_path)]) == 2
    assert "STL-10 is not embedded; give the folder" in capsys.readouterr().err
    assert main(["stl10", *QUICK, "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path)]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err


def test_too_few_images_are_told_before_the_first_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mnist(tmp_path, count=60)
    assert main(["table1", "--quiet", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "class 0 has 6 training images where 10 are needed" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/runs/*"))


def test_figure2_needs_unlabelled_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mnist(tmp_path, count=20)
    assert main(["figure2", *QUICK, "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "class 0 has no training image without a label, which Figure 2 shows" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/runs/*"))


def test_divergence_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "batch_loss", lambda *_: (torch.tensor(torch.nan), {}))
    assert main(["figure3", *QUICK, "--out", str(tmp_path)]) == 1
    assert "try a smaller learning rate" in capsys.readouterr().err


def test_only_what_cannot_be_written_is_blamed_on_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert main(["figure3", *QUICK, "--out", str(out)]) == 2
        assert f"--out {out}: cannot be written to" in capsys.readouterr().err

    def fail(*arguments: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(training, "batch_loss", fail)
    assert main(["figure3", *QUICK, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.endswith("error: [Errno 12] Cannot allocate memory\n")


def test_missing_package_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert main(["figure3", *QUICK, "--out", str(tmp_path)]) == 2
    assert "the package tqdm is missing" in capsys.readouterr().err
