"""One run over the fleet: settings, snapshot and plan of each host, and what the run did there."""

from __future__ import annotations

import atexit
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast
from weakref import WeakKeyDictionary

import click
from pyinfra import host
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory
from pyinfra.api.state import BaseStateCallback, State, StateStage
from pyinfra.connectors.ssh import SSHConnector

from llamafleet.facts.host import HostSnapshot
from llamafleet.facts.snapshot import forget, snapshot_of
from llamafleet.history.command import without_secrets
from llamafleet.history.report import render, render_run
from llamafleet.history.runs import Run, Runs, RunState
from llamafleet.history.store import Row
from llamafleet.history.update import Update
from llamafleet.inventory import SettingsError, read_supplies, validate_fleet
from llamafleet.layout import Layout
from llamafleet.managed import Group
from llamafleet.plans.driver.reboot import Barred
from llamafleet.plans.files import Sha256, plan_files
from llamafleet.plans.make import layout_for, make_plan, to_read, unplanned
from llamafleet.plans.plan import FilesPlan, Plan, Problem
from llamafleet.plans.supplies import NO_SUPPLIES, Supplies
from llamafleet.protocol.result import Result
from llamafleet.received import Unreadable
from llamafleet.render import content_sha256
from llamafleet.settings import Settings
from llamafleet.terminal import printable

RESULTS = Path("results")

TOOLS = "tools"
"""Among the changes of a host: the code of its jobs was replaced."""


@dataclass
class HostRun:
    """One host in one run: read once, planned, with what was changed and why it failed."""

    host: Host
    settings: Settings
    supplies: Supplies = NO_SUPPLIES
    changes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    result: Result | Unreadable | None = None
    update: Update | None = None
    """The driver update that the result is the first to be measured after."""
    explained: bool = False
    rebooted: bool = False

    @property
    def name(self) -> str:
        return str(self.host.name)

    def snapshot(self) -> HostSnapshot:
        """The host as it is; read again after `changed`."""
        return snapshot_of(self.host, *to_read(self.settings))

    def layout(self) -> Layout:
        return layout_for(self.settings, self.snapshot())

    def plan(self) -> Plan:
        snapshot = self.snapshot()
        layout = layout_for(self.settings, snapshot)
        try:
            return make_plan(
                self.name,
                self.settings,
                snapshot,
                layout,
                self._barred(),
                supplies=self.supplies,
                sha256=self._sha256(layout),
                other_code=TOOLS in self.changes,
            )
        except Exception as error:  # It would end the run for every host.
            return unplanned(self.name, self.settings, error)

    def files(self, group: Group) -> FilesPlan:
        """What the files of a group need that the plan does not speak of."""
        plan, snapshot, layout = self.plan(), self.snapshot(), self.layout()
        return plan_files(group, plan, self.settings, snapshot, layout, sha256=self._sha256(layout))

    def _sha256(self, layout: Layout) -> Sha256:
        """Of a managed file as this run renders it."""
        return partial(
            content_sha256, settings=self.settings, layout=layout, supplies=self.supplies
        )

    def _barred(self) -> Barred | None:
        if not isinstance(self.host.connector, SSHConnector):
            return "not over SSH"
        return "rebooted" if self.rebooted else None

    def changed(self, what: str) -> None:
        """Record a change to the host; the next reader takes a new snapshot."""
        if what not in self.changes:
            self.changes.append(what)
        self.reread()

    def reread(self) -> None:
        """Take a new snapshot next time: a job has changed the host meanwhile."""
        forget(self.host)

    def fail(self, problem: Problem | str) -> None:
        """Record why this host can't be PASS and say it at once."""
        text = str(problem)
        self.failures.append(text)
        self.say(text, fg="red")

    def noop(self, text: str) -> None:
        """Say to pyinfra that an operation has nothing to do, and why."""
        self.host.noop(printable(text))

    def say(self, text: str, fg: str | None = None) -> None:
        line = click.style(printable(text.expandtabs()), fg=fg)
        click.echo(f"{self.host.print_prefix}{line}", err=True)

    def row(self, reached: bool) -> Row:
        """The host's line in the report."""
        return Row.of(
            host=self.name,
            result=self.result,
            changed=self.changes,
            failures=self.failures
            if reached
            else ["not reached over its connection", *self.failures],
            update=self.update,
        )


