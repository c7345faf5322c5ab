"""Class blocks cover every same-class pair exactly once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastassoc.backends.cpu.operations import class_blocks as layouts
from fastassoc.backends.cpu.operations.class_blocks import ClassBlocks, class_blocks, dense_block


def as_matrix(blocks: ClassBlocks, rows: int) -> torch.Tensor:
    """The target as an N x N matrix in the order of the input."""
    order = torch.arange(blocks.rows) if blocks.order is None else blocks.order
    matrix = torch.zeros(rows, rows, dtype=torch.float64)
    for bucket, view in zip(blocks.buckets, blocks.views(-blocks.minus_target), strict=True):
        members = bucket.rows(order)
        for block, index in zip(view, members, strict=True):
            matrix[index[:, None], index] += block
    return matrix


@given(st.lists(st.integers(-3, 9), min_size=1, max_size=60), st.booleans(), st.booleans())
def test_target_is_uniform_over_the_class(labels: list[int], dense: bool, ignore: bool) -> None:
    values = torch.tensor(labels)
    kept = (values != 9).nonzero().view(-1) if ignore else None
    if kept is not None and not len(kept):
        return
    blocks = (dense_block if dense else class_blocks)(values if kept is None else values[kept], torch.float64, kept)
    takes_part = torch.ones(len(labels), dtype=torch.bool) if kept is None else values != 9
    same = (values[:, None] == values) & takes_part[:, None] & takes_part
    expected = same.double() / same.sum(1, keepdim=True).clamp_min(1) / int(takes_part.sum())
    torch.testing.assert_close(as_matrix(blocks, len(labels)), expected, rtol=1e-15, atol=0.0)
    assert blocks.rows == int(takes_part.sum())
    if blocks.position is not None:
        assert blocks.order is not None
        assert torch.equal(blocks.order[blocks.position], torch.arange(len(labels)))


@pytest.mark.parametrize(("sizes", "buckets"), [([4, 4, 4], 1), ([1] * 50, 1), ([7, 2, 7, 2], 2), ([3, 1, 2], 3)])
def test_classes_of_one_size_share_a_bucket(sizes: list[int], buckets: int) -> None:
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    blocks = class_blocks(labels[torch.randperm(len(labels))], torch.float32)
    assert len(blocks.buckets) == buckets
    assert sum(bucket.blocks * bucket.size for bucket in blocks.buckets) == len(labels)


@pytest.mark.parametrize("labels", [[3, 3, 5, 5, 8, 8], [1, 1, 1], [4, 2, 9]])
def test_rows_that_are_sorted_by_class_stay_where_they_are(labels: list[int]) -> None:
    stays = labels == sorted(labels)
    assert (class_blocks(torch.tensor(labels), torch.float32).order is None) == stays


def test_layouts_used_again_fit_the_labels() -> None:
    layouts._make_layout_once.cache_clear()
    # Sizes 2, 3 three times, 3, 2 twice, then another dtype for the latter.
    labels = [[0, 1, 1, 0, 1], [5, 5, 7, 7, 7], [1, 0, 1, 0, 1], [5, 5, 5, 7, 7], [2, 1, 1, 2, 1]]
    for values, dtype in [
        *((torch.tensor(x), torch.float32) for x in labels),
        (torch.tensor(labels[-1]), torch.float64),
    ]:
        blocks = class_blocks(values, dtype)
        assert blocks.minus_target.dtype == dtype
        same = (values[:, None] == values).double()
        expected = same / same.sum(1, keepdim=True) / len(values)
        torch.testing.assert_close(as_matrix(blocks, len(values)), expected, rtol=1e-7, atol=0.0)
    assert layouts._make_layout_once.cache_info().hits == 3
