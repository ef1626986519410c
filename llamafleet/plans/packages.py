"""Jobs of root: which interpreter may run them, and the one that installs a missing compiler."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import cast

from llamafleet.facts.host import HostSnapshot, Tool
from llamafleet.layout import USER, Layout
from llamafleet.plans.host import install_python
from llamafleet.plans.network import plan_network
from llamafleet.plans.plan import JobPlan, PackagesPlan, Problem
from llamafleet.protocol.job import AnyManager, CompilerConfig, PackagesInputs
from llamafleet.protocol.pythons import PYTHONS, RANGE, minor
from llamafleet.settings import Settings
from llamafleet.tables import parse_version

MINUTES = 45
"""How long a run waits: a compiler over a slow line, and a package manager that waits its turn."""


def root_python(snapshot: HostSnapshot, python: str) -> str | Problem:
    """What runs a job of root: `python`, or else the newest that nobody but root can write."""
    trusted = [p for p in snapshot.pythons if p.trusted and minor(p.version) in PYTHONS]
    if any(p.path == python for p in trusted):
        return python
    if trusted:
        return max(trusted, key=_age).path
    return Problem(
        "python",
        found=", ".join(f"{p.path} {p.version}" for p in snapshot.pythons) or "no Python",
        expected=f"Python {RANGE} in folders that root alone can write, to install packages with",
        next=install_python(snapshot),
    )


def _age(python: Tool) -> tuple[int, ...]:
    return parse_version(python.version)


def plan_packages_job(
    packages: PackagesPlan,
    settings: Settings,
    snapshot: HostSnapshot,
    layout: Layout,
    python: str,
) -> PackagesPlan | Problem:
    """The same plan with the job that installs the packages, if some must be.

    `python`: the interpreter of the host's other jobs.
    """
    if not packages.names:
        return packages
    by = root_python(snapshot, python)
    if isinstance(by, Problem):
        return by
    key = _key(packages.names)
    network = plan_network(settings, snapshot, layout)
    config = CompilerConfig(
        key=key,
        inputs=PackagesInputs(packages=packages.names),
        proxies=network.proxies,
        ca_bundle=network.ca_bundle,
        netrc=network.netrc,
        # The plan names packages for known managers alone.
        manager=cast("AnyManager", snapshot.package_manager),
        packages=packages.names,
        record=layout.installed_packages,
        account=USER,
        compilers=tuple(map(_command, packages.names)),
    )
    running = snapshot.job("packages", key, root=True)
    job = JobPlan(
        kind="packages",
        key=key,
        folder=layout.root_job("packages", key),
        config=layout.config("packages", key),
        python=by,
        minutes=MINUTES,
        start=running is None or not running.alive,
        root=True,
    )
    return replace(packages, config=config, job=job)


def _key(names: tuple[str, ...]) -> str:
    """As "gxx-12" for g++-12: a unit's name has no plus."""
    return "-".join(names).replace("+", "x")


def _command(package: str) -> str:
    """The C++ compiler that a package of one brings."""
    if toolset := re.match(r"gcc-toolset-(\d+)-", package):
        return f"/opt/rh/gcc-toolset-{toolset[1]}/root/usr/bin/g++"
    numbered = re.match(r"(?:g\+\+-|gcc-?)(\d+)", package)
    return f"g++-{numbered[1]}" if numbered else "g++"
