"""Compiles LLVM IR by the LLVM inside Triton, and loads the result."""

from __future__ import annotations

import ctypes
import mmap
import struct
from typing import Any, NamedTuple

# Of the ELF format for x86-64: a flag and types of sections, and the types of relocation R_X86_64_PC32 and _PLT32.
_ALLOCATED = 0x2
_PROGRAM, _SYMBOLS, _RELOCATIONS = 1, 2, 4
_PC_RELATIVE = (2, 4)

NEWEST = (3, 9)
"""Of the versions of Triton that were tested. Its interface to LLVM is not a public one: the call that 3.8 takes ends
the process with 3.9. Newer ones are not tried."""


class _Section(NamedTuple):
    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int


class _Symbol(NamedTuple):
    name: str
    place: int | None
    """In the library's memory; None for what is defined elsewhere."""


class Library:
    """Machine code in memory, and the addresses of its functions; RuntimeError where it refers to what is not in it."""

    def __init__(self, elf: bytes) -> None:
        sections = _sections(elf)
        places, size = _places(sections)
        self._memory = mmap.mmap(-1, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        for number, place in places.items():
            section = sections[number]
            self._memory[place : place + section.size] = elf[section.offset : section.offset + section.size]
        symbols = _symbols(elf, sections, places)
        for section in sections:
            if section.kind == _RELOCATIONS and section.info in places:
                for at in range(section.offset, section.offset + section.size, 24):
                    self._relocate(symbols, places[section.info], *struct.unpack_from("<QQq", elf, at))
        self.addresses = {symbol.name: base + symbol.place for symbol in symbols if symbol.place is not None}
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        if protect(base, len(self._memory), mmap.PROT_READ | mmap.PROT_EXEC):
            raise OSError(ctypes.get_errno(), "memory cannot be made executable")

    def _relocate(self, symbols: list[_Symbol], place: int, offset: int, info: int, addend: int) -> None:
        symbol, kind = symbols[info >> 32], info & 0xFFFFFFFF
        if kind not in _PC_RELATIVE or symbol.place is None:
            raise RuntimeError(
                f"relocation of type {kind} refers to {symbol.name or 'a section'}: it cannot be resolved"
            )
        struct.pack_into("<i", self._memory, place + offset, symbol.place + addend - (place + offset))


def _places(sections: list[_Section]) -> tuple[dict[int, int], int]:
    """Where each section that is part of a running program goes, by its number, and the size of them all."""
    places, size = {}, 0
    for number, section in enumerate(sections):
        if section.flags & _ALLOCATED and section.kind == _PROGRAM and section.size:
            places[number] = -(-size // section.alignment) * section.alignment
            size = places[number] + section.size
    return places, size


def _symbols(elf: bytes, sections: list[_Section], places: dict[int, int]) -> list[_Symbol]:
    (table,) = (section for section in sections if section.kind == _SYMBOLS)
    names = sections[table.link].offset
    symbols = []
    for at in range(table.offset, table.offset + table.size, 24):
        name, _, _, home, value, _ = struct.unpack_from("<IBBHQQ", elf, at)
        text = elf[names + name : elf.index(b"\0", names + name)].decode()
        symbols.append(_Symbol(text, places[home] + value if home in places else None))
    return symbols


def _sections(elf: bytes) -> list[_Section]:
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    entry_size, count = struct.unpack_from("<HH", elf, 0x3A)
    return [_Section(*struct.unpack_from("<IIQQQQIIQQ", elf, table + number * entry_size)) for number in range(count)]


def compile_module(ir: str, processor: str) -> bytes:
    """Functions in LLVM IR as an object file, for `Library`; RuntimeError for a Triton that is newer than `NEWEST`."""
    import triton
    from triton._C import libtriton
    from triton._C.libtriton import llvm

    version = tuple(map(int, triton.__version__.split(".")[:2]))
    if version > NEWEST:
        newest = ".".join(map(str, NEWEST))
        raise RuntimeError(f"Triton {triton.__version__} is newer than {newest}, the newest that was tested")
    llvm.init_targets()
    if version >= (3, 9):
        # From here on Triton leaves x86-64 out, and crashes without it.
        library = ctypes.CDLL(libtriton.__file__)
        for part in ("TargetInfo", "Target", "TargetMC", "AsmPrinter"):
            getattr(library, f"LLVMInitializeX86{part}")()
    # No features and no flags, no fused products but ours, an object file, addresses as they are.
    arguments: tuple[Any, ...] = ir, "x86_64-unknown-linux-gnu", processor, "", [], False, True, False
    elf: bytes = llvm.translate_to_asm(*arguments[: 8 if version >= (3, 8) else 7])
    return elf
