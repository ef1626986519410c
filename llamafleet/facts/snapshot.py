"""The one fact of a host: runs snapshot.sh there and reads what it prints."""

from __future__ import annotations

import shlex
from importlib.resources import files as package_files
from typing import cast
from weakref import WeakKeyDictionary

from pyinfra.api.exceptions import FactProcessError
from pyinfra.api.facts import FactBase
from pyinfra.api.host import Host

from llamafleet.facts.host import HostSnapshot
from llamafleet.facts.reader import TELLING, SnapshotError, parse
from llamafleet.layout import Layout
from llamafleet.managed import unit_names
from llamafleet.protocol.pythons import PYTHONS
from llamafleet.tables import driver_packages

__all__ = ["Snapshot", "SnapshotText", "arguments", "forget", "parse", "render", "snapshot_of"]

TIMEOUT_S = 120
"""A script that takes longer hangs, on a dead network file system say; it needs under a second,
and at most 10 s more for an nvidia-smi that hangs, 5 s for dkms and 6 s for the kernel's log."""

_memo: WeakKeyDictionary[Host, tuple[tuple[object, ...], HostSnapshot]] = WeakKeyDictionary()


def render(layout: Layout, files: tuple[str, ...], extra: tuple[str, ...] = ()) -> str:
    """The whole script for one host.

    `files`: paths to hash. `extra`: paths from the settings that are not among the usual ones: a
    toolkit's root, a C++ compiler, a Python interpreter. A path is absolute or begins with
    ``$HOME/``, which the host's shell expands. Raises ValueError on any other path.
    """
    for path in (layout.prefix, layout.state, *files, *extra):
        if not path.startswith(("/", "$HOME/")) or "\n" in path:
            raise ValueError(
                f"found path {path!r}; expected one line that begins with / or $HOME/; "
                "next: correct the setting that holds it"
            )
    parameters = {
        "LF_SCOPE": layout.scope,
        "LF_PREFIX": layout.prefix,
        "LF_STATE": layout.state,
        "LF_FILES": "\n".join(files),
        "LF_EXTRA": "\n".join(extra),
        "LF_UNITS": " ".join(unit_names()),
        "LF_DRIVER": "\n".join(driver_packages.patterns(*TELLING)),
        "LF_HELD": "\n".join(driver_packages.patterns("held")),
        "LF_PYTHONS": " ".join(reversed(PYTHONS)),
    }
    script = package_files("llamafleet.facts").joinpath("snapshot.sh").read_text("utf-8")
    return "".join(f"{key}={shlex.quote(text)}\n" for key, text in parameters.items()) + script


class Snapshot(FactBase[HostSnapshot]):
    """State of a host. Each `host.get_fact` reads anew; see `snapshot_of`."""

    def command(
        self,
        scope: str,
        prefix: str,
        state_dir: str,
        files: tuple[str, ...] = (),
        extra: tuple[str, ...] = (),
    ) -> str:
        if scope not in ("system", "user"):
            raise ValueError(f"found scope {scope!r}; expected system or user")
        layout = Layout(
            scope="user" if scope == "user" else "system",
            prefix=prefix,
            etc="",
            state=state_dir,
            units="",
        )
        return render(layout, tuple(files), tuple(extra))

    def process(self, output: list[str]) -> HostSnapshot:
        # Any other exception would end the run for every host.
        try:
            return parse(output)
        except SnapshotError as error:
            raise FactProcessError(str(error)) from error
        except Exception as error:
            raise FactProcessError(
                f"found a snapshot that can't be understood ({type(error).__name__}: {error})"
            ) from error


class SnapshotText(FactBase[str]):
    """The same, as the host printed it."""

    command = Snapshot.command

    def process(self, output: list[str]) -> str:
        return "\n".join(output) + "\n"


def arguments(
    layout: Layout, files: tuple[str, ...], extra: tuple[str, ...] = ()
) -> dict[str, object]:
    """Of these two facts, for one host."""
    return {
        "scope": layout.scope,
        "prefix": layout.prefix,
        "state_dir": layout.state,
        "files": files,
        "extra": extra,
        "_timeout": TIMEOUT_S,
    }


def snapshot_of(
    host: Host, layout: Layout, files: tuple[str, ...], extra: tuple[str, ...] = ()
) -> HostSnapshot:
    """The host's snapshot, read once until `forget(host)`.

    A host that can't be read gets a snapshot whose `error` says so, and the run goes on: the plan
    turns it into that host's problem. It is not remembered, so the next call tries again.
    """
    asked = (layout, files, extra)
    known = _memo.get(host)
    if known and known[0] == asked:
        return known[1]
    try:
        render(layout, files, extra)
    except ValueError as error:
        return HostSnapshot(error=str(error))
    snapshot = cast(
        "HostSnapshot | None",
        host.get_fact(Snapshot, **arguments(*asked), _ignore_errors=True),
    )
    if snapshot is None:
        return HostSnapshot(
            error="the host could not be read: the log above says why, with -vvv all it printed"
        )
    _memo[host] = (asked, snapshot)
    return snapshot


def forget(host: Host) -> None:
    """Read the host anew next time: to be called after each change made to it."""
    _memo.pop(host, None)
