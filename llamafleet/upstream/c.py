"""What C headers declare, and what C and C++ sources say, by their text."""

from __future__ import annotations

import re
from collections.abc import Iterator

_COMMENT = re.compile(r'("(?:[^"\\\n]|\\.)*")|/\*.*?\*/|//[^\n]*', re.DOTALL)
_MACRO = re.compile(r"^[ \t]*#[ \t]*define[ \t]+([A-Z]\w+)[ \t]+(.+?)[ \t]*$", re.MULTILINE)
_FUNCTION = re.compile(
    r"\b(?:LLAMA|GGML|GGML_BACKEND|MTMD)_API\b\s+([^;{}]*?)\b(\w+)\s*\(([^;{}]*)\)\s*;"
)
_BLOCK = re.compile(r"\b(struct|enum)\s+(\w+)\s*\{")
_ENUMERATOR = re.compile(r"^(\w+)(?:\s*=\s*(.+))?$", re.DOTALL)
_NUMBER = re.compile(r"-?(?:0x[0-9A-Fa-f]+|\d+)")
_SHIFT = re.compile(r"\(?\s*(\d+)\s*<<\s*(\d+)\s*\)?")

Declared = dict[str, str]
"""By name: a declaration, the body of a structure, the values of an enumeration, or a value."""


def declared(text: str) -> Declared:
    """Functions of the interface, structures, enumerations with their members, and macros."""
    bare = _COMMENT.sub(lambda match: match[1] or " ", text)
    macros = dict(_MACRO.findall(bare))
    found: Declared = {name: value for name, value in macros.items() if '"' not in value}
    for returns, name, arguments in _FUNCTION.findall(bare):
        found[name] = _plain(f"{returns}({arguments})")
    for match in _BLOCK.finditer(bare):
        body = _plain(_to_brace(bare, match.end()))
        if match[1] == "struct":
            found[match[2]] = re.sub(r"\b[A-Z]\w+\b", lambda m: macros.get(m[0], m[0]), body)
        else:
            members = dict(_members(body))
            found |= members
            found[match[2]] = ", ".join(f"{name} {value}" for name, value in members.items())
    return found


def fields(body: str) -> list[str]:
    """The names of a structure's fields, in their order, as `declared` has its body."""
    flat = re.sub(r"\b(?:struct|union)\s*\w*\s*\{[^{}]*\}", "int", body)
    names: list[str] = []
    for line in filter(str.strip, flat.split(";")):
        pointer = re.search(r"\(\s*\*\s*(\w+)\s*\)", line)
        parts = [pointer[1]] if pointer else re.sub(r"\[.*?\]|:\s*\d+", "", line).split(",")
        names += [re.findall(r"\w+", part)[-1] for part in parts if re.search(r"\w", part)]
    return names


def _plain(text: str) -> str:
    return " ".join(text.split())


def _to_brace(text: str, start: int) -> str:
    """Up to the brace that closes the block which begins there."""
    depth, end = 1, start
    while depth and end < len(text):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        end += 1
    return text[start : end - 1]


def _members(body: str) -> Iterator[tuple[str, str]]:
    """Each member of an enumeration, with its value where that can be told."""
    known: dict[str, int] = {}
    following: int | None = 0
    for part in body.split(","):
        if not (match := _ENUMERATOR.match(part.strip())):
            continue
        value = _value(match[2], known) if match[2] else following
        following = None if value is None else value + 1
        if value is not None:
            known[match[1]] = value
        yield match[1], match[2] or "?" if value is None else str(value)


def _value(text: str, known: dict[str, int]) -> int | None:
    text = text.strip()
    if _NUMBER.fullmatch(text):
        return int(text, 0)
    if shifted := _SHIFT.fullmatch(text):
        return int(shifted[1]) << int(shifted[2])
    return known.get(text)


# -- what it says -----------------------------------------------------------------------------

_LITERAL = r'"(?:[^"\\\n]|\\.)*"'
_SAID = re.compile(
    rf"(?:\b[A-Z][A-Z0-9_]+\s+)*{_LITERAL}(?:\s*(?:{_LITERAL}|\b[A-Z][A-Za-z0-9_]+\b))*"
)
_PART = re.compile(rf"({_LITERAL})|([A-Z][A-Za-z0-9_]+)")
_CONVERSION = re.compile(r"%[-+ #0]*(\d*|\*)(?:\.(?:\d+|\*))?(?:hh|h|ll|l|z|j|t)?([a-zA-Z%])")
_FORMATTED = re.compile(r"\b(?:PRI[dux]\d\d)\b")
_SHORTEST = 8
"""Characters of a text that a reader could know it by."""
_EXAMPLES = {"s": "CUDA0", "d": "12", "i": "12", "u": "12", "f": "12.50", "g": "12.5", "c": "x"}


def said(text: str, macros: dict[str, str]) -> Iterator[str]:
    """Each text of a source, as it could come out: "%s" as a device's name, "%d" as a number.

    `macros`: those that stand for a text.
    """
    for match in _SAID.finditer(_COMMENT.sub(lambda found: found[1] or " ", text)):
        parts = (_part(part, macros) for part in _PART.finditer(match[0]))
        made = _CONVERSION.sub(_example, "".join(parts))
        if len(made) >= _SHORTEST:
            yield made


def text_macros(text: str) -> dict[str, str]:
    """Macros that stand for one text, without its quotes."""
    bare = _COMMENT.sub(lambda match: match[1] or " ", text)
    return {
        name: value[1:-1] for name, value in _MACRO.findall(bare) if re.fullmatch(_LITERAL, value)
    }


def _part(part: re.Match[str], macros: dict[str, str]) -> str:
    if part[1]:
        inner = part[1][1:-1].replace("\\n", "\n").replace("\\t", "\t")
        return re.sub(r"\\(.)", r"\1", inner)
    return "d" if _FORMATTED.fullmatch(part[2]) else macros.get(part[2], "")


def _example(match: re.Match[str]) -> str:
    width, kind = match[1], match[2]
    if kind == "%":
        return "%"
    made = _EXAMPLES.get(kind, "12")
    return made.rjust(int(width)) if width.isdigit() else made
