"""The command that watches a host: watch.sh with its parameters, as one line for a login shell."""

from __future__ import annotations

import shlex
from importlib.resources import files as package_files

from llamafleet.facts.gauges import FIELDS, METRICS, NAME_FIELD
from llamafleet.facts.snapshot import one_line
from llamafleet.layout import USER, Layout

LIMIT_S = 10
"""For one call of nvidia-smi. Without persistence it takes 1 to 3 s for each GPU that sleeps."""
WAIT_S = 90
"""Beside the interval: a script that is asked nothing for so long ends by itself."""


def command(layout: Layout, interval_s: float, *, once: bool) -> str:
    """`layout` as of plans.make.to_read: its paths may begin with $HOME. `once`: one record, and no
    standard input."""
    parameters = {
        "LF_WAIT": str(WAIT_S + int(interval_s)),
        "LF_LIMIT": str(LIMIT_S),
        "LF_ONCE": "1" if once else "",
        "LF_FIELDS": "\n".join(",".join((*fields, NAME_FIELD)) for fields in FIELDS),
        "LF_CONFIGS": layout.serve_config("*"),
        "LF_KEYS": layout.serve_key("*"),
        "LF_USER": USER if layout.scope == "system" else "",
        "LF_NAMES": " ".join(METRICS),
        "LF_SERVICES": _text("watch_services.py"),
    }
    assigned = "".join(f"{key}={shlex.quote(text)}\n" for key, text in parameters.items())
    return one_line(f"{assigned}{_text('watch.sh')}")


def _text(name: str) -> str:
    return package_files("llamafleet.facts").joinpath(name).read_text("utf-8")
