"""Runs over a fleet: each has an id and is kept in a file of its own."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import AwareDatetime, TypeAdapter, ValidationError

from llamafleet.history.files import to_look_at, to_set_aside, write_json
from llamafleet.history.store import Row
from llamafleet.protocol.result import NOT_VERIFIED
from llamafleet.received import bounded
from llamafleet.terminal import printable

VERSION = 2
"""Of a run's file."""

BEFORE_VERSION = 1
"""Of the one file that was there before runs were kept: rows alone."""

BEFORE = "last-run"
"""Its name, which stands for the id that its run never had."""

ID = re.compile(r"\d{8}T\d{6}\.\d{6}Z-[0-9a-f]{4}")

MAX_BYTES = 32 * 2**20
"""A thousand hosts take about one MB; more than this is no run, and would fill the memory."""

MAX_HOSTS = 100_000
"""Far more than any fleet has."""

MAX_TEXT = 200
"""Of what was found in a file that can't be read."""

NAMED = 3
"""How many ids an error names."""

NEXT = "pyinfra -y inventory deploy.py"

RunState = Literal["running", "complete", "interrupted"]
"""Complete: each host came to an end, be it a failure. A run that was killed stays `running`:
nothing of it was left to write another word."""


class RunError(Exception):
    """There is no such run, or it can't be read; the text is one printable line."""


@dataclass(frozen=True)
class Run:
    """One run of deploy.py over a fleet, or over a part of it."""

    id: str
    """Its time and a random part: sorts by time."""
    started: AwareDatetime | None
    """When its first operation began; None: of before runs were kept."""
    command: tuple[str, ...]
    """Without secrets."""
    hosts: tuple[str, ...]
    """The hosts that were asked for: those within --limit."""
    fleet: int
    """How many hosts the whole inventory has."""
    waves: tuple[tuple[str, ...], ...]
    """The hosts that were reached, in pyinfra's order; those of one wave are at work together.

    Each operation goes through all waves; with --serial each host is a wave, which goes through
    all operations.
    """
    state: RunState
    finished: AwareDatetime | None = None
    rows: tuple[Row, ...] = ()
    """One for each host of `hosts`, also where the run has no end."""


_RUN = TypeAdapter(Run)
_ROW = TypeAdapter(Row)


class Runs:
    """The runs below a folder of results."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self.folder = results / "runs"

    def begin(
        self,
        command: Sequence[str],
        hosts: Sequence[str],
        fleet: int,
        waves: Sequence[Sequence[str]],
    ) -> Run:
        """Keep a run that has just begun. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        started = datetime.now(timezone.utc)
        run = Run(
            id=self._take(started),
            started=started,
            command=tuple(command),
            hosts=tuple(hosts),
            fleet=fleet,
            waves=tuple(map(tuple, waves)),
            state="running",
        )
        try:
            self._write(run)
        except OSError:
            self._path(run.id).unlink()  # It would be taken for a run that can't be read.
            raise
        return run

    def finish(self, run: Run, state: RunState, rows: Iterable[Row]) -> Run:
        """Keep the end of a run. Raises OSError."""
        ended = replace(run, state=state, finished=datetime.now(timezone.utc), rows=tuple(rows))
        self._write(ended)
        return ended

    def ids(self) -> list[str]:
        """Oldest first; the run of before runs were kept is one until there is another.

        Raises RunError if there is none.
        """
        try:
            names = [path.stem for path in self.folder.iterdir() if path.suffix == ".json"]
        except FileNotFoundError:
            names = []
        except OSError as error:
            raise _unreadable(self.folder, error) from error
        found = sorted(filter(ID.fullmatch, names)) or [BEFORE] * self._path(BEFORE).is_file()
        if not found:
            raise _error(f"found no run in {self.folder}; expected one; next: {NEXT}")
        return found

    def read(self, run_id: str) -> Run:
        """A run by its whole id. Raises RunError."""
        path = self._path(run_id)
        try:
            data = _load(path, BEFORE_VERSION if run_id == BEFORE else VERSION)
            run = _before(data) if run_id == BEFORE else _run(data)
            if run.id != run_id:
                raise ValueError(f"the id {run.id}")
        except (OSError, ValueError, RecursionError) as error:
            raise _unreadable(path, error) from error
        return run

    def find(self, prefix: str) -> Run:
        """The one run whose id begins so. Raises RunError."""
        ids = self.ids()
        found = [run_id for run_id in ids if run_id.startswith(prefix)]
        if len(found) == 1:
            return self.read(found[0])
        near = found or get_close_matches(prefix, ids, NAMED) or ids
        more = f" ({len(near) - NAMED} more)" if len(near) > NAMED else ""
        raise _error(
            f"--run {prefix}: found {len(found) or 'no'} runs that begin so in {self.folder}; "
            f"expected one, as {', '.join(near[-NAMED:])}{more}; "
            "next: llamafleet report --run all"
        )

    def newest_first(self) -> Iterator[Run | RunError]:
        """Every run, with an error in the place of one that can't be read.

        Raises RunError if there is none.
        """
        for run_id in reversed(self.ids()):
            try:
                yield self.read(run_id)
            except RunError as error:
                yield error

    def last(self) -> tuple[Run | None, list[RunError]]:
        """The newest run that can be read, and what is wrong with newer ones.

        Raises RunError if there is none.
        """
        errors: list[RunError] = []
        for run in self.newest_first():
            if isinstance(run, Run):
                return run, errors
            errors.append(run)
        return None, errors

    def _path(self, run_id: str) -> Path:
        return (self.results if run_id == BEFORE else self.folder) / f"{run_id}.json"

    def _take(self, started: datetime) -> str:
        """An id that no other run has or gets: an empty file takes it."""
        while True:
            run_id = f"{started:%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(2)}"
            try:
                self._path(run_id).touch(exist_ok=False)
            except FileExistsError:
                continue
            return run_id

    def _write(self, run: Run) -> None:
        write_json(self._path(run.id), {"version": VERSION, **as_json(run)})


