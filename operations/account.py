"""The unprivileged account and the folders that belong to it."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra.api import QuoteString, StringCommand, operation

from llamafleet.layout import USER, Layout
from operations.run import here

# Debian's driver packages give /dev/nvidia* to group video with mode 0660.
GPU_GROUPS = ("video", "render")


@operation()
def account() -> Generator[StringCommand, None, None]:
    """
    Create the account that builds and verifies (scope system) and the folders.

    **Example:**

    .. code:: python

        from operations.account import account
        account(name="Create the account and its folders")
    """
    run = here()
    snapshot, layout = run.snapshot(), run.layout()
    system = layout.scope == "system"
    if layout.zipapp in snapshot.files and (snapshot.account or not system):
        run.noop("account and folders are there")
        return
    if system and not snapshot.account:
        yield StringCommand(
            "useradd --system --user-group --no-create-home --shell /usr/sbin/nologin",
            "--home-dir",
            QuoteString(layout.state),
            USER,
        )
        for group in GPU_GROUPS:
            yield StringCommand(
                f"if getent group {group} >/dev/null; then usermod -aG {group} {USER}; fi"
            )
    yield StringCommand("install -d -m 755", *map(QuoteString, (layout.prefix, layout.etc)))
    own = f"-o {USER} -g {USER}" if system else ""
    yield StringCommand("install -d -m 755", own, *map(QuoteString, owned_folders(layout)))
    run.changed("account" if system and not snapshot.account else "folders")


def owned_folders(layout: Layout) -> tuple[str, ...]:
    """Folders that jobs write to."""
    return (
        layout.state,
        *(f"{layout.state}/{name}" for name in ("build", "toolkit", "verify", "tmp")),
        layout.results,
        layout.models,
        layout.versions,
        f"{layout.prefix}/toolkits",
    )
