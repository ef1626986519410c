"""One run over the fleet: settings, snapshot and plan of each host, and what the run did there."""

from __future__ import annotations

import atexit
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import click
from pyinfra import host
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory
from pyinfra.connectors.ssh import SSHConnector

from llamafleet.facts.host import HostSnapshot
from llamafleet.facts.snapshot import forget, snapshot_of
from llamafleet.history.report import render
from llamafleet.history.store import Row, Store
from llamafleet.history.update import Update
from llamafleet.inventory import SettingsError, read_supplies, validate_fleet
from llamafleet.layout import Layout
from llamafleet.plans.driver.reboot import Barred
from llamafleet.plans.make import layout_for, make_plan, to_read
from llamafleet.plans.plan import Plan, Problem
from llamafleet.plans.supplies import NO_SUPPLIES, Supplies
from llamafleet.settings import Settings

RESULTS = Path("results")


@dataclass
class HostRun:
    """One host in one run: read once, planned, with what was changed and why it failed."""

    host: Host
    settings: Settings
    supplies: Supplies = NO_SUPPLIES
    changes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    result: dict[str, Any] | None = None
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
        return make_plan(
            self.name,
            self.settings,
            snapshot,
            layout,
            self._barred(),
            supplies=self.supplies,
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

    def say(self, text: str, fg: str | None = None) -> None:
        click.echo(f"{self.host.print_prefix}{click.style(text, fg=fg)}", err=True)

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
                "the inventory is refused, no host was touched:\n" + "\n".join(error.lines)
            ) from error
        supplies = read_supplies(settings)
        self.runs: dict[str, HostRun] = {
            h.name: HostRun(host=h, settings=settings[h.name], supplies=supplies[h.name])
            for h in inventory
        }

    def report(self) -> None:
        """Write the run's rows and print the table; called when pyinfra has ended.

        A run that changed nothing by intent (--dry, a prompt that was declined) has no result.
        """
        if not any(h.state.is_executing for h in self.inventory):
            return
        rows = [
            self.runs[h.name].row(reached=h in h.state.activated_hosts)
            for h in self.inventory
            if h.state.is_host_in_limit(h)
        ]
        Store(RESULTS).write_run(rows)
        click.echo("\n" + render(rows), err=True)


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
            atexit.register(fleet.report)
    return _fleets[inventory].runs[host.name]


def here() -> HostRun:
    """The run of the host in context, begun by deploy.py."""
    return _fleets[host.inventory].runs[host.name]


def _data_of(target: Host) -> dict[str, object]:
    return cast("dict[str, object]", target.data.dict())  # type: ignore[no-untyped-call]
