"""Files that llamafleet manages on a host."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from io import BytesIO

from pyinfra import host
from pyinfra.api import FileUploadCommand, QuoteString, StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from llamafleet.layout import DRIVER_CHECK_PATH, DRIVER_CHECK_UNIT, VERIFY_TIMER
from llamafleet.render import ManagedFile, settings_files, tool_files
from operations.run import HostRun, here

# Units that a host has or not, by its settings and backend, and how each one is enabled.
OPTIONAL_UNITS = {
    VERIFY_TIMER: "enable --now --quiet",
    DRIVER_CHECK_UNIT: "enable --quiet",
    DRIVER_CHECK_PATH: "enable --now --quiet",
}


@operation()
def tools() -> Generator[PyinfraCommand, None, None]:
    """
    Bring llamafleet's zipapp and pip to the host: what every job runs.

    **Example:**

    .. code:: python

        from operations.files import tools
        tools(name="Bring the job runner")
    """
    run = here()
    files = differing(run, tool_files(run.layout()))
    if not files:
        host.noop("zipapp and pip are the ones of this controller")
        return
    yield from put(files)
    run.changed("tools")


@operation()
def settings() -> Generator[PyinfraCommand, None, None]:
    """
    Render environment, verification settings and units.

    **Example:**

    .. code:: python

        from operations.files import settings
        settings(name="Render environment and units")
    """
    run = here()
    snapshot, layout, ctl = run.snapshot(), run.layout(), systemctl(run)
    rendered = settings_files(run.plan(), run.settings, layout, systemd=snapshot.init == "systemd")
    files = differing(run, rendered)
    paths = {unit: f"{layout.units}/{unit}" for unit in OPTIONAL_UNITS}
    written = {f.path for f in files}
    dropped = [
        unit
        for unit, path in paths.items()
        if any(f.unit for f in rendered)
        and path in snapshot.files
        and path not in {f.path for f in rendered}
    ]
    if not files and not dropped:
        host.noop("environment, settings and units are as rendered")
        return
    yield from put(files)
    for unit in dropped:
        yield StringCommand(ctl, "disable --now --quiet", unit)
        yield StringCommand("rm -f", QuoteString(paths[unit]))
        run.changed(f"{unit} removed")
    if dropped or any(f.unit for f in files):
        yield StringCommand(ctl, "daemon-reload")
    for unit, enable in OPTIONAL_UNITS.items():
        if paths[unit] in written:
            yield StringCommand(ctl, enable, unit)
    if files:
        run.changed("settings " + " ".join(f.path.rsplit("/", 1)[1] for f in files))


def systemctl(run: HostRun) -> str:
    return "systemctl" if run.settings.scope == "system" else "systemctl --user"


def differing(run: HostRun, files: Iterable[ManagedFile]) -> list[ManagedFile]:
    """Those that the host has not, or has otherwise."""
    there = run.snapshot().files
    return [f for f in files if there.get(f.path) != f.sha256]


def put(files: Iterable[ManagedFile]) -> Generator[PyinfraCommand, None, None]:
    """Write each file in place of what was there."""
    for file in files:
        # An upload is not atomic; the rename is.
        partial = f"{file.path}.partial"
        folder = file.path.rsplit("/", 1)[0]
        yield StringCommand("mkdir", "-p", QuoteString(folder))
        yield FileUploadCommand(BytesIO(file.content), partial)
        yield StringCommand(
            "chmod 644", QuoteString(partial), "&& mv", QuoteString(partial), QuoteString(file.path)
        )
