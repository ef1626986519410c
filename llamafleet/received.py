"""What a host sent, read on the controller: typed, bounded and printable, or one line that says
why not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from llamafleet.protocol import result
from llamafleet.protocol.decode import LARGEST
from llamafleet.protocol.result import BUSY, NOT_VERIFIED, PASS, Result

T = TypeVar("T")

LIMIT = 4 << 20
"""Characters of text that are looked at; what hosts write is far below."""
LONGEST_TEXT = 20_000
"""Characters of one text; a longer one is cut."""
LONGEST_KEY = 4096
"""Characters of an object's key, which may be a path."""
MOST_ITEMS = 20_000
"""Of a list, or keys of an object."""
MOST_DIGITS = 400
"""Of a whole number in JSON. The time to read one grows with the square of its digits."""
MOST_ERRORS = 3
LONGEST = 60
"""Characters of a value that an error quotes."""


@dataclass(frozen=True)
class Unreadable:
    """Something that can't be understood; the text is one line and holds nothing unprintable."""

    reason: str
    newer: bool = False
    """It was written by newer code than this."""


def plain(text: str, longest: int = LONGEST_TEXT) -> str:
    """The text on one line, cut: a blank for each character that can't be seen.

    It can't end a row, move the cursor, colour or hide what stands around it.
    """
    text = text[:longest]
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def received(kind: type[T], data: object) -> T | Unreadable:
    """`data`, as json.loads gives it, as a dataclass of the protocol; its texts are printable.

    Keys that are newer than this code are left out, those that are missing are named.
    """
    try:
        bounded(data)
        text = json.dumps(_plain(data), allow_nan=False)
        # Of JSON, since only there a strict reader takes a list for a tuple.
        adapter: TypeAdapter[T] = _adapter(kind)  # type: ignore[arg-type]
        return adapter.validate_json(text, strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        told = [_line(dict(one)) for one in found[:MOST_ERRORS]]
        more = [f"and {len(found) - MOST_ERRORS} more"] if len(found) > MOST_ERRORS else []
        return Unreadable("; ".join([*told, *more]))
    except (ValueError, TypeError, RecursionError) as error:
        return Unreadable(_brief(error))


def received_text(kind: type[T], text: str) -> T | Unreadable:
    """The same of JSON text."""
    data = received_json(text)
    return data if isinstance(data, Unreadable) else received(kind, data)


def received_json(text: str) -> Any:
    """The value that it holds; Unreadable where it holds none."""
    if len(text) > LIMIT:
        return Unreadable(f"found {len(text)} characters, expected at most {LIMIT}")
    try:
        return json.loads(text, parse_int=_int)
    except (ValueError, RecursionError) as error:
        return Unreadable(f"no JSON: {_brief(error)}")


def _int(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"found a number of {len(text)} digits, expected at most {MOST_DIGITS}")
    return int(text)


def received_result(data: object) -> Result | Unreadable:
    """A result of this version or an older one."""
    if not isinstance(data, Mapping):
        return Unreadable(f"found {type(data).__name__}, expected an object")
    version = data.get("version")
    if type(version) is not int or not 1 <= version <= result.VERSION:
        newest = result.VERSION
        reason = f"found a result of version {_quoted(version)}, expected 1 to {newest}"
        return Unreadable(reason, newer=type(version) is int and version > newest)
    try:
        data = result.upgraded(data)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        return Unreadable(_brief(error))
    found = received(Result, data)
    if isinstance(found, Result):
        contradiction = _contradiction(found)
        if contradiction:
            return Unreadable(contradiction)
    return found


def _contradiction(found: Result) -> str:
    """How a verdict is more than its rows hold; what an older version did not judge is no word."""
    if found.verdict not in (PASS, BUSY):
        return ""
    held = {found.verdict, PASS, NOT_VERIFIED}
    worse = [gpu.uuid for gpu in found.gpus if gpu.verdict not in held]
    if found.gpus and not worse:
        return ""
    return f"found {found.verdict} beside {_quoted(', '.join(worse)) if worse else 'no GPU'}"


def bounded(data: object) -> None:
    """Raises ValueError on a number that no figure is, and that later arithmetic would fail on, and
    on a list or object that is too long."""
    if isinstance(data, (Mapping, list)) and len(data) > MOST_ITEMS:
        raise ValueError(f"found {len(data)} items, expected at most {MOST_ITEMS}")
    if isinstance(data, int) and abs(data) >= LARGEST:
        raise ValueError(f"found a number of {data.bit_length()} bits, expected less than 64")
    if isinstance(data, Mapping):
        data = list(data.values())
    if isinstance(data, list):
        for one in data:
            bounded(one)


def _plain(data: object) -> object:
    """The same with printable texts."""
    if isinstance(data, str):
        return plain(data)
    if isinstance(data, Mapping):
        return {plain(str(key), LONGEST_KEY): _plain(value) for key, value in data.items()}
    return [_plain(one) for one in data] if isinstance(data, (list, tuple)) else data


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _line(error: dict[str, Any]) -> str:
    """As "checks.0.status: found 5, expected 'pass' or 'fail'"."""
    where = ".".join(map(str, error["loc"])) or "the whole"
    if error["type"] == "missing":
        return f"{_quoted(where)[1:-1]}: found nothing"
    return f"{_quoted(where)[1:-1]}: found {_quoted(error['input'])} ({error['msg']})"


def _brief(error: Exception) -> str:
    """One line of an error, with its kind: a KeyError's own text is the bare key."""
    return f"{type(error).__name__}: {_quoted(' '.join(str(error).split()))[1:-1]}"


def _quoted(value: object) -> str:
    """As JSON, which escapes what a terminal would obey; cut where it is long."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = json.dumps(type(value).__name__)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
