"""Sweeps over tiles of columns that stay in cache, in torch operations that write in place.

A tile is all N rows of the scores against a range of columns of ``b``, so a column is complete inside one tile. One
exponential per score serves the sums over rows, the sums over columns and the round trips of a class, for the sums over
rows only scale the round trips once all columns are in. With a row shift r fixed by the first tile and any constant z:

    e_ij = exp(s_ij - r_i)            R_i = sum_j e_ij              C_j = sum_i e_ij u_i          u_i = exp(r_i - z)
    t_ij = e_ij y_j                   y_j = C_j^-1/2
    p_ab_ij = t_ij f_i g_j            f_i = 1 / R_i                 g_j = 1 / y_j
    p_ba_ji = t_ij u_i v_j            v_j = 1 / (C_j y_j)           p_aba_ik = (t t')_ik f_i u_k

So the round trips of a class are one symmetric product, and so is their gradient. The visits need R before they can sum
a column and take a second sweep, the gradients a third. ``t`` is kept between sweeps where it fits (`Tiling`).

What underflows in this merged form changes every term of ``p_aba`` by less than ``eps`` times the unit roundoff while
the factors lie within limits (`_holds`): in float32 where no logarithms of R and C, unshifted, are 100 apart.
Beyond, and for an ``eps`` of 0, the form is plain: normalisers first, two exponentials, two products, nothing kept:

    t_ij = exp(s_ij - r_i)            r_i = max_j s_ij              p_ab_ij = t_ij f_i            g_j = u_i = 1
    q_ij = exp(s_ij - c_j) v_j        c_j = max_i s_ij              p_ba_ji = q_ij

with f and v the inverses of the sums of these exponentials. Sums are float64: the rows of ``p_ab`` must sum to one to
the last bit of float32, or the gradient, a difference of nearly equal terms, is lost. No logarithm of a sum is held: in
float32 one of 10 is already off by 5e-7, and in float64 one of 1e16 has lost the sum. Shifts of the merged form are
whole numbers, which cost next to no rounding.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastassoc.backends.cpu.operations.class_blocks import ClassBlocks
from fastassoc.backends.cpu.operations.products import SymmetricTrips, add_round_trips, apply_kernels
from fastassoc.backends.cpu.operations.terms import visit_gradient
from fastassoc.backends.cpu.operations.tiling import GradientSums, Problem, Scores, Scratch, Tile, Tiling
from fastassoc.backends.protocol import Gradients, Needs, Ranks, Saved

_UNSHIFTED = 40.0
"""Scores up to this size need no shift: their exponentials are far from the limits of float32."""


class Walks(NamedTuple):
    """What the forward sweeps leave behind."""

    p_aba: Tensor | None
    """Flat class blocks (`ClassBlocks.views`) of the round trips, or None where they are not wanted."""
    visit_probability: Tensor | None
    """[M], or None where it is not wanted."""
    rho_visit: Tensor | None
    """[N]: ``sum_j p_ab_ij h_j`` at an upstream gradient of 1; None without visits or without a gradient."""
    saved: Saved
    """Tensors that `gradients` wants back; empty where no gradient is needed."""


class TermGradients(NamedTuple):
    """The terms differentiated by ``p_aba`` and by the visits' share of ``p_ab``, and what that was computed from."""

    p_aba: Tensor | None
    g: Tensor | None
    """Flat class blocks of dL/dp_aba; None without a walker gradient."""
    h: Tensor | None
    """[M], dL/dp_ab_ij of the visit loss, the same for every row i; None without a visit gradient."""
    rho_visit: Tensor | None
    """As in `Walks`."""
    upstream_visit: float | None
    """The upstream gradient of the visit loss, already in ``h``."""

    def rho(self, blocks: ClassBlocks) -> Tensor:
        """[N]: ``sum_j p_ab_ij dL/dp_ab_ij``."""
        rho = None if self.g is None or self.p_aba is None else blocks.row_sums(self.g * self.p_aba)
        if self.upstream_visit is None or self.rho_visit is None:
            assert rho is not None
            return rho
        of_visits = self.rho_visit * self.upstream_visit
        return of_visits if rho is None else rho.add_(of_visits)


