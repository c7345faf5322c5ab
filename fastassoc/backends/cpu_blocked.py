"""The passes as blocked torch: tiles of columns that stay in cache, in-place arithmetic, no N x M matrix.

A tile is all N rows of the scores against a range of columns of ``b``, so a column is complete inside one tile and one
sweep over the tiles serves the visits and the round trips together. One exponential per score and sweep suffices: with
the geometric mean of the two transition probabilities, for any constant z,

    t_ij = exp(s_ij - r_i - c_j)      r_i = (lse_a_i + z) / 2       c_j = (lse_b_j - z) / 2
    p_ab_ij = t_ij f_i g_j            f_i = exp(r_i - lse_a_i)      g_j = exp(c_j)
    p_ba_ji = t_ij u_i v_j            u_i = exp(r_i - z)            v_j = exp(c_j + z - lse_b_j) = 1 / g_j

the round trips of a class are one symmetric product, ``p_aba_ik = (t t')_ik f_i u_k``, and so is their gradient. What
underflows in this merged form changes ``p_aba`` by less than ``eps`` times the unit roundoff while all normalisers lie
within a limit (`_merges`) of each other. Where they do not, and without round trips, the form is plain:

    t_ij = exp(s_ij - r_i)            r_i = lse_a_i                 p_ab_ij = t_ij f_i        g_j = u_i = 1
    q_ij = exp(s_ij - c_j) v_j        c_j = lse_b_j                 p_ba_ji = q_ij

Normalisers are float64: the rows of ``p_ab`` must sum to one to the last bit of float32, or the gradient, a difference
of nearly equal terms, is lost; a float32 ``lse_a`` of 10 is already off by 5e-7. The shifts inside the exponentials
are float32, ``r_i`` (and the plain ``c_j``) whole numbers, which cost no rounding; the factors make up for the rest.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastassoc.backends import Gradients, LossGradient, Needs, Problem, Saved, Walks, visit_gradient
from fastassoc.backends.cpu_products import add_round_trips, apply_kernels
from fastassoc.backends.cpu_tiles import GradientSums, Scores, Scratch, Tiling

_COLUMN_MAJOR_ROWS = 64
"""Blocks of 2 to this many rows multiply about twice as fast where the columns of a tile are contiguous."""


class Normalisers(NamedTuple):
    """``lse_a`` [N] and ``lse_b`` [M] in float64, and the scores of the kept tiles."""

    lse_a: Tensor
    lse_b: Tensor
    kept: Tensor | None


class _Factors(NamedTuple):
    """The vectors of the module's equations."""

    r: Tensor
    c: Tensor
    f: Tensor
    g: Tensor
    u: Tensor
    v: Tensor


def walks(problem: Problem, needs_gradient: bool) -> Walks:
    """See `fastassoc.backends.Backend`. With ``b`` split over ranks, ``lse_a`` would cross ranks between these two."""
    return round_trips(problem, normalisers(problem), needs_gradient)


def normalisers(problem: Problem) -> Normalisers:
    """One exponential, relative to the row maxima of the first tile, serves the sums over rows and over columns."""
    tiling = Tiling(problem)
    kept = tiling.kept_memory(problem)
    scratch = Scratch(problem, tiling)
    column_major = _prefers_column_major(problem)
    scores = Scores(problem)
    lse_b = problem.a.new_empty(problem.b.shape[0], dtype=torch.float64)
    limits = torch.finfo(problem.dtype)
    # A column sum loses what underflows in its exponentials, or in the weights of rows with large exponentials: at most
    # the roundoff squared of a sum that is this large against the sum of all exponentials. NaN compares false.
    smallest_column_sum = limits.tiny / limits.eps**2

    first = next(tiling.tiles(kept))
    row_max = scores.raw(first, out=scratch.shaped(first) if first.kept is None else first.kept).amax(1)
    row_sum = torch.zeros_like(row_max, dtype=torch.float64)
    reference, weight = _column_weight(row_max)
    for tile in tiling.tiles(kept):
        if tile.kept is not None and tile.start:
            scores.raw(tile, out=tile.kept)
        exponentials = scores.exponentials(
            tile, row_max, None, scratch.shaped(tile, column_major and tile.kept is None)
        )
        tile_sum = exponentials.sum(1)
        column_sum = torch.mv(exponentials.t(), weight)
        if column_sum.amin() >= smallest_column_sum * tile_sum.sum().clamp_min_(1.0):
            lse_b[tile.start : tile.stop] = column_sum.double().log_().add_(reference)
            row_sum += tile_sum
            continue
        # Scores far above those of the first tile, or columns far below the maxima of their rows.
        s = scores.raw(tile, out=scratch.shaped(tile)) if tile.kept is None else tile.kept
        if not all(bound.isfinite() for bound in s.aminmax()):
            return Normalisers(torch.full_like(row_sum, math.nan), lse_b.fill_(math.nan), None)
        column_max = s.amax(0)
        lse_b[tile.start : tile.stop] = torch.exp(s - column_max).sum(0).double().log_().add_(column_max)
        previous_max, row_max = row_max, torch.maximum(row_max, s.amax(1))
        row_sum *= torch.exp(previous_max - row_max)
        row_sum += torch.exp(s - row_max.unsqueeze(1)).sum(1)
        reference, weight = _column_weight(row_max)
    return Normalisers(row_sum.log_().add_(row_max), lse_b, kept)


