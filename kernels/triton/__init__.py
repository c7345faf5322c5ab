"""Triton kernels, one pass per file; tile mathematics in `primitives`."""
