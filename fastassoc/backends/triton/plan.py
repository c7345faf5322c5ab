"""Sizes, tiles and grids of a call, and the arguments that most kernels share."""

from __future__ import annotations

from typing import Any

import torch

from fastassoc.backends.protocol import Inputs
from fastassoc.backends.triton.launch import machine
from fastassoc.backends.triton.precision import choose_precision
from fastassoc.kernels.triton.configs import Config, Tile, choose_config

MAX_SPLITS = 128
"""Shares of one round trip; more would take longer to add than to compute."""
_PROGRAMS_PER_PROCESSOR = 4
"""Work is split until every multiprocessor has this many programs, where there is so much."""
_LEAST_DEPTH = 16
"""Columns of an embedding that a product needs."""


class Plan:
    """What a call's sizes and its machine decide; the backward pass makes the same plan again."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self.n, self.m, self.d = inputs.a.shape[0], inputs.b.shape[0], inputs.a.shape[1]
        device = machine(inputs.a.device)
        self.precision = choose_precision(inputs.a.dtype, device, inputs.labels.float32_products)
        if inputs.differences:
            self.precision = self.precision._replace(scores="differences")
        self.config: Config = choose_config(device.architecture, self.precision.tiles(inputs.a.dtype), self.d)
        self.class_rows = self.config.class_rows
        self.programs = _PROGRAMS_PER_PROCESSOR * device.processors
        # Fewer than half of the slots are empty (`fastassoc.kernels.triton.rows`).
        self.max_tiles = ceil_div(2 * self.n, self.class_rows)
        # As many as if all rows were one class, and one for each tile.
        whole_tiles = ceil_div(self.n, self.class_rows)
        self.max_pairs = self.max_tiles + (whole_tiles**2 if whole_tiles > 1 else 0)
        self.tiny = torch.finfo(inputs.dtype).tiny

    def items(self, pairs: int, column_tiles: int) -> int:
        """Programs that up to ``pairs`` pairs need as `fastassoc.kernels.triton.round_trips` splits them."""
        return min(pairs + self.programs, pairs * min(column_tiles, MAX_SPLITS))

    def device_guard(self) -> Any:
        """The device of the tensors, which Triton launches on."""
        return torch.cuda.device_of(self.inputs.a)

    def embeddings(self, tile: Tile, products: bool = False, hold: bool = True) -> dict[str, Any]:
        """Embeddings, biases, sizes, strides, and the constants of a tile.

        ``hold`` keeps tiles of the embeddings for later. Where a class may have other tiles, registers are short.
        """
        x = self.inputs
        depth = min(tile.depth, max(_LEAST_DEPTH, _power_of_two(self.d)))
        shared = {
            "a_ptr": x.a,
            "b_ptr": x.b,
            "bias_a_ptr": x.bias_a,
            "bias_b_ptr": x.bias_b,
            "N": self.n,
            "M": self.m,
            "D": self.d,
            "scale": x.scale,
            "stride_an": x.a.stride(0),
            "stride_ad": x.a.stride(1),
            "stride_bm": x.b.stride(0),
            "stride_bd": x.b.stride(1),
            "BLOCK_N": tile.rows,
            "BLOCK_M": tile.columns,
            "BLOCK_D": depth,
            "ONE_D": hold and depth >= self.d and not x.differences,
            "PRECISION": self.precision.scores,
        }
        return shared | {"PRODUCT": self.precision.others} if products else shared


def ceil_div(x: int, y: int) -> int:
    """``x / y``, rounded up."""
    return -(-x // y)


def _power_of_two(x: int) -> int:
    return 1 << (x - 1).bit_length()
