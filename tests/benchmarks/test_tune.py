"""The search for tile sizes: what it tries, what it picks, and a whole run in the interpreter."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import tune
from benchmarks.tune import CLASS_PASSES, FULL_GRID, PASSES, Result, Trial, best_tiles, candidates
from fastassoc.kernels.triton.configs import Config, Tile

ROOT = Path(__file__).parents[2]
BASE = Config(*[Tile(64, 64, 128, 4, 2)] * len(PASSES))


@pytest.mark.parametrize("depth", [3, 64, 100, 256])
def test_candidates_keep_to_the_constraints(depth: int) -> None:
    tiles = candidates(FULL_GRID, depth)
    assert len(set(tiles)) == len(tiles) >= 40
    for tile in tiles:
        assert all(x >= 16 and x & (x - 1) == 0 for x in (tile.rows, tile.columns, tile.depth))
        assert 4 <= tile.rows * tile.columns // (32 * tile.warps) <= 64
        # Not twice as wide as it has to be, and the embedding in at most four parts.
        assert tile.depth < 2 * max(depth, 32)
        assert tile.depth * 4 >= depth
    # What does not read embeddings has the same tiles, but for their depth.
    without = candidates(FULL_GRID, depth, by_depth=False)
    assert len({x.depth for x in without}) == 1
    assert {replace(x, depth=0) for x in without} == {replace(x, depth=0) for x in tiles}
    assert len(without) < len(tiles) or depth <= 32


def test_a_tile_of_other_rows_takes_the_class_passes_along() -> None:
    tile = Tile(32, 32, 64, 4, 2)
    config = Trial("kappa", tile).within(BASE)
    assert config.kappa == tile
    assert {getattr(config, name).rows for name in CLASS_PASSES} == {32}
    assert (config.row_normalisers, config.column_normalisers) == (BASE.row_normalisers, BASE.column_normalisers)
    same = Trial("kappa", Tile(64, 32, 64, 4, 2)).within(BASE)
    assert same.round_trips == BASE.round_trips
    scores = Trial("row_normalisers", Tile(128, 32, 64, 4, 2)).within(BASE)
    assert scores.row_normalisers.rows == 128
    assert scores.class_rows == 64
    # A tile for stored steps alone goes where the one beside it is tried, or its rows change.
    apart = replace(BASE, stored_column_gradients=Tile(64, 16, 128, 4, 1))
    assert Trial("kappa", tile).within(apart).stored_column_gradients is None
    assert Trial("column_gradients", Tile(64, 32, 64, 4, 2)).within(apart).stored_column_gradients is None
    assert Trial("steps", Tile(64, 32, 64, 4, 2)).within(apart).tile("column_gradients", "stored").columns == 16


def results(times: dict[tuple[str, int], float | None]) -> list[Result]:
    """One for each pass and number of rows."""
    return [Result(Trial(name, Tile(rows, 32, 64, 4, 2)), time, "") for (name, rows), time in times.items()]


def test_the_class_passes_agree_on_rows_that_are_best_together() -> None:
    times = {(name, rows): 1.0 for name in CLASS_PASSES for rows in (32, 64, 128)}
    # 32 rows are the quickest for one pass and slow for another, 128 lack a pass: 64 rows are best together.
    times |= {("kappa", 32): 0.5, ("row_gradients", 32): 4.0, ("round_trips", 128): None, ("kappa", 128): 0.1}
    times |= {("row_normalisers", 32): 3.0, ("row_normalisers", 128): 2.0, ("column_normalisers", 32): None}
    rows = {name: x.trial.tile.rows for name, x in best_tiles(BASE, results(times)).items()}
    assert rows == {"row_normalisers": 128, **dict.fromkeys(CLASS_PASSES, 64)}


def test_rows_stay_where_a_class_pass_was_not_tried() -> None:
    tried = {("kappa", 32): 0.5, ("kappa", 64): 1.0, ("row_gradients", 32): 0.5, ("row_gradients", 64): 1.0}
    best = best_tiles(BASE, results(tried))
    assert {name: x.trial.tile.rows for name, x in best.items()} == {"kappa": 64, "row_gradients": 64}
    assert best_tiles(BASE, results({("kappa", 32): 0.5, ("kappa", 64): None})) == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_nothing_to_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.main([]) == 2
    assert "no CUDA GPU here" in capsys.readouterr().err


def test_a_small_run_proposes_a_row() -> None:
    pytest.importorskip("triton")
    command = [
        sys.executable,
        "-m",
        "benchmarks.tune",
        "--smoke",
        "--dtype",
        "fp32-high",
        "--passes",
        "column_normalisers",
        "kappa",
    ]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert output.returncode == 0, output.stderr[-3000:]
    # The tile of the interpreter, one warp for 64 x 64 scores.
    assert [line for line in output.stdout.splitlines() if line.startswith("| kappa | 64 | 64 | 256 | 1 |")]
    row = output.stdout.partition("a step takes")[2].partition("\n")[2]
    depth, config = eval(row.strip().rstrip(","), {"Config": Config, "Tile": Tile})
    assert depth == 20
    assert config.kappa in (Tile(64, 64, 256, 1, 1), Tile(64, 32, 32, 4, 2))
    assert (config.stored_column_gradients, config.compute_steps) == (None, True)
    assert row.count(" ms\n") == 2
    assert row.count("# not timed") == len(PASSES) - 2


def test_a_wrong_candidate_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bench:
        base = BASE

        def wrong(self, config: Config) -> str | None:
            return "wrong: error 1" if config.kappa.columns == 32 else None

        def milliseconds(self, name: str, config: Config) -> float:
            assert config.kappa.columns != 32
            if config.kappa.columns == 128:
                raise RuntimeError("out of resources")
            return 1.5

    found = [tune._measured(Bench(), Trial("kappa", Tile(64, columns, 64, 4, 2))) for columns in (16, 32, 128)]  # type: ignore[arg-type]
    assert [x.milliseconds for x in found] == [1.5, None, None]
    assert found[1].reason == "wrong: error 1"
    assert "out of resources" in found[2].reason
