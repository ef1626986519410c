"""What any host must have, GPU or not: rights, a machine, Python, room."""

from __future__ import annotations

import re

from llamafleet.facts.host import HostSnapshot, Tool
from llamafleet.layout import USER, Layout
from llamafleet.plans.plan import Problem, ToolkitPlan
from llamafleet.protocol.managers import DNF, MANAGERS
from llamafleet.protocol.models import estimate_mib
from llamafleet.protocol.pythons import PYTHONS, RANGE, minor
from llamafleet.protocol.result import Backend
from llamafleet.settings import Settings
from llamafleet.tables import parse_version
from llamafleet.wheelhouse.manifest import Manifest

MACHINES = ("x86_64", "aarch64")

SETPRIV = {"apk": ("setpriv",)}
"""Packages that bring setpriv, by manager; elsewhere util-linux brings it, and setsid."""

BUILD_MIB: dict[Backend, dict[str, int]] = {
    "cuda": {"state": 6000, "prefix": 2000},
    "cpu": {"state": 1500, "prefix": 600},
}
"""Free space of one build: objects and wheel below the state folder, the environment below the
prefix. Estimated generously from a wheel of 132 MB (CUDA) and 20 MB (CPU)."""

TOOLKIT_MIB: dict[str, dict[str, int]] = {
    "wheels": {"prefix": 3000},
    "runfile": {"state": 14000, "prefix": 9000},
}
"""Free space by method; package managers look for themselves. Wheels: 0.9 GB unpacked and 0.6 GB
of downloads (measured). Runfile: files of 4 to 6 GB that unpack to about twice that (estimated)."""


_SUDO = re.compile(r"\bsudo (?=[a-z/])")
"""In front of a command that is advised."""

HOMES = ("/home/", "/root/", "/run/user/")
"""What ProtectHome= of systemd.exec(5) hides from a unit."""


def unread_problem(snapshot: HostSnapshot) -> Problem | None:
    """Nothing can be planned for a host of which this is not known."""
    if snapshot.error:
        return _told_problem(snapshot.error)
    if not snapshot.setpriv:
        manager = MANAGERS.get(snapshot.package_manager or "")
        packages = SETPRIV.get(snapshot.package_manager or "", ("util-linux",))
        return Problem(
            "rights",
            found="no setpriv that takes a user and a group, or no setsid",
            expected="both: by them root leaves its rights behind before it runs what the account "
            f"{USER} can write",
            next=manager.install_by_hand(*packages) if manager else "install util-linux",
        )
    if snapshot.unseen:
        return Problem(
            "snapshot",
            found=snapshot.unseen,
            expected="at most 60 s and 8 MiB for compilers, Pythons, toolkits, builds and jobs",
            next="see on the host what hangs: c++ --version, or a network file system",
        )
    return None


def _told_problem(error: str) -> Problem:
    """Of the error's own parts, where it has all three."""
    rest, _, fix = error.rpartition("; next: ")
    found, _, expected = rest.rpartition("; expected ")
    if found.startswith("found "):
        return Problem("snapshot", found.removeprefix("found "), expected, fix)
    return Problem(
        "snapshot",
        found=error,
        expected="a host that can be read",
        next="log in as the same user and run: sh -c 'echo ok'; where sudo wants a terminal: "
        "_get_pty = True for this host",
    )


def as_typed(snapshot: HostSnapshot, text: str) -> str:
    """Advice as whoever logs in there types it: without sudo where that is root or has none."""
    return _SUDO.sub("", text) if snapshot.no_sudo else text


def rights_problem(settings: Settings, snapshot: HostSnapshot) -> Problem | None:
    if settings.scope != "system" or snapshot.uid == 0:
        return None
    return Problem(
        "rights",
        found=f"user {snapshot.user} (uid {snapshot.uid})",
        expected="root, for scope = 'system'",
        next="set _sudo = True for this host, or scope = 'user'",
    )


def place_problem(snapshot: HostSnapshot, layout: Layout) -> Problem | None:
    """A folder that leads, by a link, to where no unit sees it."""
    real = snapshot.real_paths
    for name, path in (("prefix", layout.prefix), ("state", layout.state)):
        if layout.scope == "system" and real.get(name, "").startswith(HOMES):
            return Problem(
                "folders",
                found=f"{path} at {real[name]}",
                expected=f"a place outside of {', '.join(HOMES)}, which systemd hides from units",
                next=f"move it, as mount --bind does, or set scope = 'user' (ls -ld {path})",
            )
    return None


