"""JSON -> dataclasses, all errors at once: how a host reads what the controller sent it.

The controller reads what hosts send with pydantic; a host has the standard library alone. Both
tolerate keys that are newer than their code and name those that are missing.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, field, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

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
        super().__init__("; ".join(errors))
        self.errors = errors


def rule(expected: str, ok: Callable[[Any], bool] = lambda value: True) -> dict[str, Any]:
    """Metadata of a field: the words for what is allowed, and a test beside that of its type."""
    return {"expected": expected, "ok": ok}


def ruled(expected: str, ok: Callable[[Any], bool] = lambda value: True) -> Any:
    """A field without a default and with a rule."""
    return field(metadata=rule(expected, ok))


def decode(kind: type[T], data: object) -> T:
    """`data`, as json.loads gives it, as an instance of the dataclass `kind`.

    Raises DecodeError with every error there is.
    """
    errors: list[str] = []
    value = _object(kind, data, "", errors)
    if errors:
        raise DecodeError(errors)
    return value  # type: ignore[no-any-return]


def _object(kind: Any, data: object, at: str, errors: list[str]) -> Any:
    if not isinstance(data, Mapping):
        errors.append(_error(at or "the whole", data, EXPECTED[dict]))
        return None
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    before = len(errors)
    for one in fields(kind):
        key = f"{at}.{one.name}" if at else one.name
        if one.name in data:
            values[one.name] = _field(one, hints[one.name], data[one.name], key, errors)
        elif one.default is MISSING and one.default_factory is MISSING:
            errors.append(f"{key}: found nothing, expected {_expected(one, hints[one.name])}")
    return kind(**values) if len(errors) == before else None


def _field(one: Field[Any], hint: Any, data: object, key: str, errors: list[str]) -> Any:
    before = len(errors)
    value = _value(hint, data, key, errors, one.metadata.get("expected"))
    if len(errors) == before and not one.metadata.get("ok", lambda value: True)(value):
        errors.append(_error(key, data, _expected(one, hint)))
    return value


def _value(hint: Any, data: object, key: str, errors: list[str], expected: str | None) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return data
    if is_dataclass(hint):
        if isinstance(data, Mapping):
            return _object(hint, data, key, errors)
    elif origin in (Union, types.UnionType):
        return _union(arguments, data, key, errors, expected)
    elif origin is Literal:
        if any(data == one and type(data) is type(one) for one in arguments):
            return data
    elif origin is tuple and isinstance(data, list):
        return tuple(
            _value(arguments[0], v, f"{key}[{n}]", errors, None) for n, v in enumerate(data)
        )
    elif origin is dict and isinstance(data, Mapping):
        return {
            str(name): _value(arguments[1], value, f"{key}.{name}", errors, None)
            for name, value in data.items()
        }
    elif hint is float and type(data) is int:
        return float(data)
    # bool is an int in Python; here it is none.
    elif origin is None and type(data) is hint:
        return data
    errors.append(_error(key, data, expected or _name(hint)))
    return None


def _union(
    choices: tuple[Any, ...], data: object, key: str, errors: list[str], expected: str | None
) -> Any:
    """The one choice beside null, or null."""
    if data is None and type(None) in choices:
        return None
    (choice,) = (one for one in choices if one is not type(None))
    return _value(choice, data, key, errors, expected or f"{_name(choice)}, or null")


def _expected(one: Field[Any], hint: Any) -> str:
    return str(one.metadata.get("expected") or _name(hint))


def _name(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(map(_name, arguments))
    return EXPECTED.get(dict if is_dataclass(hint) else origin or hint, str(hint))


def _error(key: str, data: object, expected: str) -> str:
    found = json.dumps(data)
    return f"{key}: found {found[:80]}{'...' if len(found) > 80 else ''}, expected {expected}"
