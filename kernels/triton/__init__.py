"""Triton kernels, one pass per file.

| pass | module | fills |
|---|---|---|
| 1 | `class_sizes` | ``classes`` |
| 2 | `normalisers` | ``columns``, ``row_parts`` |
| 3 | `rows` | ``rows``, ``slots``, ``tiles``, ``counts`` |
| 4 | `visits` | ``visit``, ``visit_parts``, ``h`` of ``columns`` |
| 5 | `round_trips` | ``trips``, ``rho`` |
| 6 | `walker` | ``walker_parts``, ``g``, both ``rho`` of ``rows`` |
| 7 | `losses` | the losses and the statistics |
| backward 1 | `kappa` | ``kappa`` |
| backward 2 | `column_gradients` | ``db``, ``dbias_b`` |
| backward 3 and 4 | `row_gradients` | ``da``, ``dbias_a`` |

`buffers` says what every buffer holds, and is what kernels and host agree on. `primitives` and `gradients` are tile
mathematics that passes share; `configs` has the tiles.
"""
