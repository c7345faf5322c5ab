"""Compiles LLVM IR by the LLVM inside Triton, and loads the result."""

from __future__ import annotations

import ctypes
import mmap
import struct
from typing import NamedTuple

_PAGE = mmap.PAGESIZE
_ALLOCATED, _SYMBOLS, _RELOCATIONS, _ZEROS = 0x2, 2, 4, 8
_PC_RELATIVE = (2, 4)
"""R_X86_64_PC32, R_X86_64_PLT32."""


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


class Library:
    """Machine code in memory; functions by name."""

    def __init__(self, elf: bytes) -> None:
        sections = _sections(elf)
        places: dict[int, int] = {}
        size = 0
        for number, section in enumerate(sections):
            if section.flags & _ALLOCATED and section.size:
                size = -(-size // max(section.alignment, 1)) * max(section.alignment, 1)
                places[number] = size
                size += section.size
        self._memory = mmap.mmap(-1, -(-size // _PAGE) * _PAGE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        for number, place in places.items():
            section = sections[number]
            if section.kind != _ZEROS:
                self._memory[place : place + section.size] = elf[section.offset : section.offset + section.size]
        self.addresses: dict[str, int] = {}
        symbols: list[int | None] = []
        for section in sections:
            if section.kind == _SYMBOLS:
                names = sections[section.link].offset
                for at in range(section.offset, section.offset + section.size, 24):
                    name, _, _, home, value, _ = struct.unpack_from("<IBBHQQ", elf, at)
                    place = places[home] + value if home in places else None
                    symbols.append(place)
                    if place is not None and name:
                        end = elf.index(b"\0", names + name)
                        self.addresses[elf[names + name : end].decode()] = self._base + place
        for section in sections:
            if section.kind == _RELOCATIONS and section.info in places:
                for at in range(section.offset, section.offset + section.size, 24):
                    offset, info, addend = struct.unpack_from("<QQq", elf, at)
                    target = symbols[info >> 32]
                    if info & 0xFFFFFFFF not in _PC_RELATIVE or target is None:
                        raise RuntimeError(f"relocation {info:#x} of the machine code is not one that can be resolved")
                    where = places[section.info] + offset
                    struct.pack_into("<i", self._memory, where, target + addend - where)
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        if protect(self._base, len(self._memory), mmap.PROT_READ | mmap.PROT_EXEC):
            raise OSError(ctypes.get_errno(), "memory cannot be made executable")


def _sections(elf: bytes) -> list[_Section]:
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    entry_size, count = struct.unpack_from("<HH", elf, 0x3A)
    return [_Section(*struct.unpack_from("<IIQQQQIIQQ", elf, table + number * entry_size)) for number in range(count)]


def compile_module(ir: str, processor: str, features: str) -> Library:
    """Machine code for functions in LLVM IR."""
    from triton._C.libtriton import llvm

    llvm.init_targets()
    return Library(llvm.translate_to_asm(ir, "x86_64-unknown-linux-gnu", processor, features, [], False, True))
