"""The public functions and their statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, overload

from torch import Tensor

from fastassoc.terms import for_sum, terms, zero
from fastassoc.validation import Backend, GradientReduction, Similarity
from fastassoc.weights import is_zero, weighted_sum

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class WalkerVisitLosses(NamedTuple):
    """The two terms without weights: 0-d, float32 (float64 for float64 inputs), both differentiable."""

    walker: Tensor
    """The walker loss (eq 6, 7)."""
    visit: Tensor
    """The visit loss (eq 8, 10)."""


class WalkStatistics(NamedTuple):
    """What a walk did, for logging. No field carries a gradient; all are float32 (float64 for float64 inputs)."""

    walker: Tensor
    """0-d: the walker loss without its weight (eq 6, 7)."""
    visit: Tensor
    """0-d: the visit loss without its weight (eq 8, 10)."""
    p_correct: Tensor
    """0-d, in [0, 1]: the mean probability that a round trip ends in the class where it began (eq 4)."""
    accuracy_estimate: Tensor
    """0-d, in [0, 1]: the mean over rows of the square root of that probability, the original code's estimate of the
    accuracy of a single step."""
    visit_probability: Tensor
    """[M], sums to one: how often the walker meets each row of ``b`` (eq 9). Over ranks, of this rank's rows."""


@overload
def walker_visit_loss(
    a: Tensor,
    b: Tensor,
    labels: Tensor,
    *,
    walker_weight: float | Tensor = ...,
    visit_weight: float | Tensor = ...,
    similarity: Similarity = ...,
    temperature: float | Tensor = ...,
    eps: float = ...,
    ignore_index: int | None = ...,
    return_stats: Literal[False] = ...,
    backend: Backend = ...,
    group: ProcessGroup | Literal["world"] | None = ...,
    gradient_reduction: GradientReduction = ...,
) -> Tensor: ...


@overload
def walker_visit_loss(
    a: Tensor,
    b: Tensor,
    labels: Tensor,
    *,
    walker_weight: float | Tensor = ...,
    visit_weight: float | Tensor = ...,
    similarity: Similarity = ...,
    temperature: float | Tensor = ...,
    eps: float = ...,
    ignore_index: int | None = ...,
    return_stats: Literal[True],
    backend: Backend = ...,
    group: ProcessGroup | Literal["world"] | None = ...,
    gradient_reduction: GradientReduction = ...,
) -> tuple[Tensor, WalkStatistics]: ...


@overload
def walker_visit_loss(
    a: Tensor,
    b: Tensor,
    labels: Tensor,
    *,
    walker_weight: float | Tensor = ...,
    visit_weight: float | Tensor = ...,
    similarity: Similarity = ...,
    temperature: float | Tensor = ...,
    eps: float = ...,
    ignore_index: int | None = ...,
    return_stats: bool,
    backend: Backend = ...,
    group: ProcessGroup | Literal["world"] | None = ...,
    gradient_reduction: GradientReduction = ...,
) -> Tensor | tuple[Tensor, WalkStatistics]: ...


