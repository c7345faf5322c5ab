"""Every pass with floating-point output, against its equation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import fastassoc
from fastassoc import reference
from fastassoc.backends.triton import plan
from fastassoc.backends.triton.precision import Precision
from tests.cases import Case, evaluate, make_case, relative_error
from tests.kernels.triton.support import FLOAT64, Trace, blocks_to_dense, dense, on_device, run, sized_classes

# Ragged against tiles of 32 and of 64; fewer columns than a tile; more; embeddings below, off and above a tile.
SIZES = [(5, 7, 3), (37, 70, 65), (70, 5, 20)]


def case_of(n: int, m: int, d: int) -> Case:
    case = make_case(n, m, d, 3, scale=0.6)
    return case._replace(labels=sized_classes([n - n // 3 - 1, n // 3, 1]))


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.usefixtures("tiles")
def test_passes(size: tuple[int, int, int], stored: bool, trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    if stored:
        config = replace(plan.choose_config(), compute_steps=False)
        monkeypatch.setattr(plan, "choose_config", lambda *_: config)
    case = case_of(*size)
    n = size[0]
    result = run(case)
    exact = dense(case)

    def close(x: torch.Tensor, y: torch.Tensor) -> None:
        assert relative_error(x.cpu(), y) <= FLOAT64

    # Normalisers of rows: maximum in units of log 2, and inverse sum.
    maximum, inverse_sum = trace.arguments("forms")["rows_ptr"].cpu()
    close(maximum * math.log(2) - inverse_sum.log(), exact.s.logsumexp(1))
    assert (inverse_sum <= 1).all()
    # Weights of rows and columns, by what they make of the steps.
    arguments = trace.arguments("walker")
    tables = arguments["tables"]
    source = tables.slots_ptr[0].cpu()
    taken = source >= 0
    # [N], in the order of the rows.
    shift, there, back, rho_walker, rho_visit = tables.weights_ptr[taken].T.cpu()[:, source[taken].argsort()]
    column_shift, factor, alpha, h = tables.columns_ptr.cpu()
    assert tables.counts_ptr.tolist()[3] == 0
    left = (exact.s / math.log(2) - shift[:, None] - column_shift).exp2() * factor
    close(left * alpha * there[:, None], exact.p_ab)
    close(left / alpha * back[:, None], exact.q)
    # The workspace of the forward pass.
    for steps in [x["out"].ptr[0, 0].cpu() for name, x in trace if name == "steps"][:1]:
        close(steps[: size[1], taken][:, source[taken].argsort()].T, left)
    # Steps of embeddings wider than a tile are always stored.
    assert ("steps" in trace.names) >= stored
    stored = "steps" in trace.names
    # Visits.
    close(h, exact.h)
    # Round trips, by what the walker makes of them; nothing off-class.
    g = blocks_to_dense(arguments["g_ptr"][0], tables, n).cpu()
    both = exact.g * there[:, None] * back + (exact.g * there[:, None] * back).T
    close(g[exact.same], both[exact.same])
    off_class = g[~exact.same]
    # Pairs of tiles without a class in both are not computed, and not read.
    assert (off_class[~off_class.isinf()] == 0).all()
    close(rho_walker, (exact.g * exact.p_aba).where(exact.same, 0).sum(1))
    close(rho_visit, exact.p_ab @ exact.h)
    # Backward: kappa, with its weight where steps are computed, and the gradients from ds.
    parts = trace.arguments("take_off_kappa" if stored else "terms")["kappa_parts_ptr"].cpu()
    close(parts[: tables.counts_ptr[1], : size[1]].sum(0), exact.kappa)
    if not stored:
        of_there, of_back = trace.arguments("terms")["terms_ptr"].cpu()[:, : size[1]]
        close(of_there, alpha * exact.h)
        close(of_back, exact.kappa / alpha)
    row_terms = trace.arguments("terms")["tables"].row_terms_ptr[taken].cpu()[source[taken].argsort()]
    close(row_terms, there * (rho_walker + rho_visit))
    u, w = exact.g @ exact.q, exact.g.T @ exact.p_ab
    rho = (exact.g * exact.p_aba).sum(1, keepdim=True) + (exact.p_ab @ exact.h)[:, None]
    ds = exact.p_ab * (u + exact.h - rho) + exact.q * (w - exact.kappa)
    if stored:
        found = trace.arguments("take_off_kappa")["steps"].ptr[0, 0].cpu()
        close(found[: size[1], taken][:, source[taken].argsort()].T, ds)
    close(result.da, ds @ case.b)
    close(result.db, ds.T @ case.a)


# As with bf16, where gradients of scores wait for kappa in float16: whatever their size, they have its eleven digits.
@pytest.mark.parametrize("upstream", [1.0, 1e-25, 1e25, 0.0])
@pytest.mark.usefixtures("tiles")
def test_gradients_of_scores_in_units(upstream: float, trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(plan.choose_config(), compute_steps=False)
    monkeypatch.setattr(plan, "choose_config", lambda *_: config)
    case = case_of(70, 37, 20)
    exact = evaluate(lambda *x: upstream * reference.walker_visit_loss(*x), case)
    monkeypatch.setattr(Precision, "exact_dtype", lambda self, dtype: torch.float16)
    result = evaluate(lambda *x: upstream * fastassoc.walker_visit_loss(*x, backend="triton"), on_device(case))
    arguments = trace.arguments("take_off_kappa")
    assert arguments["exact_ptr"].dtype == torch.float16
    assert arguments["units_ptr"] is not None
    for x, y in zip(result[1:3], exact[1:3], strict=True):
        assert relative_error(x.cpu(), y) <= (2**-11 if upstream else 0.0)


@pytest.mark.usefixtures("tiles")
def test_one_share(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    # A machine so small that nothing is shared out: one program walks all columns.
    from fastassoc.backends.triton.launch import Machine

    def shares() -> list[int]:
        rows = trace.arguments("row_normalisers")["row_parts_ptr"].shape[1]
        found = [rows, *(x["PROGRAMS"] for name, x in trace if name == "add_row_shares")]
        trace.clear()
        return found

    case = case_of(70, 290, 20)
    monkeypatch.setattr(plan, "machine", lambda _: Machine("interpreter", 16))
    split = run(case, ignore_index=-3)
    assert min(shares()) > 1
    monkeypatch.setattr(plan, "machine", lambda _: Machine("interpreter", 1))
    whole = run(case, ignore_index=-3)
    assert max(shares()[1:]) == 1
    for x, y in zip(split, whole, strict=True):
        assert relative_error(x, y) <= FLOAT64
    assert (whole.da[case.labels == -3] == 0).all()


def test_only_same_class_pairs_are_multiplied(trace: Trace) -> None:
    # 8 classes of 64 rows: 8 pairs of tiles, where all rows against all would be 64.
    case = make_case(512, 5, 3, 1)._replace(labels=sized_classes([64] * 8))
    run(case)
    assert trace.arguments("walker")["tables"].counts_ptr.tolist()[:3] == [512, 8, 8]