class _Factors(NamedTuple):
    """The vectors of the module's equations."""

    r: Tensor | None
    """None stands for 0."""
    c: Tensor | None
    """None in the merged form."""
    y: Tensor | None
    """None in the plain form."""
    f: Tensor
    g: Tensor
    u: Tensor
    v: Tensor


class RowSums:
    """Sums of exponentials of rows over the columns of all ranks."""

    def __init__(self, ranks: Ranks | None) -> None:
        self._ranks = ranks
        self._gathered: Tensor | None = None

    def of_all(self, r: Tensor | None, row_sum: Tensor) -> Tensor:
        """``R_i`` [N] of all columns relative to ``r``, from that of this rank's.

        Ranks tell one another theirs the first time; this rank's may be relative to another ``r`` when it asks again.
        """
        if self._ranks is None:
            return row_sum
        shift = torch.zeros_like(row_sum) if r is None else r.double()
        if self._gathered is None:
            self._gathered = self._ranks.gather(torch.stack((shift, row_sum)))
        shifts, sums = self._gathered.unbind(1)
        return (shifts - shift).exp_().mul_(sums).sum(0)


def walks(problem: Problem, needs_gradient: bool) -> Walks:
    """Normalisers of rows and columns, visits and round trips; the last, and ``rho``, over this rank's columns."""
    row_sums = RowSums(problem.ranks)
    merged = merged_walks(problem, needs_gradient, row_sums) if problem.eps > 0.0 else None
    return plain_walks(problem, needs_gradient, row_sums) if merged is None else merged


def merged_walks(problem: Problem, needs_gradient: bool, row_sums: RowSums) -> Walks | None:
    """The merged form, or None where it does not hold."""
    tiling = Tiling(problem)
    kept = tiling.kept_memory(problem, needs_gradient)
    scratch, sums_scratch = (Scratch(problem, tiling) for _ in range(2))
    scores = Scores(problem, tiling)
    row_sum = problem.a.new_zeros(problem.blocks.rows, dtype=torch.float64)
    column_sum, y = (problem.a.new_empty(problem.b.shape[0], dtype=problem.dtype) for _ in range(2))
    trips = r = u = None
    for tile in tiling.tiles(kept):
        span = tile.columns
        t = scores.raw(tile, out=scratch.shaped(tile) if tile.kept is None else tile.kept)
        if u is None:
            r, u = _shift(t)
            if problem.walker:
                trips = SymmetricTrips(problem.blocks, tiling.width, underflow=r is not None)
        _exponentials(t, None if r is None else r.unsqueeze(1), r is not None)
        row_sum += t.sum(1)
        weights = None if r is None else u
        _column_sums(t, weights, sums_scratch.shaped(tile), out=column_sum[span])
        _scaled(t, torch.rsqrt(column_sum[span], out=y[span]), r is not None)
        if trips is not None:
            trips.add(t)
    assert u is not None
    # What does not hold for a rank's own columns must not reach the others.
    if not _holds(problem, row_sum.reciprocal().to(problem.dtype), u, y):
        return None
    f = row_sums.of_all(r, row_sum).reciprocal_().to(problem.dtype)
    if problem.ranks is not None and not _holds(problem, f, u, y):
        return None
    v = (y.double() * column_sum).reciprocal_().to(problem.dtype)
    factors = _Factors(r, None, y, f, y.reciprocal(), u, v)
    p_aba = None
    if trips is not None:
        p_aba = trips.result()
        for bucket, product in zip(problem.blocks.buckets, problem.blocks.views(p_aba), strict=True):
            product *= bucket.rows(f).unsqueeze(2)
            product *= bucket.rows(u).unsqueeze(1)
    visits = _Visits(problem, factors, sums_scratch, needs_gradient) if problem.visit else None
    if visits is not None:
        for tile in tiling.tiles(kept):
            visits.add(tile, _steps_out(scores, tile, factors, scratch))
    visit, rho_visit = (None, None) if visits is None else visits.result()
    return Walks(p_aba, visit, rho_visit, (*factors, kept) if needs_gradient else ())


