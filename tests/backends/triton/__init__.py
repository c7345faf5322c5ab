"""Tests of the Triton backend: what shows without running a kernel."""
