"""Known failures: a pattern in a log, its cause and its fix."""

from __future__ import annotations

from functools import lru_cache

import yaml

from llamafleet.tables import text


@lru_cache
def rows() -> tuple[dict[str, str], ...]:
    """In the order in which they are tried; protocol.diagnose compiles them."""
    return tuple(yaml.safe_load(text("failures.yaml")))
