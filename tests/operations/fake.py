"""A host that is none: pyinfra runs operations on it as on any other, and it keeps what was sent.

By pyinfra's own @fake connector, so that what is asserted is what a host would have got: commands
and uploads, in order, after pyinfra has prepared and executed the operation.
"""

from __future__ import annotations

import json
import re
import shlex
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pytest
from pyinfra.api import Config, Inventory, State
from pyinfra.api.connect import connect_all
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.operation import add_op
from pyinfra.api.operations import run_ops
from pyinfra.connectors.fake import FakeConnector
from pyinfra.connectors.util import CommandOutput, OutputLine
from pyinfra.context import ctx_host, ctx_inventory, ctx_state

from llamafleet.facts.host import Build, Unit
from llamafleet.managed import Group, rows
from llamafleet.protocol.job import JobStatus, Kind, Progress, Stamp
from llamafleet.protocol.serve import Answer, Status
from llamafleet.protocol.serve import State as StateOfService
from llamafleet.render import content_sha256
from operations.run import HostRun, attend, begin, fleet_of
from operations.upload import END, Input
from tests.hosts.recorded import change, load

SNAPSHOT = "llamafleet-snapshot"
"""Part of the script that reads a host, and of no other command."""

STATUS = " status --dir "
"""Part of the command that asks for a job's status."""

GPU, CPU = "rtx4090-580-ubuntu24", "cpu-debian12"
"""Recorded hosts to start from."""


def answer(state: StateOfService | None = "ready", problem: str = "") -> str:
    """What the service chat answers when it is asked on its host."""
    status = Status(1, "chat", state, 1.0, 7) if state else None
    made = Answer(1, state, state == "ready" and not problem, problem, status)
    return json.dumps(asdict(made))


class FakeHost:
    """One host of an inventory: its snapshot, what it answers, and what it got."""

    def __init__(self, recorded: str = GPU, **data: object) -> None:
        host = load(recorded)
        self.text = host.text
        self.data = {**host.settings, **data}
        self.answers: dict[str, str | bool | list[str | bool]] = {}
        """Output of commands by a part of them; False: the command, or upload, fails. Of several
        the next one each time, and the last for ever."""
        self.becomes: dict[str, FakeHost] = {}
        """What it is found to be once a command was sent, by a part of that."""
        self.sent: list[str] = []
        """Commands, and "PUT path" for uploads; not the script that reads the host."""
        self.uploads: dict[str, bytes] = {}
        self.access: dict[str, str] = {}
        """Owner and mode of what was uploaded, as "root:root 644"; own: of whoever deploys."""
        self.read = 0
        """How often it was read."""

    def found(self, *lines: str, **blocks: list[str]) -> FakeHost:
        """The same host with more lines in its snapshot, fields separated by " | "."""
        more = [line.replace(" | ", "\t") for line in lines]
        for name, content in blocks.items():
            more += [f"@begin {name}", *(f" {line}" for line in content), "@end"]
        body, end = self.text.rstrip("\n").rsplit("\ncomplete=1\n", 1)
        self.text = "\n".join([body, *more, "complete=1", end]) + "\n"
        return self

    def file(self, *name: str, text: str) -> FakeHost:
        """The same host with a file in its snapshot, as latest.json or a stamp."""
        body, end = self.text.rstrip("\n").rsplit("\ncomplete=1\n", 1)
        block = ["@begin " + "\t".join(name), *(f" {line}" for line in text.splitlines()), "@end"]
        self.text = "\n".join([body, *block, "complete=1", end]) + "\n"
        return self

    def units(self, units: Mapping[str, Unit]) -> FakeHost:
        """The same host with these units of llamafleet, under a systemd that answers."""
        told = []
        for name, unit in units.items():
            told += [f"Id={name}", f"LoadState={unit.load}", f"ActiveState={unit.active}"]
            told += [f"SubState={unit.sub}", f"UnitFileState={unit.enabled}"]
            told += [f"NeedDaemonReload={'yes' if unit.stale else 'no'}", ""]
        return self.found("systemctl=0", units=told)

    def files(self, sha256: Mapping[str, str]) -> FakeHost:
        """The same host with these managed files, by path."""
        return self.found(files=[f"{found}  {path}" for path, found in sha256.items()])

    def job(self, kind: Kind, key: str, told: Progress | Stamp) -> FakeHost:
        """The same host with a job: with progress it runs, with a stamp it has ended."""
        runs = isinstance(told, Progress)
        name = "progress" if runs else "stamp"
        self.found(f"job={kind} | {key} | {int(runs)}")
        return self.file(name, kind, key, f"{name}.json", text=json.dumps(asdict(told)))

    def build(self, build: Build) -> FakeHost:
        """The same host with a build, as it is looked into."""
        assert build.stamp is not None and build.product is not None
        runs = (f"build_runs={build.name}",) if build.runs else ()
        self.found(f"built={build.name}", *runs)
        told = asdict(build.stamp) | asdict(build.product)
        self.file("build", build.name, "build.json", text=json.dumps(told))
        lines = "\n".join(f"{sha256}  {path}" for path, sha256 in build.libraries.items())
        return self.file("libraries", build.name, text=lines)

    def changed(self, **changes: Any) -> FakeHost:
        """The same host with other lines or blocks: as tests/hosts/*.yaml write them."""
        self.text = change(self.text, changes)
        return self

    def answer(self, command: str) -> tuple[bool, str]:
        if SNAPSHOT in command:
            self.read += 1
            return True, self.text
        self.sent.append(command)
        for part, host in self.becomes.items():
            if part in command:
                self.text = host.text
        for part, answers in self.answers.items():
            if part in command:
                return _next(answers)
        return True, ""

    def receive(self, command: str, lines: Input) -> tuple[bool, str]:
        """One part of a file that is uploaded: see operations/upload.py."""
        told = dict(word.split("=", 1) for word in shlex.split(command) if "=" in word[:7])
        done, said = self.answer(f"PUT {told['to']}")
        if done:
            _, *content = lines
            part = b64decode("".join(line for line in content if line != END))
            self.uploads[told["to"]] = self.uploads.get(told["to"], b"") + part
            # What is made longer has no other owner, and no mode yet.
            self.access[told["to"]] = f"{told.get('owner') or 'own'} {told.get('mode', '')}"
        return done, said

    @property
    def commands(self) -> list[str]:
        """What was sent, less the shell around it."""
        return [re.sub(r"^sh -c '(.*)'$", r"\1", sent, flags=re.DOTALL) for sent in self.sent]


