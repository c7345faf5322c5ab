"""Tests of the Triton kernels: natively on a CUDA GPU, else interpreted (tests/kernels/test_interpreter.py)."""