def round_trips(problem: Problem, normaliser: Normalisers, needs_gradient: bool) -> Walks:
    """Visits and round trips in one sweep; saves the normalisers, the kept tiles and ``rho_visit``."""
    lse_a, lse_b, kept = normaliser
    merged = _merges(problem, lse_a, lse_b)
    way_back = problem.walker and not merged
    if way_back:
        kept = None
    tiling = Tiling(problem)
    scratch = Scratch(problem, tiling)
    column_major = _prefers_column_major(problem)
    r, c, f, g, u, v = _factors(lse_a, lse_b, merged, problem.dtype)
    scores = Scores(problem)
    back_scratch = Scratch(problem, tiling) if way_back else None

    rows, columns = problem.blocks.rows, problem.b.shape[0]
    p_aba = f.new_zeros(problem.blocks.target.numel()) if problem.walker else None
    products = [] if p_aba is None else problem.blocks.views(p_aba)
    visit = torch.empty_like(g) if problem.visit else None
    rho_visit = torch.zeros_like(lse_a) if problem.visit and needs_gradient else None
    mean_f = f / rows
    for tile in tiling.tiles(kept):
        span = slice(tile.start, tile.stop)
        out = scratch.shaped(tile, column_major) if tile.kept is None else tile.kept
        t = scores.exponentials(tile, r, c if merged else None, out)
        if visit is not None:
            tile_visit = torch.mul(torch.mv(t.t(), mean_f), g[span], out=visit[span])
            if rho_visit is not None:
                rho_visit += torch.mv(t, visit_gradient(tile_visit, problem.eps, rows, columns).mul_(g[span]))
        q = t
        if back_scratch is not None:
            q = scores.exponentials(tile, None, c, back_scratch.shaped(tile, column_major)).mul_(v[span])
        if problem.walker:
            add_round_trips(problem.blocks, products, t, q)
    if rho_visit is not None:
        rho_visit = rho_visit.to(problem.dtype).mul_(f)
    for bucket, product in zip(problem.blocks.buckets, products, strict=False):
        product *= bucket.rows(f).unsqueeze(2)
        if merged:
            product *= bucket.rows(u).unsqueeze(1)
    return Walks(p_aba, visit, (lse_a, lse_b, kept, rho_visit) if needs_gradient else ())


