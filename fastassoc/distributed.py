"""Rows over the ranks of a process group: what of a loss crosses ranks.

Rank r holds ``N_r`` rows of ``a`` and ``M_r`` of ``b``; ``N`` and ``M`` are their sums. Every rank takes the columns of
the scores that are its own rows of ``b``, against the rows of ``a`` of all ranks, and the passes of a backend stay what
they are: a column is complete on its rank. What is a sum over all columns crosses ranks, and none of it grows with M:

    forward      sizes and options; ``a`` and labels; normalisers of rows; round trips of a class, rho of the visits,
                 and the visits' part of the loss
    backward     ``da``, to the rank whose rows they are

Ranks add in their order, each a part of the numbers, so the sum is the same to the bit on every rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Needs(NamedTuple):
    """Gradients that a rank wants of its own inputs."""

    a: bool
    b: bool
    temperature: bool


class Share(NamedTuple):
    """What a rank brings to a loss."""

    rows: int
    columns: int
    needs: Needs
    options: dict[str, str]
    """By name, what has to be the same on every rank."""


class GroupRanks:
    """The ranks of a group that compute a loss together: `fastassoc.backends.protocol.Ranks`, and what ``a`` takes."""

    def __init__(self, group: ProcessGroup, rows: list[int], columns: list[int], needs: list[Needs]) -> None:
        """Sizes and wants by rank."""
        self._group = group
        self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self._rows = rows
        self.rows, self.columns = sum(rows), sum(columns)
        self.needs_da = any(x.a for x in needs)
        self.needs_gradient = any(any(x) for x in needs)
        # A rank without a gradient is not there for the backward pass.
        self.at_once = self.needs_da and not all(any(x) for x in needs)

    def gather(self, x: Tensor) -> Tensor:
        """[ranks, ...]: ``x`` of every rank, of one shape and dtype."""
        return gathered(self._group, x)

    def sum(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Sums over ranks of tensors of one dtype, of the same shapes on every rank."""
        flat = torch.cat([x.reshape(-1) for x in tensors])
        length = flat.shape[0]
        parts = torch.nn.functional.pad(flat, (0, -length % self.size))
        own = self._exchanged(parts, None, parts.shape[0] // self.size).sum(0)
        sums = self.gather(own).view(-1)[:length].split([x.numel() for x in tensors])
        return tuple(part.view(x.shape) for part, x in zip(sums, tensors, strict=True))

    def all_rows(self, a: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """``a`` [N, D] and labels [N], as int64 on its device, of all ranks."""
        rows = a.shape[0]
        columns = [x.detach().resolve_neg().contiguous() for x in (a, labels.to(a.device, torch.int64).unsqueeze(1))]
        record = torch.cat([x.view(torch.uint8) for x in columns], 1)
        padded = torch.nn.functional.pad(record, (0, 0, 0, max(self._rows) - rows))
        found = torch.cat([x[:count] for x, count in zip(self.gather(padded), self._rows, strict=True)])
        parts = found.split([record.shape[1] - 8, 8], dim=1)
        # Memory of their own begins where numbers of their dtypes may.
        all_a, all_labels = (x.clone(memory_format=torch.contiguous_format) for x in parts)
        return all_a.view(a.dtype), all_labels.view(torch.int64).view(-1)

    def of_first(self, numbers: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        """Those of the first rank, 0-d, for all: others may round the last bit apart (processor, threads)."""
        present = [x for x in numbers if x is not None]
        first = iter(self.gather(torch.stack(present))[0].unbind())
        return tuple(None if x is None else next(first) for x in numbers)

    def own_rows(self, x: Tensor) -> Tensor:
        """Rows of this rank in the sum over ranks of ``x`` [N, ...]."""
        return self._exchanged(x.contiguous(), self._rows, self._rows[self.rank]).sum(0)

    def _exchanged(self, x: Tensor, sent: list[int] | None, received: int) -> Tensor:
        """[ranks, received, ...]: this rank's part of every rank's ``x``, which sends so many rows to each."""
        out = x.new_empty((self.size, received, *x.shape[1:]))
        counts = None if sent is None else [received] * self.size
        dist.all_to_all_single(out.view(-1, *x.shape[1:]), x, counts, sent, group=self._group)
        return out


def gathered(group: ProcessGroup, x: Tensor) -> Tensor:
    """[ranks, ...]: ``x`` of every rank, of one shape and dtype."""
    x = x.contiguous()
    out = x.new_empty((dist.get_world_size(group), *x.shape))
    dist.all_gather(list(out.unbind(0)), x, group=group)
    return out


def meet(group: ProcessGroup, a: Any, bring: Callable[[], tuple[Share, Any]]) -> tuple[GroupRanks, Any]:
    """The ranks of this loss, and what ``bring`` gives beside a share: the first to cross ranks.

    Where ``bring`` raises on any rank, or options differ, every rank raises, and none is left waiting for another.
    ``a`` may be anything, and says which GPU is this rank's if it lies on one.
    """
    device = _device(group, a)
    own, made, error = Share(0, 0, Needs(False, False, False), {}), None, None
    try:
        own, made = bring()
    except Exception as raised:
        error = raised
    digest = hashlib.sha256(repr(own.options).encode()).digest()
    numbers = [int(error is None), own.rows, own.columns, *own.needs, int.from_bytes(digest[:7], "big")]
    header = torch.tensor(numbers, dtype=torch.int64, device=device)
    found = gathered(group, header).tolist()
    if not all(good for good, *_ in found):
        _raise_together(group, error)
    if len({line[-1] for line in found}) > 1:
        _raise_difference(group, own.options)
    _, rows, columns, *needs, _ = zip(*found, strict=True)
    wanted = [Needs(*map(bool, x)) for x in zip(*needs, strict=True)]
    return GroupRanks(group, list(rows), list(columns), wanted), made


def _device(group: ProcessGroup, a: Any) -> torch.device:
    """One whose tensors the group exchanges."""
    backends = dist.get_backend_config(group)
    if "cpu:" in backends:
        return torch.device("cpu")
    if "cuda:" not in backends:
        raise RuntimeError(f"group must exchange tensors on the CPU or on CUDA; its backend is {backends}")
    return a.device if isinstance(a, Tensor) and a.is_cuda else torch.device("cuda", torch.cuda.current_device())


def _raise_together(group: ProcessGroup, error: Exception | None) -> None:
    messages: list[str | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(messages, None if error is None else f"{type(error).__name__}: {error}", group=group)
    if error is not None:
        raise error
    raised = [f"rank {rank} raised {message}" for rank, message in enumerate(messages) if message is not None]
    raise RuntimeError(f"the loss over all ranks was not computed, because {'; '.join(raised)}")


def _raise_difference(group: ProcessGroup, options: dict[str, str]) -> None:
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, options, group=group)
    for name in options:
        values = [x[name] for x in everyone]
        if any(x != values[0] for x in values):
            listed = ", ".join(f"{value} on rank {rank}" for rank, value in enumerate(values))
            raise ValueError(f"{name} must be the same on every rank; got {listed}")
    raise AssertionError("digests differ, and options do not")
