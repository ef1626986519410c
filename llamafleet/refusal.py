"""What a run was asked for, refused before any host is connected to: all of it at once."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from pyinfra.api.exceptions import NoGroupError
from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory

NAMED = 5
"""How many known hosts an error names."""


def of_name(inventory: str) -> list[str]:
    """Why this names no inventory; pyinfra takes a name that is no file for a host, or for none.

    Its own forms without a file are good: hosts with a connector (@local, @ssh/a), and lists.
    """
    path = Path(inventory)
    if path.is_file() or (not path.exists() and ("@" in inventory or "," in inventory)):
        return []
    found = "a folder" if path.is_dir() else "no such file"
    return [
        f"inventory {inventory}: found {found}; expected a file, or hosts as @local, "
        f"@ssh/{path.name} or a,b; next: ls -l {path.parent}"
    ]


def of_exit(inventory: str, error: SystemExit) -> str:
    """Why an inventory that ends python, or the data of its groups, is no sound one."""
    return (
        f"inventory {inventory}: found that it ends python ({error!r}); expected hosts; "
        "next: leave exit() out, there and in group_data/"
    )


def of_hosts(inventory: Inventory, limit: Iterable[str], exclude: Iterable[str]) -> list[str]:
    """Why nothing is to be done: no host, or none that --limit and --exclude leave."""
    hosts = list(inventory)
    if not hosts:
        return [
            "inventory: found no host in it; expected a list of hosts in a variable whose name "
            "begins with a letter; next: see inventory.ssh-example"
        ]
    limit, exclude = tuple(limit), tuple(exclude)
    known = ", ".join(host.name for host in hosts[:NAMED])
    more = f" and {len(hosts) - NAMED} more" if len(hosts) > NAMED else ""
    lines = [
        f"--limit {pattern}: found no host or group of that name; expected one as {known}{more}; "
        "next: pyinfra INVENTORY debug-inventory"
        for pattern in limit
        if not _matching(inventory, (pattern,))
    ]
    left = _matching(inventory, limit) if limit else {host.name for host in hosts}
    left -= _matching(inventory, exclude)
    if not left and not lines:
        lines.append(
            f"--exclude {' '.join(exclude)}: found that it leaves no host; expected one as "
            f"{known}{more}; next: leave it out"
        )
    return lines


def of_options(no_wait: bool) -> list[str]:
    """Options of pyinfra that no run here is sound with."""
    if no_wait:
        return [
            "--no-wait: found it set; expected a run without it, as pyinfra then hides failures; "
            "next: leave it out"
        ]
    return []


def _matching(inventory: Inventory, patterns: Iterable[str]) -> set[str]:
    """Names of the hosts, as pyinfra's command line finds them."""
    names: set[str] = set()
    for pattern in patterns:
        try:
            found: list[Host] = inventory.get_group(pattern)
        except NoGroupError:
            found = [host for host in inventory if fnmatch(host.name, pattern)]
        names |= {host.name for host in found}
    return names
