"""Results on the controller, one folder for each host, and the row that a run makes of one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from hashlib import sha256
from itertools import count
from pathlib import Path
from urllib.parse import quote, unquote

from llamafleet.history.files import write_json
from llamafleet.history.update import Update, find_update
from llamafleet.protocol.result import (
    BUSY,
    FAIL,
    GOOD,
    NOT_VERIFIED,
    PASS,
    Result,
    Verdict,
    is_good,
)
from llamafleet.protocol.verify import LATEST
from llamafleet.received import Unreadable, received_result

LOCAL = "@local"
DATABASE = "history.db"
"""The history, where it is a file of SQLite."""
TAKEN = (
    *("local", "runs", "last-run.json"),
    *(DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", f"{DATABASE}-journal"),
)
"""Names in the folder of results that mean something else than a host called so."""
LONGEST_NAME = 200
"""Characters; file systems take 255 bytes."""

LARGEST = 4 << 20
"""Characters of a stored result that are read; one of 16 GPUs has some 100,000."""


VERIFIED = "verified"
"""Among what changed: the figures were measured in that run."""


@dataclass(frozen=True)
class Built:
    """What a build cost, by its stamp; None: not told."""

    wall_s: float | None = None
    cpu_s: float | None = None
    wheel_bytes: int | None = None
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds, in the order they ran."""
    retried: str = ""
    """Why it took a second attempt."""


@dataclass(frozen=True)
class GpuLine:
    """What one run says of one GPU."""

    name: str
    uuid: str
    verdict: Verdict
    pp: float | None = None
    tg: float | None = None
    busy: bool = False
    """The figures are not those of a free and healthy GPU."""


NOT_ASKED = "not asked"
"""State of a service to which a run did not come."""


@dataclass(frozen=True)
class ServedLine:
    """What one run says of one service."""

    profile: str
    state: str
    """ready, or FAILED; why, a reason of the row tells. Or NOT_ASKED."""
    address: str
    port: int
    alias: str
    """What clients call the model."""
    model: str
    """Path on the host; "": it is not known there yet."""


@dataclass(frozen=True)
class Row:
    """What one run says of one host."""

    host: str
    verdict: Verdict
    gpu: str = ""
    driver: str = ""
    toolkit: str = ""
    build: str = ""
    """Fingerprint."""
    pp: float | None = None
    """Median tokens per second of prompt processing; of several GPUs: together."""
    tg: float | None = None
    """Median tokens per second of generation."""
    gpus: tuple[GpuLine, ...] = ()
    changed: tuple[str, ...] = ()
    reason: tuple[str, ...] = ()
    """Why it is not PASS, one line each: found, expected, next."""
    busy: tuple[str, ...] = ()
    """Why figures, of the host or of a GPU, are not those of a free and healthy GPU."""
    figures_busy: bool = False
    """The host's own pp and tg are such figures."""
    allowed: bool = False
    """The settings take a BUSY for good."""
    left_out: tuple[str, ...] = ()
    """GPUs of the host that the setting `gpus` leaves out."""
    built: Built | None = None
    update: Update | None = None
    """The driver update that the result is the first to be measured after."""
    served: tuple[ServedLine, ...] = ()

    @classmethod
    def of(
        cls,
        host: str,
        result: Result | Unreadable | None,
        changed: Iterable[str],
        failures: Iterable[str],
        *,
        update: Update | None = None,
        served: Iterable[ServedLine] = (),
        known: bool = True,
    ) -> Row:
        """A row from a result (None: there is none) and what went wrong around it.

        A failure beside a good verdict, or beside BUSY, makes it FAIL; that it is BUSY is none. A
        result that can't be understood makes it NOT VERIFIED, with the reason. So do failures of
        which nothing is `known` but that the host, or its job, came to no end.
        """
        failures = list(failures)
        worst = FAIL if known else NOT_VERIFIED
        row = cls(host=host, verdict=worst if failures and result is None else NOT_VERIFIED)
        if isinstance(result, Result):
            row = _from_result(host, result)
        elif isinstance(result, Unreadable):
            failures.append(_no_result(host, f"one that can't be understood ({result.reason})"))
        elif not failures:
            failures.append(_no_result(host, "no result"))
        told = [*failures, *row.reason]
        reason = tuple(dict.fromkeys(text for text in told if text not in row.busy))
        if row.verdict == PASS and row.busy:  # A host's word alone is not enough for a PASS.
            row = replace(row, verdict=BUSY)
        red = FAIL if row.reason else worst
        verdict = red if reason and row.verdict in (*GOOD, BUSY) else row.verdict
        row = replace(row, verdict=verdict, changed=tuple(changed), reason=reason)
        return replace(row, update=update, served=tuple(served))

    @property
    def good(self) -> bool:
        """Nothing is left to be wished for, by the settings."""
        return is_good(self.verdict, allow_busy=self.allowed)


