"""Tests of what torch operations compute."""
