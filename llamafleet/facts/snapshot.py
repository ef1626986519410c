"""The one fact of a host: runs snapshot.sh there and reads what it prints."""

from __future__ import annotations

import shlex
from importlib.resources import files as package_files
from typing import cast
from weakref import WeakKeyDictionary

from pyinfra.api.facts import FactBase
from pyinfra.api.host import Host

from llamafleet.facts.host import HostSnapshot
from llamafleet.facts.reader import TELLING, SnapshotError, parse
from llamafleet.layout import AS_ACCOUNT, USER, Layout, quadlet, serve_unit
from llamafleet.managed import unit_names
from llamafleet.protocol.pythons import MODULES, PYTHONS
from llamafleet.tables import driver_packages
from llamafleet.tables.gpus import telling_xids
from llamafleet.terminal import printable
from llamafleet.wheelhouse.manifest import MANIFEST

__all__ = ["Snapshot", "SnapshotText", "arguments", "forget", "parse", "render", "snapshot_of"]

TIMEOUT_S = 240
"""A script that takes longer hangs, on a dead network file system say. It needs about a second, and
at most 100 s more for an nvidia-smi that hangs, 60 s for programs and folders of the account that
do, 10 s for files, 9 s for whose the driver's are, 5 s for dkms, 8 s for systemd, 3 s for the
driver's own files and 9 s for the kernel's log."""

NOBODY = "65534"
"""The number of user and group nobody: user_namespaces(7), overflowuid."""
_NAMED = {
    f"--reuid={USER}": f"--reuid={NOBODY}",
    f"--regid={USER}": f"--regid={NOBODY}",
    "--init-groups": "--clear-groups",
}
AS_NOBODY = tuple(_NAMED.get(word, word) for word in AS_ACCOUNT)
"""As AS_ACCOUNT, where there is no account yet."""

_memo: WeakKeyDictionary[Host, tuple[tuple[object, ...], HostSnapshot]] = WeakKeyDictionary()


def render(
    layout: Layout,
    files: tuple[str, ...],
    extra: tuple[str, ...] = (),
    folders: tuple[str, ...] = (),
    ports: tuple[int, ...] = (),
) -> str:
    """The whole script for one host.

    `files`: paths to hash. `extra`: paths from the settings that are not among the usual ones: a
    toolkit's root, a C++ compiler, a Python interpreter. `folders`: paths whose owners are wanted,
    as those of `files` are. `ports`: whose listeners are wanted. A path is absolute or begins with
    ``$HOME/``, which the host's shell expands. Raises ValueError on any other path.
    """
    own = (layout.prefix, layout.state, layout.etc, layout.units)
    _refuse_odd(*own, *files, *extra, *folders)
    parameters = {
        "LF_SCOPE": layout.scope,
        "LF_PREFIX": layout.prefix,
        "LF_STATE": layout.state,
        "LF_ETC": layout.etc,
        "LF_UNIT_FILES": layout.units,
        "LF_SERVICE": serve_unit("*"),
        "LF_QUADLET": quadlet("*"),
        "LF_PORTS": " ".join(map(str, ports)),
        "LF_FILES": "\n".join(files),
        "LF_FOLDERS": "\n".join(folders),
        "LF_MADE": layout.made,
        "LF_LOCK": layout.deploy_lock,
        "LF_MACHINE": layout.machine,
        "LF_WHEELHOUSE": f"{layout.wheelhouse}/{MANIFEST}",
        "LF_EXTRA": "\n".join(extra),
        "LF_USER": USER,
        "LF_AS_ACCOUNT": " ".join(AS_ACCOUNT),
        "LF_AS_NOBODY": " ".join(AS_NOBODY),
        "LF_MODULES": " ".join(MODULES),
        "LF_UNITS": " ".join(unit_names()),
        "LF_DRIVER": "\n".join(driver_packages.patterns(*TELLING)),
        "LF_HELD": "\n".join(driver_packages.patterns("held")),
        "LF_XIDS": "|".join(map(str, sorted(telling_xids()))),
        "LF_PYTHONS": " ".join(reversed(PYTHONS)),
    }
    script = package_files("llamafleet.facts").joinpath("snapshot.sh").read_text("utf-8")
    # As a value of its own, since it starts itself again with fewer rights.
    parameters["LF_SCRIPT"] = script
    assigned = "".join(f"{key}={shlex.quote(text)}\n" for key, text in parameters.items())
    return f'{assigned}eval "$LF_SCRIPT"\n'


