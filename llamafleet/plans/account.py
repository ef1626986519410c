"""The account and the folders of a host: what is missing or differs, piece by piece.

llamafleet keeps a record of what it made there (`layout.made`): a path, ACCOUNT, GROUP or a page
(plans/textfile.py) a line.
Uninstall removes no other account and no other folder. A deployment of before that record is told
by its zipapp: what is there beside it is llamafleet's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from llamafleet.facts.host import HostSnapshot, Owner
from llamafleet.layout import USER, Layout
from llamafleet.managed import Folder, folder_rows, roots, unfinished
from llamafleet.plans.files import misfit
from llamafleet.plans.plan import Problem
from llamafleet.settings import Settings

ACCOUNT, GROUP = "account", "group"
"""Lines of the record."""

GPU_GROUPS = ("video", "render")
"""Debian's driver packages give /dev/nvidia* to group video with mode 0660."""


@dataclass(frozen=True)
class AccountPlan:
    """What is to be done for account and folders, in this order."""

    prefix: bool = False
    """Make the folder that holds the record."""
    record: tuple[str, ...] = ()
    """Lines of the record for what is there already."""
    account: bool = False
    group: bool = False
    """Make the group of an account that has none of its name."""
    groups: tuple[str, ...] = ()
    """Groups that the account is to be in, where the host has them."""
    make: tuple[Folder, ...] = ()
    own: tuple[Folder, ...] = ()
    """Folders that are there with another owner or mode."""
    below: tuple[str, ...] = ()
    """Folders that the account makes in its own."""
    marker: str = ""
    """The machine that the state folder belongs to from now on."""
    linger: bool = False
    """Ask for the user's own systemd to outlive the session; the host may refuse that."""
    reasons: tuple[str, ...] = ()
    """One for each thing that was there before and is not as it should be."""

    @property
    def needed(self) -> bool:
        return self != AccountPlan(reasons=self.reasons, linger=self.linger)


def plan_account(settings: Settings, snapshot: HostSnapshot, layout: Layout) -> AccountPlan:
    """Compare the snapshot with what `managed` says of folders, and with the account's needs."""
    system = layout.scope == "system"
    made = record_of(snapshot, layout)
    there = [(row, snapshot.owners.get(row.path)) for row in folder_rows(layout)]
    missing = [row for row, owner in there if owner is None]
    judged = ((row, _odd(row, owner, snapshot, layout)) for row, owner in there if owner)
    odd = {row: words for row, words in judged if words}
    account = system and not snapshot.account
    grouped = system and snapshot.account and bool(snapshot.account_groups)
    group = grouped and USER not in snapshot.account_groups
    groups = tuple(name for name in GPU_GROUPS if name not in snapshot.account_groups)
    lacks = groups if grouped and GPU_GROUPS[0] in groups else ()
    reasons = [f"repair {row.path} ({words})" for row, words in odd.items()]
    if layout.zipapp in snapshot.owners:
        reasons += [f"make {row.path} (found none)" for row in missing]
        reasons += ["make the account (found none)"] if account else []
    reasons += ["make the account's group (found none)"] if group else []
    reasons += [f"add the account to {' '.join(lacks)} (found it is not in)"] if lacks else []
    below = tuple(row.path for row in missing if row.below)
    marker = "" if system or snapshot.state_machine is not None else machine_of(snapshot)
    return AccountPlan(
        prefix=layout.prefix not in snapshot.owners,
        record=tuple(line for line in (*made, *below) if line not in snapshot.made),
        account=account,
        group=group,
        groups=GPU_GROUPS if account else lacks,
        make=tuple(row for row in missing if not row.below and row.path != layout.prefix),
        own=tuple(odd),
        below=below,
        marker=marker,
        linger=bool(lingering_wanted(settings, snapshot)),
        reasons=tuple(reasons),
    )


def _odd(row: Folder, owner: Owner, snapshot: HostSnapshot, layout: Layout) -> str:
    """What root, or whoever deploys, must set right of a folder that is there."""
    if row.below or (layout.scope == "user" and owner.kind == "link"):
        return ""
    wanted = row.access(layout)
    if layout.scope == "user":
        # Others need not enter one's own folders.
        wanted = replace(wanted, mode=owner.mode | 0o700)
    return misfit(owner, wanted, snapshot, "folder")


def record_of(snapshot: HostSnapshot, layout: Layout) -> tuple[str, ...]:
    """What llamafleet made on this host: its record, or what stands for one of before."""
    if snapshot.made:
        return snapshot.made
    before = {layout.zipapp, unfinished(layout.zipapp)} & {*snapshot.files, *snapshot.owners}
    if not before:
        return ()
    made = [path for path in roots(layout) if path in snapshot.owners]
    # Its useradd has always named this home, and no other account has a reason to.
    if layout.scope == "system" and snapshot.account and snapshot.account_home == layout.state:
        made += [ACCOUNT, GROUP]
    return tuple(made)


def machine_of(snapshot: HostSnapshot) -> str:
    """Tells this host from others that share its home."""
    return snapshot.machine_id or f"host {snapshot.hostname}"


def lingering_wanted(settings: Settings, snapshot: HostSnapshot) -> bool:
    """The user's own units would end with the last session."""
    if settings.scope == "system" or snapshot.linger:
        return False
    return snapshot.init in ("systemd", "silent")


def account_problems(
    settings: Settings, snapshot: HostSnapshot, layout: Layout
) -> tuple[Problem, ...]:
    """What can't be repaired without asking a person."""
    found = [*_folder_problems(snapshot, layout)]
    if layout.scope == "user" and snapshot.state_machine not in (None, machine_of(snapshot)):
        found.append(
            Problem(
                "home",
                f"{layout.state} is of another machine ({snapshot.state_machine}): a home that "
                "several hosts share",
                f"one of this machine ({machine_of(snapshot)})",
                "deploy to one of these hosts alone, or give each a home of its own; if the other "
                f"is gone: rm {layout.machine}",
            )
        )
    return tuple(found)


def _folder_problems(snapshot: HostSnapshot, layout: Layout) -> Iterator[Problem]:
    """Folders that are somebody else's, links, or no folders at all."""
    for row in folder_rows(layout):
        owner = snapshot.owners.get(row.path)
        if owner is None:
            continue
        wanted = row.access(layout)
        # What lies in the account's own folders, or in one's own home, harms nobody else.
        link = owner.kind == "link" and (row.below or layout.scope == "user")
        if owner.kind != "folder" and not link:
            found = f"{row.path} is no folder but a {owner.kind}"
            fix = f"ls -ld {row.path}, and move it away"
        elif not link and owner.user not in _repairable(row, wanted.user, snapshot):
            found = f"{row.path} belongs to {owner.user}"
            fix = f"ls -ld {row.path}, and move it away or chown it"
        else:
            continue
        user = wanted.user or snapshot.user
        yield Problem("folders", found, f"a folder of {user}, or none", fix)


def _repairable(row: Folder, user: str, snapshot: HostSnapshot) -> tuple[str, ...]:
    """Owners of a folder that may be given to its own: root's may, where its parent is root's."""
    own = user or snapshot.user
    return (own, "root") if row.account else (own,)
