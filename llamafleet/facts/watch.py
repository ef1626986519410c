"""The command that watches a host: watch.sh with its parameters, as one line for a login shell."""

from __future__ import annotations

import shlex
from importlib.resources import files as package_files

from llamafleet.facts.gauges import FIELDS, METRICS, NAME_FIELD
from llamafleet.facts.snapshot import one_line
from llamafleet.layout import USER, Layout, serve_unit

LIMIT_S = 30
"""For one call of nvidia-smi: without persistence it may take 25 (facts/snapshot.sh)."""
LOST_S = 100.0
"""For one record, of three calls that are killed at most."""
WAIT_S = 120
"""Beside the interval: a script that is asked nothing for so long ends by itself."""


def command(layout: Layout, interval_s: float, once: int = 0) -> str:
    """`layout` as of plans.make.to_read: its paths may begin with $HOME. `once`: print one record
    of that list of fields, or a later one, and read no standard input."""
    parameters = {
        "LF_WAIT": str(WAIT_S + int(interval_s)),
        "LF_LIMIT": str(LIMIT_S),
        "LF_ONCE": str(once or ""),
        "LF_FIELDS": "\n".join(",".join((*fields, NAME_FIELD)) for fields in FIELDS),
        "LF_CONFIGS": layout.serve_config("*"),
        "LF_KEYS": layout.serve_key("*"),
        "LF_UNITS": serve_unit("*"),
        "LF_USER": USER if layout.scope == "system" else "",
        "LF_NAMES": " ".join(METRICS),
        "LF_SERVICES": _text("watch_services.py"),
    }
    assigned = "".join(f"{key}={shlex.quote(text)}\n" for key, text in parameters.items())
    return one_line(f"{assigned}{_text('watch.sh')}")


def _text(name: str) -> str:
    return package_files("llamafleet.facts").joinpath(name).read_text("utf-8")
