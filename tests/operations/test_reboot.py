"""The reboot of a host: waiting for another boot, and judging it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pyinfra.api import FunctionCommand

from llamafleet.plans.plan import Plan, Problem, RebootPlan
from operations import jobs, reboot
from operations.run import HostRun
from tests.operations.test_jobs import Clock

PENDING = Plan("gpu-a", "cuda", reboot=RebootPlan("module 1, library 2"))
READY = Plan("gpu-a", "cuda")
BROKEN = Plan("gpu-a", "cuda", (Problem("driver", "split", "one version", "repair"),))


class Rebooted:
    """A run and its host, which answers each attempt to connect with a boot id, or not at all."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, boots: list[str], plans: list[Plan]
    ) -> None:
        self.clock = Clock()
        for module in (jobs, reboot):
            monkeypatch.setattr(module, "time", self.clock)
        monkeypatch.setattr(reboot, "here", lambda: self.run)
        self.boots, self.plans = boots, plans
        self.failures: list[str] = []
        self.said: list[str] = []
        self.changes: list[str] = []
        self.run = SimpleNamespace(
            noop=lambda text: None,
            name="gpu-a",
            rebooted=False,
            plan=lambda: self.plans[0],
            fail=lambda problem: self.failures.append(str(problem)),
            say=self.said.append,
            changed=self._changed,
        )
        self.host = SimpleNamespace(
            get_fact=lambda *_, **__: self.boots[0],
            disconnect=lambda: None,
            connect=self._connect,
            connected=True,
            connector_data={},
        )

    def _changed(self, what: str) -> None:
        self.changes.append(what)
        del self.plans[0]

    def _connect(self, **_: object) -> None:
        if len(self.boots) > 1:
            del self.boots[0]
        self.host.connected = self.boots[0] != ""

    def carry_out(self) -> tuple[bool, list[str]]:
        """Whether the host goes on, and the shell commands; stops at the first failure."""
        shell = []
        operation: Any = reboot.reboot._inner  # type: ignore[attr-defined]
        for command in operation():
            if not isinstance(command, FunctionCommand):
                shell.append(str(command))
            elif command.function(None, self.host, *command.args) is False:
                return False, shell
        return True, shell


def test_a_plan_without_a_reboot_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Rebooted(monkeypatch, ["a"], [READY]).carry_out() == (True, [])


def test_the_run_goes_on_with_the_plan_of_after_the_reboot(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Rebooted(monkeypatch, ["a", "a", "", "", "b"], [PENDING, READY])
    goes_on, shell = host.carry_out()
    assert goes_on and not host.failures
    assert host.changes == ["reboot"] and host.run.rebooted
    assert "reboot" in shell[0] and "is-system-running --wait" in shell[1] and len(shell) == 2
    assert host.said[:2] == ["rebooting", "backend: cuda"]
    assert host.clock.now == 4 * jobs.POLL_SECONDS


def test_a_driver_that_stays_broken_fails_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Rebooted(monkeypatch, ["a", "b"], [PENDING, BROKEN])
    assert not host.carry_out()[0]
    assert host.failures == [str(BROKEN.problems[0])]


def test_the_controller_over_ssh_is_not_rebooted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = tmp_path / "boot_id"
    own.write_text("a\n")
    monkeypatch.setattr(reboot, "BOOT_ID", own)
    host = Rebooted(monkeypatch, ["a", "b"], [PENDING, READY])
    assert host.carry_out() == (False, [])
    assert "found the controller's own kernel on gpu-a" in host.failures[0]
    assert not host.run.rebooted
    own.write_text("another\n")
    assert host.carry_out()[0]


@pytest.mark.parametrize(
    ("boots", "found"),
    [(["a", ""], "without an answer"), (["a", "", "a"], "still running as before")],
)
def test_a_host_that_does_not_come_back(
    monkeypatch: pytest.MonkeyPatch, boots: list[str], found: str
) -> None:
    host = Rebooted(monkeypatch, boots, [PENDING, READY])
    assert not host.carry_out()[0]
    assert f"found gpu-a {found}, 900 s after" in host.failures[0]
    assert host.clock.now == reboot.LIMIT_S and host.changes == []


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
