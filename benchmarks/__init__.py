"""Measurements and experiments around `fastassoc`; run from the root of the repository, installed or not."""

INSTALL_DEMO = "pip install -c constraints.txt -e '.[demo]'"
"""What brings the packages of the experiments, from the root of the repository."""
