"""The MNIST experiment of the paper (section 4): `python -m benchmarks.mnist`."""
