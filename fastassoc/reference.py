"""The specification: dense, eager, one line per equation, in float32 or float64. Slow and large on purpose.

Equation numbers are those of Haeusser, Mordvintsev, Cremers, "Learning by Association", CVPR 2017.
"""

from __future__ import annotations

from torch import Tensor


def similarity_matrix(a: Tensor, b: Tensor, similarity: str = "dot", temperature: float | Tensor = 1.0) -> Tensor:
    """``s_ij`` (eq 1) [N, M]: the dot product, cosine or negative squared Euclidean distance over ``temperature``."""
    if similarity == "dot":
        s = a @ b.T
    elif similarity == "cosine":
        s = (a @ b.T) / (a.norm(dim=1)[:, None] * b.norm(dim=1)[None, :])
    elif similarity == "euclidean":
        s = -(a[:, None, :] - b[None, :, :]).square().sum(2)
    else:
        raise ValueError(f"unknown similarity {similarity!r}; expected 'dot', 'cosine' or 'euclidean'")
    return s / temperature


def walker_visit_terms(s: Tensor, labels: Tensor, eps: float = 1e-8) -> dict[str, Tensor]:
    """Both losses and every statistic from the similarities ``s`` [N, M] and ``labels`` [N]."""
    n, m = s.shape
    same_class = labels[:, None] == labels[None, :]
    p_ab = s.softmax(1)  # eq 2
    p_ba = s.T.softmax(1)
    p_aba = p_ab @ p_ba  # eq 3
    p_correct = p_aba.where(same_class, 0).sum(1)  # eq 4, before the mean
    target = same_class.to(s.dtype) / same_class.sum(1, keepdim=True)  # eq 7
    walker = -(target * ((eps + p_aba.where(same_class, 1)) / (1 + n * eps)).log()).sum(1).mean()  # eq 6
    visit_probability = p_ab.mean(0)  # eq 9
    visit = -((eps + visit_probability) / (1 + m * eps)).log().mean()  # eq 8, 10
    return {
        "walker": walker,
        "visit": visit,
        "p_correct": p_correct.mean(),
        "accuracy_estimate": p_correct.sqrt().mean(),
        "visit_probability": visit_probability,
    }


def walker_visit_loss(
    a: Tensor,
    b: Tensor,
    labels: Tensor,
    *,
    walker_weight: float | Tensor = 1.0,
    visit_weight: float | Tensor = 1.0,
    similarity: str = "dot",
    temperature: float | Tensor = 1.0,
    eps: float = 1e-8,
    ignore_index: int | None = None,
) -> Tensor:
    """``walker_weight * walker + visit_weight * visit`` (eq 5 without the classification loss), as a 0-d tensor.

    Takes the arguments of `fastassoc.walker_visit_loss` and holds several N x M matrices. It validates nothing and
    computes in the dtype of its inputs: give it float64 for a value to compare with.
    """
    if ignore_index is not None:
        a, labels = a[labels != ignore_index], labels[labels != ignore_index]
    terms = walker_visit_terms(similarity_matrix(a, b, similarity, temperature), labels, eps)
    return walker_weight * terms["walker"] + visit_weight * terms["visit"]
