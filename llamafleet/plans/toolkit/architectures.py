"""GPU -> CMAKE_CUDA_ARCHITECTURES."""

from __future__ import annotations

import re
from collections.abc import Iterable

from llamafleet.facts.host import HostSnapshot
from llamafleet.plans.gpus import chosen
from llamafleet.settings import Settings
from llamafleet.tables.gpus import gpu_by_name

UNDETECTED = ("7.5", "8.0", "8.6", "8.9")
"""What is built where a driver does not tell: the users' guide's "89;86;80;75", its way out."""


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

    UNDETECTED for a GPU whose driver does not tell, if the table has it among them: the table is
    unverified, and the verification asks the GPU itself. Raises ValueError on a malformed one, and
    for such a GPU that is not among them.
    """
    if settings.compute_capabilities:
        return sorted_capabilities(settings.compute_capabilities)
    found: list[str] = []
    for gpu in chosen(settings, snapshot).gpus:
        if gpu.compute_capability is not None:
            found.append(gpu.compute_capability)
            continue
        row = gpu_by_name(gpu.name)
        if row is None or row.capability not in UNDETECTED:
            hint = f" (unverified table: {row.capability})" if row else ""
            raise ValueError(f"the driver does not tell the capability of {gpu.name}{hint}")
        found.extend(UNDETECTED)
    return sorted_capabilities(found)


def undetected(snapshot: HostSnapshot, settings: Settings) -> tuple[str, ...]:
    """What is said of a build for UNDETECTED; none: the driver tells, or the settings do."""
    if settings.compute_capabilities:
        return ()
    untold = [gpu for gpu in chosen(settings, snapshot).gpus if gpu.compute_capability is None]
    return tuple(
        f"the driver does not tell the compute capability of {gpu.name}: built for "
        f"{', '.join(UNDETECTED)}, which takes longer; to build for one: compute_capabilities"
        for gpu in untold[:1]
    )
