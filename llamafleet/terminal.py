"""What may be said or kept of any text: no secret, and no character that can't be seen; how many
columns of a terminal it takes; and colours, where they are wanted."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import TextIO

from llamafleet.protocol.redact import MASK, redacted

SECRET = re.compile(r"pass|secret|token", re.IGNORECASE)
"""In the name of an option, of a key or of a variable: its value is one."""

SHORTEST = 6
"""Characters of a secret that is looked for: a shorter one would be found in every other word."""

_secrets: set[str] = set()


def conceal(values: Iterable[str]) -> None:
    """Mask these from now on, wherever they stand in what this process says or keeps."""
    _secrets.update(value for value in values if len(value) >= SHORTEST)


def secrets_of(data: Mapping[str, object]) -> list[str]:
    """Values whose name says that they are secret: in an inventory's data, and in its _env."""
    pairs = list(data.items())
    for value in data.values():
        if isinstance(value, Mapping):
            pairs += value.items()
    return [text for key, text in pairs if isinstance(text, str) and SECRET.search(str(key))]


def masked(text: str) -> str:
    """The text without secrets: those that were concealed, and those that look like one."""
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return redacted(text)


def masked_data(data: object) -> object:
    """The same of each text in data as JSON has it; keys are our own words."""
    if isinstance(data, str):
        return masked(data)
    if isinstance(data, Mapping):
        return {key: masked_data(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [masked_data(value) for value in data]
    return data


def printable(text: str) -> str:
    """The text without secrets, and with every character that can't be seen as its escape.

    Also line ends and tabs: what a host sends or a file holds can't move the cursor, colour or
    hide what stands around it.
    """
    text = masked(text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


ELLIPSIS = "…"


def columns(text: str) -> int:
    """Columns of a terminal that a printable text takes: two for a wide character, none for one
    that goes over the one before."""
    return sum(map(_columns, text))


def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, most: int) -> str:
    """The text in at most so many columns, one or more; an ellipsis stands for what is left out."""
    if columns(text) <= most:
        return text
    kept, left = [], most - columns(ELLIPSIS)
    for character in text:
        left -= _columns(character)
        if left < 0:
            break
        kept.append(character)
    return "".join(kept) + ELLIPSIS


RESET, RED, GREEN, YELLOW, DIM = "\x1b[0m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[2m"


def coloured(text: str, colour: str) -> str:
    """The text in one of these; "": as it is."""
    return f"{colour}{text}{RESET}" if colour and text else text


def colours_wanted(stream: TextIO) -> bool:
    """On a terminal that can, unless the user says no: https://no-color.org/."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty()
