"""Home of the Triton kernels, imported as ``fastassoc.kernels``; this version has none.

Names, wherever kernels and passes meet:

| name | shape | meaning |
|---|---|---|
| ``a``, ``b`` | [N, D], [M, D] | labelled and unlabelled embeddings |
| ``lse_a``, ``lse_b`` | [N], [M] | normalisers of the scores over columns and over rows |
| ``p_ab``, ``p_ba``, ``p_aba`` | [N, M], [M, N], [N, N] | step, step back, round trip |
| ``visit`` | [M] | visit probability |
| ``da``, ``db`` | [N, D], [M, D] | gradients |
"""

if __name__ != "fastassoc.kernels":
    raise ImportError(f"the kernels are the package fastassoc.kernels, not {__name__}; import that")
