"""What must be done for the files and units of a host to be as wanted. See llamafleet/managed.py.

A unit that an administrator has masked is not touched: it is a problem, which a person solves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from llamafleet.facts.host import HostSnapshot, Owner, Unit
from llamafleet.layout import Layout
from llamafleet.managed import Access, Condition, Group, Managed, profile_rows, rows
from llamafleet.plans.plan import FilesPlan, HoldPlan, Plan, Problem
from llamafleet.protocol.result import Backend
from llamafleet.settings import Settings

Sha256 = Callable[[Managed, Plan], str]
"""Of a file's content as it is rendered for a plan; plans themselves render nothing."""

ABSENT = Unit("not-found", "inactive", "dead", "")
ENABLED = ("enabled", "bad")
"""States that `systemctl disable` ends; bad: the link is there, the unit's file is gone."""
STOPPED = ("inactive", "failed")


def conditions(
    backend: Backend, hold: HoldPlan | None, settings: Settings, snapshot: HostSnapshot
) -> frozenset[Condition]:
    """Those that hold."""
    holds: dict[Condition, bool] = {
        "cuda": backend == "cuda",
        "schedule": settings.schedule is not None,
        "hold": bool(hold and hold.record),
        "apt": snapshot.package_manager == "apt",
        "netrc": settings.netrc is not None,
        "venv": settings.runtime == "venv",
        "metrics": settings.metrics_folder is not None,
    }
    return frozenset(name for name, true in holds.items() if true)


def plan_files(
    group: Group,
    plan: Plan,
    settings: Settings,
    snapshot: HostSnapshot,
    layout: Layout,
    *,
    sha256: Sha256 | None = None,
) -> FilesPlan:
    """Compare the group's files and units with the snapshot; without `sha256` no content.

    Units are left alone where no systemd answers: their state is not known there.
    """
    met = conditions(plan.backend, plan.hold, settings, snapshot)
    wanted = [row for row in rows(layout, group) if row.needs <= met]
    others = [row for row in rows(layout, group) if not row.needs <= met]
    return plan_rows(wanted, others, plan, snapshot, layout, sha256=sha256)


def plan_rows(
    wanted: Sequence[Managed],
    others: Sequence[Managed],
    plan: Plan,
    snapshot: HostSnapshot,
    layout: Layout,
    *,
    sha256: Sha256 | None = None,
) -> FilesPlan:
    """The same of these rows; `others`: those that are not to be there."""
    systemd = snapshot.init == "systemd"
    made = _joined(
        [
            *(
                _bring(row, layout, snapshot, sha256(row, plan) if sha256 else None)
                for row in wanted
                if systemd or not row.unit
            ),
            *(_drop(row, layout, snapshot) for row in others if systemd or not row.unit),
        ]
    )
    there = (*snapshot.files, *snapshot.owners)
    first = not any(row.path(layout) in there for row in (*wanted, *others))
    return replace(made, reasons=()) if first else made


def masked_units(
    backend: Backend, settings: Settings, snapshot: HostSnapshot, layout: Layout
) -> tuple[Problem, ...]:
    """Units that are wanted and that an administrator has forbidden to start."""
    met = conditions(backend, None, settings, snapshot)
    served = [row for profile in settings.serve for row in profile_rows(profile)]
    ours = [row for row in rows(layout) if row.group != "serve" or settings.serve]
    masked = [
        row
        for row in (*ours, *served)
        if row.needs <= met and snapshot.units.get(row.unit, ABSENT).load == "masked"
    ]
    command = "sudo systemctl" if layout.scope == "system" else "systemctl --user"
    return tuple(
        Problem(
            "units",
            found=f"{row.unit} is masked: somebody has forbidden it to start",
            expected=f"one that is {row.state}",
            next=f"{command} unmask {row.unit}"
            + (", or set verify_schedule = None" if "schedule" in row.needs else ""),
        )
        for row in masked
    )


def units_note(settings: Settings, snapshot: HostSnapshot) -> tuple[str, ...]:
    """Where units are not looked at, or end with the user's last session."""
    left = "units are neither looked at nor changed, and no timer verifies again"
    linger = f"sudo loginctl enable-linger {snapshot.user}"
    if snapshot.init == "silent" and settings.scope == "system":
        return (f"systemd does not answer: {left}; next: systemctl status",)
    if snapshot.init == "silent":
        return (f"the systemd of user {snapshot.user} does not answer: {left}; next: {linger}",)
    if snapshot.init == "systemd" and settings.scope == "user" and not snapshot.linger:
        return (f"units end with the last session of user {snapshot.user}; next: {linger}",)
    return ()


def dropin_notes(snapshot: HostSnapshot) -> Iterator[str]:
    """Units that an administrator has changed: what llamafleet says of them may not hold."""
    for name, unit in snapshot.units.items():
        if unit.dropins:
            yield f"{name} is changed by {', '.join(unit.dropins)}, which stays as it is"


