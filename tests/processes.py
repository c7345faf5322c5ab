"""Processes of a group that stay, so that a test does not wait for them to start."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.multiprocessing as mp

_SECONDS = 120
"""After so long a rank is taken to wait for one that never comes."""


class RankError(RuntimeError):
    """What a function raised on some rank."""


class Processes:
    """So many ranks of a gloo group."""

    def __init__(self, size: int, interpreted: bool = False) -> None:
        """``interpreted``: whether Triton interprets kernels there."""
        self.alive = True
        self._folder = tempfile.TemporaryDirectory()
        context = mp.get_context("spawn")
        meeting = Path(self._folder.name) / "meeting"
        self._pipes, self._processes = [], []
        for rank in range(size):
            own, others = context.Pipe()
            process = context.Process(target=_serve, args=(rank, size, meeting.as_uri(), others), daemon=True)
            with _environment(TRITON_INTERPRET=str(int(interpreted)), OMP_NUM_THREADS="1"):
                process.start()
            # A rank that dies then ends its pipe.
            others.close()
            self._pipes.append(own)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What ``function(rank, *arguments)`` gives on every rank; an exception as `RankError` in its place."""
        results = []
        try:
            for rank, pipe in enumerate(self._pipes):
                pipe.send((function, (rank, *arguments)))
            for rank, pipe in enumerate(self._pipes):
                if not pipe.poll(_SECONDS):
                    raise TimeoutError(f"rank {rank} waits in {function.__name__}")
                results.append(pipe.recv())
        except BaseException:
            self.stop()
            raise
        return results

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """As `run`, but raises what a rank raised."""
        results = self.run(function, *arguments)
        for x in results:
            if isinstance(x, RankError):
                raise x
        return results

    def stop(self) -> None:
        """Ends them."""
        self.alive = False
        for process in self._processes:
            process.kill()
            process.join()
        self._folder.cleanup()


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve(rank: int, size: int, meeting: str, pipe: Any) -> None:
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(function(*arguments))
        except Exception as error:
            pipe.send(RankError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