def _next(answers: str | bool | list[str | bool]) -> tuple[bool, str]:
    if isinstance(answers, list):
        answers = answers.pop(0) if len(answers) > 1 else answers[0]
    return (False, "") if answers is False else (True, str(answers))


class Fleet:
    """Fake hosts in one run of pyinfra."""

    def __init__(self, state: State, runs: dict[str, HostRun], *, dry: bool) -> None:
        self.state, self.runs, self.dry = state, runs, dry

    def run(self, *operations: Callable[..., Any], **arguments: Any) -> list[str]:
        """Carry the operations out, a dry run only prepares them; the hosts that failed."""
        with ctx_state.use(self.state), ctx_inventory.use(self.state.inventory):
            for operation in operations:
                add_op(self.state, operation, **arguments)
            if self.dry:
                return []
            try:
                run_ops(self.state)
            except PyinfraError as error:
                assert "No hosts remaining" in str(error), error
        return sorted(host.name for host in self.state.failed_hosts)


@contextmanager
def fleet(
    monkeypatch: pytest.MonkeyPatch,
    hosts: Mapping[str, FakeHost],
    *,
    dry: bool = False,
    builds: bool = True,
) -> Iterator[Fleet]:
    """The hosts, connected and begun, in a run of pyinfra; not `builds`: they are cleared."""
    by_name = {f"@fake/{name}": host for name, host in hosts.items()}

    def shell(self: FakeConnector, command: Any, **given: Any) -> tuple[bool, CommandOutput]:
        text = command if isinstance(command, str) else command.get_raw_value()
        host = by_name[self.host.name]
        if isinstance(given.get("_stdin"), Input):
            done, said = host.receive(text, given["_stdin"])
        else:
            done, said = host.answer(text)
        return done, CommandOutput([OutputLine("stdout", line) for line in said.splitlines()])

    def put(self: FakeConnector, source: Any, target: str, **_: object) -> bool:
        content = Path(source).read_bytes() if isinstance(source, str) else source.read()
        if not isinstance(source, str):
            source.seek(0)
        host = by_name[self.host.name]
        done, _ = host.answer(f"PUT {target}")
        if done:
            host.uploads[target] = content if isinstance(content, bytes) else content.encode()
        return done

    monkeypatch.setattr(FakeConnector, "run_shell_command", shell)
    monkeypatch.setattr(FakeConnector, "put_file", put)
    listed = [(name, cast("dict[str, Any]", host.data)) for name, host in by_name.items()]
    inventory = Inventory((listed, {}))
    state = State(inventory, Config(), check_for_changes=dry)
    with ctx_state.use(state), ctx_inventory.use(inventory):
        connect_all(state)
        # No run of it is kept, and no table printed.
        made = fleet_of(inventory, report=builds)
        made.reports = False
        attend(state, made)
        runs = {}
        for host in inventory:
            with ctx_host.use(host):
                runs[host.name.removeprefix("@fake/")] = begin(report=False)
    yield Fleet(state, runs, dry=dry)


def rendered(run: HostRun, group: Group) -> dict[str, str]:
    """sha256 by path of the group's files, as this run would write them."""
    plan, layout = run.plan(), run.layout()
    return {
        row.path(layout): content_sha256(row, plan, run.settings, layout, run.supplies)
        for row in rows(layout, group)
        if (run.supplies.netrc or not row.secret)
        and (run.settings.metrics_folder or "metrics" not in row.needs)
    }


def written(path: str) -> list[str]:
    """How a file comes to a host: by one command. See tests/operations/test_upload.py."""
    return [f"PUT {path}"]


def answer_of(*statuses: JobStatus) -> list[str | bool]:
    """What a host prints when it is asked for the status of a job."""
    return [json.dumps(asdict(status)) for status in statuses]


def ended(kind: Kind, key: str, ok: bool = True, **stamp: Any) -> JobStatus:
    """The status of a job that has ended."""
    told = Stamp(kind=kind, key=key, ok=ok, **stamp)
    return JobStatus(state="ok" if ok else "failed", stamp=told)
