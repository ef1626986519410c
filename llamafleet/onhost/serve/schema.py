"""JSON schemas of requests: llama_cpp makes grammars of them, and llama.cpp automata of those.

What is taken is what stays small there. A grammar in a dead end ends llama.cpp's process, one of
many alternatives takes its time at every token.
"""

from __future__ import annotations

import json
from typing import Any

from llamafleet.onhost.serve.errors import wrong

LARGEST = 64 * 1024
"""Characters."""
MOST_NODES = 2000
MOST_REPEATED = 256
"""Of a list's or a text's bounds: each becomes so many rules."""
MOST_VALUES = 1000
REFUSED = ("pattern", "not", "if", "patternProperties")
"""llama_cpp makes rules of regular expressions that nobody has bounded; the others it passes over
in silence."""
_BOUNDS = ("minItems", "maxItems", "minLength", "maxLength")
_CHOICES = ("enum", "anyOf", "oneOf")


def check(name: str, value: Any) -> None:
    """Raises Refusal."""
    if not isinstance(value, dict):
        raise wrong(name, json.dumps(value)[:80], "a JSON schema, an object")
    size = len(json.dumps(value))
    if size > LARGEST:
        raise wrong(name, f"{size} characters", f"at most {LARGEST}")
    left, seen = [value], 0
    while left:
        one = left.pop()
        seen += 1
        if isinstance(one, dict):
            _node(name, one)
            left += one.values()
        elif isinstance(one, list):
            left += one
    if seen > MOST_NODES:
        raise wrong(name, f"{seen} values", f"at most {MOST_NODES}")


def _node(name: str, one: dict[str, Any]) -> None:
    reference = one.get("$ref")
    # Another one is a URL that would be fetched.
    if isinstance(reference, str) and not reference.startswith("#/"):
        raise wrong(name, f"$ref {reference[:80]!r}", 'references as "#/$defs/NAME"')
    for word in REFUSED:
        if isinstance(one.get(word), str | dict) and _is_keyword(one):
            raise wrong(name, f'"{word}"', "a schema without it: it is not served")
    for word in _BOUNDS:
        bound = one.get(word)
        if isinstance(bound, int | float) and not 0 <= bound <= MOST_REPEATED:
            raise wrong(name, f"{word} {bound}", f"at most {MOST_REPEATED}")
    for word in _CHOICES:
        choices = one.get(word)
        if isinstance(choices, list) and not 0 < len(choices) <= MOST_VALUES:
            raise wrong(name, f"{word} of {len(choices)}", f"1 to {MOST_VALUES}")


def _is_keyword(one: dict[str, Any]) -> bool:
    """It is a schema; an object of properties may have one of such a name."""
    return "type" in one and not isinstance(one["type"], dict)
