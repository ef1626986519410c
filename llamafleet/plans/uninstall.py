"""What of a host is llamafleet's, by its own record, and how it is removed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llamafleet.facts.host import HostSnapshot, Job
from llamafleet.layout import USER, Layout, container_of, job_unit, quadlet
from llamafleet.managed import (
    Managed,
    all_rows,
    folder_rows,
    mutex,
    partials,
    roots,
    rows,
    unfinished,
)
from llamafleet.plans.account import ACCOUNT, GROUP, record_of
from llamafleet.plans.serve import profiles_there
from llamafleet.plans.textfile import pages_made

PACKAGE_MANAGER_S = 1800
"""How long a job of root is waited for: a package manager is let end."""
JOB_S = 60
"""The same for other jobs, which end their own children."""


@dataclass(frozen=True)
class Process:
    """A job's process, by what it tells of itself."""

    pid: int
    start_ticks: int
    root: bool
    """It is of root; else it is ended with the rights of the account alone."""
    seconds: int
    """How long its end is waited for."""


@dataclass(frozen=True)
class UninstallPlan:
    """In the order in which it is done."""

    found: tuple[str, ...]
    """What of llamafleet is there, by name; nothing: nothing is done."""
    units: tuple[str, ...] = ()
    """To be stopped and disabled; those of jobs are in it."""
    processes: tuple[Process, ...] = ()
    account: bool = False
    """The account is llamafleet's: all its processes are ended, and it goes."""
    group: bool = False
    containers: tuple[str, ...] = ()
    """What podman calls them, and their secrets."""
    images: bool = False
    """Images were pulled; their names are in a record of root's."""
    files: tuple[str, ...] = ()
    """Paths of files and links."""
    folders: tuple[str, ...] = ()
    """Paths; with all that is in them."""
    last: tuple[str, ...] = ()
    """The same, when all else is gone: what holds the record."""
    stays: tuple[str, ...] = ()
    """What was there before llamafleet, and why it stays."""


def plan_uninstall(snapshot: HostSnapshot, layout: Layout) -> UninstallPlan:
    """What llamafleet made goes; another's folder is emptied of llamafleet's own parts alone."""
    made = record_of(snapshot, layout)
    system = layout.scope == "system"
    found = traces(snapshot, layout)
    ours = managed(snapshot, layout)
    return UninstallPlan(
        found=tuple(found),
        units=(*(row.unit for row in ours if row.unit), *_job_units(snapshot)),
        processes=tuple(_processes(snapshot, layout)),
        account=system and snapshot.account and ACCOUNT in made,
        group=system and GROUP in made,
        containers=tuple(_containers(snapshot, layout)),
        images=system and _of_root_alone(layout.images, snapshot),
        files=tuple(_files(ours, snapshot, layout)),
        folders=tuple(_folders(snapshot, layout, made)),
        last=(layout.prefix if layout.prefix in made else layout.made,),
        stays=tuple(_stays(snapshot, layout, made)),
    )


def traces(snapshot: HostSnapshot, layout: Layout) -> list[str]:
    """What of llamafleet is on the host, by name; what was there before it is none."""
    made = record_of(snapshot, layout)
    found = [*snapshot.files]
    paths = (row.path(layout) for row in managed(snapshot, layout))
    ours = {*paths, *partials(layout), layout.made, *([layout.shared] if made else ())}
    found += [path for path in snapshot.owners if path in ours - {*found}]
    found += [path for path in roots(layout) if path in snapshot.owners and path in made]
    found += [f"job {job.kind} {job.key}" for job in snapshot.jobs]
    found += [f"build {version}" for version in snapshot.versions]
    found += [f"model {key}" for key in snapshot.models]
    rest = {
        "current": snapshot.current,
        "previous": snapshot.previous,
        "wheelhouse": snapshot.wheelhouse,
        "verification": snapshot.verifying,
        "result": snapshot.result,
        "record of the hold": snapshot.hold_record,
        "lock of a run": snapshot.deploy_lock,
        f"account {USER}": snapshot.account and ACCOUNT in made and layout.scope == "system",
    }
    found += [name for name, there in rest.items() if there]
    return found + [name for name in snapshot.units if _is_ours(name, snapshot, layout)]