def machine_problem(snapshot: HostSnapshot) -> Problem | None:
    if snapshot.arch in MACHINES:
        return None
    return Problem(
        "machine",
        found=f"machine {snapshot.arch or 'unknown'}",
        expected=" or ".join(MACHINES),
        next="take this host out of the inventory",
    )


def choose_python(
    settings: Settings, snapshot: HostSnapshot, house: Manifest | None
) -> Tool | Problem:
    """The interpreter of the settings, else the newest supported one that the wheelhouse is for.

    In scope system one that not every user may run doesn't count: another account builds. One
    that lacks a part of the standard library counts nowhere.
    """
    wanted = settings.python
    found = [p for p in snapshot.pythons if wanted in (None, p.path)]
    supported = [p for p in found if minor(p.version) in PYTHONS]
    usable = [p for p in supported if not _unfit(p, settings)]
    served = [p for p in usable if house is None or minor(p.version) in house.pythons]
    if usable:
        return max(served or usable, key=lambda p: parse_version(p.version))
    seen = [
        f"{p.path} {p.version}" + (f" ({why})" if (why := _unfit(p, settings)) else "")
        for p in snapshot.pythons
    ]
    if wanted in snapshot.extra_there and not found:
        seen.insert(0, f"{wanted} (the account that builds can't run it)")
    return Problem(
        "python",
        found=", ".join(seen) or "no Python",
        expected=f"{wanted or 'a Python'}, version {RANGE}",
        next="set python to one of those found, or remove it"
        if wanted
        else install_python(snapshot),
    )


def install_python(snapshot: HostSnapshot) -> str:
    """What to type to get a supported Python; the distribution's python3 may be too old."""
    if snapshot.enterprise_linux and parse_version(snapshot.os_version)[:1] in ((8,), (9,)):
        # Their python3 is 3.6 and 3.9: docs.redhat.com, RHEL 9, Introduction to Python.
        return DNF.install_by_hand("python3.12")
    manager = MANAGERS.get(snapshot.package_manager or "")
    own = [p for p in snapshot.pythons if p.path.startswith(("/usr/bin/", "/usr/libexec/"))]
    cut = [p for p in own if p.lacks and minor(p.version) in PYTHONS]
    if manager and (cut or not own):
        return manager.install_by_hand(manager.python)
    return f"install Python {RANGE}, and set python to its path"


def _unfit(python: Tool, settings: Settings) -> str:
    """Why no job can run it; "": it can."""
    if python.lacks:
        return f"lacks {', '.join(python.lacks)}"
    if settings.scope != "system":
        return ""
    if python.path.startswith(HOMES):
        return "where systemd's units see nothing"
    return "" if python.everyone or settings.python else "not for every user"


def disk_needs(
    backend: Backend, toolkit: ToolkitPlan | None, building: bool, model: str | None
) -> dict[str, int]:
    """MiB needed in `state` and `prefix`; `model` None: it need not be written."""
    needs = dict(BUILD_MIB[backend]) if building else {"state": 0, "prefix": 0}
    if toolkit and toolkit.install:
        for place, mib in TOOLKIT_MIB.get(toolkit.method, {}).items():
            needs[place] += mib
    if model:
        needs["state"] += estimate_mib(model)
    return needs


def state_needs(snapshot: HostSnapshot, needs: dict[str, int]) -> int:
    """MiB of these that are taken from the state folder's file system, told as below."""
    free = snapshot.disk_free_mib
    return sum(mib for place, mib in needs.items() if free.get(place) == free.get("state"))


def disk_problems(snapshot: HostSnapshot, needs: dict[str, int]) -> tuple[Problem, ...]:
    """Places that are too small. Places with the same free space count as one file system."""
    free = {place: snapshot.disk_free_mib.get(place) for place in needs}
    problems = []
    for size in dict.fromkeys(free.values()):
        places = [place for place in needs if free[place] == size]
        need = sum(needs[place] for place in places)
        if (size or 0) < need:
            problems.append(
                Problem(
                    "disk",
                    found=f"{'unknown' if size is None else size} MiB free for "
                    + " and ".join(places),
                    expected=f"{need} MiB",
                    next="df -h on the host; free space there, or remove old builds in versions/",
                )
            )
    return tuple(problems)