def gradients(problem: Problem, saved: Saved, gradient: LossGradient, needs: Needs) -> Gradients:
    """``ds`` tile by tile, and its sums.

    Merged, with the symmetric ``k_il = G_il f_i u_l + G_li f_l u_i`` and ``kappa_j = sum_i t_ij (k t)_ij / 2``:

        ds_ij = t_ij [(k t)_ij + f_i g_j h_j - f_i rho_i g_j - u_i v_j kappa_j]
    """
    lse_a, lse_b, kept, rho_visit = saved
    assert lse_a is not None
    assert lse_b is not None
    merged = _merges(problem, lse_a, lse_b)
    way_back = gradient.g is not None and not merged
    tiling = Tiling(problem)
    r, c, f, g, u, v = _factors(lse_a, lse_b, merged, problem.dtype)
    scores = Scores(problem)
    t_scratch, ds_scratch, bracket_scratch = (Scratch(problem, tiling) for _ in range(3))
    back_scratch = Scratch(problem, tiling) if way_back else None
    kernels = _round_trip_kernels(problem, gradient.g, f, u if merged else None)
    sums = GradientSums(problem, scores, needs)

    # Everything in the bracket but the round trips has a rank of at most three.
    left = [f * gradient.rho(problem.blocks, rho_visit)]
    if gradient.h is not None:
        left.append(f)
    if gradient.g is not None and merged:
        left.append(-u)
    left_factor = torch.stack(left, 1)
    for tile in tiling.tiles(kept):
        span = slice(tile.start, tile.stop)
        t = tile.kept
        if t is None:
            t = scores.exponentials(tile, r, c if merged else None, t_scratch.shaped(tile))
        right = [-g[span]]
        if gradient.h is not None:
            right.append(g[span] * gradient.h[span])
        ds = ds_scratch.shaped(tile)
        bracket = bracket_scratch.shaped(tile)
        if gradient.g is not None:
            q = t
            if back_scratch is not None:
                q = scores.exponentials(tile, None, c, back_scratch.shaped(tile)).mul_(v[span])
            apply_kernels(problem.blocks, kernels, q, out=ds)
            ds *= t
            kappa = ds.sum(0)
            if merged:
                right.append(kappa.div_(2).mul_(v[span]))
            torch.mm(left_factor, torch.stack(right), out=bracket)
            ds.addcmul_(t, bracket)
            if way_back:
                apply_kernels(problem.blocks, [kernel.transpose(1, 2) for kernel in kernels], t, out=bracket)
                bracket -= kappa
                ds.addcmul_(q, bracket)
        else:
            torch.mm(left_factor, torch.stack(right), out=ds)
            ds *= t
        sums.add(tile, ds)
    return sums.result()


def _factors(lse_a: Tensor, lse_b: Tensor, merged: bool, dtype: torch.dtype) -> _Factors:
    if merged:
        z = lse_b.mean().round()
        r = lse_a.add(z).div_(2).round_()
        # As it is subtracted, so that the factors see its rounding.
        c = lse_b.sub(z).div_(2).to(dtype).double()
        factors = (r, c, (r - lse_a).exp_(), c.exp(), (r - z).exp_(), (c + z).sub_(lse_b).exp_())
    else:
        r, c = lse_a.round(), lse_b.round()
        one = torch.ones_like(lse_a)
        factors = (r, c, (r - lse_a).exp_(), torch.ones_like(lse_b), one, (c - lse_b).exp_())
    return _Factors(*(x.to(dtype) for x in factors))


def _merges(problem: Problem, lse_a: Tensor, lse_b: Tensor) -> bool:
    """Whether the merged form holds: what underflows, ``tiny exp(spread / 2)``, is under ``eps`` times the roundoff."""
    if not problem.walker or problem.eps == 0.0:
        return False
    limits = torch.finfo(problem.dtype)
    limit = 2.0 * (math.log(problem.eps) + math.log(limits.eps) - math.log(limits.tiny))
    (a_lowest, a_highest), (b_lowest, b_highest) = lse_a.aminmax(), lse_b.aminmax()
    # False where any is NaN.
    return bool(torch.maximum(a_highest, b_highest) - torch.minimum(a_lowest, b_lowest) <= limit)


def _column_weight(row_max: Tensor) -> tuple[Tensor, Tensor]:
    """``c`` and ``exp(row_max - c)``, which turn exponentials relative to ``row_max`` into ones relative to ``c``."""
    reference = row_max.amax()
    return reference, torch.exp(row_max - reference)


def _prefers_column_major(problem: Problem) -> bool:
    """Whether most rows lie in blocks whose round trips multiply faster from column-major tiles."""
    if not problem.walker:
        return False
    small = sum(
        bucket.blocks * bucket.size for bucket in problem.blocks.buckets if 1 < bucket.size <= _COLUMN_MAJOR_ROWS
    )
    return 2 * small > problem.blocks.rows


def _round_trip_kernels(problem: Problem, g: Tensor | None, f: Tensor, u: Tensor | None) -> list[Tensor]:
    """One [blocks, size, size] for each bucket: ``G_ik f_i``, or the symmetric merged ``k`` where ``u`` is given."""
    if g is None:
        return []
    kernels = []
    for bucket, block in zip(problem.blocks.buckets, problem.blocks.views(g), strict=True):
        kernel = block * bucket.rows(f).unsqueeze(2)
        if u is not None:
            kernel *= bucket.rows(u).unsqueeze(1)
            kernel = kernel + kernel.transpose(1, 2)
        kernels.append(kernel)
    return kernels