def _is_ours(name: str, snapshot: HostSnapshot, layout: Layout) -> bool:
    """A unit that is loaded and that llamafleet made: others may have a name that begins so."""
    names = {row.unit for row in _rows(snapshot, layout)} | set(_job_units(snapshot))
    return name in names and snapshot.units[name].load == "loaded"


def managed(snapshot: HostSnapshot, layout: Layout) -> list[Managed]:
    """What llamafleet may have put there; the mask of a unit is an administrator's, and stays."""
    masked = {name for name, unit in snapshot.units.items() if unit.load == "masked"}
    return [row for row in _rows(snapshot, layout) if row.unit not in masked]


def _rows(snapshot: HostSnapshot, layout: Layout) -> tuple[Managed, ...]:
    """Of everything that there may be, each profile that the host knows of included."""
    served = [
        row
        for name in profiles_there(snapshot, layout)
        for row in all_rows(name)
        if layout.scope in row.scopes
    ]
    return (*rows(layout), *served)


def _containers(snapshot: HostSnapshot, layout: Layout) -> Iterator[str]:
    """Of profiles that podman was told of: asked for others it would make itself folders."""
    there = {*snapshot.files, *snapshot.owners}
    for name in profiles_there(snapshot, layout):
        if snapshot.podman and quadlet(name) in there:
            yield container_of(name)


def _of_root_alone(path: str, snapshot: HostSnapshot) -> bool:
    """A file that nobody else can have written; root would follow another's link."""
    owner = snapshot.owners.get(path)
    if owner is None:
        return path in snapshot.files
    return owner.kind == "file" and owner.user == snapshot.user


def _job_units(snapshot: HostSnapshot) -> tuple[str, ...]:
    return tuple(job_unit(job.kind, job.key) for job in snapshot.jobs)


def _processes(snapshot: HostSnapshot, layout: Layout) -> Iterator[Process]:
    jobs: list[Job] = [*snapshot.jobs, *([snapshot.verifying] if snapshot.verifying else [])]
    for job in jobs:
        told = job.progress
        if not job.alive or told is None or told.start_ticks is None:
            continue
        root = layout.scope == "system" and job.root
        yield Process(told.pid, told.start_ticks, root, PACKAGE_MANAGER_S if root else JOB_S)


def _files(ours: list[Managed], snapshot: HostSnapshot, layout: Layout) -> Iterator[str]:
    """All files that may be there of these rows, whether or not they were seen."""
    # What is seen to be no file by now is somebody else's.
    there = snapshot.owners
    yield from (
        one for one in pages_made(snapshot) if one not in there or there[one].kind == "file"
    )
    for row in ours:
        path = row.path(layout)
        yield from (path, unfinished(path), *row.leftovers(layout))
    others = (layout.current, layout.previous, layout.deploy_lock)
    yield from (layout.machine, *others, *map(unfinished, others), mutex(layout.deploy_lock))


def _folders(snapshot: HostSnapshot, layout: Layout, made: tuple[str, ...]) -> Iterator[str]:
    """Whole ones that llamafleet made, and its own in those of others; not that of the record."""
    for root in roots(layout):
        yield unfinished(root)
        inside = [row.path for row in folder_rows(layout) if row.path.startswith(f"{root}/")]
        if root not in made:
            yield from (path for path in inside if path in made)
        elif root != layout.prefix:
            yield root
    if layout.prefix not in made:
        yield from (layout.wheelhouse, unfinished(layout.wheelhouse), layout.shared)


def _stays(snapshot: HostSnapshot, layout: Layout, made: tuple[str, ...]) -> Iterator[str]:
    for root in roots(layout):
        if root in snapshot.owners and root not in made:
            yield f"{root} (it was there before)"
    for unit in snapshot.units.values():
        yield from (f"{path} (it is not llamafleet's)" for path in unit.dropins)
    if layout.scope == "system" and snapshot.account and ACCOUNT not in made:
        yield f"account {USER} (it was there before)"
