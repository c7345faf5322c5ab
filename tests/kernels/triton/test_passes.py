"""Every pass with floating-point output, against its equation."""

from __future__ import annotations

import math

import pytest
import torch

from tests.cases import Case, make_case, relative_error
from tests.kernels.triton.support import FLOAT64, Trace, blocks_to_dense, dense, run, sized_classes

# Ragged against tiles of 32 and of 64; fewer columns than a tile; more; embeddings below, off and above a tile.
SIZES = [(5, 7, 3), (37, 70, 65), (70, 5, 20)]


def case_of(n: int, m: int, d: int) -> Case:
    case = make_case(n, m, d, 3, scale=0.6)
    return case._replace(labels=sized_classes([n - n // 3 - 1, n // 3, 1]))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.usefixtures("tiles")
def test_passes(size: tuple[int, int, int], trace: Trace) -> None:
    case = case_of(*size)
    n = size[0]
    result = run(case)
    exact = dense(case)

    def close(x: torch.Tensor, y: torch.Tensor) -> None:
        assert relative_error(x.cpu(), y) <= FLOAT64

    # Normalisers: maximum in units of log 2, and inverse sum.
    rows, columns = trace.arguments("walker")["rows_ptr"].cpu(), trace.arguments("visits")["columns_ptr"].cpu()
    maximum, inverse_sum, rho_walker, rho_visit = rows
    close(maximum * math.log(2) - inverse_sum.log(), exact.s.logsumexp(1))
    assert (inverse_sum <= 1).all()
    maximum, inverse_sum, h = columns
    close(maximum * math.log(2) - inverse_sum.log(), exact.s.logsumexp(0))
    # Visits.
    close(trace.arguments("visits")["visit_ptr"], exact.visit)
    close(h, exact.h)
    # Round trips, by what the walker makes of them; nothing off-class.
    arguments = trace.arguments("walker")
    g = blocks_to_dense(arguments["g_ptr"], arguments, n).cpu()
    close(g[exact.same], exact.g[exact.same])
    off_class = g[~exact.same]
    # Pairs of tiles without a class in both are not computed, and not read.
    assert (off_class[~off_class.isinf()] == 0).all()
    close(rho_walker, (exact.g * exact.p_aba).where(exact.same, 0).sum(1))
    close(rho_visit, exact.p_ab @ exact.h)
    # Backward: kappa, and the gradients from ds.
    close(trace.arguments("kappa")["kappa_ptr"], exact.kappa)
    u, w = exact.g @ exact.q, exact.g.T @ exact.p_ab
    rho = (exact.g * exact.p_aba).sum(1, keepdim=True) + (exact.p_ab @ exact.h)[:, None]
    ds = exact.p_ab * (u + exact.h - rho) + exact.q * (w - exact.kappa)
    close(result.da, ds @ case.b)
    close(result.db, ds.T @ case.a)


@pytest.mark.usefixtures("tiles")
def test_shares_of_one_range_of_columns(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    # A machine so small that nothing is split: one program walks all columns, one range writes da itself.
    from fastassoc.backends.triton import plan
    from fastassoc.backends.triton.launch import Machine

    case = case_of(70, 90, 20)
    split = run(case, ignore_index=-3)
    names, trace[:] = trace.names, []
    assert "add_shares" in names
    monkeypatch.setattr(plan, "_PROGRAMS_PER_PROCESSOR", 1)
    monkeypatch.setattr(plan, "machine", lambda _: Machine("interpreter", 1))
    whole = run(case, ignore_index=-3)
    assert "add_shares" not in trace.names
    assert trace.arguments("normalisers")["row_parts_ptr"].shape[1] == 1
    for x, y in zip(split, whole, strict=True):
        assert relative_error(x, y) <= FLOAT64
    assert (whole.da[case.labels == -3] == 0).all()


def test_only_same_class_pairs_are_multiplied(trace: Trace) -> None:
    # 8 classes of 64 rows: 8 pairs of tiles, where all rows against all would be 64.
    case = make_case(512, 5, 3, 1)._replace(labels=sized_classes([64] * 8))
    run(case)
    assert trace.arguments("round_trips")["counts_ptr"].tolist() == [512, 8, 8]