@dataclass(frozen=True)
class _Wanted:
    """One file that is wanted, as it is found."""

    row: Managed
    there: bool
    odd: str
    """What is wrong with the file that is there: its content, its owner, its mode."""
    unit: Unit

    @property
    def write(self) -> bool:
        return not self.there or bool(self.odd)

    @property
    def boots(self) -> bool:
        return self.row.state in ("enabled", "active")

    @property
    def reload(self) -> bool:
        unread = self.unit.stale or self.unit.load != "loaded"
        return bool(self.row.unit) and (self.write or unread)

    @property
    def enable(self) -> bool:
        # A file that is written may say something else in [Install].
        return self.boots and (self.write or self.unit.enabled != "enabled")

    @property
    def restart(self) -> bool:
        # A reload arms a running timer and a path anew, but not a timer that has elapsed for good:
        # measured with systemd 252 and 257.
        elapsed = self.reload and self.unit.sub == "elapsed"
        return self.row.state == "active" and (self.unit.active != "active" or elapsed)

    @property
    def found(self) -> str:
        if not self.there:
            return "no file"
        words = (
            (self.odd, bool(self.odd)),
            (self.unit.load, bool(self.row.unit) and self.unit.load != "loaded"),
            ("a file that systemd has not read", self.unit.stale and not self.write),
            (self.unit.enabled or "not enabled", self.boots and self.unit.enabled != "enabled"),
            (self.unit.active, self.row.state == "active" and self.unit.active != "active"),
        )
        return ", ".join(word for word, true in words if true)


def _bring(row: Managed, layout: Layout, snapshot: HostSnapshot, sha256: str | None) -> FilesPlan:
    """A file that is wanted: there, with this content, and what its unit needs."""
    path = row.path(layout)
    there, owner = snapshot.files.get(path), snapshot.owners.get(path)
    odd = misfit(owner, row.access(layout), snapshot) if owner else ""
    if not odd and there is not None and sha256 not in (None, there):
        odd = "other content"
    unit = snapshot.units.get(row.unit, ABSENT)
    # One that is there and can't be read is told by its owner and mode alone.
    wanted = _Wanted(row, there is not None or bool(owner and odd), odd, unit)
    write = wanted.write
    verbs = {
        "write": write,
        "reload": wanted.reload and not write,
        "enable": wanted.enable,
        "start": wanted.restart,
    }
    return FilesPlan(
        write=(path,) if write else (),
        reload=wanted.reload,
        enable=(row.unit,) if wanted.enable else (),
        restart=(row.unit,) if wanted.restart else (),
        reasons=_reason(verbs, path, f"found {wanted.found}"),
    )


def misfit(owner: Owner, wanted: Access, snapshot: HostSnapshot, kind: str = "file") -> str:
    """What is wrong with what is there, in words; "": nothing."""
    if owner.kind != kind:
        return f"no {kind} but a {owner.kind}" if owner.kind != "other" else f"no {kind}"
    user = wanted.user or snapshot.user
    if owner.user != user:
        return f"owner {owner.user}, not {user}"
    if wanted.group and owner.group != wanted.group:
        return f"group {owner.group}, not {wanted.group}"
    if owner.mode != wanted.mode:
        return f"mode {owner.mode:04o}, not {wanted.mode:04o}"
    return ""


def _drop(row: Managed, layout: Layout, snapshot: HostSnapshot) -> FilesPlan:
    """A file that is not wanted, and its unit."""
    path = row.path(layout)
    unit = snapshot.units.get(row.unit, ABSENT)
    stop, disable = unit.active not in STOPPED, unit.enabled in ENABLED
    # A mask is a link of that name, and an administrator's word.
    remove = path in snapshot.files or (path in snapshot.owners and unit.load != "masked")
    return FilesPlan(
        stop=(row.unit,) if stop else (),
        disable=(row.unit,) if disable else (),
        remove=(path,) if remove else (),
        reload=bool(row.unit) and remove,
        reasons=_reason({"stop": stop, "disable": disable, "remove": remove}, path, "not wanted"),
    )


def _reason(verbs: dict[str, bool], path: str, why: str) -> tuple[str, ...]:
    done = ", ".join(verb for verb, true in verbs.items() if true)
    return (f"{done} {path.rpartition('/')[2]} ({why})",) if done else ()


def _joined(parts: Iterable[FilesPlan]) -> FilesPlan:
    """One plan of several."""
    parts = list(parts)
    return FilesPlan(
        write=tuple(chain.from_iterable(part.write for part in parts)),
        stop=tuple(chain.from_iterable(part.stop for part in parts)),
        disable=tuple(chain.from_iterable(part.disable for part in parts)),
        remove=tuple(chain.from_iterable(part.remove for part in parts)),
        reload=any(part.reload for part in parts),
        enable=tuple(chain.from_iterable(part.enable for part in parts)),
        restart=tuple(chain.from_iterable(part.restart for part in parts)),
        reasons=tuple(chain.from_iterable(part.reasons for part in parts)),
    )