class Fleet:
    """All hosts of one pyinfra state; made once, before the first host is touched."""

    def __init__(self, inventory: Inventory) -> None:
        self.inventory = inventory
        try:
            settings = validate_fleet({h.name: _data_of(h) for h in inventory})
        except SettingsError as error:
            raise PyinfraError(
                "the inventory is refused, no host was touched:\n"
                + "\n".join(map(printable, error.lines))
            ) from error
        supplies = read_supplies(settings)
        self.runs: dict[str, HostRun] = {
            h.name: HostRun(host=h, settings=settings[h.name], supplies=supplies[h.name])
            for h in inventory
        }
        self.kept: Run | None = None
        """This run as it is kept, from its first operation on: a dry run has none."""

    def keep(self, state: State) -> None:
        """Keep the run as one without an end: if it is killed, that stays true."""
        if self.kept is not None:
            return
        try:
            self.kept = Runs(RESULTS).begin(
                command=without_secrets(sys.argv, Settings.model_fields),
                hosts=[name for name, run in self.runs.items() if state.is_host_in_limit(run.host)],
                fleet=len(self.runs),
                waves=_waves(state),
            )
        except OSError as error:
            # Of pyinfra's own error --serial would tell nobody.
            sys.exit(_not_kept(error))

    def report(self, state: State) -> None:
        """Keep the end of the run and print it; called when pyinfra has ended."""
        if self.kept is None:
            return
        rows = [
            self.runs[name].row(reached=self.runs[name].host in state.activated_hosts)
            for name in self.kept.hosts
        ]
        try:
            text = render_run(Runs(RESULTS).finish(self.kept, _end(state), rows))
        except OSError as error:
            text = render(rows)
            click.echo(_not_kept(error), err=True)
        click.echo("\n" + text, err=True)


class _Keeper(BaseStateCallback):
    """Keeps a run when its first operation begins."""

    @staticmethod
    def operation_start(state: State, op_hash: str) -> None:
        _fleets[state.inventory].keep(state)

    @staticmethod
    def operation_host_start(state: State, host: Host, op_hash: str) -> None:
        """With --serial there is no other one."""
        _fleets[state.inventory].keep(state)


def _not_kept(error: OSError) -> str:
    return (
        f"run: found that it can't be kept ({error}); expected to write below {RESULTS}/; "
        f"next: ls -ld {RESULTS} {RESULTS}/runs"
    )


def _waves(state: State) -> list[list[str]]:
    """Names of the reached hosts as pyinfra takes them."""
    names = [h.name for h in state.inventory.get_active_hosts()]
    # pyinfra tells nobody of --serial.
    size = 1 if "--serial" in sys.argv else state.config.PARALLEL
    return [names[at : at + size] for at in range(0, len(names), size)]


def _end(state: State) -> RunState:
    """pyinfra leaves the stage of execution when all is done, except where every host failed."""
    done = state.current_stage == StateStage.Disconnect or not state.active_hosts
    return "complete" if done else "interrupted"


_fleets: WeakKeyDictionary[Inventory, Fleet] = WeakKeyDictionary()


def begin(report: bool = True) -> HostRun:
    """The run of the host in context; the first call validates the settings of every host.

    Raises PyinfraError with one line per error; pyinfra then stops for all hosts.
    """
    inventory: Inventory = host.inventory
    if inventory not in _fleets:
        fleet = Fleet(inventory)
        _fleets[inventory] = fleet
        if report:
            host.state.add_callback_handler(_Keeper())  # type: ignore[no-untyped-call]
            atexit.register(fleet.report, host.state)
    return _fleets[inventory].runs[host.name]


def here() -> HostRun:
    """The run of the host in context, begun by deploy.py."""
    return _fleets[host.inventory].runs[host.name]


def _data_of(target: Host) -> dict[str, object]:
    return cast("dict[str, object]", target.data.dict())  # type: ignore[no-untyped-call]
