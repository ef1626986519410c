"""Which machine code a CUDA library holds, read from its ELF section .nv_fatbin.

nvcc puts one fatbin container per translation unit into that section. A container has entries: SASS
(machine code of one compute capability) and PTX (an intermediate code that the driver compiles on
first use). Only the headers are read, so compressed entries don't matter and no tool of the
toolkit is needed. The layout is not documented by NVIDIA; it was read from libraries compiled by
nvcc 13.0 and compared with what cuobjdump 13 lists (tests/onhost/test_fatbin.py).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SECTION = ".nv_fatbin"
MAGIC = 0xBA55ED50
KIND_PTX, KIND_SASS = 1, 2

_CONTAINER = struct.Struct("<IHHQ")  # magic, version, header size, size of the entries
_ENTRY = struct.Struct("<HHIQ")  # kind, version, header size, size of the payload
_ARCH_AT, _FLAGS_AT = 28, 40  # offsets in an entry's header
_FLAG_SPECIFIC, _FLAG_FAMILY = 1 << 20, 1 << 21


class FatbinError(Exception):
    """The file can't be read as a library with CUDA code."""


@dataclass(frozen=True, order=True)
class Code:
    """Code for one compute capability, as sm_89 (SASS) or compute_89 (PTX)."""

    major: int
    minor: int
    ptx: bool
    suffix: str = ""
    """a: for exactly this compute capability; f: for its family, the same major number."""

    def __str__(self) -> str:
        return f"{'compute' if self.ptx else 'sm'}_{self.major}{self.minor}{self.suffix}"

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """CUDA C++ Programming Guide, "Binary Compatibility" and "PTX Compatibility": SASS runs on
        the same major and the same or a higher minor number, PTX on every later capability."""
        own = (self.major, self.minor)
        if self.suffix == "a":
            return capability == own
        if not self.ptx or self.suffix == "f":
            return capability[0] == own[0] and capability[1] >= own[1]
        return capability >= own


@dataclass(frozen=True)
class MachineCode:
    """The code of each translation unit of a library."""

    units: tuple[frozenset[Code], ...]

    @property
    def codes(self) -> list[Code]:
        return sorted(frozenset().union(*self.units))


def read(path: Path) -> MachineCode:
    """Read a library. Raises FatbinError without CUDA code, OSError without a file."""
    with path.open("rb") as file:
        if path.stat().st_size < 64:
            raise FatbinError(f"{path} is no ELF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            start, size = _section(data, path)
            return MachineCode(tuple(_containers(data[start : start + size], path)))


def _section(elf: mmap.mmap, path: Path) -> tuple[int, int]:
    """Offset and size of SECTION in a 64-bit little-endian ELF file."""
    if elf[:6] != b"\x7fELF\x02\x01":
        raise FatbinError(f"{path} is no 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", elf, 40)
    entry_size, count, names_index = struct.unpack_from("<HHH", elf, 58)

    def header(index: int) -> tuple[int, int, int]:
        at = table + index * entry_size
        name = struct.unpack_from("<I", elf, at)[0]
        offset, size = struct.unpack_from("<QQ", elf, at + 24)
        return name, offset, size

    try:
        names_at = header(names_index)[1]
        for index in range(count):
            name, offset, size = header(index)
            start = names_at + name
            if elf[start : elf.find(b"\0", start)] == SECTION.encode():
                if offset + size > len(elf):
                    raise FatbinError(f"{path} is cut off: {SECTION} ends behind the file")
                return offset, size
    # OverflowError: an offset that is in no file.
    except (struct.error, OverflowError) as error:
        raise FatbinError(f"{path} is cut off: {error}") from error
    raise FatbinError(f"{path} has no section {SECTION}: it was not compiled by nvcc")


def _containers(section: bytes, path: Path) -> Iterator[frozenset[Code]]:
    magic = struct.pack("<I", MAGIC)
    at = section.find(magic)
    while at >= 0:
        try:
            _, _, header_size, size = _CONTAINER.unpack_from(section, at)
            if header_size == 0:
                raise struct.error("a container without a header")
            end = at + header_size + size
            yield frozenset(_entries(section, at + header_size, end))
        except struct.error as error:
            raise FatbinError(f"{path}: container at {at:#x} of {SECTION}: {error}") from error
        at = section.find(magic, end)


def _entries(section: bytes, at: int, end: int) -> Iterator[Code]:
    if end > len(section):
        raise struct.error("ends behind the section")
    while at < end:
        kind, _, header_size, size = _ENTRY.unpack_from(section, at)
        if kind in (KIND_PTX, KIND_SASS):
            arch = struct.unpack_from("<I", section, at + _ARCH_AT)[0]
            flags = struct.unpack_from("<Q", section, at + _FLAGS_AT)[0]
            suffix = "a" if flags & _FLAG_SPECIFIC else "f" if flags & _FLAG_FAMILY else ""
            yield Code(arch // 10, arch % 10, kind == KIND_PTX, suffix)
        if header_size == 0:
            raise struct.error("an entry without a header")
        at += header_size + size


def parse_capability(text: str) -> tuple[int, int]:
    """ "8.9" -> (8, 9). Raises ValueError."""
    major, _, minor = text.partition(".")
    return int(major), int(minor)
