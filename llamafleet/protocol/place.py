"""A model that is served: what a host is told to bring, and what it says that it has.

Its folder has the parts under names of our own, and PROOF, which is written when all of them are
whole: what a file was called elsewhere is no part of what it is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from llamafleet.protocol.decode import Rule
from llamafleet.protocol.shape import Shape

PROOF = "model.json"
"""In a model's folder: a Stamp and a ModelProduct in one object."""
INCOMING = ".incoming"
"""Behind the name of a part that is not whole, or not checked."""
PART_OF = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
"""The end of the name of a split model's part, as llama_split_path writes it (src/llama.cpp)."""
MOST_PARTS = 200
"""DeepSeek's largest has some 60."""

Sha256 = Annotated[
    str, Rule("64 hex digits or nothing", lambda text: re.fullmatch(r"([0-9a-f]{64})?", text))
]
Size = Annotated[int, Rule("a whole number of bytes", lambda number: number >= 0)]


def shown(octets: int) -> str:
    """As "4.1 GiB"."""
    return f"{octets / 2**30:.1f} GiB" if octets >= 2**30 else f"{octets / 2**20:.1f} MiB"


@dataclass(frozen=True, kw_only=True)
class ModelPart:
    """One file of a model, and where it comes from: a URL, a path, or neither."""

    url: str = ""
    path: str = ""
    """Of a file that lies on the host, and stays there. With neither the controller has brought it,
    under its name with INCOMING behind."""
    sha256: Sha256 = ""
    """"": not known, as of a file that the host has."""
    size: Size = 0
    """Bytes; 0: whoever gives it tells."""


@dataclass(frozen=True, kw_only=True)
class ModelInputs:
    """What a model is."""

    parts: tuple[str, ...]
    """sha256 of each, or its path on the host."""


@dataclass(frozen=True, kw_only=True)
class PlacedFile:
    """One part as it was when it was checked."""

    name: str
    sha256: str
    """"": nobody said what it should be, and it was not computed."""
    size: int
    changed_ns: int
    """Its ctime, nanoseconds since 1970, which only the kernel sets."""


@dataclass(frozen=True, kw_only=True)
class ModelProduct:
    """A model that is whole."""

    files: tuple[PlacedFile, ...]
    fetched_bytes: int = 0
    """That came over the network in the run that ended it."""
    shape: Shape | None = None
    """What decides how much memory it takes."""

    @property
    def bytes(self) -> int:
        """On the disk."""
        return sum(file.size for file in self.files)


def part_name(number: int, count: int) -> str:
    """Name of a part in the model's folder; `number` from 0."""
    return "model.gguf" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.gguf"


def key_of(parts: Sequence[str]) -> str:
    """16 hex digits: the first of its sha256 where it is one file that is known by that."""
    if len(parts) == 1 and re.fullmatch(r"[0-9a-f]{64}", parts[0]):
        return parts[0][:16]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
