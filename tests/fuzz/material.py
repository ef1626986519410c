"""Inputs: recorded ones, changed in a few places, and what nobody ever wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

HOSTILE = (
    *("", " ", "\t", "\n", "\r", "\0", "-", "=", ":", "/", "..", "@end", "#end", "'", '"', "\\"),
    *("-1", "0", "1", "007", "13-custom", "1.2.3.4.5", "1e999", "nan", "N/A", "[N/A]", "null"),
    *("9" * 30, "9" * 5000, "1." * 2000, "0x1f", "²", "٣", "é", "\u202e", "\ud800", "\ufeff"),
    *("\x1b[2J\x1b[1;32mPASS", "x\nhost PASS", "\x9b31m", "\x85", "\u2028"),
    *("../../etc/shadow", "$(id)", "%s%n", "{}", "[]", "true", "a" * 3000, "(" * 500, "[" * 500),
)
"""Words that a reader may meet in the place of any other."""

WORD = re.compile(r"[A-Za-z0-9_.]+")
STRETCHED = 20_000
"""Characters that a fragment is repeated to: where time grows with the square, seconds."""

words = st.sampled_from(HOSTILE) | st.text(max_size=12)


def edited(bases: Sequence[str]) -> st.SearchStrategy[str]:
    """One of the texts with up to four edits."""
    return st.builds(_edit, st.sampled_from(bases), st.lists(_edits, max_size=4))


def _edit(text: str, edits: list[Callable[[str], str]]) -> str:
    for edit in edits:
        text = edit(text)
    return text


def texts(bases: Sequence[str], *, free: int = 300) -> st.SearchStrategy[str]:
    """Mostly edited ones."""
    near = edited(bases)
    return st.one_of(near, near, near, st.text(max_size=free))


def _at(place: float, text: str) -> int:
    return min(int(place * (len(text) + 1)), len(text))


def _replaced_word(place: float, word: str) -> Callable[[str], str]:
    def edit(text: str) -> str:
        found = WORD.search(text, _at(place, text)) or WORD.search(text)
        return text[: found.start()] + word + text[found.end() :] if found else text + word

    return edit


def _inserted(place: float, word: str) -> Callable[[str], str]:
    return lambda text: text[: (at := _at(place, text))] + word + text[at:]


def _stretched(place: float, size: int) -> Callable[[str], str]:
    """A few characters of the text, again and again."""

    def edit(text: str) -> str:
        at = _at(place, text)
        some = text[at : at + size] or " "
        return text[:at] + some * (STRETCHED // len(some)) + text[at:]

    return edit


def _pumped(place: float, word: str) -> Callable[[str], str]:
    some = word[:8] or " "
    return _inserted(place, some * (STRETCHED // len(some)))


def _lines(place: float, other: float, how: str) -> Callable[[str], str]:
    def edit(text: str) -> str:
        lines = text.split("\n")
        a, b = int(place * len(lines)), int(other * len(lines))
        if how == "drop":
            del lines[a : a + 1]
        elif how == "twice":
            lines.insert(b, lines[a])
        elif how == "swap":
            lines[a], lines[b] = lines[b], lines[a]
        else:
            lines = lines[:a]
        return "\n".join(lines)

    return edit


_place = st.floats(0, 1, exclude_max=True)
_edits: st.SearchStrategy[Callable[[str], str]] = st.one_of(
    st.builds(_replaced_word, _place, words),
    st.builds(_replaced_word, _place, words),
    st.builds(_inserted, _place, words),
    st.builds(_lines, _place, _place, st.sampled_from(("drop", "twice", "swap", "cut"))),
    st.builds(_stretched, _place, st.integers(1, 4)),
    st.builds(_pumped, _place, words),
)


# -- JSON ------------------------------------------------------------------------------------------


NESTED = "[" * 700 + "]" * 700
"""As deep as json.loads goes."""

ODD = (
    *("null", "true", "false", "0", "-1", "1", "2147483648", "9223372036854775808", "0.5", "-0.0"),
    *("1e308", "1" + "0" * 400, "NaN", "Infinity", "{}", "[]", "[[]]", '{"": {}}', "[null]"),
    *('{"a": 1}', '["a"]', "[{}]", "[1, 2]", "[" * 50 + "]" * 50, NESTED),
)
"""JSON of values that may stand in the place of any other."""

odd = st.sampled_from(ODD).map(json.loads)
values = odd | words | st.lists(odd | words, max_size=3)


def objects(bases: Sequence[Any]) -> st.SearchStrategy[Any]:
    """One of the values of JSON with up to three parts replaced, removed or added."""
    change = st.tuples(_place, st.sampled_from(("replace", "remove", "add")), values)
    near = st.builds(_changed, st.sampled_from(bases), st.lists(change, max_size=3))
    free = st.recursive(
        odd | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
        max_leaves=8,
    )
    return st.one_of(near, near, near, near, free)


def documents(bases: Sequence[Any]) -> st.SearchStrategy[str]:
    """JSON text of such values, and text that is almost JSON."""
    written = [json.dumps(base, indent=1) for base in bases]
    return st.one_of(objects(bases).map(dumped), objects(bases).map(dumped), texts(written))


DEEP = ("[" * 100_000, '{"a":' * 100_000, "[" * 2000 + "]" * 2000)
"""Nested more deeply than a reader can follow."""


def dumped(data: Any) -> str:
    return json.dumps(data, skipkeys=True)


def _paths(data: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in inner:
        yield (*at, key)
        if isinstance(value, dict | list):
            yield from _paths(value, (*at, key))


def _changed(base: Any, changes: list[tuple[float, str, Any]]) -> Any:
    data = deepcopy(base)
    for place, how, value in changes:
        found = list(_paths(data)) if isinstance(data, dict | list) else []
        if not found:
            return value
        *parents, last = found[int(place * len(found))]
        holder = data
        for part in parents:
            holder = holder[part]
        if how == "replace":
            holder[last] = value
        elif how == "remove":
            del holder[last]
        elif isinstance(holder, dict):
            holder[str(value)[:40]] = value
        else:
            holder.insert(last, value)
    return data


# -- bytes -----------------------------------------------------------------------------------------

NUMBERS = tuple(
    number.to_bytes(size, order)
    for size in (1, 2, 4, 8)
    for number in (0, 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1)
    for order in ("little", "big")
)


def binaries(bases: Sequence[bytes], *, head: int = 4096) -> st.SearchStrategy[bytes]:
    """One of the files with numbers written over it, mostly near its start; or any bytes."""
    patch = st.tuples(st.integers(0, head), st.sampled_from(NUMBERS) | st.binary(max_size=8))
    near = st.builds(
        _patched, st.sampled_from(bases), st.lists(patch, max_size=6), st.floats(0, 1) | st.just(1)
    )
    return st.one_of(near, near, near, st.binary(max_size=200))


def _patched(base: bytes, patches: list[tuple[int, bytes]], kept: float) -> bytes:
    data = bytearray(base)
    for place, new in patches:
        at = min(place, len(data))
        data[at : at + len(new)] = new
    return bytes(data[: int(kept * len(data))])


def encoded(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogatepass")
