"""Random JSON schemas: what a client may send, sound or not."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

WORDS = ("a", "\0", "\n", '"', "\\", "é", "😀", "w300", " ", "", "[", "%", "\x7f", "\ufeff", "the")
VALUES: tuple[Any, ...] = (None, True, 0, -1, 1e300, 3.5, 10**18, [], {}, ["a"], {"a": 1}, *WORDS)
DEEPEST = 4


def schema(random: Random, depth: int = 0) -> dict[str, Any]:
    """One of at most DEEPEST levels."""

    def within() -> dict[str, Any]:
        return schema(random, depth + 1)

    def several(most: int) -> list[dict[str, Any]]:
        return [within() for _ in range(random.randint(1, most))]

    def thing() -> dict[str, Any]:
        names = [f"{random.choice(WORDS)}{number}" for number in range(random.randint(0, 4))]
        return {
            "type": "object",
            "properties": {name: within() for name in names},
            "required": [random.choice((*WORDS, *names))],
            "additionalProperties": random.choice((True, False, within())),
        }

    flat: tuple[Callable[[], dict[str, Any]], ...] = (
        lambda: {"type": random.choice(("string", "integer", "number", "null", "odd", "array"))},
        lambda: {"const": random.choice(VALUES)},
        lambda: {"enum": [random.choice(VALUES) for _ in range(random.randint(1, 5))]},
        lambda: {"type": "string", "minLength": random.randint(0, 40), "maxLength": 20},
        lambda: {"type": "integer", "minimum": random.randint(-999, 999), "maximum": 99},
        lambda: {"type": "string", "format": random.choice(("date", "time", "uuid", "odd"))},
        lambda: {"$ref": random.choice(("#/", "#/properties/a0", "#/anyOf/0", "#/items"))},
    )
    nested: tuple[Callable[[], dict[str, Any]], ...] = (
        lambda: {"type": "array", "items": within(), "minItems": random.randint(0, 20)},
        thing,
        lambda: {"anyOf": several(4)},
        lambda: {"allOf": several(3)},
        lambda: {"type": "array", "prefixItems": several(2)},
    )
    return random.choice(flat if depth >= DEEPEST else (*flat, *nested))()
