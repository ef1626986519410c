"""Packages of the driver by name, each with its roles: driver-packages.yaml."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from llamafleet.tables.rows import Row, load

Role = Literal["held", "refused", "version", "library", "kernel", "dkms", "akmod", "prebuilt"]
"""As the table tells them."""

Pattern = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.+*-]+$")]
Words = Annotated[str, StringConstraints(min_length=1)]

_KERNEL = re.compile(r"-(\d{1,2}\.\d+\.\d+-\S+)$")
_BRANCH = re.compile(r"linux-modules-nvidia-(\d+(?:-server)?(?:-open)?)-")


class Family(Row):
    """Packages with the same roles."""

    names: Annotated[tuple[Pattern, ...], Field(min_length=1)]
    roles: frozenset[Role]
    why: Words
    source: Words


class _Families(Row):
    families: tuple[Family, ...]


def families() -> tuple[Family, ...]:
    """All rows; the first that fits a name decides. Raises TableError."""
    return load("driver-packages.yaml", _Families).families


def patterns(*roles: Role) -> tuple[str, ...]:
    """Names of the families that have one of the roles, to ask a package manager for.

    A wide name finds packages of earlier families too: `has` decides.
    """
    return tuple(name for row in families() if row.roles & set(roles) for name in row.names)


def expression(role: Role) -> str:
    """A regular expression that matches, whole, the names of packages with that role.

    Built from the last row on, so that each row goes before those after it.
    """
    later = "(?!)"  # matches nothing
    for row in reversed(families()):
        names = "|".join(re.escape(name).replace(r"\*", ".*") for name in row.names)
        later = rf"{names}|{later}" if role in row.roles else rf"(?!(?:{names})\Z)(?:{later})"
    return later


@lru_cache
def _compiled(role: Role) -> re.Pattern[str]:
    return re.compile(expression(role))


def has(name: str, role: Role) -> bool:
    """The package has the role. Its architecture may follow its name, as in libcuda1:i386."""
    return _compiled(role).fullmatch(name.partition(":")[0]) is not None


def kernel_of(name: str) -> str | None:
    """The kernel that a package is for, as kmod-nvidia-6.10.3-200.fc40.x86_64; None: for any."""
    found = _KERNEL.search(name) if has(name, "kernel") else None
    return found[1] if found else None


def prebuilt_branch(name: str) -> str | None:
    """The driver's branch in the name of Ubuntu's modules, as 580-open; None: not one of them."""
    found = _BRANCH.match(name)
    return found[1] if found else None
