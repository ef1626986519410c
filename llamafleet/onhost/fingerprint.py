"""The key over a set of inputs: one way to make it, on the controller and on a host."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any


def fingerprint(inputs: Mapping[str, Any]) -> str:
    """16 hex digits of sha256 over the inputs as canonical JSON."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return sha256(text.encode()).hexdigest()[:16]