def walker_visit_loss(
    a: Tensor,
    b: Tensor,
    labels: Tensor,
    *,
    walker_weight: float | Tensor = 1.0,
    visit_weight: float | Tensor = 1.0,
    similarity: Similarity = "dot",
    temperature: float | Tensor = 1.0,
    eps: float = 1e-8,
    ignore_index: int | None = None,
    return_stats: bool = False,
    backend: Backend = "auto",
    group: ProcessGroup | Literal["world"] | None = None,
    gradient_reduction: GradientReduction = "mean",
) -> Tensor | tuple[Tensor, WalkStatistics]:
    r"""Walker and visit loss of "Learning by Association": ``walker_weight * walker + visit_weight * visit``.

    A walker steps from a labelled row ``a_i`` to an unlabelled row ``b_j`` and back to ``a_k``:

        s_ij      = similarity(a_i, b_j) / temperature                                               eq 1
        p_ab_ij   = softmax over j of s_ij          p_ba_ji = softmax over i of s_ij                 eq 2
        p_aba_ik  = sum_j p_ab_ij p_ba_jk                                                            eq 3
        visit_j   = mean_i p_ab_ij                                                                   eq 9
        walker    = -mean_i mean_{k: label_k = label_i} log((eps + p_aba_ik) / (1 + N eps))          eq 6, 7
        visit     = -mean_j log((eps + visit_j) / (1 + M eps))                                       eq 8, 10

    The walker loss is smallest when every round trip ends in the class where it began, the visit loss when all rows of
    ``b`` are met equally often. No N x N matrix is held beyond small batches. One N x M matrix is kept for the backward
    pass where it takes up to 256 MiB; beyond, memory does not grow with it: next to inputs and gradients it is
    ``O(N D + M + sum over classes of n_c^2)`` plus a workspace of 33 MiB (more above N = 15,000, where the smallest
    tiles outgrow it). What was used, up to 288 MiB, stays with the process for the next call.

    Args:
        a: [N, D] embeddings of labelled samples; float16, bfloat16, float32 or float64.
        b: [M, D] embeddings of unlabelled samples, dtype and device of ``a``. Under autocast the dtypes may differ;
            both are then taken as float32 (float64 if either is).
        labels: [N], any integer or bool dtype, arbitrary values, on the CPU or beside ``a``.
        walker_weight: factor of the walker loss; a tensor of one element receives a gradient. The float 0 skips the
            term's work.
        visit_weight: factor of the visit loss, likewise.
        similarity: "dot", ``a_i . b_j``; "cosine", ``a_i . b_j / (|a_i| |b_j|)``, 0 for a zero row (in float32, one of
            norm below 1e-19); "euclidean", ``-|a_i - b_j|^2``. The last two hold a copy of ``a`` and ``b``. Squared
            distances are computed by matrix products where these are exact enough: no squared norm around the middle of
            ``a`` and ``b`` above 16 times the temperature, nor much above the distance to the nearest neighbour. Else
            they are computed in float64, which takes several times as long, or, for float64 inputs and for tight
            clusters very far apart, from differences, which takes longer still. To choose, the similarities are
            computed once more, and on a GPU the host waits for one number. With clusters R apart and noise of size 1 a
            learned temperature's gradient loses 2e-16 R^2 of itself, and on a GPU float64 gradients lose 2e-16 R.
        temperature: divides the similarities, greater than 0; a tensor of one element receives a gradient.
        eps: from 0 to 1, added to probabilities before the logarithm, in the accumulation dtype. 0 gives the paper's
            plain cross-entropy, which is infinite where a probability underflows to 0, and whose gradient is that of
            the smallest normal number where one lies below it. What the accumulation dtype cannot hold as a normal
            number (below 1.2e-38 in float32) counts as 0.
        ignore_index: rows of ``a`` with this label start and end no walk, as if they were not there. Their values must
            be finite all the same: others do not show in the loss, but may make gradients NaN.
        return_stats: also return `WalkStatistics`. They include both terms, even one of weight 0.
        backend: "auto" (by device), "cpu" or "triton"; one named explicitly never falls back. "triton" takes
            tensors on a GPU, or on the CPU under TRITON_INTERPRET=1; it does not wait for the device up to 2,048 rows
            of ``a``, and once above; labels on the device that all equal ``ignore_index`` give NaN instead of an error.
            Its float32 products follow ``torch.get_float32_matmul_precision()``.
        group: a process group of ``torch.distributed``, or "world" for the default one: the loss is then that of the
            rows of all its ranks, each of which passes rows of its own. See "Over ranks" below.
        gradient_reduction: "mean" or "sum", what training does with the gradients of the ranks of ``group``.

    Returns:
        The loss, 0-d, float32 (float64 for float64 inputs); with ``return_stats`` the pair ``(loss, statistics)``.

    Products, sums and logarithms are accumulated in float32 (float64 for float64 inputs) whatever the dtype of the
    inputs; gradients come back in the dtype of their inputs. Results are the same to the bit on every run with the same
    number of threads. Finite inputs whose similarities are finite in float32 give a finite loss (for ``eps`` > 0); NaN
    or infinity in ``b``, or in a row of ``a`` that takes part, gives NaN.

    With ``create_graph=True`` gradients can be differentiated again: the second derivative is that of the dense
    specification, `fastassoc.reference`, with the memory of eager code (N x M and N x N matrices; N x M x D for
    "euclidean"). The transforms of ``torch.func`` work (``grad``, ``jacrev``, ``vmap``, which computes one problem
    after another, ``functional_call``), and so do ``torch.compile``, ``make_fx``, ``torch.jit.trace``, fake tensors and
    compiled autograd. Before PyTorch 2.10 the loss breaks the graph of ``torch.compile``, unless
    ``torch._dynamo.config.capture_dynamic_output_shape_ops`` is set. Not supported: forward-mode derivatives (``jvp``,
    ``jacfwd``, ``hessian``; ``jacrev`` of ``jacrev`` is the same), transforms of ``torch.func`` inside
    ``torch.compile``, sparse, nested and distributed tensors.

    Over ranks, that is with a ``group``, N and M count the rows of all ranks. Ranks may pass different numbers of rows,
    and none of ``a``, but at least one of ``b``. The loss is the same to the bit on every rank, and so are the
    statistics but for ``visit_probability``, which is of this rank's ``b``. ``a`` and ``labels`` are gathered, which is
    N D numbers and N labels; ``b`` stays where it is. Of what else crosses ranks nothing grows with M: the normalisers
    of the rows of ``a``, N numbers of each rank, the round trips within classes, and in the backward pass the gradient
    of ``a``. All ranks call the loss with the same options, tensors among them of the same value, and go back through
    it as many times as the others, with the same upstream gradient. By default, "mean", the gradients of a rank are the
    derivatives by its own rows times the number of ranks. DDP and FSDP take the mean of gradients over ranks, so a
    network trained with them gets the gradient of the loss of all rows. With "sum" they are the derivatives themselves,
    for training that adds gradients up. A temperature or weight that is learned counts as a parameter that the ranks
    share. Where one rank raises because of its arguments, all do; after a later error, for want of memory for example,
    the others wait until the group's time is up. On a GPU the host waits for the device in every forward pass. There
    are no second derivatives over ranks, no transforms of ``torch.func``, and ``torch.compile`` breaks its graph at the
    loss.

    Raises:
        TypeError: an argument of the wrong type, dtype or layout.
        ValueError: an argument of the wrong shape or value, or not the same on every rank.
        RuntimeError: tensors on different devices, a backend that cannot run here, a tensor whose memory was released,
            another rank that raised; in the backward pass, ``a`` or ``b`` of another shape, dtype or device than in the
            forward pass.

    Source: Haeusser, Mordvintsev, Cremers, "Learning by Association", CVPR 2017; values and gradients follow the
    authors' implementation.
    """
    loss: Tensor | None
    loss, walker_term, visit_term, *statistics = terms(
        a, b, labels, walker_weight, visit_weight, similarity, temperature, eps, ignore_index, return_stats, backend,
        group, gradient_reduction, summed=True,
    )  # fmt: skip
    if loss is None and is_zero(walker_weight) and is_zero(visit_weight):
        loss = zero(a, b, group)
    elif loss is None:
        loss = weighted_sum(walker_term, walker_weight, visit_term, visit_weight)
    if group is not None and gradient_reduction == "sum":
        loss = for_sum(loss, group)
    if not return_stats:
        return loss
    return loss, WalkStatistics(walker_term.detach(), visit_term.detach(), *statistics)


