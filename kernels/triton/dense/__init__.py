"""Passes for batches so small that launches, not arithmetic, are what they cost (`fastassoc.backends.triton.dense`).

Labels need no layout: all rows meet all rows, and labels are compared where classes matter. A matrix with a number for
every row and column is kept, so scores are computed once. Steps are in the plain form; their exponentials are computed
again for every pair of tiles of rows.

| pass | module | fills |
|---|---|---|
| 1 | `scores` | scores, shares of both normalisers |
| 2 | `trips` | ``p_ab``, ``q``, shares of the visits and of ``p_aba`` |
| 3 | `walk` | ``g``, ``h``, shares of the losses; with one program the losses |
| 4 | `walk`, ``dense_losses`` | the losses, where pass 3 has several programs |
| 5 | `score_gradients` | gradients of the scores, but for ``rho`` and ``kappa``, and shares of these |
| 6 | `embedding_gradients` | ``da``, ``db``, ``dbias_a``, ``dbias_b`` |

Passes 1 to 4 are the forward pass, 5 and 6 the backward pass. Where one tile has all rows and all columns, each is one
program (`one_tile`). `buffers` says where everything is.
"""
