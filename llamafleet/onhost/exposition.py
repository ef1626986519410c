"""Prometheus' text format, as node_exporter's textfile collector takes it.

https://prometheus.io/docs/instrumenting/exposition_formats/. Of a page with one series twice
node_exporter answers nothing at all, not even of the machine: here each is there once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Gauge:
    """One family of series."""

    name: str
    help: str
    """One line."""
    values: dict[Labels, float] = field(default_factory=dict)

    def set(self, value: float | None, **labels: str) -> None:
        """Of two values of the same labels the first counts; none, NaN and infinity are no value.

        A label that is "" is the same as none.
        """
        if value is None or not math.isfinite(value):
            return
        named = tuple((name, _unicode(text)) for name, text in labels.items() if text)
        self.values.setdefault(named, value)


def page(families: Iterable[Gauge]) -> bytes:
    """Those that have a value."""
    lines = [line for family in families if family.values for line in _lines(family)]
    return "".join(f"{line}\n" for line in lines).encode()


def _lines(family: Gauge) -> Iterator[str]:
    yield f"# HELP {family.name} {family.help}"
    yield f"# TYPE {family.name} gauge"
    for labels, value in family.values.items():
        named = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels)
        yield f"{family.name}{'{' + named + '}' if named else ''} {float(value)!r}"


def _unicode(text: str) -> str:
    """A label is any text that a host tells: what is no Unicode becomes "?"."""
    return text.encode("utf-8", "replace").decode()


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
