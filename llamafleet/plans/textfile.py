"""The page in which Prometheus' node_exporter finds a verification's figures.

METRICS_UNIT writes it at each change of the verdict: see onhost/textfile.py. It stands in the
record of what llamafleet made, by which it is written and removed: no other file is.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from llamafleet.facts.host import HostSnapshot
from llamafleet.layout import USER, Layout
from llamafleet.managed import roots
from llamafleet.plans.plan import Problem
from llamafleet.protocol.verify import PROM, RECORDED, UNIT_S_OWN
from llamafleet.settings import Settings

SETTING = "metrics_folder"


@dataclass(frozen=True)
class PagePlan:
    """What is to be done for the page."""

    make: str = ""
    """Its path."""
    remove: tuple[str, ...] = ()
    """Those that the settings no longer name."""

    @property
    def needed(self) -> bool:
        return self != PagePlan()

    @property
    def reasons(self) -> tuple[str, ...]:
        made = [f"write {self.make} (found none)"] if self.make else []
        return (*made, *(f"remove {path} (not wanted)" for path in self.remove))


def page_path(settings: Settings) -> str | None:
    """None: none is wanted."""
    if settings.metrics_folder is None:
        return None
    return posixpath.join(posixpath.normpath(settings.metrics_folder), PROM)


def pages_made(snapshot: HostSnapshot) -> tuple[str, ...]:
    """By the record."""
    return tuple(line.removeprefix(RECORDED) for line in snapshot.made if line.startswith(RECORDED))


def plan_page(settings: Settings, snapshot: HostSnapshot) -> PagePlan:
    """What is recorded and was then not made, or was removed by somebody, is made."""
    wanted, recorded = page_path(settings), pages_made(snapshot)
    there = wanted in recorded and wanted in snapshot.owners
    return PagePlan(
        make=wanted if wanted and not there else "",
        remove=tuple(dict.fromkeys(path for path in recorded if path != wanted)),
    )


def page_problem(settings: Settings, snapshot: HostSnapshot, layout: Layout) -> Problem | None:
    """Why no page can be written there, or may be: said before a build begins."""
    path = page_path(settings)
    if path is None:
        return None
    without = f"set none, and start node_exporter with {layout.results}: docs/monitoring.md"
    if settings.runtime != "venv":
        found, expected = f"runtime {settings.runtime}", "runtime venv, whose units write there"
    elif snapshot.init != "systemd":
        found, expected = "no systemd that answers", "one, whose units write there"
    else:
        return _folder_problem(path, snapshot, layout, without)
    return Problem(SETTING, found=found, expected=expected, next=without)


def _folder_problem(
    path: str, snapshot: HostSnapshot, layout: Layout, without: str
) -> Problem | None:
    folder = posixpath.dirname(path)
    owner, there = snapshot.owners.get(folder), snapshot.owners.get(path)
    mine = "the one that node_exporter reads, elsewhere"
    named = "the one that node_exporter reads, as --collector.textfile.directory names it"
    look = "pgrep -af node.exporter on the host; then set what it says, or none"
    if _within(folder, roots(layout)):
        return Problem(SETTING, f"{folder}, a folder of llamafleet", mine, without)
    if layout.scope == "system" and _within(folder, UNIT_S_OWN):
        return Problem(SETTING, f"{folder}, of which each unit has its own", mine, look)
    if owner is None or owner.kind != "folder":
        found = f"{folder} is no folder but a {owner.kind}" if owner else f"no folder {folder}"
        return Problem(SETTING, found, named, look)
    if layout.scope == "user" and owner.user != snapshot.user:
        wanted = f"a folder of {snapshot.user}, as scope is user"
        return Problem(SETTING, f"{folder} of {owner.user}", wanted, without)
    if layout.scope == "system" and owner.user == USER:
        # There root would write by way of what the account can change.
        return Problem(SETTING, f"{folder} of the account {USER}", "another's", look)
    if there is not None and (there.kind != "file" or path not in pages_made(snapshot)):
        return Problem(
            SETTING,
            found=f"{path}, a {there.kind} that llamafleet did not make",
            expected="nothing of that name, or its own file",
            next=f"ls -l {path}, and move it away",
        )
    return None


def _within(folder: str, others: tuple[str, ...]) -> bool:
    return any(folder == other or folder.startswith(f"{other}/") for other in others)