def plain_walks(problem: Problem, needs_gradient: bool, row_sums: RowSums) -> Walks:
    """The plain form: any finite scores, and NaN where they are not finite."""
    (r, row_sum), (c, column_sum) = normalisers(problem)
    row_sum = row_sums.of_all(r, row_sum)
    f, v = (x.reciprocal_().to(problem.dtype) for x in (row_sum, column_sum))
    factors = _Factors(r, c, None, f, torch.ones_like(v), torch.ones_like(f), v)
    tiling = Tiling(problem)
    scratch, back_scratch = (Scratch(problem, tiling) for _ in range(2))
    scores = Scores(problem, tiling)
    # What adds up a tile's visits and what walks back from it take turns.
    p_aba = f.new_zeros(problem.blocks.minus_target.numel()) if problem.walker else None
    products = [] if p_aba is None else problem.blocks.views(p_aba)
    visits = _Visits(problem, factors, back_scratch, needs_gradient) if problem.visit else None
    for tile in tiling.tiles(None):
        t = _steps_out(scores, tile, factors, scratch)
        if visits is not None:
            visits.add(tile, t)
        if products:
            add_round_trips(problem.blocks, products, t, _steps_back(scores, tile, factors, back_scratch))
    for bucket, product in zip(problem.blocks.buckets, products, strict=False):
        product *= bucket.rows(f).unsqueeze(2)
    visit, rho_visit = (None, None) if visits is None else visits.result()
    return Walks(p_aba, visit, rho_visit, (*factors, None) if needs_gradient else ())


def normalisers(problem: Problem) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Of rows, and of columns: the largest score, and the sum, in float64, of the exponentials of scores less that.

    The pair is the logarithm of the sum of exponentials, whatever the scores; the sum is NaN where any is not finite.
    """
    tiling = Tiling(problem)
    scratch, exponential_scratch = (Scratch(problem, tiling) for _ in range(2))
    scores = Scores(problem, tiling)
    column_max = problem.a.new_empty(problem.b.shape[0], dtype=problem.dtype)
    column_sum = torch.empty_like(column_max, dtype=torch.float64)
    row_max = problem.a.new_full((problem.blocks.rows,), -math.inf, dtype=problem.dtype)
    row_sum = torch.zeros_like(row_max, dtype=torch.float64)
    for tile in tiling.tiles(None):
        s = scores.raw(tile, out=scratch.shaped(tile))
        if not all(bound.isfinite() for bound in s.aminmax()):
            return (row_max, row_sum.fill_(math.nan)), (column_max.zero_(), column_sum.fill_(math.nan))
        out = exponential_scratch.shaped(tile)
        highest = torch.amax(s, 0, out=column_max[tile.columns])
        column_sum[tile.columns] = torch.sub(s, highest, out=out).exp_().sum(0)
        previous_max, row_max = row_max, torch.maximum(row_max, s.amax(1))
        row_sum *= torch.exp(previous_max - row_max)
        row_sum += torch.sub(s, row_max.unsqueeze(1), out=out).exp_().sum(1)
    return (row_max, row_sum), (column_max, column_sum)


class _Visits:
    """Visit probabilities, a tile at a time, and the ``rho`` of their gradient."""

    def __init__(self, problem: Problem, factors: _Factors, scratch: Scratch, needs_gradient: bool) -> None:
        self.problem = problem
        self.factors = factors
        self.scratch = scratch
        self.mean_f = factors.f / problem.blocks.rows
        self.visit = torch.empty_like(factors.g)
        self.rho = torch.zeros_like(factors.f, dtype=torch.float64) if needs_gradient else None

    def add(self, tile: Tile, t: Tensor) -> None:
        """The visits of a tile's columns."""
        span = tile.columns
        g = self.factors.g[span]
        visit = _column_sums(t, self.mean_f, self.scratch.shaped(tile), out=self.visit[span]).mul_(g)
        if self.rho is not None:
            h = visit_gradient(visit, self.problem.eps, self.problem.blocks.rows, self.problem.columns)
            self.rho += torch.mul(t, h.mul_(g), out=self.scratch.shaped(tile)).sum(1)

    def result(self) -> tuple[Tensor, Tensor | None]:
        """``visit`` [M] and ``rho_visit`` [N] at an upstream gradient of 1."""
        return self.visit, None if self.rho is None else self.rho.to(self.visit.dtype).mul_(self.factors.f)


