"""Results on the controller, one folder for each host, and the row that a run makes of one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from llamafleet.history.files import write_json as _write
from llamafleet.history.update import Update, find_update

Verdict = Literal["PASS", "FAIL", "CPU ONLY", "NOT VERIFIED"]

PASS: Verdict = "PASS"
FAIL: Verdict = "FAIL"
CPU_ONLY: Verdict = "CPU ONLY"
NOT_VERIFIED: Verdict = "NOT VERIFIED"

LATEST = "latest.json"


@dataclass(frozen=True)
class Built:
    """What a build cost, by its stamp; None: not told."""

    wall_s: float | None = None
    cpu_s: float | None = None
    wheel_bytes: int | None = None
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds, in the order they ran."""


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
    """Median tokens per second of prompt processing."""
    tg: float | None = None
    """Median tokens per second of generation."""
    changed: tuple[str, ...] = ()
    reason: tuple[str, ...] = ()
    """Why it is not PASS, one line each: found, expected, next."""
    built: Built | None = None
    update: Update | None = None
    """The driver update that the result is the first to be measured after."""

    @classmethod
    def of(
        cls,
        host: str,
        result: Mapping[str, Any] | None,
        changed: Iterable[str],
        failures: Iterable[str],
        update: Update | None = None,
    ) -> Row:
        """A row from a result (None: there is none) and what went wrong around it.

        A failure beside a good verdict makes it FAIL; a result that can't be understood makes
        it NOT VERIFIED, with the reason.
        """
        failures, changed = list(failures), tuple(changed)
        if result is None:
            verdict = FAIL if failures else NOT_VERIFIED
            reason = failures or [_no_result(host, "no result")]
            return cls(host=host, verdict=verdict, changed=changed, reason=tuple(reason))
        try:
            row = _from_result(host, result)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            failures.append(_no_result(host, f"one that can't be understood ({_brief(error)})"))
            row = cls(host=host, verdict=NOT_VERIFIED)
        reason = list(dict.fromkeys([*failures, *row.reason]))
        verdict = FAIL if reason and row.verdict in (PASS, CPU_ONLY) else row.verdict
        return replace(row, verdict=verdict, changed=changed, reason=tuple(reason), update=update)


_ROW = TypeAdapter(Row)
_BUILT = TypeAdapter(Built)


def _no_result(host: str, found: str) -> str:
    return (
        f"result: found {found} of {host}; expected a finished verification; "
        "next: pyinfra -y inventory deploy.py"
    )


def _brief(error: Exception) -> str:
    """One line of an error, with its kind: a KeyError's own text is the bare key."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _from_result(host: str, result: Mapping[str, Any]) -> Row:
    """Raises KeyError, TypeError, ValueError or AttributeError on anything unexpected."""
    if result["version"] != 1:
        raise ValueError(f"version {result['version']}")
    system, build, benchmark = result["system"], result["build"], result["benchmark"] or {}
    failed = [check for check in result["checks"] if check["status"] == "fail"]
    names = [str(gpu["name"]) for gpu in system["gpus"]]
    row = Row(
        host=host,
        verdict=result["verdict"],
        gpu=", ".join(
            f"{names.count(name)}x {name}" if names.count(name) > 1 else name
            for name in dict.fromkeys(names)
        ),
        driver=str(system["driver"] or ""),
        toolkit=str((build.get("inputs") or {}).get("toolkit") or ""),
        build=str(result["fingerprint"]),
        pp=float(benchmark["pp"]["median_ts"]) if benchmark else None,
        tg=float(benchmark["tg"]["median_ts"]) if benchmark else None,
        reason=tuple(
            f"{check['name']}: found {check['found']}; expected {check['expected']}; "
            f"next: {check['next']}"
            for check in failed
        ),
        built=_BUILT.validate_python({k: v for k, v in build.items() if v is not None}),
    )
    return _ROW.validate_python(asdict(row))


class Store:
    """The folder of results."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, host: str) -> Path:
        """Folder of one host: its name in pyinfra, less the @ and with _ for what paths mean."""
        name = re.sub(r"[^A-Za-z0-9._-]", "_", host.removeprefix("@"))
        return self.root / (name if name.strip(".") else "_" * max(len(name), 1))

    def write_result(self, host: str, result: Mapping[str, Any]) -> Path:
        """Keep a result as <time>-<fingerprint>.json and as latest.json; returns the former."""
        name = f"{_timestamp(result.get('finished'))}-{result.get('fingerprint', 'unknown')}.json"
        path = self.folder(host) / re.sub(r"[^A-Za-z0-9._-]", "_", name)
        _write(path, result)
        _write(path.with_name(LATEST), result)
        return path

    def update(self, host: str, result: Mapping[str, Any]) -> Update | None:
        """The driver update that `result`, not stored yet, is the first to be measured after.

        Stored results that can't be read are left out.
        """
        earlier = []
        for path in self.folder(host).glob("*.json"):
            if path.name == LATEST:
                continue
            try:
                data = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if isinstance(data, dict):
                earlier.append(data)
        return find_update(earlier, result)


def _timestamp(finished: object) -> str:
    """Seconds since 1970 as 20261125T010203Z; other values as they are."""
    if isinstance(finished, int | float):
        return datetime.fromtimestamp(finished, timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    return str(finished)
