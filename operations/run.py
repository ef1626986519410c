"""One run over the fleet: settings, snapshot and plan of each host, and what the run did there."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import cast
from weakref import WeakKeyDictionary

import click
from pyinfra import host, logger
from pyinfra.api import FunctionCommand
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory
from pyinfra.api.state import BaseStateCallback, State, StateStage
from pyinfra.connectors.ssh import SSHConnector

from llamafleet.connection import Guard, guard_of
from llamafleet.facts.host import HostSnapshot
from llamafleet.facts.snapshot import forget, snapshot_of
from llamafleet.history.afterupdate import after_update
from llamafleet.history.command import without_secrets
from llamafleet.history.records import keep_up
from llamafleet.history.report import exit_code_of, render, render_run
from llamafleet.history.runs import Run, Runs, RunState
from llamafleet.history.store import NOT_ASKED, Row, ServedLine
from llamafleet.history.update import Update
from llamafleet.inventory import SettingsError, read_supplies, validate_fleet, validate_removal
from llamafleet.layout import Layout
from llamafleet.managed import Group
from llamafleet.plans.driver.reboot import Barred
from llamafleet.plans.files import Sha256, plan_files
from llamafleet.plans.make import layout_for, make_plan, to_read, unplanned
from llamafleet.plans.plan import FilesPlan, JobPlan, Plan, Problem
from llamafleet.plans.supplies import NO_SUPPLIES, Supplies
from llamafleet.protocol.result import Result
from llamafleet.published import looked_up
from llamafleet.received import Unreadable
from llamafleet.render import content_sha256
from llamafleet.settings import SECRETIVE, Settings
from llamafleet.terminal import colours_wanted, printable
from llamafleet.wheelstore import KEPT_DAYS
from operations.ending import Ending
from operations.sharing import Sharing

RESULTS = Path("results")

TOOLS = "tools"
"""Among the changes of a host: the code of its jobs was replaced."""


@dataclass
class HostRun:
    """One host in one run: read once, planned, with what was changed and why it failed."""

    host: Host
    settings: Settings
    supplies: Supplies = NO_SUPPLIES
    sharing: Sharing = field(default_factory=Sharing)
    changes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    result: Result | Unreadable | None = None
    served: list[ServedLine] = field(default_factory=list)
    update: Update | None = None
    """The driver update that the result is the first to be measured after."""
    explained: bool = False
    rebooted: bool = False
    known: bool = True
    """What failed is known of the host; False: only that it, or its job, came to no end."""
    planned: Plan | None = None
    """The last plan that was made."""
    told: int = 0
    """How many failures it had when the operation began that runs now."""
    waits_for: JobPlan | None = None
    """The job that goes on there, as far as is known."""
    stop: str = ""
    """The command that ends it."""

    @property
    def guard(self) -> Guard:
        return guard_of(self.host)

    @property
    def name(self) -> str:
        return str(self.host.name)

    def snapshot(self) -> HostSnapshot:
        """The host as it is; read again after `changed`."""
        snapshot = snapshot_of(self.host, *to_read(self.settings))
        # Why it could not be read is known where it was tried.
        lost = self.guard.lost if snapshot.error else ""
        return replace(snapshot, error=lost) if lost else snapshot

    def layout(self) -> Layout:
        return layout_for(self.settings, self.snapshot())

    def plan(self) -> Plan:
        snapshot = self.snapshot()
        layout = layout_for(self.settings, snapshot)
        try:
            self.planned = make_plan(
                self.name,
                self.settings,
                snapshot,
                layout,
                self._barred(),
                supplies=self.supplies,
                sha256=self._sha256(layout),
                other_code=TOOLS in self.changes,
                wheels=self.sharing.for_host(self.settings),
            )
        except Exception as error:  # It would end the run for every host.
            self.planned = unplanned(self.name, self.settings, error)
        return self.planned

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

    def fail(self, problem: Problem | str, known: bool = True) -> None:
        """Record why this host can't be PASS and say it at once.

        `known` False: nothing is wrong with it for sure, it came to no end; it is NOT VERIFIED.
        """
        text = str(problem)
        self.failures.append(text)
        self.known = self.known and known and not self.guard.lost
        self.say(text, fg="red")

    def noop(self, text: str) -> None:
        """Say to pyinfra that an operation has nothing to do, and why."""
        self.host.noop(printable(text))

    def say(self, text: str, fg: str | None = None) -> None:
        line = click.style(printable(text.expandtabs()), fg=fg)
        click.echo(f"{self.host.print_prefix}{line}", err=True)

    def row(self, end: RunState, failed: bool) -> Row:
        """The host's line in the report. `failed`: pyinfra says so."""
        reasons = list(self.failures)
        if failed and not reasons:
            reasons.append(self.guard.words or "run: found a failure that left no word here")
        if not failed and not reasons and end == "interrupted":
            reasons.append(
                f"run: found it interrupted before the end of {self.name}; expected a verdict; "
                f"next: {AGAIN}"
            )
        return Row.of(
            host=self.name,
            result=self.result,
            changed=self.changes,
            failures=reasons,
            update=self.update,
            served=self.served or self._not_asked(),
            known=self.known and not self.guard.lost and (failed or bool(self.failures)),
        )

    def _not_asked(self) -> list[ServedLine]:
        """Of services to which the run did not come: nothing is known of them."""
        return [
            ServedLine(
                name,
                NOT_ASKED,
                profile.address,
                profile.port,
                profile.alias or name,
                profile.source.first if profile.source.kind == "path" else "",
            )
            for name, profile in self.settings.serve.items()
        ]

    def goes_on(self) -> str:
        """What to know of the job that is left running there; "": there is none."""
        if self.waits_for is None:
            return ""
        return f"{self.name}: {self.waits_for.kind} goes on; to stop it, there: {self.stop}"


