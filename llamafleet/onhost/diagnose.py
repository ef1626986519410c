"""From the text of a log to cause and fix: signatures of failures, and the lines worth reading."""

from __future__ import annotations

import json
import pkgutil
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

TABLE = "failures.json"
"""Name of the table in the zipapp, beside this module; made from tables/failures.yaml."""

MAX_LINES = 20
BEFORE = 2
_ERROR = re.compile(
    r"\berror:|FAILED:|CMake Error|ERROR:|nvcc fatal|^\w*(?:Error|Exception): "
    r"|No space left on device",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Signature:
    """One known failure. The first signature that is found in a text, in table order, names it."""

    id: str
    stage: str
    """detection, toolkit, deps, configure, compile, link, import, runtime or verify."""
    pattern: re.Pattern[str]
    cause: str
    fix: str
    source: str
    """Issue, file and line, or message that the signature was taken from."""


@dataclass(frozen=True)
class Match:
    id: str
    stage: str
    cause: str
    fix: str
    source: str
    line: str
    """The line of the text in which the match begins."""


def signatures_from(rows: Iterable[Mapping[str, str]]) -> tuple[Signature, ...]:
    """Compile the rows of the table; raises KeyError and re.error for a malformed one."""
    return tuple(
        Signature(
            id=row["id"],
            stage=row["stage"],
            pattern=re.compile(row["pattern"], re.MULTILINE),
            cause=row["cause"],
            fix=row["fix"],
            source=row["source"],
        )
        for row in rows
    )


@cache
def shipped() -> tuple[Signature, ...]:
    """The zipapp's own table; empty where these modules run from elsewhere."""
    try:
        data = pkgutil.get_data(__package__, TABLE)
    except OSError:
        data = None
    return signatures_from(json.loads(data)) if data else ()


def diagnose(text: str, signatures: Sequence[Signature] | None = None) -> Match | None:
    """The first signature of the table (the zipapp's own by default) that `text` contains."""
    for signature in shipped() if signatures is None else signatures:
        if found := signature.pattern.search(text):
            start = text.rfind("\n", 0, found.end() - 1) + 1
            line = text[min(start, found.end() - 1) :].split("\n", 1)[0].strip()
            return Match(
                signature.id,
                signature.stage,
                signature.cause,
                signature.fix,
                signature.source,
                line,
            )
    return None


def error_lines(text: str, limit: int = MAX_LINES) -> list[str]:
    """The lines around the first error of a log; its last lines where none looks like one."""
    lines = [line.rstrip()[:400] for line in text.splitlines()]
    for number, line in enumerate(lines):
        if _ERROR.search(line):
            return lines[max(0, number - BEFORE) :][:limit]
    return lines[-limit:]