def gradients(problem: Problem, saved: Saved, gradient: TermGradients, needs: Needs) -> Gradients:
    """``ds`` tile by tile, and its sums.

    Merged, with the symmetric ``k_il = G_il f_i u_l + G_li f_l u_i`` and ``kappa_j = sum_i t_ij (k t)_ij / 2``:

        ds_ij = t_ij [(k t)_ij + f_i g_j h_j - f_i rho_i g_j - u_i v_j kappa_j]
    """
    *vectors, kept = saved
    factors = _Factors(*vectors)  # type: ignore[arg-type]
    f, g, u, v = factors.f, factors.g, factors.u, factors.v
    merged = factors.c is None
    tiling = Tiling(problem)
    scores = Scores(problem, tiling)
    t_scratch, ds_scratch, bracket_scratch = (Scratch(problem, tiling) for _ in range(3))
    back_scratch = None if merged or gradient.g is None else Scratch(problem, tiling)
    kernels = _round_trip_kernels(problem, gradient.g, f, u if merged else None)
    sums = GradientSums(problem, scores, needs)

    # Everything in the bracket but the round trips has a rank of at most three; kappa comes tile by tile.
    left, right = [f * gradient.rho(problem.blocks)], [-g]
    if gradient.h is not None:
        left.append(f)
        right.append(g * gradient.h)
    if gradient.g is not None and merged:
        left.append(u * -0.5)
        right.append(v)
    left_factor, right_factor = torch.stack(left, 1), torch.stack(right)
    for tile in tiling.tiles(kept):
        span = tile.columns
        t = _steps_out(scores, tile, factors, t_scratch)
        ds = ds_scratch.shaped(tile)
        bracket = bracket_scratch.shaped(tile)
        tile_factor = right_factor[:, span]
        if gradient.g is None:
            torch.mm(left_factor, tile_factor, out=ds)
            ds *= t
        elif merged:
            apply_kernels(problem.blocks, kernels, t, out=ds)
            tile_factor[-1] *= torch.mul(ds, t, out=bracket).sum(0)
            ds.addmm_(left_factor, tile_factor)
            ds *= t
        else:
            assert back_scratch is not None
            q = _steps_back(scores, tile, factors, back_scratch)
            apply_kernels(problem.blocks, kernels, q, out=ds)
            ds *= t
            kappa = ds.sum(0)
            ds.addcmul_(t, torch.mm(left_factor, tile_factor, out=bracket))
            apply_kernels(problem.blocks, [kernel.transpose(1, 2) for kernel in kernels], t, out=bracket)
            bracket -= kappa
            ds.addcmul_(q, bracket)
        sums.add(tile, ds)
    return sums.result()


