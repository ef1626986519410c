"""The link by which Prometheus' node_exporter finds a verification's figures.

The account writes below its own folders alone; a link in the folder that node_exporter reads is
root's. It stands in the record of what llamafleet made: no other one is ever removed.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from llamafleet.facts.host import HostSnapshot
from llamafleet.layout import Layout
from llamafleet.managed import roots
from llamafleet.plans.plan import Problem
from llamafleet.protocol.verify import PROM
from llamafleet.settings import Settings

LINK = "link "
"""Begins a line of the record; the path follows."""
SETTING = "metrics_folder"


@dataclass(frozen=True)
class LinkPlan:
    """What is to be done for the link."""

    make: str = ""
    """Its path."""
    remove: tuple[str, ...] = ()
    """Those that the settings no longer name."""

    @property
    def needed(self) -> bool:
        return self != LinkPlan()

    @property
    def reasons(self) -> tuple[str, ...]:
        made = [f"link {self.make} (found none)"] if self.make else []
        return (*made, *(f"remove {path} (not wanted)" for path in self.remove))


def link_of(settings: Settings) -> str | None:
    """Its path; None: none is wanted."""
    if settings.metrics_folder is None:
        return None
    return posixpath.join(posixpath.normpath(settings.metrics_folder), PROM)


def links_made(snapshot: HostSnapshot) -> tuple[str, ...]:
    """By the record."""
    return tuple(line.removeprefix(LINK) for line in snapshot.made if line.startswith(LINK))


def plan_link(settings: Settings, snapshot: HostSnapshot) -> LinkPlan:
    """What is recorded and was then not made, or was removed by somebody, is made."""
    wanted, recorded = link_of(settings), links_made(snapshot)
    there = wanted in recorded and wanted in snapshot.owners
    return LinkPlan(
        make=wanted if wanted and not there else "",
        remove=tuple(dict.fromkeys(path for path in recorded if path != wanted)),
    )


def link_problem(settings: Settings, snapshot: HostSnapshot, layout: Layout) -> Problem | None:
    """A folder in which no link can be, or may be: said before a build begins."""
    path = link_of(settings)
    if path is None:
        return None
    folder = posixpath.dirname(path)
    if any(folder == root or folder.startswith(f"{root}/") for root in roots(layout)):
        # There root would write by way of what the account can change; and it is not needed.
        return Problem(
            SETTING,
            found=f"{folder}, a folder of llamafleet",
            expected="the one that node_exporter reads, elsewhere",
            next=f"set another, or none and start node_exporter with {layout.results}: "
            "docs/monitoring.md",
        )
    owner = snapshot.owners.get(folder)
    if owner is None or owner.kind != "folder":
        return Problem(
            SETTING,
            found=f"{folder} is no folder but a {owner.kind}" if owner else f"no folder {folder}",
            expected="the one that node_exporter reads, as --collector.textfile.directory names it",
            next="pgrep -af node.exporter on the host; then set what it says, or none",
        )
    if layout.scope == "user" and owner.user != snapshot.user:
        return Problem(
            SETTING,
            found=f"{folder} of {owner.user}",
            expected=f"a folder of {snapshot.user}, as scope is user",
            next=f"set none, and start node_exporter with {layout.results}: docs/monitoring.md",
        )
    there = snapshot.owners.get(path)
    if there is not None and (there.kind != "link" or path not in links_made(snapshot)):
        return Problem(
            SETTING,
            found=f"{path}, a {there.kind} that llamafleet did not make",
            expected="nothing of that name, or its own link",
            next=f"ls -l {path}, and move it away",
        )
    return None
