"""The C++ host compiler: which one on the host will do, and what installs one."""

from __future__ import annotations

from llamafleet.facts.host import Compiler, HostSnapshot, Job
from llamafleet.plans.plan import PackagesPlan, Problem
from llamafleet.plans.toolkit.methods import system
from llamafleet.protocol.managers import APT, DNF, MANAGERS, YUM
from llamafleet.settings import Settings
from llamafleet.tables import parse_version
from llamafleet.tables.distributions import CompilerPackage
from llamafleet.tables.toolkits import ToolkitRow

MIN_MAJOR = 11
"""Oldest gcc or clang accepted unasked. Measured: gcc 12 and 13 build; older than 11: not tried."""


REFUSED = frozenset({"unsupported-gnu-version", "host-compiler-refused"})
"""Known failures of a build that another compiler of the host does not have: nvcc itself refuses
the one that it was given."""


def refusal(compiler: Compiler, row: ToolkitRow | None) -> str | None:
    """Why the compiler won't do for that toolkit (None: for no toolkit); None: it will."""
    if compiler.major < MIN_MAJOR:
        return f"{compiler.kind} {compiler.major} is older than {MIN_MAJOR}"
    if row is None:
        return None
    newest = row.gcc if compiler.kind == "gcc" else row.clang
    if compiler.major > newest:
        return f"CUDA {row.version} accepts {compiler.kind} up to {newest}, not {compiler.major}"
    return None


def candidates(snapshot: HostSnapshot, settings: Settings) -> tuple[Compiler, ...]:
    """Compilers to try, best first: gcc before clang, newer before older."""
    if settings.host_compiler:
        return tuple(c for c in snapshot.compilers if c.path == settings.host_compiler)
    return tuple(
        sorted(snapshot.compilers, key=lambda c: (c.kind == "gcc", c.major, c.path), reverse=True)
    )


def fitting(snapshot: HostSnapshot, settings: Settings, row: ToolkitRow | None) -> Compiler | None:
    """The compiler to build with: an accepted one, or any where the settings allow it."""
    found = candidates(snapshot, settings)
    accepted = [c for c in found if refusal(c, row) is None]
    if accepted:
        return accepted[0]
    return found[0] if found and settings.allow_unsupported_compiler else None


def instead(
    snapshot: HostSnapshot,
    settings: Settings,
    row: ToolkitRow | None,
    refused: Compiler,
    job: Job | None,
) -> Compiler | None:
    """The compiler after the one that nvcc refused while `job` built with it; None: none.

    The next one of another version alone, once: where that is refused too, something else is wrong.
    """
    error = job.stamp.error if job and job.stamp and not job.alive else None
    if error is None or error.signature not in REFUSED:
        return None
    accepted = [c for c in candidates(snapshot, settings) if refusal(c, row) is None]
    return next((c for c in accepted if (c.kind, c.major) != (refused.kind, refused.major)), None)


def choose_compiler(
    snapshot: HostSnapshot, settings: Settings, row: ToolkitRow | None
) -> Compiler | Problem:
    """The compiler for that toolkit, or why none on the host will do.

    A host without any compiler is the business of `plan_packages`.
    """
    chosen = fitting(snapshot, settings, row)
    if chosen is not None:
        return chosen
    found = candidates(snapshot, settings)
    newest = f" to {row.gcc} (CUDA {row.version})" if row else ""
    wanted = row.gcc if row else MIN_MAJOR
    return Problem(
        "compiler",
        found="; ".join(f"{c.path}: {refusal(c, row)}" for c in found) or "none",
        expected=f"gcc {MIN_MAJOR}{newest or ' or newer'}",
        next=f"{install_version(snapshot, wanted)}; or set allow_unsupported_compiler = True",
    )


def installable(
    snapshot: HostSnapshot, settings: Settings, row: ToolkitRow | None
) -> CompilerPackage | None:
    """What to install for that toolkit: the distribution's default if it will do, else the newest.

    None: nothing that it accepts is offered, or nothing may be installed.
    """
    here = system(snapshot)
    if here is None or row is None or settings.host_compiler or not _may_install(settings):
        return None
    fit = [c for c in here.compilers if MIN_MAJOR <= c.major <= row.gcc]
    return max(fit, key=lambda c: (c.default, c.major), default=None)


