"""What any reader owes: an end in time, and values that are typed, bounded and printable."""

from __future__ import annotations

import math
import signal
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from types import FrameType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

LONGEST_TEXT = 1 << 20
MOST = 200_000
"""Entries of one list or object."""
LARGEST = 2**63


class TooSlow(BaseException):
    """Not an Exception: no reader may catch it."""


@contextmanager
def processor_time(seconds: float) -> Iterator[None]:
    """Raises TooSlow in what takes more, wherever it is; other processes don't count."""

    def late(signum: int, frame: FrameType | None) -> None:
        raise TooSlow(f"no end after {seconds:g} s of processor time")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def faults(value: object, *, printable: bool = True, at: str = "it") -> Iterator[str]:
    """What is wrong with a value that a reader returned: where, and what."""
    if isinstance(value, str):
        yield from _text_faults(value, printable, at)
    elif isinstance(value, int | float):
        if isinstance(value, int) and abs(value) >= LARGEST:
            yield f"{at}: a number of {value.bit_length()} bits"
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{at}: {value}, which is no figure"
    elif is_dataclass(value) and not isinstance(value, type):
        hints = get_type_hints(type(value), include_extras=True)
        for one in fields(value):
            inner = getattr(value, one.name)
            if not is_of(hints[one.name], inner):
                yield f"{at}.{one.name}: {inner!r:.80} is no {hints[one.name]}"
            yield from faults(inner, printable=printable, at=f"{at}.{one.name}")
    elif isinstance(value, Mapping):
        yield from _many(list(value), printable, f"{at}'s keys")
        yield from _many(list(value.values()), printable, at)
    elif isinstance(value, tuple | list | set | frozenset):
        yield from _many(list(value), printable, at)


def _many(values: list[Any], printable: bool, at: str) -> Iterator[str]:
    if len(values) > MOST:
        yield f"{at}: {len(values)} entries"
    for number, one in enumerate(values):
        yield from faults(one, printable=printable, at=f"{at}[{number}]")


def _text_faults(text: str, printable: bool, at: str) -> Iterator[str]:
    if len(text) > LONGEST_TEXT:
        yield f"{at}: a text of {len(text)} characters"
    if printable and not text.isprintable():
        found = next(c for c in text if not c.isprintable())
        yield f"{at}: holds {found!r}: {text!r:.80}"


def is_of(hint: Any, value: object) -> bool:
    """The value is what its annotation says; True where that is more than can be told here."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Annotated:
        return is_of(arguments[0], value)
    if origin in (Union, types.UnionType):
        return any(is_of(one, value) for one in arguments)
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return all(is_of(arguments[0], one) for one in value)
        return len(value) == len(arguments) and all(map(is_of, arguments, value))
    if origin is dict:
        return isinstance(value, dict) and all(
            is_of(arguments[0], key) and is_of(arguments[1], one) for key, one in value.items()
        )
    if hint in (str, int, bool, float):
        return type(value) is hint or (hint is float and type(value) is int)
    return isinstance(value, hint) if isinstance(hint, type) else True
