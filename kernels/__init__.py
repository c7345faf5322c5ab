"""The kernels, imported as ``fastassoc.kernels``: `fastassoc.kernels.triton` and, for x86-64, `fastassoc.kernels.cpu`.

Names of what they compute, to which `fastassoc.kernels.triton.buffers` adds those of buffers, and
`fastassoc.kernels.cpu.forward` those of the factors that it computes in (``g`` is another there):

| name | shape | meaning |
|---|---|---|
| ``a``, ``b`` | [N, D], [M, D] | labelled and unlabelled embeddings |
| ``lse_a``, ``lse_b`` | [N], [M] | normalisers of the scores over columns and over rows, as pairs ``(m, 1 / l)`` |
| ``p_ab``, ``p_ba``, ``p_aba`` | [N, M], [M, N], [N, N] | step, step back, round trip |
| ``q`` | [N, M] | step back, indexed like the scores: ``q_ij = p_ba_ji`` |
| ``visit`` | [M] | visit probability |
| ``g``, ``h`` | [N, N], [M] | the losses differentiated by ``p_aba`` and, through the visits, by ``p_ab`` |
| ``rho`` | [N] | ``sum_k g_ik p_aba_ik`` of the walker, ``sum_j p_ab_ij h_j`` of the visits |
| ``kappa`` | [M] | ``sum_i p_ab_ij sum_k g_ik q_kj`` |
| ``da``, ``db`` | [N, D], [M, D] | gradients |
"""

if __name__ != "fastassoc.kernels":
    raise ImportError(f"the kernels are the package fastassoc.kernels, not {__name__}; import that")