def plan_compiler(package: str, toolkit: str) -> PackagesPlan:
    """Install the compiler that the toolkit accepts."""
    reason = f"no C++ compiler is on the host that CUDA {toolkit} accepts"
    return PackagesPlan(names=(package,), reason=reason)


def _may_install(settings: Settings) -> bool:
    return settings.scope == "system" and settings.install_packages


def install_version(snapshot: HostSnapshot, newest: int) -> str:
    """What to type to get a gcc from MIN_MAJOR to that major version: the newest that there is."""
    here = system(snapshot)
    if here:
        fit = [row for row in here.compilers if MIN_MAJOR <= row.major <= newest]
        if fit:
            best = max(fit, key=lambda row: row.major)
            return MANAGERS[here.manager].install_by_hand(best.package)
        return _elsewhere(snapshot, newest)
    if snapshot.enterprise_linux and snapshot.os_version.startswith("7"):
        # The last one that Red Hat's collection for 7 has.
        return YUM.install_by_hand(f"centos-release-scl devtoolset-{MIN_MAJOR}-gcc-c++")
    if snapshot.os_id == "ubuntu" and parse_version(snapshot.os_version or "0") < (22,):
        # Ubuntu 20.04 ends with g++-10: packages.ubuntu.com.
        ppa = "sudo add-apt-repository ppa:ubuntu-toolchain-r/test"
        return f"{ppa}; {APT.install_by_hand(f'g++-{min(newest, 13)}')}"
    if snapshot.os_id == "debian" and parse_version(snapshot.os_version or "12") < (12,):
        return _elsewhere(snapshot, newest)
    if snapshot.package_manager == "apt":
        return APT.install_by_hand(f"g++-{newest}")
    if snapshot.enterprise_linux and newest <= 15:
        # The snapshot looks into each toolset's folder, so no setting is needed.
        return DNF.install_by_hand(f"gcc-toolset-{newest}-gcc-c++")
    if snapshot.package_manager == "zypper":
        return MANAGERS["zypper"].install_by_hand(f"gcc{newest}-c++")
    return f"install g++-{newest} from the distribution and set host_compiler to its path"


def _elsewhere(snapshot: HostSnapshot, newest: int) -> str:
    return (
        f"{snapshot.os_name or 'this system'} has no g++ {MIN_MAJOR} to {newest}: install one from "
        "elsewhere (as conda's gxx_linux-64) and set host_compiler to its path"
    )


def plan_packages(snapshot: HostSnapshot, settings: Settings) -> PackagesPlan | Problem:
    """Install a C++ compiler where none is there and llamafleet may; else say what to type."""
    if settings.host_compiler:
        if candidates(snapshot, settings):
            return PackagesPlan()
        there = ", ".join(c.path for c in snapshot.compilers) or "no C++ compiler"
        return Problem(
            "compiler",
            found=there,
            expected=f"host_compiler = {settings.host_compiler!r}",
            next="set host_compiler to one of those found, or install it there",
        )
    if snapshot.compilers:
        return PackagesPlan()
    manager = MANAGERS.get(snapshot.package_manager or "")
    if manager is None:
        return Problem(
            "compiler",
            found="no C++ compiler, and none of " + ", ".join(MANAGERS),
            expected=f"g++ or clang++ {MIN_MAJOR} or newer",
            next="install g++ on the host",
        )
    if _may_install(settings):
        return PackagesPlan(names=(manager.compiler,), reason="no C++ compiler is on the host")
    why = "scope = 'user'" if settings.scope == "user" else "install_packages = False"
    return Problem(
        "compiler",
        found=f"no C++ compiler, and {why} forbids to install one",
        expected=f"g++ or clang++ {MIN_MAJOR} or newer",
        next=manager.install_by_hand(manager.compiler),
    )
