"""Remove every trace of llamafleet from a host."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Iterable, Iterator

from pyinfra import host
from pyinfra.api import QuoteString, StringCommand, operation
from pyinfra.facts.files import FileContents

from llamafleet.facts.host import HostSnapshot
from llamafleet.layout import USER, Layout
from llamafleet.managed import Managed, rows
from llamafleet.plans.driver.hold import release
from operations.files import systemctl, unfinished
from operations.run import here

# Jobs end their own children on TERM, but for a package manager, which they let end; what is left
# of the account after that is killed.
STOP_JOBS = """
hunt() {
  found=1
  for proc in /proc/[0-9]*; do
    [ -O "$proc" ] || [ "$(id -u)" = 0 ] || continue
    tr '\\0' ' ' <"$proc/cmdline" 2>/dev/null | grep -q "$1" || continue
    kill "-$2" "${proc#/proc/}" 2>/dev/null && found=0
  done
  return $found
}
hunt '[l]lamafleet-host.pyz' TERM
wait_for() {
  for second in $(seq "$2"); do
    hunt "$1" 0 || break
    sleep 1
  done
}
wait_for '[l]lamafleet-host.pyz.*/jobs/toolkit/' 1800
wait_for '[l]lamafleet-host.pyz' 10
"""

STOP_S = 1900
"""For that: a package manager is waited for, half an hour at most."""

KILL_ACCOUNT = f"""
for proc in /proc/[0-9]*; do
  [ "$(stat -c %U "$proc" 2>/dev/null)" = {USER} ] && kill -KILL "${{proc#/proc/}}" 2>/dev/null
done
true
"""


def traces(snapshot: HostSnapshot, layout: Layout) -> list[str]:
    """What of llamafleet is on the host, by name."""
    found = [path for path in snapshot.files]
    found += [f"job {job.kind} {job.key}" for job in snapshot.jobs]
    found += [f"build {version}" for version in snapshot.versions]
    rest = {
        "current": snapshot.current,
        "wheelhouse": snapshot.wheelhouse,
        "verification": snapshot.verifying,
        "result": snapshot.result,
        "record of the hold": snapshot.hold_record,
    }
    found += [name for name, there in rest.items() if there]
    found += [name for name, unit in snapshot.units.items() if unit.load == "loaded"]
    if snapshot.account and layout.scope == "system":
        found.append(f"account {USER}")
    return found


def managed(snapshot: HostSnapshot, layout: Layout) -> list[Managed]:
    """What llamafleet may have put there; the mask of a unit is an administrator's, and stays."""
    masked = {name for name, unit in snapshot.units.items() if unit.load == "masked"}
    return [row for row in rows(layout) if row.unit not in masked]


def files_of(ours: Iterable[Managed], layout: Layout) -> Iterator[str]:
    """All files that may be there of these rows, quoted for a shell."""
    for row in ours:
        path = row.path(layout)
        yield from map(shlex.quote, (path, unfinished(path), *row.leftovers(layout)))
        if row.unit:
            # Where systemd did not answer nothing else has disabled it.
            yield f"{shlex.quote(layout.units)}/*.wants/{row.unit}"


@operation()
def uninstall() -> Generator[StringCommand, None, None]:
    """
    Stop jobs and units, remove units, settings, builds, toolkits, results, models and account.

    Packages of the driver that llamafleet held are released. Distribution packages that it
    installed stay: others may use them by now. Their names are printed.

    **Example:**

    .. code:: python

        from operations.uninstall import uninstall
        uninstall(name="Remove llamafleet")
    """
    run = here()
    snapshot, layout = run.snapshot(), run.layout()
    found = traces(snapshot, layout)
    if not found:
        run.noop("no trace of llamafleet is there")
        return
    system = layout.scope == "system"
    ours = managed(snapshot, layout)
    if snapshot.init == "systemd":
        ctl = systemctl(run)
        # One by one, so that one that is not there stops no other.
        for unit in (row.unit for row in ours if row.unit):
            yield StringCommand(ctl, f"disable --now --quiet {unit} 2>/dev/null || true")
        yield StringCommand(ctl, "stop 'llamafleet-*' || true", _timeout=STOP_S)
    yield StringCommand("sh -c", QuoteString(STOP_JOBS + "true"), _timeout=STOP_S)
    if system and snapshot.account:
        yield StringCommand("sh -c", QuoteString(KILL_ACCOUNT))
    hold = release(snapshot)
    for command in hold.commands if hold else ():
        yield StringCommand(command)
    staying = host.get_fact(FileContents, path=layout.installed_packages)
    if staying:
        run.say(f"packages that were installed and stay: {' '.join(sorted(set(staying)))}")
    yield StringCommand("rm -f", *files_of(ours, layout))
    if snapshot.init == "systemd":
        yield StringCommand(ctl, "daemon-reload;", ctl, "reset-failed 'llamafleet-*' || true")
    yield StringCommand("rm -rf", *map(QuoteString, (layout.prefix, layout.etc, layout.state)))
    if system and snapshot.account:
        yield StringCommand("userdel", USER)
    run.changed("removed")
