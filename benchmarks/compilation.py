"""What the compiler says of one kernel launch, for a GPU that need not be there: registers, spills, shared memory.

Occupancy is an estimate from these figures: resident warps over the most that a multiprocessor holds. Blocks per
multiprocessor are the least of

- ``blocks``, and ``warps // W`` for blocks of ``W`` warps;
- registers (NVIDIA): ``(65536 // R // 4 * 4) // W`` with ``R`` the registers of a warp, ``32 r`` rounded up to 256;
- registers (AMD): ``4 min(8, 512 // r) // W`` with ``r`` rounded up to 8, a compute unit being four units of 512;
- shared memory: that of the multiprocessor over that of a block, on NVIDIA 1 KiB more and rounded up to 128 bytes;
- tensor memory (sm_100): ``512 // columns``.

Sizes are those of the CUDA programming guide ("Technical Specifications per Compute Capability") and of AMD's guide to
the CDNA 3 instruction set.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

KIB = 1024
_BIASES = ("bias_ptr", "dbias_a_ptr", "dbias_b_ptr", "dbias_a_parts_ptr")


@dataclass(frozen=True)
class Architecture:
    """A GPU as the compiler and the estimate of occupancy see it."""

    name: str
    shared_kib: int
    """Most shared memory of a block."""
    processor_shared_kib: int
    warps: int
    """Most resident warps of a multiprocessor."""
    blocks: int
    """Most resident blocks of a multiprocessor."""

    @property
    def amd(self) -> bool:
        """Whether its warps have 64 threads and its registers come in four units."""
        return self.name.startswith("gfx")


ARCHITECTURES = {
    x.name: x
    for x in (
        Architecture("sm_80", 163, 164, 64, 32),
        Architecture("sm_86", 99, 100, 48, 16),
        Architecture("sm_89", 99, 100, 48, 24),
        Architecture("sm_90", 227, 228, 64, 32),
        Architecture("sm_100", 227, 228, 64, 32),
        Architecture("gfx942", 64, 64, 32, 32),
    )
}


class Compilation(NamedTuple):
    """One kernel as the compiler takes it, in a form that travels between processes."""

    architecture: str
    module: str
    kernel: str
    signature: dict[str, Any]
    """Kinds of the parameters; that of a tuple is a tuple with the same names."""
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    warps: int
    stages: int

    @classmethod
    def of(cls, launch: Any, architecture: str) -> Compilation:
        """What a launch (`fastassoc.backends.triton.launch.Launch`) compiles to there."""
        kernel = launch.kernel.fn
        signature, constants, attributes = launch.specialisation()
        place = (architecture, kernel.__module__, kernel.__name__)
        return cls(*place, signature, constants, attributes, launch.warps, launch.stages)

    @property
    def plain(self) -> bool:
        """Whether it is what most calls launch: both losses, no biases."""
        constants = self.named_constants()
        # Units and largest values depend on the kind of numbers alone, terms of rows on the direction.
        others = ("units_ptr", "largest_ptr", "row_terms_ptr")
        absent = {name for name in constants if name.endswith("_ptr") and not name.endswith(others)}
        biases = {name for name in self._names() if name.endswith(_BIASES)}
        return all(constants.get(term, True) for term in ("WALKER", "VISIT")) and absent == biases

    def variant(self) -> str:
        """Constants by name; pointers that are None are left out of the kernel."""
        return " ".join(f"{name}={value}" for name, value in self.named_constants().items())

    def named_constants(self) -> dict[str, Any]:
        """Constants by name, those in a tuple as ``a.bias_ptr``."""
        names = self._names()
        return {name: self.constants[path] for name, path in names.items() if path in self.constants}

    def _names(self) -> dict[str, tuple[int, ...]]:
        """Paths of all parameters and fields."""
        paths: dict[str, tuple[int, ...]] = {}
        for index, (name, kind) in enumerate(self.signature.items()):
            if isinstance(kind, str):
                paths[name] = (index,)
            else:
                paths |= {f"{name}.{field}": (index, k) for k, field in enumerate(kind._fields)}
        return paths


class Figures(NamedTuple):
    """What the compiler made of it."""

    registers: int
    """Per thread."""
    spilled_bytes: int
    """Stack per thread; the kernels have none of their own."""
    shared_bytes: int
    """Per block."""
    products: int
    """Matrix products, after the compiler's own unrolling."""
    tensor_products: int
    """Those of them that it gave to tensor cores."""
    mma_sync: int
    wgmma: int
    tcgen05: int
    mfma: int
    occupancy: float
    compile_s: float

    @property
    def instructions(self) -> int:
        """Tensor-core instructions."""
        return self.mma_sync + self.wgmma + self.tcgen05 + self.mfma