@overload
def walker_visit_losses(
    a: Tensor,
    b: Tensor,
    labels: Tensor,
    *,
    similarity: Similarity = ...,
    temperature: float | Tensor = ...,
    eps: float = ...,
    ignore_index: int | None = ...,
    return_stats: Literal[False] = ...,
    backend: Backend = ...,
    group: ProcessGroup | Literal["world"] | None = ...,
    gradient_reduction: GradientReduction = ...,
) -> WalkerVisitLosses: ...


@overload
def walker_visit_losses(
    a: Tensor,
    b: Tensor,
    labels: Tensor,
    *,
    similarity: Similarity = ...,
    temperature: float | Tensor = ...,
    eps: float = ...,
    ignore_index: int | None = ...,
    return_stats: Literal[True],
    backend: Backend = ...,
    group: ProcessGroup | Literal["world"] | None = ...,
    gradient_reduction: GradientReduction = ...,
) -> tuple[WalkerVisitLosses, WalkStatistics]: ...


@overload
def walker_visit_losses(
    a: Tensor,
    b: Tensor,
    labels: Tensor,
    *,
    similarity: Similarity = ...,
    temperature: float | Tensor = ...,
    eps: float = ...,
    ignore_index: int | None = ...,
    return_stats: bool,
    backend: Backend = ...,
    group: ProcessGroup | Literal["world"] | None = ...,
    gradient_reduction: GradientReduction = ...,
) -> WalkerVisitLosses | tuple[WalkerVisitLosses, WalkStatistics]: ...


