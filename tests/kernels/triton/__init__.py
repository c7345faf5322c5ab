"""Tests of the Triton kernels: natively on a CUDA GPU, else in Triton's interpreter (tests/test_kernels.py)."""
