"""Peak memory of one forward and backward pass on the CPU: ``python -m benchmarks.memory``.

Each provider runs in a fresh process. The figure is the growth of the process's peak resident size over inputs and
gradients: the peak (VmHWM, which Linux resets on request) less the size just before, with inputs, gradients and the
libraries' own buffers already in memory.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import benchmarks.eager
import fastassoc

PROVIDERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "fastassoc": fastassoc.walker_visit_loss,
    "eager": benchmarks.eager.walker_visit_loss,
}
MIB = 2**20


def resident(field: str) -> float:
    """``VmRSS`` or ``VmHWM`` of this process in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def peak_growth(provider: str, n: int, m: int, d: int, classes: int) -> float:
    """MiB beyond inputs and gradients."""
    loss = PROVIDERS[provider]
    a, b = (torch.randn(rows, d).mul_(0.55).requires_grad_() for rows in (n, m))
    labels = torch.arange(n) % classes
    # The same operations at a small size load the libraries; their gradients are thrown away.
    loss(a[:64], b[:64], labels[:64]).backward()
    gradients = [torch.zeros_like(x).fill_(1.0) for x in (a, b)]
    a.grad = b.grad = None
    before = resident("VmRSS")
    del gradients
    Path("/proc/self/clear_refs").write_text("5")
    loss(a, b, labels).backward()
    return resident("VmHWM") - before


def main(arguments: list[str] | None = None) -> int:
    """Prints one line for each provider."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.split("\n\n")[0])
    parser.add_argument("--n", type=int, default=2048, help="labelled rows (default: %(default)s)")
    parser.add_argument("--m", type=int, default=65536, help="unlabelled rows (default: %(default)s)")
    parser.add_argument("--d", type=int, default=128, help="embedding size (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=10, help="classes (default: %(default)s)")
    parser.add_argument("--provider", choices=PROVIDERS, help="only this one, in this process (default: all in turn)")
    options = parser.parse_args(arguments)
    if options.provider is None:
        for provider in PROVIDERS:
            rest = sys.argv[1:] if arguments is None else arguments
            subprocess.run([sys.executable, "-m", "benchmarks.memory", *rest, "--provider", provider], check=True)
        return 0
    growth = peak_growth(options.provider, options.n, options.m, options.d, options.classes)
    print(f"{options.provider}, MiB beyond inputs and gradients: {growth:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
