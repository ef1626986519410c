"""What a host takes from a wheelhouse, and why it can't."""

from __future__ import annotations

from collections.abc import Iterator

from llamafleet.facts.host import HostSnapshot, Tool
from llamafleet.layout import Layout
from llamafleet.plans.plan import Problem, WheelhousePlan
from llamafleet.protocol.pythons import minor
from llamafleet.tables import parse_version
from llamafleet.wheelhouse.manifest import MANIFEST, Wheelhouse, build_command

CMAKE_FLOOR = "3.24"
"""CMake before 3.24 knows no architecture lists as llama.cpp's CUDA backend uses them."""


def plan_wheelhouse(snapshot: HostSnapshot, layout: Layout, house: Wheelhouse) -> WheelhousePlan:
    """Bring it to the host, unless the host has this very one."""
    there = snapshot.wheelhouse == house.sha256
    return WheelhousePlan(
        source=house.folder,
        target=layout.wheelhouse,
        # The manifest last: it says that the others are there.
        files=(*house.manifest.files, MANIFEST),
        bring=not there,
        reason="the host has this one" if there else "the host has none, or another one",
    )


def in_use(snapshot: HostSnapshot, house: Wheelhouse) -> Iterator[Problem]:
    """A job that may be reading from the host's copy, which another one would take the place of."""
    if snapshot.wheelhouse in (None, house.sha256):
        return
    for job in snapshot.jobs:
        if job.alive and job.kind in ("build", "toolkit"):
            yield Problem(
                "wheelhouse",
                found=f"the job {job.kind} {job.key}, which runs, may take from another wheelhouse",
                expected="no such job while the host's copy is replaced",
                next="run the same command again when it has ended",
            )


def misfits(snapshot: HostSnapshot, house: Wheelhouse, python: Tool | None) -> Iterator[Problem]:
    """Why the host can't build from this wheelhouse alone; nothing: it can.

    A toolkit that it lacks is no such problem as long as another one will do: `choose_toolkit`.
    """
    made = house.manifest
    if python and (version := minor(python.version)) not in made.pythons:
        yield _misfit(
            f"Python {version} on the host",
            made.pythons,
            build_command(house, python=version) + ", or install one of those Pythons on the host",
        )
    if snapshot.arch not in made.arches:
        yield _misfit(
            f"machine {snapshot.arch}", made.arches, build_command(house, arch=snapshot.arch)
        )
    cmake = snapshot.cmake.version if snapshot.cmake else ""
    if not made.cmake and parse_version(cmake) < parse_version(CMAKE_FLOOR):
        yield Problem(
            "wheelhouse",
            found=f"CMake {cmake or 'none'} on the host, and none in the wheelhouse",
            expected=f"CMake {CMAKE_FLOOR} or newer in one of them",
            next=build_command(house, cmake=True),
        )


def _misfit(found: str, served: tuple[str, ...], advice: str) -> Problem:
    return Problem(
        "wheelhouse",
        found=f"{found}, and the wheelhouse is for {', '.join(served) or 'nothing'}",
        expected="a wheelhouse for this host",
        next=advice,
    )