def walker_visit_losses(
    a: Tensor,
    b: Tensor,
    labels: Tensor,
    *,
    similarity: Similarity = "dot",
    temperature: float | Tensor = 1.0,
    eps: float = 1e-8,
    ignore_index: int | None = None,
    return_stats: bool = False,
    backend: Backend = "auto",
    group: ProcessGroup | Literal["world"] | None = None,
    gradient_reduction: GradientReduction = "mean",
) -> WalkerVisitLosses | tuple[WalkerVisitLosses, WalkStatistics]:
    r"""Both terms of `walker_visit_loss`, each by itself, from one pass.

        walker    = -mean_i mean_{k: label_k = label_i} log((eps + p_aba_ik) / (1 + N eps))          eq 6, 7
        visit     = -mean_j log((eps + visit_j) / (1 + M eps))                                       eq 8, 10

    in the notation of `walker_visit_loss`, which is their weighted sum. Use this function where the terms are needed
    apart, for example to balance them by their gradients. It takes as long as `walker_visit_loss`. A backward pass
    through one term does the work of that term alone. Two backward passes, one through each term, take longer than one
    through their sum, and the first needs ``retain_graph=True``.

    Args:
        a: [N, D] embeddings of labelled samples; float16, bfloat16, float32 or float64.
        b: [M, D] embeddings of unlabelled samples, dtype and device of ``a``.
        labels: [N], any integer or bool dtype.
        similarity: "dot", "cosine" or "euclidean".
        temperature: divides the similarities; a tensor of one element receives a gradient.
        eps: from 0 to 1, added to probabilities before the logarithm.
        ignore_index: rows of ``a`` with this label take no part.
        return_stats: also return `WalkStatistics`.
        backend: "auto", "cpu" or "triton".
        group: a process group whose ranks each pass rows of their own, or "world".
        gradient_reduction: "mean" or "sum" over the ranks of ``group``.

    What these arguments mean in full, and precision, memory, determinism, derivatives and errors, are as described for
    `walker_visit_loss`. NaN or infinity in ``b``, or in a row of ``a`` that takes part, gives NaN in at least one of
    the terms.

    Returns:
        `WalkerVisitLosses`, the pair ``(walker, visit)``: 0-d, float32 (float64 for float64 inputs). With
        ``return_stats`` the pair ``(losses, statistics)``.

    Raises:
        TypeError: an argument of the wrong type, dtype or layout.
        ValueError: an argument of the wrong shape or value.
        RuntimeError: tensors on different devices, a backend that cannot run here, a tensor whose memory was released.

    Source: Haeusser, Mordvintsev, Cremers, "Learning by Association", CVPR 2017.
    """
    _, walker, visit, *statistics = terms(
        a, b, labels, 1.0, 1.0, similarity, temperature, eps, ignore_index, return_stats, backend,
        group, gradient_reduction,
    )  # fmt: skip
    if group is not None and gradient_reduction == "sum":
        walker, visit = for_sum(walker, group), for_sum(visit, group)
    losses = WalkerVisitLosses(walker, visit)
    if not return_stats:
        return losses
    return losses, WalkStatistics(walker.detach(), visit.detach(), *statistics)
