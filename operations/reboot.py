"""The reboot that an updated driver needs."""

from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path

from pyinfra.api import FactBase, FunctionCommand, StringCommand, operation
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.host import Host
from pyinfra.api.state import State
from pyinfra.connectors.util import clear_askpass_cache, remove_any_sudo_askpass_file

from operations.preflight import judge_again
from operations.run import HostRun, here
from operations.watch import reconnect

LIMIT_S = 900
"""Servers test their memory for minutes before they boot."""

BOOT_JOBS_S = 300
"""How long the boot's units are waited for: they load the driver, and dkms may build it first."""

START_S = 30
"""For that command itself, on a host that is still booting."""

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class BootId(FactBase[str]):
    """The kernel's random name for this boot.

    Another one proves a reboot. The time since boot, which pyinfra's server.reboot compares, does
    not in a container: there it is the host's.
    """

    def command(self) -> str:
        return f"cat {BOOT_ID}"

    @staticmethod
    def default() -> str:
        return ""

    def process(self, output: list[str]) -> str:
        return output[0] if output else ""


@operation(is_idempotent=False)
def reboot() -> Generator[PyinfraCommand, None, None]:
    """
    Reboot the host of a plan that says so, wait for it, and judge its driver again.

    To be called with `_serial`: then one host after the other is down, whatever groups they are
    in, and the next one follows only when this one is back or given up. A host is rebooted once
    in a run; what the plan of after that says against it fails this host and no other.

    **Example:**

    .. code:: python

        from operations.reboot import reboot
        reboot(name="Reboot for the updated driver", _serial=True)
    """
    run = here()
    plan = run.plan()
    if plan.reboot is None:
        run.noop("the driver needs no reboot")
        return
    before: list[str] = []

    def remember(state: State, host: Host) -> bool:
        # A fact that fails would take the host out of the run, and the last host all of it.
        before.append(host.get_fact(BootId, _ignore_errors=True))
        refused = _refused(run, before[0])
        if refused:
            run.fail(f"reboot: {refused}; next: sudo reboot, then run the same command again")
            return False
        # Its file would be gone after the reboot.
        remove_any_sudo_askpass_file(host)
        return True

    yield FunctionCommand(remember, (), {})
    # Later, and in a session of its own: neither this command nor sudo's terminal ends it.
    yield StringCommand("setsid sh -c 'sleep 1; reboot' </dev/null >/dev/null 2>&1 &")

    def wait(state: State, host: Host) -> bool:
        return _wait(run, host, before[0])

    yield FunctionCommand(wait, (), {})
    yield StringCommand(
        "if [ -d /run/systemd/system ]; then",
        f"timeout {BOOT_JOBS_S} systemctl is-system-running --wait || true; fi",
        _timeout=BOOT_JOBS_S + START_S,
    )
    yield FunctionCommand(judge_again, (run,), {})


def _refused(run: HostRun, boot: str) -> str:
    """Why a host in that boot is not rebooted from here; "": it is."""
    if not boot:  # Any boot would count as another one.
        return (
            f"found no name of the boot of {run.name} ({run.guard.words or 'nothing was said'}); "
            f"expected one in {BOOT_ID}, by which a reboot is known"
        )
    if boot == _own_boot():
        return (
            f"found the controller's own kernel on {run.name}; expected another machine, since a "
            "reboot would end this run"
        )
    return ""


def _own_boot() -> str:
    """The controller's, which may be reached over SSH too; "": it runs no Linux."""
    return BOOT_ID.read_text(encoding="ascii").strip() if BOOT_ID.exists() else ""


def _wait(run: HostRun, host: Host, before: str) -> bool:
    """Reconnect until another boot answers."""
    run.rebooted = True
    run.say("rebooting")
    begun = time.monotonic()
    boot = ""
    clear_askpass_cache(host)
    while time.monotonic() - begun < LIMIT_S:
        boot = host.get_fact(BootId, _ignore_errors=True) if reconnect(run) else ""
        if boot and boot != before:
            run.changed("reboot")
            return True
    found = "still running as before" if boot else "without an answer"
    run.fail(
        f"reboot: found {run.name} {found}, {LIMIT_S} s after the command to reboot; expected "
        "another boot; next: look at its console, then run the same command again",
        known=bool(boot),
    )
    return False
