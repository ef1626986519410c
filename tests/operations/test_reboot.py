"""The reboot of a host: what it gets, waiting for another boot, and judging that one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pyinfra.api.exceptions import ConnectError
from pyinfra.connectors.fake import FakeConnector

from operations import reboot, watch
from operations import run as runs
from operations.run import HostRun
from tests.operations.fake import GPU, FakeHost, fleet
from tests.operations.test_watch import Clock

pytestmark = pytest.mark.usefixtures("frozen_tables")
PENDING = "rtx4090-mismatch-reboot"
REBOOT = "setsid sh -c 'sleep 1; reboot' </dev/null >/dev/null 2>&1 &"
BOOTED = (
    "if [ -d /run/systemd/system ]; then timeout 300 systemctl is-system-running --wait || true; fi"
)
ASKED = "cat /proc/sys/kernel/random/boot_id"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (watch, reboot):
        monkeypatch.setattr(module, "time", clock)
    return clock


@dataclass
class Rebooted:
    host: FakeHost
    run: HostRun
    failed: bool


def carry_out(
    monkeypatch: pytest.MonkeyPatch, boots: list[Any], recorded: str = PENDING, after: str = GPU
) -> Rebooted:
    """A host that boots as the next of `boots` at each attempt to connect, the last for ever.

    A boot "" does not answer; from the boot "b" on the host is `after`.
    """
    host = FakeHost(recorded)
    host.answers["boot_id"] = boots[0]
    monkeypatch.setattr(runs, "SSHConnector", FakeConnector)

    def connect(self: FakeConnector) -> None:
        if len(boots) > 1:
            del boots[0]
        if not boots[0]:
            raise ConnectError("no route")
        host.answers["boot_id"] = boots[0]
        if boots[0] == "b":
            host.text = FakeHost(after).text

    with fleet(monkeypatch, {"a": host}) as run:
        monkeypatch.setattr(FakeConnector, "connect", connect)
        failed = run.run(reboot.reboot, _serial=True)
        return Rebooted(host, run.runs["a"], bool(failed))


def test_a_plan_without_a_reboot_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = carry_out(monkeypatch, ["a"], recorded=GPU)
    assert not made.failed and made.host.sent == []


@pytest.mark.parametrize("answer", ["", False])
def test_a_host_whose_boot_has_no_name_is_not_rebooted(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, answer: str | bool
) -> None:
    """Whatever answers afterwards would pass for another boot."""
    made = carry_out(monkeypatch, [answer, "b"])
    assert made.failed and REBOOT not in made.host.commands
    assert made.run.failures[0].startswith("reboot: found no name of the boot"), made.run.failures


def test_the_run_goes_on_with_the_plan_of_after_the_reboot(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    made = carry_out(monkeypatch, ["a", "a", "", "", "b"])
    assert not made.failed and not made.run.failures
    assert made.run.changes == ["reboot"] and made.run.rebooted
    # Asked before, by the boot that is about to end, and by the next one.
    assert made.host.sent == [ASKED, REBOOT, ASKED, ASKED, BOOTED]
    said = capsys.readouterr().err
    assert 0 <= said.index("rebooting") < said.index("backend: cuda")
    assert clock.now == 4 * watch.POLL_SECONDS


def test_a_driver_that_stays_broken_fails_the_host(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    made = carry_out(monkeypatch, ["a", "b"], after=PENDING)
    assert made.failed
    (why,) = made.run.failures
    assert "after the reboot of this run: " in why
    assert made.host.sent.count(REBOOT) == 1


@pytest.mark.usefixtures("clock")
def test_the_controller_over_ssh_is_not_rebooted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = tmp_path / "boot_id"
    own.write_text("a\n")
    monkeypatch.setattr(reboot, "BOOT_ID", own)
    made = carry_out(monkeypatch, ["a", "b"])
    assert made.failed and made.host.sent == [f"cat {own}"]
    assert "found the controller's own kernel on @fake/a" in made.run.failures[0]
    assert not made.run.rebooted
    own.write_text("another\n")
    assert not carry_out(monkeypatch, ["a", "b"]).failed


@pytest.mark.parametrize(
    ("boots", "found"),
    [(["a", ""], "without an answer"), (["a", "", "a"], "still running as before")],
)
def test_a_host_that_does_not_come_back(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, boots: list[str], found: str
) -> None:
    made = carry_out(monkeypatch, boots)
    assert made.failed
    assert f"found @fake/a {found}, 900 s after" in made.run.failures[0]
    assert clock.now == reboot.LIMIT_S and made.run.changes == []
    assert BOOTED not in made.host.sent


def test_a_host_that_is_not_reached_over_ssh_is_not_rebooted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = FakeHost(PENDING)
    with fleet(monkeypatch, {"a": host}) as run:
        assert run.runs["a"].plan().problems
        assert run.run(reboot.reboot) == []
    assert host.sent == []


@pytest.mark.parametrize(
    ("connector", "rebooted", "barred"),
    [("ssh", False, None), ("ssh", True, "rebooted"), ("local", False, "not over SSH")],
)
def test_what_bars_a_run_from_rebooting(connector: str, rebooted: bool, barred: str | None) -> None:
    from pyinfra.api.connectors import get_all_connectors

    made = get_all_connectors()[connector]  # type: ignore[no-untyped-call]
    run = HostRun(cast(Any, SimpleNamespace(connector=made.__new__(made))), cast(Any, None))
    run.rebooted = rebooted
    assert run._barred() == barred