def _no_result(host: str, found: str) -> str:
    return (
        f"result: found {found} of {host}; expected a finished verification; "
        "next: pyinfra -y inventory deploy.py"
    )


def _brief(error: Exception) -> str:
    """One line of an error, with its kind: a KeyError's own text is the bare key."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _from_result(host: str, result: Result) -> Row:
    build, measured = result.build, result.measured
    names = [gpu.name for gpu in result.gpus]
    return Row(
        host=host,
        verdict=result.verdict,
        gpu=", ".join(
            f"{names.count(name)}x {name}" if names.count(name) > 1 else name
            for name in dict.fromkeys(names)
        ),
        driver=result.system.driver or "",
        toolkit=str((build.inputs or {}).get("toolkit") or ""),
        build=result.fingerprint,
        pp=measured.pp.median_ts if measured else None,
        tg=measured.tg.median_ts if measured else None,
        gpus=tuple(
            GpuLine(
                name=gpu.name,
                uuid=gpu.uuid,
                verdict=gpu.verdict,
                pp=gpu.benchmark.pp.median_ts if gpu.benchmark else None,
                tg=gpu.benchmark.tg.median_ts if gpu.benchmark else None,
                busy=bool(gpu.busy),
            )
            for gpu in result.gpus
        ),
        reason=tuple(f"{where + ': ' if where else ''}{check}" for where, check in result.red),
        busy=result.busy,
        figures_busy=result.measured_busy,
        allowed=result.allow_busy,
        left_out=result.left_out,
        built=Built(
            build.wall_s, build.cpu_s, build.wheel_bytes, build.phases or {}, build.retried or ""
        ),
    )


class Store:
    """The folder of results."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, host: str) -> Path:
        """Folder of one host, of no other: its name in pyinfra, with %2F for a / and so on."""
        if host == LOCAL:
            return self.root / LOCAL.removeprefix("@")
        name = quote(host, safe="@", errors="surrogatepass")
        if not name.strip("."):
            name = name.replace(".", "%2E") or "%"
        # A lone % is in no quoted name.
        if name in TAKEN:
            name += "%"
        if len(name) > LONGEST_NAME:
            name = f"{name[:LONGEST_NAME]}%%{sha256(name.encode()).hexdigest()[:16]}"
        return self.root / name

    def _folder_before(self, host: str) -> Path:
        """Where its results lay before each host had a folder of its own: several shared one."""
        name = re.sub(r"[^A-Za-z0-9._-]", "_", host.removeprefix("@"))
        return self.root / (name if name.strip(".") else "_" * max(len(name), 1))

    def host_of(self, path: Path, result: Result) -> str:
        """The host that a stored result is of, by its folder: what it says itself may be another's,
        by a copy or by a lie."""
        folder = path.parent
        if folder in (self.folder(result.host), self._folder_before(result.host)):
            return result.host
        return LOCAL if folder == self.folder(LOCAL) else unquote(folder.name)

    def write_result(self, host: str, result: Result) -> Path:
        """Keep a result as <time>-<fingerprint>.json and as latest.json; returns the former."""
        name = f"{_timestamp(result.finished)}-{result.fingerprint}"
        path = self._free(self.folder(host), re.sub(r"[^A-Za-z0-9._-]", "_", name), result)
        write_json(path, asdict(result))
        write_json(path.with_name(LATEST), asdict(result))
        return path

    def _free(self, folder: Path, name: str, result: Result) -> Path:
        """Where no other result is: a second may have two."""
        for number in count(1):
            path = folder / (f"{name}.json" if number == 1 else f"{name}-{number}.json")
            there = read_result(path)
            if isinstance(there, Unreadable) or there.finished == result.finished:
                break
        return path

    def update(self, host: str, result: Result) -> Update | None:
        """The driver update that `result`, not stored yet, is the first to be measured after.

        Stored results that can't be read or that another host left in the folder are left out.
        """
        folders = {self.folder(host), self._folder_before(host)}
        stored = [p for folder in folders for p in folder.glob("*.json") if p.name != LATEST]
        found = [read for path in stored if isinstance(read := read_result(path), Result)]
        return find_update((one for one in found if not self._shared(one.host, host)), result)

    def _shared(self, other: str, host: str) -> bool:
        """Whether another host's results lay in the same folder before."""
        return other != host and self._folder_before(other) == self._folder_before(host)


def read_result(path: Path) -> Result | Unreadable:
    """A stored result."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(LARGEST + 1)
        data = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        return Unreadable(_brief(error))
    return received_result(data)


def _timestamp(finished: float) -> str:
    """Seconds since 1970 as 20261125T010203Z; a time that no calendar has as it is."""
    try:
        return datetime.fromtimestamp(finished, timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    except (ValueError, OverflowError, OSError):
        return str(finished)