def violations(figures: Figures, architecture: Architecture, tensor_cores: bool) -> list[str]:
    """What a configuration that ships may not do, in words. Spills cost time, by which tiles are chosen."""
    found = []
    if figures.shared_bytes > architecture.shared_kib * KIB:
        found.append(f"{figures.shared_bytes / KIB:.1f} KiB shared of {architecture.shared_kib}")
    if tensor_cores and figures.tensor_products < figures.products:
        found.append(f"{figures.products - figures.tensor_products} of {figures.products} products off tensor cores")
    if tensor_cores and figures.products and not figures.instructions:
        found.append("no tensor-core instruction")
    return found


def become_compiler(cache: str | None) -> None:
    """Makes a process of a pool one that compiles, with that cache or Triton's own, for as long as its parent lives."""
    os.environ.pop("TRITON_INTERPRET", None)
    if cache is not None:
        os.environ["TRITON_CACHE_DIR"] = cache
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def compiled(compilation: Compilation) -> Any:
    """What Triton makes of it, every stage of the compiler in ``asm``; raises what the compiler raises."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    architecture = ARCHITECTURES[compilation.architecture]
    name = architecture.name
    target = GPUTarget("hip", name, 64) if architecture.amd else GPUTarget("cuda", int(name.removeprefix("sm_")), 32)
    kernel = getattr(importlib.import_module(compilation.module), compilation.kernel)
    source = ASTSource(kernel, compilation.signature, compilation.constants, compilation.attributes)
    options = {"num_warps": compilation.warps, "num_stages": compilation.stages}
    return triton.compile(source, target=target, options=options)


def compile_kernel(compilation: Compilation) -> Figures:
    """Compiles and reads the result; raises what the compiler raises."""
    architecture = ARCHITECTURES[compilation.architecture]
    start = time.perf_counter()
    result = compiled(compilation)
    seconds = time.perf_counter() - start
    assembly = result.asm["amdgcn" if architecture.amd else "ptx"]
    registers, spilled = _amd_resources(assembly) if architecture.amd else _cuda_resources(result.asm["cubin"])
    products, tensor_products = count_products(result.asm["ttgir"])
    tensor_columns = getattr(result.metadata, "tmem_size", None) or 0
    return Figures(
        registers=registers,
        spilled_bytes=spilled,
        shared_bytes=result.metadata.shared,
        products=products,
        tensor_products=tensor_products,
        mma_sync=len(re.findall(r"\bmma\.sync", assembly)),
        wgmma=len(re.findall(r"\bwgmma\.mma_async", assembly)),
        tcgen05=len(re.findall(r"\btcgen05\.mma", assembly)),
        mfma=len(re.findall(r"\bv_mfma", assembly)),
        occupancy=occupancy(architecture, registers, result.metadata.shared, compilation.warps, tensor_columns),
        compile_s=seconds,
    )


def count_products(ttgir: str) -> tuple[int, int]:
    """Products in Triton's GPU dialect, and those whose result lies as tensor cores leave it."""
    results = re.findall(r"\btt\.dot .*-> tensor<[^>]*, #(\w+)>", ttgir)
    always = len(re.findall(r"\bttng\.(?:warp_group_dot|tc_gen5_mma) ", ttgir))
    return len(results) + always, sum(x.startswith("mma") for x in results) + always


def occupancy(architecture: Architecture, registers: int, shared_bytes: int, warps: int, tensor_columns: int) -> float:
    """Resident warps over the most there can be; the formula is above. 0 where not even one block fits."""
    if architecture.amd:
        by_registers = 4 * min(8, 512 // _round_up(max(registers, 1), 8)) // warps
        block_shared = max(shared_bytes, 1)
    else:
        by_registers = 65536 // _round_up(32 * registers, 256) // 4 * 4 // warps
        block_shared = _round_up(shared_bytes + KIB, 128)
    blocks = min(
        architecture.blocks,
        architecture.warps // warps,
        by_registers,
        architecture.processor_shared_kib * KIB // block_shared,
        512 // max(tensor_columns, 1),
    )
    return blocks * warps / architecture.warps


def _round_up(x: int, step: int) -> int:
    return -(-x // step) * step


def _cuda_resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack; cuobjdump comes with Triton."""
    import triton

    shipped = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = str(shipped) if shipped.exists() else shutil.which("cuobjdump")
    if command is None:
        raise FileNotFoundError("cuobjdump is neither in Triton's package nor on the path")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        output = subprocess.run([command, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return _field(r"\bREG:(\d+)", output), _field(r"\bSTACK:(\d+)", output)


def _amd_resources(assembly: str) -> tuple[int, int]:
    """Vector registers (accumulation registers are part of them) and bytes of scratch memory."""
    return _field(r"\.vgpr_count: +(\d+)", assembly), _field(r"\.private_segment_fixed_size: +(\d+)", assembly)


def _field(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"the compiler's report has no {pattern}")
    return int(found[1])
