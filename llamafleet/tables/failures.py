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

# What a row is worth beside others: see the same head, and `protocol.diagnose`.
Rank = Literal["cause", "consequence", "hint"]

Text = Annotated[str, Field(min_length=1)]


def _pattern(value: str) -> str:
    try:
        re.compile(value, re.MULTILINE)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from error
    return value


class Failure(Row):
    """A row of what `protocol.diagnose` looks for and ranks."""

    id: Text
    stage: Stage
    rank: Rank = "cause"
    explains: str = ""
    """Ids of what follows from it, with spaces between: it is named before them."""
    goes_on: Annotated[str, AfterValidator(_pattern)] = ""
    """The program goes on in spite of it: only what this pattern fits, said later, mends it."""
    pattern: Annotated[Text, AfterValidator(_pattern)]
    sample: Text
    """A text that this row matches, and none that is ranked before it."""
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
