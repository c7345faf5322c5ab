"""Properties of the loss that hold for any input, checked on random ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastassoc
from fastassoc import reference
from tests.cases import Case, assert_close, evaluate, make_case
from tests.conftest import take_path, use_small_tiles

# Rows, columns and width off every multiple; classes from one to all distinct (0); logits from flat to one-hot.
cases = st.builds(
    make_case,
    st.integers(1, 40),
    st.integers(1, 90),
    st.integers(1, 12),
    st.integers(0, 6),
    scale=st.sampled_from([0.1, 1.0, 4.0]),
    seed=st.integers(0, 10**6),
)
paths = st.sampled_from([("dense", 0), ("whole", 0), ("tiles", 0), ("tiles", 2), ("tiles", 100)])


def loss_by(path: tuple[str, int], case: Case, **options: object) -> object:
    """Loss and gradients by one way through the CPU backend; tiles have 16 columns, and some of them are kept."""
    name, kept = path
    with pytest.MonkeyPatch.context() as patch:
        take_path(patch, name)
        use_small_tiles(patch, kept)
        return evaluate(fastassoc.walker_visit_loss, case, **options)


@given(cases, paths)
def test_agrees_with_the_specification(case: Case, path: tuple[str, int]) -> None:
    assert_close(loss_by(path, case), evaluate(reference.walker_visit_loss, case), 1e-10)


@given(cases, paths, st.sampled_from(["cosine", "euclidean"]), st.sampled_from([0.5, 3.0]))
def test_agrees_with_the_specification_for_other_similarities(
    case: Case, path: tuple[str, int], similarity: str, temperature: float
) -> None:
    options = {"similarity": similarity, "temperature": temperature}
    assert_close(loss_by(path, case, **options), evaluate(reference.walker_visit_loss, case, **options), 1e-10)


@given(cases, paths, st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(case: Case, path: tuple[str, int], random: object) -> None:
    rows = torch.tensor(random.sample(range(len(case.a)), len(case.a)))
    columns = torch.tensor(random.sample(range(len(case.b)), len(case.b)))
    result = loss_by(path, Case(case.a[rows], case.b[columns], case.labels[rows]))
    plain = loss_by(path, case)
    assert_close(result, plain._replace(da=plain.da[rows], db=plain.db[columns]), 1e-10)


@given(cases, paths)
def test_names_of_classes_do_not_matter(case: Case, path: tuple[str, int]) -> None:
    renamed = case._replace(labels=-(7**20) + 10**12 * case.labels)
    assert_close(loss_by(path, renamed), loss_by(path, case), 1e-10)


@given(cases, paths)
def test_terms_add_up(case: Case, path: tuple[str, int]) -> None:
    both = loss_by(path, case, walker_weight=0.7, visit_weight=1.9)
    walker = loss_by(path, case, walker_weight=1.0, visit_weight=0.0)
    visit = loss_by(path, case, walker_weight=0.0, visit_weight=1.0)
    total = type(both)(*(0.7 * x + 1.9 * y for x, y in zip(walker, visit, strict=True)))
    assert_close(both, total, 1e-10)


@given(cases, paths)
def test_ignored_rows_are_as_if_absent(case: Case, path: tuple[str, int]) -> None:
    ignored = torch.arange(len(case.a)) % 3 == 1
    labels = case.labels.masked_fill(ignored, -100)
    result = loss_by(path, case._replace(labels=labels), ignore_index=-100)
    kept = loss_by(path, Case(case.a[~ignored], case.b, case.labels[~ignored]))
    da = torch.zeros_like(result.da)
    da[~ignored] = kept.da
    assert_close(result, kept._replace(da=da), 1e-10)


@given(st.integers(1, 30), st.integers(1, 60), paths)
def test_one_class_alone_has_the_entropy_of_its_round_trips(n: int, m: int, path: tuple[str, int]) -> None:
    # Equal rows of b make every walk uniform: both losses are then the entropies of uniform distributions.
    case = Case(torch.randn(n, 4, dtype=torch.float64), torch.ones(m, 4, dtype=torch.float64), torch.zeros(n))
    case = case._replace(a=torch.ones_like(case.a), labels=case.labels.long())
    expected = torch.tensor(float(n * m), dtype=torch.float64).log()
    torch.testing.assert_close(loss_by(path, case).loss, expected, rtol=1e-12, atol=1e-12)
