"""The kernels, imported as ``fastassoc.kernels``: Triton here, one pass per file, tile mathematics in `primitives`; for
x86-64 processors in `fastassoc.kernels.cpu`, whose names `fastassoc.kernels.cpu.forward` explains.

Names, wherever Triton kernels and passes meet:

| name | shape | meaning |
|---|---|---|
| ``a``, ``b`` | [N, D], [M, D] | labelled and unlabelled embeddings |
| ``lse_a``, ``lse_b`` | [N], [M] | normalisers of the scores over columns and over rows, as pairs ``(m, 1 / l)`` |
| ``p_ab``, ``p_ba``, ``p_aba`` | [N, M], [M, N], [N, N] | step, step back, round trip |
| ``q`` | [N, M] | step back, indexed like the scores: ``q_ij = p_ba_ji`` |
| ``visit`` | [M] | visit probability |
| ``g``, ``h`` | [N, N], [M] | the losses differentiated by ``p_aba`` and, through the visits, by ``p_ab`` |
| ``rows`` | [4, N] | maximum, inverse sum, ``rho`` of the walker and of the visits |
| ``columns`` | [3, M] | maximum, inverse sum, ``h`` |
| ``kappa`` | [M] | ``sum_i p_ab_ij sum_k g_ik q_kj`` |
| ``slots``, ``tiles`` | | rows in the order of class tiles, and the tiles; see `fastassoc.kernels.triton.rows` |
| ``da``, ``db`` | [N, D], [M, D] | gradients |
"""

if __name__ != "fastassoc.kernels":
    raise ImportError(f"the kernels are the package fastassoc.kernels, not {__name__}; import that")
