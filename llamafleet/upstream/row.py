"""The row of a release for tables/releases.yaml."""

from __future__ import annotations

import textwrap
from datetime import date

from llamafleet.tables.releases import common_options
from llamafleet.upstream.source import Source


def row(source: Source, sha256: str, day: date) -> str:
    """As it stands there; `day`: that of its upload, or today where that is not told."""
    common, own = common_options(), frozenset(source.options)
    lines = [f"  - version: {source.version}", f"    sha256: {sha256}", f'    uploaded: "{day}"']
    lines += _list("has", own - common) + _list("lacks", common - own)
    said = f"measured: read from the archive by `llamafleet upstream` on {date.today()}"
    return "\n".join([*lines, f'    source: "{said}"'])


def _list(key: str, names: frozenset[str]) -> list[str]:
    if not names:
        return []
    text = f"{key}: [{', '.join(sorted(names))}]"
    return textwrap.wrap(text, 100, initial_indent="    ", subsequent_indent="      ")
