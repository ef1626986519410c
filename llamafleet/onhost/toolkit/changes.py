"""What a package manager says it would do, and what of it is refused."""

from __future__ import annotations

import json
import pkgutil
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from llamafleet.onhost.job import JobFailed

REFUSED = "refused-packages.json"
"""Name of the rule in the zipapp, beside this module; made from tables/driver-packages.yaml."""


@dataclass(frozen=True)
class Changes:
    """Names of packages, by what would become of them."""

    new: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    """By another version, or put there again."""
    downgraded: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


def apt_changes(lines: Iterable[str]) -> Changes:
    """Of `apt-get --simulate`: lines as "Inst name [old] (new ...)" and "Remv name [old]".

    A downgrade looks like an upgrade; apt-get refuses it by itself where nobody allows it.
    """
    new, replaced, removed = [], [], []
    for line in lines:
        found = re.match(r"(Inst|Remv) (\S+?)(?::\S+)?( \[)?(?: |$)", line)
        if not found:
            continue
        if found[1] == "Remv":
            removed.append(found[2])
        elif re.match(r"Inst \S+ \[", line):
            replaced.append(found[2])
        else:
            new.append(found[2])
    return Changes(new=tuple(new), replaced=tuple(replaced), removed=tuple(removed))


_DNF_HEADINGS = {
    "Installing": "new",
    "Upgrading": "replaced",
    "Downgrading": "downgraded",
    "Reinstalling": "replaced",
    "Removing": "removed",
}


def dnf_changes(lines: Iterable[str]) -> Changes:
    """Of dnf's table of a transaction: a heading, then lines that begin with a blank and a name.

    What does not fit beside a long name follows on a line of more blanks.
    """
    found: dict[str, list[str]] = {name: [] for name in _DNF_HEADINGS.values()}
    kind = None
    for line in lines:
        if heading := re.match(r"(\w{1,40})[\w ]{0,200}:\s*$", line):
            kind = _DNF_HEADINGS.get(heading[1])
        elif kind and (row := re.match(r" (\S+)", line)):
            found[kind].append(row[1])
        elif kind and (row := re.match(r" +replacing +([^ .]+)", line)):
            found["replaced"].append(row[1])
        elif line.startswith("Transaction Summary"):
            kind = None
    return Changes(**{name: tuple(names) for name, names in found.items()})


_APK_VERBS = {
    "Installing": "new",
    "Upgrading": "replaced",
    "Replacing": "replaced",
    "Reinstalling": "replaced",
    "Downgrading": "downgraded",
    "Purging": "removed",
}


def apk_changes(lines: Iterable[str]) -> Changes:
    """Of `apk add --simulate`: lines as "(1/20) Installing binutils (2.41-r0)"."""
    found: dict[str, list[str]] = {name: [] for name in _APK_VERBS.values()}
    for line in lines:
        row = re.match(r"\(\d+/\d+\) (\w+) (\S+) \(", line)
        if row and row[1] in _APK_VERBS:
            found[_APK_VERBS[row[1]]].append(row[2])
    return Changes(**{name: tuple(names) for name, names in found.items()})


_ZYPPER_HEADING = re.compile(r"The following .{1,80} going to be (\w+):")
_ZYPPER_VERBS = {
    "installed": "new",
    "upgraded": "replaced",
    "reinstalled": "replaced",
    "downgraded": "downgraded",
    "removed": "removed",
}


def zypper_changes(lines: Iterable[str]) -> Changes:
    """Of `zypper install --dry-run`: a heading that ends with a colon, then names after blanks."""
    found: dict[str, list[str]] = {name: [] for name in _ZYPPER_VERBS.values()}
    kind = None
    for line in lines:
        if line.startswith("The following"):
            heading = _ZYPPER_HEADING.match(line)
            kind = _ZYPPER_VERBS.get(heading[1].lower()) if heading else None
        elif kind and line.startswith("  "):
            found[kind] += line.split()
        else:
            kind = None
    return Changes(**{name: tuple(names) for name, names in found.items()})


@cache
def refused() -> re.Pattern[str]:
    """What matches, whole, the names of packages that must not come or change.

    Raises JobFailed where the zipapp came without it: unguarded, nothing is installed.
    """
    try:
        data = pkgutil.get_data(__package__, REFUSED)
    except OSError:
        data = None
    if not data:
        raise JobFailed(
            f"found no {REFUSED} beside {__name__}; expected the names of the driver's packages, "
            "which no install may touch; next: run this from llamafleet's zipapp"
        )
    return re.compile(json.loads(data))


def refuse(changes: Changes, wanted: Sequence[str], next: str) -> None:
    """Raise JobFailed where a package would go or get older, or one of the driver would change."""
    come = (*changes.new, *changes.replaced, *changes.downgraded)
    touched = [name for name in come if refused().fullmatch(name)]
    found = [f"install or replace {' '.join(touched)}"] if touched else []
    found += [f"downgrade {' '.join(changes.downgraded)}"] if changes.downgraded else []
    found += [f"remove {' '.join(changes.removed)}"] if changes.removed else []
    if found:
        raise JobFailed(
            f"found that it would {' and '.join(found)}; expected {' '.join(wanted)} alone, "
            f"without a change to the driver; next: {next}"
        )


def unknown(changes: Changes, wanted: Sequence[str], there: Collection[str]) -> list[str]:
    """Wanted packages that would not come, and are not there.

    A word that is no package's name may be taken for a pattern, and bring others.
    """
    come = {*changes.new, *changes.replaced, *changes.downgraded}
    return [name for name in wanted if name not in come and name not in there]
