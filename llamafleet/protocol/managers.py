"""Package managers: the words in which each is asked, by a plan, by a job, by a person."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

LOCK_S = 600
"""Seconds for which another package manager is waited for: a host that has just booted updates
itself."""
WAIT_FOR_LOCK = ("-o", f"DPkg::Lock::Timeout={LOCK_S}")
"""Of apt."""
EXACT = ("-o", "APT::Cmd::Pattern-Only=true")
"""Of apt: g++ is the name of a package, and never a pattern that others match: apt-patterns(7)."""


@dataclass(frozen=True)
class Manager:
    """One package manager. Texts with {} take the names of packages."""

    program: str
    compiler: str
    """Package that brings a C++ compiler."""
    install: str
    """For a person to type, as root, like the ones below: by exact names."""
    upgrade: str
    """Brings packages that are there to their newest version."""
    reinstall: str
    """Writes the files of packages that are there again."""
    remove: str
    hold: tuple[str, ...] = ()
    """The beginning of the command that keeps packages as they are; none: it has no such."""
    release: tuple[str, ...] = ()
    release_by_hand: str = ""
    list_held: str = ""
    hold_by_hand: str = ""
    """What a person does where `hold` is none."""
    python: str = "python3"
    """Package that brings the distribution's own Python."""

    def install_by_hand(self, *packages: str) -> str:
        return f"sudo {self.install.format(' '.join(packages))}"

    def hold_command(self, packages: Sequence[str]) -> str:
        return shlex.join((*self.hold, *packages))

    def release_command(self, packages: Sequence[str]) -> str:
        return shlex.join((*self.release, *packages))

    def lift(self, held: str) -> str:
        """How a person lifts the hold on what is held, or looks for one; "": there are none."""
        if not self.hold:
            return ""
        return f"sudo {self.release_by_hand.format(held)}; " if held else f"{self.list_held}; "


# A lock is for the version that is installed, so no repository is needed: dnf-versionlock(8),
# dnf5-versionlock(8). dnf5 keeps the option's old name: dnf5-changes-from-dnf4(7).
_LOCK = ("dnf", "-y", "--disablerepo=*", "versionlock")

MANAGERS = {
    "apt": Manager(
        program="apt-get",
        compiler="g++",
        # apt(8) takes no name for a pattern, unlike apt-get(8).
        install="apt install {}",
        upgrade="apt-get install --only-upgrade {}",
        reinstall="apt-get install --reinstall {}",
        remove="apt-get purge {}",
        hold=("apt-mark", "hold"),
        release=("apt-mark", "unhold"),
        release_by_hand="apt-mark unhold {}",
        list_held="apt-mark showhold",
    ),
    "dnf": Manager(
        program="dnf",
        compiler="gcc-c++",
        install="dnf install {}",
        upgrade="dnf upgrade {}",
        reinstall="dnf reinstall {}",
        remove="dnf remove {}",
        hold=(*_LOCK, "add"),
        release=(*_LOCK, "delete"),
        release_by_hand="dnf versionlock delete {}",
        list_held="dnf versionlock list",
    ),
    "pacman": Manager(
        program="pacman",
        compiler="gcc",
        install="pacman -S {}",
        # Single packages are not upgraded there.
        upgrade="pacman -Syu",
        reinstall="pacman -S {}",
        remove="pacman -R {}",
        hold_by_hand="name the packages in IgnorePkg in /etc/pacman.conf",
        python="python",
    ),
    "zypper": Manager(
        program="zypper",
        compiler="gcc-c++",
        install="zypper install {}",
        upgrade="zypper update {}",
        reinstall="zypper install --force {}",
        remove="zypper remove {}",
        hold_by_hand="sudo zypper addlock with the names of the packages",
    ),
    "apk": Manager(
        program="apk",
        compiler="build-base",
        install="apk add {}",
        upgrade="apk upgrade {}",
        reinstall="apk fix {}",
        remove="apk del {}",
    ),
}
"""By the name that the snapshot gives them."""

APT, DNF = MANAGERS["apt"], MANAGERS["dnf"]

YUM = replace(
    DNF,
    program="yum",
    install="yum install {}",
    upgrade="yum update {}",
    reinstall="yum reinstall {}",
    remove="yum remove {}",
    hold=(),
    release=(),
    release_by_hand="",
    list_held="",
    hold_by_hand="name the packages in exclude= in /etc/yum.conf",
)
"""Of RHEL 7 and before: for a person to type. No job of llamafleet uses it."""
