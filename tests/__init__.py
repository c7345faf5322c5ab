"""Tests of fastassoc; `python -m pytest` from the root runs them."""