PLAN_ONLY = frozenset({"--dry", "--json", "--debug-operations", "--debug-facts"})
"""Options of pyinfra with which a run without -y ends after its plans."""

AGAIN = "run the same command again"


class Fleet:
    """All hosts of one pyinfra state; made once, before the first host is touched.

    Raises SettingsError with all errors of all hosts.
    """

    def __init__(self, inventory: Inventory, builds: bool) -> None:
        self.inventory = inventory
        data = {h.name: _data_of(h) for h in inventory}
        settings = validate_fleet(data) if builds else validate_removal(data)
        if builds:
            # No index is asked for a version that is only to be removed.
            settings, told = looked_up(settings)
            for line in told:
                click.echo(line, err=True)
        supplies = read_supplies(settings)
        self.sharing = Sharing(order=tuple(h.name for h in inventory))
        if any(one.build_sharing == "wheel" for one in settings.values()):
            self.sharing.wheels = self.sharing.store.all()
        self.runs: dict[str, HostRun] = {
            h.name: HostRun(
                host=h,
                settings=settings[h.name],
                supplies=supplies[h.name],
                sharing=self.sharing,
            )
            for h in inventory
        }
        self.reports = builds
        """It keeps its run and prints a table; else its hosts are only worked on."""
        self.kept: Run | None = None
        """This run as it is kept, from its first operation on: a dry run has none."""

    def keep(self, state: State) -> None:
        """Keep the run as one without an end: if it is killed, that stays true."""
        if self.kept is not None:
            return
        try:
            self.kept = self._begin(state)
        except OSError as error:
            # Of pyinfra's own error --serial would tell nobody.
            sys.exit(_not_kept(error))

    def _begin(self, state: State) -> Run:
        return Runs(RESULTS).begin(
            command=without_secrets(sys.argv, Settings.model_fields, SECRETIVE),
            hosts=[name for name, run in self.runs.items() if state.is_host_in_limit(run.host)],
            fleet=len(self.runs),
            waves=_waves(state),
        )

    def finish(self, state: State, interrupted: bool) -> int:
        """Keep the end of the run and print it; the exit code that it deserves."""
        asked = [run for run in self.runs.values() if state.is_host_in_limit(run.host)]
        if self.kept is None:
            if state.active_hosts or state.current_stage < StateStage.Connect:
                return self._planned(state, asked)
            # None was reached. It is a run all the same: an older one is not the last.
            if PLAN_ONLY.isdisjoint(sys.argv):
                try:
                    self.kept = self._begin(state)
                except OSError as error:
                    click.echo(_not_kept(error), err=True)
        end = "interrupted" if interrupted else _end(state)
        rows = [run.row(end, run.host in state.failed_hosts) for run in asked]
        colours = colours_wanted(sys.stderr)
        text, code = render(rows, colours=colours), 1
        if self.kept is not None:
            try:
                ended = Runs(RESULTS).finish(self.kept, end, rows)
                text, code = render_run(ended, colours=colours), exit_code_of(ended)
            except OSError as error:
                click.echo(_not_kept(error), err=True)
        click.echo("\n" + text, err=True)
        if self.kept is not None:
            # After the table: no fault of these takes it, or its exit code, away.
            for line in _history(rows):
                click.echo(line, err=True)
            self._prune()
        return code

    def _prune(self) -> None:
        """Remove what no run has used for long."""
        models, store = self.sharing.models, self.sharing.store
        _tidy("models", models.folder, models.prune, "unused")
        if any(run.settings.build_sharing == "wheel" for run in self.runs.values()):
            unused = f"unused for {KEPT_DAYS} days"
            _tidy("build_sharing", store.folder, store.prune, unused)

    def _planned(self, state: State, asked: list[HostRun]) -> int:
        """Of a run that only says what it would do: 0 if nothing stands in the way of any host.

        One that was to do it and did not, as nobody pressed enter, proves nothing: 1.
        """
        for line in self.sharing.lines():
            click.echo(printable(line), err=True)
        done = not PLAN_ONLY.isdisjoint(sys.argv) and all(
            run.host in state.active_hosts and run.planned and not run.planned.problems
            for run in asked
        )
        return 0 if done and asked else 1

    def going_on(self) -> list[str]:
        """What to know of jobs that are left running on hosts."""
        return list(filter(None, (run.goes_on() for run in self.runs.values())))