def _shift(s: Tensor) -> tuple[Tensor | None, Tensor]:
    """``r`` and ``u`` from the scores of the first tile: about half way between the scores of a row and z.

    z is a low column of the tile, so that ``e`` underflows no sooner than ``t`` in columns above it.
    """
    lowest, highest = s.aminmax()
    if -lowest <= _UNSHIFTED and highest <= _UNSHIFTED:
        return None, s.new_ones(s.shape[0])
    z = s.amax(0).amin().round_()
    r = s.amax(1).add_(z).div_(2.0).round_()
    return r, (r - z).exp_()


def _holds(problem: Problem, f: Tensor, u: Tensor, y: Tensor) -> bool:
    """Whether all is finite, and what underflows in ``e`` or ``t`` below ``eps`` times the roundoff of a probability.

    What is lost of ``e`` or ``t`` is at most x, the lowest exponential that is not flushed: ``x f_i max(1, g_j)`` of
    ``p_ab_ij`` and ``x u_i y_j max(1, y_j)`` of ``p_ba_ji``.
    """
    limits = torch.finfo(problem.dtype)
    limit = problem.eps * limits.eps / math.exp(_lowest_exponent(problem.dtype))
    (f_low, f_high), (u_low, u_high), (y_low, y_high) = (map(float, x.aminmax()) for x in (f, u, y))
    # False where any is NaN; the products of the round trips are at most 1 / (f_i u_k).
    return (
        f_high <= limit * min(1.0, y_low)
        and u_high * y_high * max(1.0, y_high) <= limit
        and f_high * u_high <= limit
        and f_low * u_low * limits.max >= 1.0
    )


def _column_sums(t: Tensor, weights: Tensor | None, scratch: Tensor, out: Tensor) -> Tensor:
    """``sum_i t_ij weights_i``, by a sum: a product with a vector adds one term after another.

    Of 8,000 equal terms that loses ten bits.
    """
    if weights is not None:
        t = torch.mul(t, weights.unsqueeze(1), out=scratch)
    return torch.sum(t, 0, out=out)


def _steps_out(scores: Scores, tile: Tile, factors: _Factors, scratch: Scratch) -> Tensor:
    """``t`` of the tile."""
    if tile.kept is not None:
        return tile.kept
    t = scores.raw(tile, out=scratch.shaped(tile))
    shifted = factors.r is not None
    flush = shifted and scores.problem.eps > 0.0
    _exponentials(t, None if factors.r is None else factors.r.unsqueeze(1), flush)
    if factors.y is None:
        return _scaled(t, None, flush)
    return _scaled(t, factors.y[tile.columns], flush)


def _steps_back(scores: Scores, tile: Tile, factors: _Factors, scratch: Scratch) -> Tensor:
    """``q`` of the tile in the plain form."""
    assert factors.c is not None
    span = tile.columns
    flush = scores.problem.eps > 0.0
    q = _exponentials(scores.raw(tile, out=scratch.shaped(tile)), factors.c[span], flush)
    return _scaled(q, factors.v[span], flush)


def _exponentials(s: Tensor, shift: Tensor | None, flush: bool) -> Tensor:
    """``exp(s - shift)``, in the memory of ``s``; with ``flush`` none is subnormal.

    Arithmetic with subnormal numbers, and exponentials that underflow, take up to a hundred times as long.
    """
    if shift is not None:
        s -= shift
    if flush:
        s.clamp_min_(_lowest_exponent(s.dtype))
    return s.exp_()


def _scaled(e: Tensor, factor: Tensor | None, flush: bool) -> Tensor:
    """``e`` times a factor for each column, in place; with ``flush`` what is lost anyway (`_holds`) is 0."""
    if factor is not None:
        e *= factor
    return torch.threshold_(e, 1.001 * math.exp(_lowest_exponent(e.dtype)), 0.0) if flush else e


def _lowest_exponent(dtype: torch.dtype) -> int:
    """Its exponential, a few times over or under, is a normal number."""
    return math.ceil(math.log(torch.finfo(dtype).tiny)) + 1


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
