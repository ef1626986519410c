"""Where a shared library looks for others, read from its dynamic section.

As ld.so(8) says: DT_RPATH is searched before LD_LIBRARY_PATH, and for what the needed libraries
need too; DT_RUNPATH is searched after it, for the library's own needs alone, and where there is one
DT_RPATH counts nothing.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ORIGIN = "$ORIGIN"
"""The folder that the library itself is in."""
OF_TOOLKIT = re.compile(r"lib(?:cuda|cudart|cublas|cublasLt|nccl)\.so(?:\.\d+)*")
"""Names of libraries that a toolkit or the driver brings."""
DRIVER = "libcuda.so"
"""How the name of the driver's own begins: no toolkit has one to run with."""
STUBS = "stubs"
"""Folder of a toolkit with the driver's names to link against; what they do is fail."""

_HEADER = struct.Struct("<16sHHIQQQIHHH")  # up to the number of program headers
_SEGMENT = struct.Struct("<IIQQQQ")  # type, flags, offset, address, physical address, size in file
_ENTRY = struct.Struct("<qQ")
_LOAD, _DYNAMIC = 1, 2
_NULL, _NEEDED, _STRTAB, _RPATH, _RUNPATH = 0, 1, 5, 15, 29


class ElfError(Exception):
    """The file can't be read as a shared library."""


@dataclass(frozen=True)
class Dynamic:
    """What the loader is told by a library."""

    needed: tuple[str, ...]
    rpath: tuple[str, ...]
    runpath: tuple[str, ...]

    @property
    def folders(self) -> list[Path]:
        """Real paths of those beside its own in which it looks for others."""
        told = self.runpath or self.rpath
        return [_real(one) for one in told if not one.startswith(ORIGIN)]


def read(path: Path) -> Dynamic:
    """Read a 64-bit little-endian library. Raises ElfError, OSError without a file."""
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise ElfError(f"{path} is no 64-bit little-endian ELF file")
    try:
        return _dynamic(data)
    # The others: an offset that is in no file, a text without an end.
    except (struct.error, IndexError, OverflowError, ValueError) as error:
        raise ElfError(f"{path} is cut off or altered: {error}") from error


def _dynamic(data: bytes) -> Dynamic:
    segments = list(_segments(data))
    start, size = next(((at, size) for kind, at, _, size in segments if kind == _DYNAMIC), (0, 0))
    entries = []
    for at in range(start, start + size, _ENTRY.size):
        tag, value = _ENTRY.unpack_from(data, at)
        if tag == _NULL:
            break
        entries.append((tag, value))
    strings = next((_place(segments, value) for tag, value in entries if tag == _STRTAB), 0)

    def texts(wanted: int) -> list[str]:
        starts = [strings + value for tag, value in entries if tag == wanted]
        return [_printable(data[at : data.index(b"\0", at)].decode()) for at in starts]

    def folders(wanted: int) -> tuple[str, ...]:
        return tuple(":".join(texts(wanted)).split(":")) if texts(wanted) else ()

    return Dynamic(tuple(texts(_NEEDED)), folders(_RPATH), folders(_RUNPATH))


def _printable(text: str) -> str:
    """Raises ValueError: it is said to people."""
    if not text.isprintable():
        raise ValueError(f"a name {text[:80]!a}")
    return text


def _segments(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(type, offset in the file, address, size) of each program header."""
    header = _HEADER.unpack_from(data)
    table, entry_size, count = header[5], header[9], header[10]
    for number in range(count):
        kind, _, offset, address, _, size = _SEGMENT.unpack_from(data, table + number * entry_size)
        yield kind, offset, address, size


def _place(segments: list[tuple[int, int, int, int]], address: int) -> int:
    """Where in the file an address is. Raises IndexError."""
    for kind, offset, start, size in segments:
        if kind == _LOAD and start <= address < start + size:
            return offset + address - start
    raise IndexError("an address in no segment")


def wrong_path(found: Dynamic, toolkit: str) -> str:
    """What is wrong with where a built library looks for others; "": nothing.

    `toolkit`: the folder of the toolkit's libraries, "" for the CPU. Another folder may be there,
    as that of a compiler's own libstdc++, but none that holds a library of CUDA.
    """
    if found.runpath:
        return f"DT_RUNPATH {':'.join(found.runpath)}, which LD_LIBRARY_PATH overrides"
    told = f"DT_RPATH {':'.join(found.rpath) or 'none'}"
    own = Path(toolkit).resolve() if toolkit else None
    others = [one for one in found.rpath if not one.startswith(ORIGIN)]
    if foreign := [one for one in others if _is_foreign(one, own)]:
        return f"{told}, with {', '.join(map(repr, foreign))}"
    needs = [name for name in found.needed if OF_TOOLKIT.fullmatch(name)]
    if any(not name.startswith(DRIVER) for name in needs) and own not in found.folders:
        return f"{told}, without the folder of {needs[0]}"
    return ""


def strays(loaded: Iterable[str], folders: Sequence[Path]) -> list[str]:
    """Of the files in a process's memory the libraries of CUDA that are from elsewhere.

    `folders`: those that the build looks into. The driver's own may be wherever the system has it,
    but is no stub.
    """
    found = []
    for path in map(Path, loaded):
        if not OF_TOOLKIT.fullmatch(path.name.removesuffix(" (deleted)")):
            continue
        driver = path.name.startswith(DRIVER)
        if path.parent.name == STUBS or not (driver or path.parent.resolve() in folders):
            found.append(str(path))
    return found


def _is_foreign(folder: str, own: Path | None) -> bool:
    """CUDA's libraries would be found there, or what is found depends on where a program runs."""
    if not folder.startswith("/"):
        return True
    if _real(folder) == own:
        return False
    return any(OF_TOOLKIT.fullmatch(one.name) for one in Path(folder).glob("lib*.so*"))


def _real(folder: str) -> Path:
    return Path(folder).resolve()
