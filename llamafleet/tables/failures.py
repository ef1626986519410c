"""Known failures of a build or a run: a pattern in a log, its cause and its fix."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from llamafleet.tables.rows import Row, load

# Who says it, and so who asks for it: see the head of failures.yaml.
Stage = Literal[
    "detection",
    "toolkit",
    "deps",
    "configure",
    "compile",
    "link",
    "import",
    "runtime",
    "verify",
]

Text = Annotated[str, Field(min_length=1)]


def _pattern(value: str) -> str:
    try:
        re.compile(value, re.MULTILINE)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from error
    return value


class Failure(Row):
    """A row of what `protocol.diagnose` looks for; the first that matches names the cause."""

    id: Text
    stage: Stage
    pattern: Annotated[Text, AfterValidator(_pattern)]
    sample: Text
    """A text that this row, and none above it, matches."""
    cause: Text
    fix: Text
    source: Text
    """Issue or pull request, message, or file and line."""


class _Failures(Row):
    failures: tuple[Failure, ...]


def failures() -> tuple[Failure, ...]:
    """In the order in which they are tried."""
    return load("failures.yaml", _Failures).failures


def rows() -> list[dict[str, str]]:
    """The same as plain data: what the zipapp carries and `protocol.diagnose` compiles."""
    return [row.model_dump() for row in failures()]