def as_json(run: Run) -> dict[str, Any]:
    """The run in types of JSON."""
    return cast("dict[str, Any]", _RUN.dump_python(run, mode="json"))


def _load(path: Path, version: int) -> dict[str, Any]:
    """Raises OSError, ValueError, RecursionError or RunError."""
    if not path.is_file():  # A pipe would be waited for.
        raise ValueError("no regular file")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path.stat().st_size} bytes, more than {MAX_BYTES}")
    data = json.loads(path.read_bytes())
    if not isinstance(data, dict):
        raise ValueError("no object")
    found = data.get("version")
    if isinstance(found, int) and found > version:
        raise _error(f"{path}: found version {found}; expected up to {version}; next: git pull")
    if found != version:
        raise ValueError(f"version {found}")
    if not isinstance(data.get("rows"), list):
        raise ValueError("no rows")
    if len(data["rows"]) > MAX_HOSTS:
        raise ValueError(f"{len(data['rows'])} rows, more than {MAX_HOSTS}")
    return data


def _run(data: Mapping[str, Any]) -> Run:
    """Raises ValueError."""
    run = _RUN.validate_python({**data, "rows": ()})
    if len(run.hosts) > MAX_HOSTS:
        raise ValueError(f"{len(run.hosts)} hosts, more than {MAX_HOSTS}")
    rows = _rows(data["rows"])
    told = {row.host for row in rows}
    return replace(run, rows=rows + tuple(_open(host) for host in run.hosts if host not in told))


def _before(data: Mapping[str, Any]) -> Run:
    """The run of a file that tells rows alone."""
    rows = _rows(data["rows"])
    return Run(
        id=BEFORE,
        started=None,
        command=(),
        hosts=tuple(row.host for row in rows),
        fleet=len(rows),
        waves=(),
        state="complete",
        rows=rows,
    )


def _rows(entries: list[object]) -> tuple[Row, ...]:
    """One that can't be read says so and hides no other."""
    return tuple(_row(entry, number) for number, entry in enumerate(entries))


def _row(entry: object, number: int) -> Row:
    try:
        bounded(entry)
        return _ROW.validate_python(entry)
    except (ValueError, RecursionError) as error:
        named = entry.get("host") if isinstance(entry, dict) else None
        host = named if isinstance(named, str) else "?"
        reason = f"run: found row {number} with {_brief(error)}; expected a row; next: {NEXT}"
        return Row(host=host, verdict=NOT_VERIFIED, reason=(reason,))


def _open(host: str) -> Row:
    """The row of a host whose run was killed, or still goes on."""
    reason = f"run: found no end of it for {host}; expected a verdict; next: {NEXT}"
    return Row(host=host, verdict=NOT_VERIFIED, reason=(reason,))


def _unreadable(path: Path, error: Exception) -> RunError:
    step = to_look_at(path) if isinstance(error, OSError) else to_set_aside(path)
    return _error(
        f"{path} can't be read: found {_brief(error)}; expected what a run wrote; next: {step}"
    )


def _brief(error: Exception) -> str:
    """What was found, in a few words."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        text = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    elif isinstance(error, OSError):
        text = error.strerror or str(error)
    else:
        text = str(error)
    return text[:MAX_TEXT]


def _error(text: str) -> RunError:
    return RunError(printable(text))
