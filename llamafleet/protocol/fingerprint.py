"""Keys over inputs, made the same way on the controller and on a host; how two inputs differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any


def fingerprint(inputs: Mapping[str, Any]) -> str:
    """16 hex digits of sha256 over the inputs as canonical JSON."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return sha256(text.encode()).hexdigest()[:16]


def explain_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """As "llama_version 0.3.35 -> 0.3.36; glibc 2.36 -> 2.41"; "" where nothing differs."""
    old, new = _as_read(old), _as_read(new)
    names = sorted({*old, *new})
    return "; ".join(_change(n, old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n))


def _as_read(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives them back, where a tuple is a list: one side may never have been written."""
    read: dict[str, Any] = json.loads(json.dumps(inputs))
    return read


def _change(name: str, old: Any, new: Any) -> str:
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        gone = [f"-{_text(x)}" for x in old if x not in new]
        come = [f"+{_text(x)}" for x in new if x not in old]
        return f"{name} {' '.join(gone + come) or 'in another order'}"
    return f"{name} {_text(old)} -> {_text(new)}"


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
