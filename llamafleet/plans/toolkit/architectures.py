"""GPU -> CMAKE_CUDA_ARCHITECTURES."""

from __future__ import annotations

import re
from collections.abc import Iterable

from llamafleet.facts.host import HostSnapshot
from llamafleet.plans.gpus import chosen
from llamafleet.settings import Settings
from llamafleet.tables.gpus import gpu_by_name


def architecture(capability: str) -> int:
    """The number that CMake and nvcc use: 89 for "8.9".

    Raises ValueError on anything but major.minor, "native" among it: on a host whose GPU the
    build can't see, CMake 4.4 takes native for sm_75 without a word (measured).
    """
    if not re.fullmatch(r"[1-9]\d?\.\d", capability):
        raise ValueError(f"compute capability {capability!r}: expected major.minor, as '8.9'")
    return int(capability.replace(".", ""))


def sorted_capabilities(capabilities: Iterable[str]) -> tuple[str, ...]:
    """Each once, oldest first. Raises ValueError on a malformed one."""
    return tuple(sorted(set(capabilities), key=architecture))


def cuda_architectures(capabilities: Iterable[str]) -> str:
    """As "86;89": SASS and PTX of each. Raises ValueError on none or on a malformed one."""
    numbers = [str(architecture(c)) for c in sorted_capabilities(capabilities)]
    if not numbers:
        raise ValueError("no compute capability is known")
    return ";".join(numbers)


def capabilities_of(snapshot: HostSnapshot, settings: Settings) -> tuple[str, ...]:
    """Those of the settings, else of all GPUs that the settings choose.

    Raises ValueError on a malformed one, and for a GPU whose driver does not tell; the message
    then quotes the table, but the table is never used on its own: it is unverified.
    """
    if settings.compute_capabilities:
        return sorted_capabilities(settings.compute_capabilities)
    found = []
    for gpu in chosen(settings, snapshot).gpus:
        if gpu.compute_capability is None:
            row = gpu_by_name(gpu.name)
            hint = f" (unverified table: {row.capability})" if row else ""
            raise ValueError(f"the driver does not tell the capability of {gpu.name}{hint}")
        found.append(gpu.compute_capability)
    return sorted_capabilities(found)
