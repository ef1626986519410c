"""From the text of a log to cause and fix: signatures of failures, and the lines worth reading."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

MAX_LINES = 20
LONGEST_LINE = 400
"""Characters of a line that are kept."""
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
    """Who says it: see the head of tables/failures.yaml."""
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

    def __str__(self) -> str:
        """The part of a sentence that says what it is: the fix stands elsewhere."""
        return f"known as {self.id}: {self.cause.rstrip('.')}"


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


def diagnose(
    signatures: Iterable[Signature], *texts: str, stages: Collection[str] | None = None
) -> Match | None:
    """What is known of the first text that a signature fits, of these stages or of all.

    Give the narrow text before the wide: in a whole log a harmless word may fit a signature.
    """
    asked = [one for one in signatures if stages is None or one.stage in stages]
    return next((match for text in texts if (match := _first(asked, text))), None)


def _first(signatures: Iterable[Signature], text: str) -> Match | None:
    for signature in signatures:
        if found := signature.pattern.search(text):
            start = text.rfind("\n", 0, found.end() - 1) + 1
            begin = min(start, found.end() - 1)
            line = text[begin : begin + LONGEST_LINE].split("\n", 1)[0].strip()
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
    lines = [line.rstrip()[:LONGEST_LINE] for line in text.splitlines()]
    for number, line in enumerate(lines):
        if _ERROR.search(line):
            return lines[max(0, number - BEFORE) :][:limit]
    return lines[-limit:]
