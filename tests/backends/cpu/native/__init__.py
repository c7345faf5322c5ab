"""Tests of machine code."""
