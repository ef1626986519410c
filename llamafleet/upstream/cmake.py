"""The options that CMake files declare, and what they need of CMake, by their text."""

from __future__ import annotations

import re
from collections.abc import Mapping

from llamafleet.protocol.options import OWN

SET = " (set)"
"""Behind a default that a file sets, and no `option` declares."""
_OR = " or "

_COMMENT = re.compile(r'("(?:[^"\\]|\\.)*")|#\[\[.*?\]\]|#[^\n]*', re.DOTALL)
_TEXT = r'"(?:[^"\\]|\\.)*"'
_OPTION = re.compile(rf"\b(?:cmake_dependent_)?option\s*\(\s*(\w+)\s+{_TEXT}\s*([^()]*)\)", re.I)
_CACHED = re.compile(rf"\bset\s*\(\s*(\w+)\s+((?:{_TEXT}|[^()\"])*?)\s*\bCACHE\s+\w+", re.I)
_MINIMUM = re.compile(r"\bcmake_minimum_required\s*\(\s*VERSION\s+([\d.]+?)(?:\.\.\.|[\s)])", re.I)


def declared(files: Mapping[str, str]) -> dict[str, str]:
    """The default of each option of llama.cpp's own, by name; of several, all of them.

    Both what the top file sets into the cache and what `option` declares counts: which of them
    holds can depend on the machine.
    """
    found: dict[str, set[str]] = {}
    for text in files.values():
        bare = _COMMENT.sub(lambda match: match[1] or "", text)
        for kind, mark in ((_OPTION, ""), (_CACHED, SET)):
            for name, default in kind.findall(bare):
                if OWN.fullmatch(name):
                    value = " ".join(default.split()) or "OFF"
                    found.setdefault(name, set()).add(value + mark)
    return {name: _OR.join(sorted(defaults)) for name, defaults in sorted(found.items())}


def is_option(defaults: str) -> bool:
    """Whether an `option` declares it, by what `declared` says."""
    return any(not one.endswith(SET) for one in defaults.split(_OR))


def minimum(text: str) -> str:
    """The oldest CMake that a file accepts; "": it does not say."""
    found = _MINIMUM.search(text)
    return found[1] if found else ""
