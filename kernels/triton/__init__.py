"""Triton kernels, one pass per file.

Forward:

| pass | module | fills |
|---|---|---|
| 1 | `class_sizes` | ``classes`` |
| 2 | `normalisers`, ``row_normalisers`` | ``row_parts`` |
| 3 | `rows`, with `layout` | ``rows``, ``slots``, ``tiles``, ``counts`` |
| 4 | `normalisers`, ``column_normalisers`` | ``columns``, ``extremes``, ``visit``, ``visit_parts`` |
| 5 | `forms` | the form of the steps: ``weights``, ``columns``, ``counts`` |
| 6 | `row_operands` | ``a`` in the order of the slots, as all later passes take it, backward too |
| 7 | `steps` | ``steps`` |
| 8 | `round_trips` | ``trips``, ``rho`` |
| 9 | `walker` | ``walker_parts``, ``g``, both ``rho`` of ``weights`` |
| 10 | `losses` | the losses and the statistics |

Passes 7 and 8 take the columns range by range. Backward, where steps are stored, `terms` fills ``row_terms``. Then, of
each range:

| pass | module | fills |
|---|---|---|
| 1 | `steps` | ``steps``, again |
| 2 | `score_gradients` | ``exact``, ``kappa_parts`` |
| 3 | `kappa`, ``take_off_kappa`` | ``ds`` |
| 4 | `row_gradients` | ``da_parts``, ``dbias_a_parts`` |
| 5 | `column_gradients` | ``db``, ``dbias_b`` or shares of them |
| 6 | `shares` | ``db``, ``dbias_b`` from their shares and, after the last range, ``da``, ``dbias_a`` |

Where classes are known to fit a tile each and steps to be in the merged form, passes that need steps or gradients of
scores compute them (`steps`); up to 2,048 rows the device chooses how. In the place of passes 1 to 3 are then

| pass | module | fills |
|---|---|---|
| 1 | `kappa` | ``kappa_parts`` |
| 2 | `terms` | ``row_terms``, ``terms`` |

Forward and backward compute the scores four times where steps are stored (``12 N M D`` operations with the gradients
of the embeddings), else six (``16 N M D``).
`row_operands` also comes before the normalisers where products of scores take float32 in other numbers: it rounds or
splits ``a`` in its own order.

`buffers` says what every buffer holds, and is what kernels and host agree on. `primitives` has tile mathematics that
passes share; `configs` has the tiles.
"""
