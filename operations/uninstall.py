"""Remove every trace of llamafleet from a host."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra import host
from pyinfra.api import QuoteString, StringCommand, operation
from pyinfra.facts.files import FileContents

from llamafleet.facts.host import HostSnapshot
from llamafleet.layout import HOLD_APT, REPOSITORY_FILES, USER, VERIFY_TIMER, VERIFY_UNIT, Layout
from llamafleet.plans.driver.hold import release
from operations.files import OPTIONAL_UNITS, systemctl
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
    found += [name for name, unit in snapshot.units.items() if unit.load == "loaded"]
    if snapshot.account and layout.scope == "system":
        found.append(f"account {USER}")
    return found


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
        host.noop("no trace of llamafleet is there")
        return
    system = layout.scope == "system"
    if snapshot.init == "systemd":
        ctl = systemctl(run)
        # One by one, so that one that is not there stops no other.
        for unit in OPTIONAL_UNITS:
            yield StringCommand(ctl, f"disable --now --quiet {unit} 2>/dev/null || true")
        yield StringCommand(ctl, "stop 'llamafleet-*' || true")
    yield StringCommand("sh -c", QuoteString(STOP_JOBS + "true"))
    if system and snapshot.account:
        yield StringCommand("sh -c", QuoteString(KILL_ACCOUNT))
    hold = release(snapshot)
    for command in hold.commands if hold else ():
        yield StringCommand(command)
    staying = host.get_fact(FileContents, path=layout.installed_packages)
    if staying:
        run.say(f"packages that were installed and stay: {' '.join(sorted(set(staying)))}")
    names = (VERIFY_UNIT, *OPTIONAL_UNITS)
    yield StringCommand("rm -f", *(QuoteString(f"{layout.units}/{name}") for name in names))
    if system:
        yield StringCommand("rm -f", *map(QuoteString, REPOSITORY_FILES))
    if snapshot.init == "systemd":
        yield StringCommand(ctl, "daemon-reload;", ctl, "reset-failed 'llamafleet-*' || true")
    # A timer with Persistent=true leaves a time stamp behind.
    yield StringCommand(
        "rm -rf",
        *map(QuoteString, (layout.prefix, layout.etc, layout.state)),
        QuoteString(f"/var/lib/systemd/timers/stamp-{VERIFY_TIMER}") if system else "",
        HOLD_APT if system else "",
    )
    if system and snapshot.account:
        yield StringCommand("userdel", USER)
    run.changed("removed")
