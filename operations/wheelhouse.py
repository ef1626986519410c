"""A wheelhouse of the controller, copied to hosts that use no registry."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from pyinfra import host
from pyinfra.api import FileUploadCommand, FunctionCommand, QuoteString, StringCommand, operation
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.host import Host
from pyinfra.api.state import State

from llamafleet.plans.requirements import host_requirements, llama_requirement
from llamafleet.wheelhouse import manifest as house
from operations.run import HostRun, here


@operation()
def wheelhouse() -> Generator[PyinfraCommand, None, None]:
    """
    Copy the wheelhouse of the settings to the host, its manifest last.

    **Example:**

    .. code:: python

        from operations.wheelhouse import wheelhouse
        wheelhouse(name="Bring the wheelhouse")
    """
    run = here()
    if run.settings.wheelhouse is None:
        host.noop("registries are used")
        return
    source, target = Path(run.settings.wheelhouse), run.layout().wheelhouse
    if lines := _misfits(run, source):
        yield FunctionCommand(_refuse, (run, lines), {})
        return
    if run.snapshot().wheelhouse == house.sha256_of(source / house.MANIFEST):
        host.noop("the host has this wheelhouse")
        return
    yield StringCommand("rm -rf", QuoteString(target))
    yield StringCommand("install -d -m 755", QuoteString(target))
    for name in (*house.load(source).files, house.MANIFEST):
        yield FileUploadCommand(str(source / name), f"{target}/{name}")
    yield StringCommand("chmod -R a+rX", QuoteString(target))
    run.changed("wheelhouse")


def _misfits(run: HostRun, source: Path) -> list[str]:
    """Why this host can't build from the wheelhouse."""
    plan, snapshot = run.plan(), run.snapshot()
    if plan.build is None:
        return []
    python = next(p.version for p in snapshot.pythons if p.path == plan.build.python)
    cmake = snapshot.cmake.version if snapshot.cmake else None
    chosen, toolkit = plan.toolkit, None
    if chosen and chosen.install and chosen.method == "wheels":
        toolkit = chosen.version
    return house.misfits(
        house.load(source),
        python=python,
        arch=snapshot.arch,
        host_cmake=cmake,
        toolkit=toolkit,
    )


def _refuse(state: State, host: Host, run: HostRun, lines: list[str]) -> bool:
    for line in lines:
        run.fail(
            f"wheelhouse: found {line}; expected one that fits {run.name}; "
            f"next: llamafleet wheelhouse build {run.settings.wheelhouse}"
        )
    return False


def find_links(run: HostRun) -> str | None:
    """Folder on the host that pip uses in place of an index."""
    return run.layout().wheelhouse if run.settings.wheelhouse else None


def build_requirements(run: HostRun) -> tuple[str, str]:
    """(requirements of venv and build, the requirement of llama-cpp-python), with hashes."""
    folder = run.settings.wheelhouse
    manifest = house.load(Path(folder)) if folder else None
    return host_requirements(manifest), llama_requirement(run.settings, manifest)