def _refuse_odd(*paths: str) -> None:
    """Raise ValueError on a path that is relative, or takes more than one line."""
    for path in paths:
        if not path.startswith(("/", "$HOME/")) or not path.isprintable():
            raise ValueError(
                f"found path {path!r}; expected one line that begins with / or $HOME/; "
                "next: correct the setting that holds it"
            )


def one_line(script: str) -> str:
    """The script as one line that every login shell hands on as it is.

    What tcsh changes even between quotes (line ends, "!") and fish (backslashes) is written as
    printf(1) knows it. One argument takes 128 KiB on Linux: execve(2), MAX_ARG_STRLEN.
    """
    return "eval \"$(printf '" + "".join(map(_escaped, script.encode())) + "')\""


def _escaped(byte: int) -> str:
    if byte == ord("%"):
        return "%%"
    safe = ord(" ") <= byte <= ord("~") and byte not in b"'\\!"
    return chr(byte) if safe else f"\\{byte:03o}"


class Snapshot(FactBase[HostSnapshot]):
    """State of a host. Each `host.get_fact` reads anew; see `snapshot_of`."""

    def command(
        self,
        scope: str,
        prefix: str,
        state_dir: str,
        *,
        etc: str,
        units: str,
        files: tuple[str, ...] = (),
        extra: tuple[str, ...] = (),
        folders: tuple[str, ...] = (),
        ports: tuple[int, ...] = (),
    ) -> str:
        if scope not in ("system", "user"):
            raise ValueError(f"found scope {scope!r}; expected system or user")
        layout = Layout(
            scope="user" if scope == "user" else "system",
            prefix=prefix,
            etc=etc,
            state=state_dir,
            units=units,
        )
        return one_line(render(layout, tuple(files), tuple(extra), tuple(folders), tuple(ports)))

    def process(self, output: list[str]) -> HostSnapshot:
        # Any exception would end the run for every host.
        try:
            return parse(output)
        except SnapshotError as error:
            return HostSnapshot(error=str(error))
        except Exception as error:
            return HostSnapshot(
                error="found a snapshot that can't be understood "
                f"({printable(f'{type(error).__name__}: {error}')[:300]})"
            )


class SnapshotText(FactBase[str]):
    """The same, as the host printed it."""

    command = Snapshot.command

    def process(self, output: list[str]) -> str:
        return "\n".join(output) + "\n"


def arguments(
    layout: Layout,
    files: tuple[str, ...],
    extra: tuple[str, ...] = (),
    folders: tuple[str, ...] = (),
    ports: tuple[int, ...] = (),
) -> dict[str, object]:
    """Of these two facts, for one host."""
    return {
        "scope": layout.scope,
        "prefix": layout.prefix,
        "state_dir": layout.state,
        "etc": layout.etc,
        "units": layout.units,
        "ports": ports,
        "files": files,
        "extra": extra,
        "folders": folders,
        "_timeout": TIMEOUT_S,
    }


def snapshot_of(  # noqa: PLR0917 - `plans.make.to_read` gives all but the host
    host: Host,
    layout: Layout,
    files: tuple[str, ...],
    extra: tuple[str, ...] = (),
    folders: tuple[str, ...] = (),
    ports: tuple[int, ...] = (),
) -> HostSnapshot:
    """The host's snapshot, read once until `forget(host)`.

    A host that can't be read gets a snapshot whose `error` says so, and the run goes on: the plan
    turns it into that host's problem. That is remembered too: each stage of a run asks, and a host
    that hangs would hold up all others once for each.
    """
    asked = (layout, files, extra, folders, ports)
    known = _memo.get(host)
    if known and known[0] == asked:
        return known[1]
    try:
        render(*asked)
    except ValueError as error:
        return HostSnapshot(error=str(error))
    snapshot = cast(
        "HostSnapshot | None",
        host.get_fact(Snapshot, **arguments(*asked), _ignore_errors=True),
    )
    if snapshot is None:
        snapshot = HostSnapshot(
            error="the host could not be read: the log above says why, with -vvv all it printed"
        )
    _memo[host] = (asked, snapshot)
    return snapshot


def forget(host: Host) -> None:
    """Read the host anew next time: to be called after each change made to it."""
    _memo.pop(host, None)
