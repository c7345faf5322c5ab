"""Measurements and experiments around `fastassoc`; run from the root of the repository, installed or not."""