class _Keeper(BaseStateCallback):
    """Keeps a run when its first operation begins, and what hosts say where one fails."""

    @staticmethod
    def host_connect_error(state: State, host: Host, error: Exception) -> None:
        run = _fleets[state.inventory].runs[host.name]
        run.failures.append(run.guard.words or printable(str(error)))
        run.known = False

    @staticmethod
    def operation_start(state: State, op_hash: str) -> None:
        if _fleets[state.inventory].reports:
            _fleets[state.inventory].keep(state)

    @staticmethod
    def operation_host_start(state: State, host: Host, op_hash: str) -> None:
        """With --serial there is no other one."""
        fleet = _fleets[state.inventory]
        if fleet.reports:
            fleet.keep(state)
        run = fleet.runs[host.name]
        run.guard.words, run.told = "", len(run.failures)
        _contain(state, run, op_hash)

    @staticmethod
    def operation_host_error(
        state: State, host: Host, op_hash: str, retry_count: int = 0, max_retries: int = 0
    ) -> None:
        run = _fleets[state.inventory].runs[host.name]
        if len(run.failures) == run.told:
            run.fail(_failed(run, _name_of(state, op_hash)))


def _name_of(state: State, op_hash: str) -> str:
    return ", ".join(sorted(state.get_op_meta(op_hash).names))


def _failed(run: HostRun, name: str) -> str:
    """Why an operation failed that does not say so itself: the words of its last command."""
    if run.guard.lost:
        return run.guard.lost
    words = run.guard.words or "a failure without a word"
    if "; expected " in words:
        return f"{name}: {words}"
    return f"{name}: found {words}; expected it to succeed on {run.name}; next: {AGAIN}"


def _contain(state: State, run: HostRun, op_hash: str) -> None:
    """Let an error in an operation's own code fail this host, and no other."""
    data = state.ops[run.host].get(op_hash)
    if data is None:
        return
    made = data.command_generator

    def contained() -> Iterator[PyinfraCommand]:
        try:
            yield from made()
        except Exception as error:
            text = f"{_name_of(state, op_hash)}: found {type(error).__name__}: {error}"
            logger.debug("%s", "\n".join(map(printable, traceback.format_exc().splitlines())))
            run.fail(f"{text}; expected none; next: report this, with what --debug says")
            yield FunctionCommand(_fail, (), {})

    data.command_generator = contained


def _fail(state: State, host: Host) -> bool:
    return False


def _history(rows: list[Row]) -> list[str]:
    """Takes the run's results in; what that and a driver update come to, a printable line each."""
    try:
        return [*keep_up(RESULTS), *after_update(RESULTS, rows)]
    except Exception as error:
        text = f"history: found {type(error).__name__}: {error}; expected the runs so far; next: "
        return [printable(text + "llamafleet history")]


def _tidy(what: str, folder: Path, prune: Callable[[float], list[str]], why: str) -> None:
    """Say what is removed there, or why it can't be."""
    try:
        for name in prune(time.time()):
            click.echo(f"{folder / name}: removed, {why}", err=True)
    except OSError as error:
        click.echo(
            f"{what}: found that {folder} can't be tidied ({error}); expected to write there; "
            f"next: ls -la {folder}",
            err=True,
        )


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


def fleet_of(inventory: Inventory, report: bool) -> Fleet:
    """The fleet of an inventory; the first call makes it. Raises SettingsError.

    `report`: it builds, and tells of it; else its hosts are only cleared.
    """
    if inventory not in _fleets:
        _fleets[inventory] = Fleet(inventory, builds=report)
    return _fleets[inventory]


def attend(state: State, fleet: Fleet) -> None:
    """Guard the connection of every host, and hear of what fails there."""
    for run in fleet.runs.values():
        guard_of(run.host)
    state.add_callback_handler(_Keeper())  # type: ignore[no-untyped-call]


def begin(report: bool = True) -> HostRun:
    """The run of the host in context; the first call validates the settings of every host.

    config.py has done both before any connection, where pyinfra has read it. Raises PyinfraError
    with one line per error; pyinfra then stops for all hosts.
    """
    inventory: Inventory = host.inventory
    if inventory not in _fleets:
        try:
            fleet = fleet_of(inventory, report)
        except SettingsError as error:
            raise PyinfraError(
                "the inventory is refused, no host was touched:\n"
                + "\n".join(map(printable, error.lines))
            ) from error
        attend(host.state, fleet)
        if report:
            Ending(host.state, fleet).arm()
    return _fleets[inventory].runs[host.name]


def here() -> HostRun:
    """The run of the host in context, begun by deploy.py."""
    return _fleets[host.inventory].runs[host.name]


def _data_of(target: Host) -> dict[str, object]:
    return cast("dict[str, object]", target.data.dict())  # type: ignore[no-untyped-call]
