"""JSON -> dataclasses, all errors at once: how a host reads what the controller sent it.

The controller reads what hosts send with pydantic; a host has the standard library alone. Both
tolerate keys that are newer than their code and name those that are missing.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

T = TypeVar("T")

MOST_ERRORS = 20
"""Of one value; the text says how many more there are."""
LONGEST = 80
"""Characters of a key, and of what was found there."""

LARGEST = 2**63
"""No whole number of the protocol reaches it, and a float of much larger ones can't be made."""

EXPECTED = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
    dict: "an object",
    tuple: "a list",
}


class DecodeError(Exception):
    """One line for each error: key, what was found, what was expected."""

    def __init__(self, errors: list[str]) -> None:
        more = [f"and {len(errors) - MOST_ERRORS} more"] if len(errors) > MOST_ERRORS else []
        super().__init__("; ".join([*errors[:MOST_ERRORS], *more]))
        self.errors = errors


@dataclass(frozen=True)
class Rule:
    """Beside a type, as Annotated[int, Rule(...)]: what is allowed, in words and as a test."""

    expected: str
    ok: Callable[[Any], object] = lambda value: True


def decode(kind: type[T], data: object) -> T:
    """`data`, as json.loads gives it, as an instance of the dataclass `kind`.

    Raises DecodeError with every error there is.
    """
    errors: list[str] = []
    try:
        value = _object(kind, data, "", errors)
    except RecursionError:
        errors = ["found values within values without an end, expected what this version writes"]
    if errors:
        raise DecodeError(errors)
    return value  # type: ignore[no-any-return]


def _object(kind: Any, data: object, at: str, errors: list[str]) -> Any:
    if not isinstance(data, Mapping):
        errors.append(_error(at or "the whole", data, EXPECTED[dict]))
        return None
    hints = get_type_hints(kind, include_extras=True)
    values: dict[str, Any] = {}
    before = len(errors)
    for one in fields(kind):
        key = f"{at}.{one.name}" if at else one.name
        if one.name in data:
            values[one.name] = _value(hints[one.name], data[one.name], key, errors)
        elif one.default is MISSING and one.default_factory is MISSING:
            errors.append(f"{key}: found nothing, expected {_name(hints[one.name])}")
    return kind(**values) if len(errors) == before else None


def _value(hint: Any, data: object, key: str, errors: list[str]) -> Any:
    """`data` as `hint` says; None, and a line in `errors`, where it is something else."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _ruled(arguments[0], arguments[1], data, key, errors)
    if origin in (Union, types.UnionType):
        if data is None and type(None) in arguments:
            return None
        (choice,) = (one for one in arguments if one is not type(None))
        return _value(choice, data, key, errors)
    if is_dataclass(hint):
        return _object(hint, data, key, errors)
    if origin is tuple and isinstance(data, list):
        return tuple(
            _value(arguments[0], value, f"{key}[{number}]", errors)
            for number, value in enumerate(data)
        )
    if origin is dict and isinstance(data, Mapping):
        return {
            str(name): _value(arguments[1], value, f"{key}.{name}", errors)
            for name, value in data.items()
        }
    if _is(hint, data) or (hint is Any and _plain(data)):
        return data
    if hint is float and type(data) is int and abs(data) < LARGEST:
        return float(data)
    errors.append(_error(key, data, _name(hint)))
    return None


def _plain(data: object) -> bool:
    """Holds no number that no figure is. Raises RecursionError."""
    if isinstance(data, Mapping):
        return all(map(_plain, data.values()))
    if isinstance(data, list):
        return all(map(_plain, data))
    return data is None or _is(type(data), data)


def _is(hint: Any, data: object) -> bool:
    """Of that very type: bool is an int in Python; here it is none."""
    if get_origin(hint) is Literal:
        return any(data == one and type(data) is type(one) for one in get_args(hint))
    if isinstance(data, float) and not math.isfinite(data):
        return False
    if type(data) is int and abs(data) >= LARGEST:
        return False
    return type(data) is hint


def _ruled(hint: Any, rule: Rule, data: object, key: str, errors: list[str]) -> Any:
    wrong: list[str] = []
    value = _value(hint, data, key, wrong)
    if not wrong and rule.ok(value):
        return value
    errors.append(_error(key, data, rule.expected))
    return None


def _name(hint: Any) -> str:
    """What a type allows, in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return str(arguments[1].expected)
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(map(_name, arguments))
    if hint is Any:
        return "values with numbers that figures can be"
    return EXPECTED.get(dict if is_dataclass(hint) else origin or hint, str(hint))


def _error(key: str, data: object, expected: str) -> str:
    # As JSON, which escapes what a terminal would obey: a key may be anything too.
    return f"{_cut(json.dumps(key)[1:-1])}: found {_cut(json.dumps(data))}, expected {expected}"


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
