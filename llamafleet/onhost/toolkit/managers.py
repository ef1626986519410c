"""Package managers, asked the same three things: what would you do, do it, what is there.

Names are exact, always: a manager that knows a word as no package's name may take it for a pattern.
"""

from __future__ import annotations

import re
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

from llamafleet.onhost.job import Job, JobFailed
from llamafleet.onhost.toolkit.changes import (
    Changes,
    apk_changes,
    apt_changes,
    dnf_changes,
    zypper_changes,
)
from llamafleet.protocol import managers
from llamafleet.protocol.job import AnyManager

LOCK_S = managers.LOCK_S
RETRY_S = 5.0
ASK_S = 60.0
"""For a question about what is installed."""

_LOCKED = re.compile(
    # apt, as it is and as it was; dnf; zypper; pacman and apk.
    r"Could not get lock \S+?\.? (?:- open|It is held by process (?P<apt>\d+)"
    r"(?: \((?P<name>[^)]+)\))?)"
    r"|already locked by (?P<dnf>\d+)"
    r"|locked by the application with pid (?P<zypper>\d+)"
    r"|[Uu]nable to lock (?:repository )?database"
)
"""The words of apt, dnf, pacman, zypper and apk where another one is at work."""

_ADVICE = (
    (r"dpkg was interrupted", "sudo dpkg --configure -a"),
    (r"[Uu]nmet dependencies|--fix-broken", "sudo apt-get --fix-broken install"),
    (r"No space left on device|not enough (?:free )?(?:disk )?space", "df -h / /var /usr"),
    (r"Read-only file system", "findmnt / /usr /var"),
)
"""What to type on the host, by the words of a failure."""


class PackageManager(ABC):
    """One package manager of this host, with the words of each."""

    name: AnyManager
    wrong = re.compile(r"(?:E|W|Err):? ?|[Ee]rror\b|ERROR|Problem: ")
    """How it begins to say what is wrong."""

    def __init__(self, job: Job, env: dict[str, str]) -> None:
        self.job, self.env = job, env
        self.stale: list[str] = []
        """What is wrong with the lists that it knows packages by."""

    @abstractmethod
    def refresh(self) -> None:
        """Read the lists of packages. Raises JobFailed where nothing can be installed now."""

    @abstractmethod
    def simulate(self, packages: Sequence[str]) -> Changes:
        """What an installation would do. Raises JobFailed."""

    @abstractmethod
    def install(self, packages: Sequence[str]) -> None:
        """Raises JobFailed."""

    @abstractmethod
    def versions(self, packages: Sequence[str]) -> dict[str, str]:
        """Of those that are installed, wholly, by name."""

    def by_hand(self, packages: Sequence[str]) -> str:
        return managers.MANAGERS[self.name].install_by_hand(*packages)

    def command(self, *argv: str) -> list[str]:
        """Run the manager; its output. Waits while another one is at work.

        Raises JobFailed with its own words for what is wrong.
        """
        begun = time.monotonic()
        while True:
            said, failure = self.tried(*argv)
            if failure is None:
                return said
            holder = locked_by(said)
            if holder and time.monotonic() - begun < LOCK_S:
                self.job.progress.step(0, 0, f"waits for {holder}")
                time.sleep(RETRY_S)
                continue
            raise self.failed(argv, said, failure)

    def tried(self, *argv: str) -> tuple[list[str], JobFailed | None]:
        """Output of the manager, and what is wrong with its end."""
        said: list[str] = []

        def follow(line: str) -> None:
            said.append(line)
            self.job.progress.step(0, 0, line.strip())

        try:
            self.job.command(argv, env=self.env, on_line=follow)
        except JobFailed as error:
            return said, error
        return said, None

    def failed(self, argv: Sequence[str], said: Sequence[str], error: JobFailed) -> JobFailed:
        if holder := locked_by(said):
            return JobFailed(
                f"{self.name}: found its lock held by {holder}, for {LOCK_S // 60} minutes; "
                "expected it free; next: when that has ended, run the same command again"
            )
        words = self.words(said)
        found = " ".join(words) or "no word of an error"
        if self.stale:
            found += f" (and of its lists: {' '.join(self.stale)})"
        advice = next((do for known, do in _ADVICE if re.search(known, found)), " ".join(argv))
        return JobFailed(f"{error}: found {found}; expected status 0; next: on the host, {advice}")

    def lacking(self, packages: Sequence[str]) -> JobFailed:
        """Of packages that it does not know."""
        lists = f" (of its lists: {' '.join(self.stale)})" if self.stale else ""
        return JobFailed(
            f"{self.name}: found no package {' '.join(packages)}{lists}; expected it in the "
            f"host's repositories; next: on the host, {self.by_hand(packages)}"
        )

    def words(self, said: Iterable[str]) -> list[str]:
        """Lines that say what is wrong, each once, at most ten."""
        wrong = (line.strip()[:300] for line in said if self.wrong.match(line))
        return list(dict.fromkeys(wrong))[:10]

    def asked(self, *argv: str) -> list[str]:
        """Output of a question, which changes nothing and whose status does not count."""
        try:
            answer = subprocess.run(
                argv,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                env=self.env,
                check=False,
                stdin=subprocess.DEVNULL,
                timeout=ASK_S,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise JobFailed(f"{argv[0]} does not answer: {error}") from error
        return answer.stdout.splitlines()


def locked_by(said: Iterable[str]) -> str:
    """Who holds the lock that a package manager speaks of; "": it speaks of none."""
    for line in said:
        # What was waited for with success says nothing.
        if not line.startswith("Waiting ") and (found := _LOCKED.search(line)):
            pid = found["apt"] or found["dnf"] or found["zypper"]
            name = f" ({found['name']})" if found["name"] else ""
            return f"process {pid}{name}" if pid else "another package manager"
    return ""


class Apt(PackageManager):
    name = "apt"
    wrong = re.compile(r"E: |W: |Err:")
    _ask = (managers.APT.program, "-y", *managers.WAIT_FOR_LOCK, *managers.EXACT)
    _install = ("--no-install-recommends", "--no-remove", "install")

    def refresh(self) -> None:
        # Not the business of this job, and nothing can be installed before it is put right.
        self.command(*self._ask, "check")
        # A broken source of somebody else's must not stand in the way; what is missing shows later.
        said, failure = self._updated()
        if failure and locked_by(said):
            raise self.failed(self._ask, said, failure)
        self.stale = self.words(said)

    def _updated(self) -> tuple[list[str], JobFailed | None]:
        """`apt-get update`, which does not wait for the lock of its lists by itself."""
        begun = time.monotonic()
        while True:
            said, failure = self.tried(*self._ask, "update")
            holder = locked_by(said) if failure else ""
            if not holder or time.monotonic() - begun > LOCK_S:
                return said, failure
            self.job.progress.step(0, 0, f"waits for {holder}")
            time.sleep(RETRY_S)

    def update_from(self, source: str) -> None:
        """Read the lists of one source alone. Raises JobFailed where they don't come."""
        only = ("-o", f"Dir::Etc::sourcelist={source}", "-o", "Dir::Etc::sourceparts=-")
        argv = (*self._ask, *only, "-o", "APT::Get::List-Cleanup=0", "update")
        said = self.command(*argv)
        # Old lists stand in for those that did not come, and apt ends with 0.
        if any(line.startswith("W: Failed to fetch") for line in said):
            raise self.failed(argv, said, JobFailed("apt-get could not read the repository"))

    def simulate(self, packages: Sequence[str]) -> Changes:
        # An unknown g++ is to apt the order to install g+, which it takes for a pattern then.
        names = {name for one in packages for name in self.asked("apt-cache", "pkgnames", one)}
        if missing := [name for name in packages if name not in names]:
            raise self.lacking(missing)
        return apt_changes(self.command(*self._ask, "--simulate", *self._install, *packages))

    def install(self, packages: Sequence[str]) -> None:
        self.command(*self._ask, *self._install, *packages)

    def versions(self, packages: Sequence[str]) -> dict[str, str]:
        form = "-f=${Package} ${db:Status-Status} ${Version}\n"
        rows = (line.split(" ") for line in self.asked("dpkg-query", "-W", form, *packages))
        return {row[0]: row[2] for row in rows if row[1:2] == ["installed"]}


class Dnf(PackageManager):
    name = "dnf"
    wrong = re.compile(r"Error: |ERROR|No match for argument|  ?- |Curl error")
    _ask = (managers.DNF.program, "--setopt=install_weak_deps=False", "--setopt=exit_on_lock=True")

    def refresh(self) -> None:
        """It does so by itself."""

    def simulate(self, packages: Sequence[str]) -> Changes:
        argv = (*self._ask, "--assumeno", "install", *packages)
        begun = time.monotonic()
        # It ends with 1 also where all is well, since nobody said yes.
        while locked_by((said := self.tried(*argv))[0]) and time.monotonic() - begun < LOCK_S:
            time.sleep(RETRY_S)
        lines, failure = said
        changes = dnf_changes(lines)
        if not changes.new and "Nothing to do." not in lines:
            if failure and locked_by(lines):
                raise self.failed(argv, lines, failure)
            first = next((n for n, line in enumerate(lines) if re.match("Error: ", line)), 0)
            found = " ".join(" ".join(lines[first:]).split())[:2000] or "no answer"
            raise JobFailed(
                f"dnf would install nothing: found {found}; expected {' '.join(packages)}; "
                f"next: dnf info {packages[0]} on the host"
            )
        return changes

    def install(self, packages: Sequence[str]) -> None:
        self.command(*self._ask, "-y", "install", *packages)

    def versions(self, packages: Sequence[str]) -> dict[str, str]:
        return rpm_versions(self.asked, packages)


class Zypper(PackageManager):
    name = "zypper"
    wrong = re.compile(r"Package '|Problem: |\(?[Ee]rror\b|File '.*' not found")
    _ask = (managers.MANAGERS["zypper"].program, "--non-interactive")
    # A name and not what a package provides; nothing that it finds beside.
    _install = ("install", "--name", "--type", "package", "--no-recommends")

    def refresh(self) -> None:
        said, failure = self.tried(*self._ask, "refresh")
        self.stale = self.words(said) if failure else []

    def simulate(self, packages: Sequence[str]) -> Changes:
        return zypper_changes(self.command(*self._ask, *self._install, "--dry-run", *packages))

    def install(self, packages: Sequence[str]) -> None:
        self.command(*self._ask, *self._install, *packages)

    def versions(self, packages: Sequence[str]) -> dict[str, str]:
        return rpm_versions(self.asked, packages)


class Pacman(PackageManager):
    name = "pacman"
    wrong = re.compile(r"error: ")
    _ask = (managers.MANAGERS["pacman"].program, "--noconfirm")

    def refresh(self) -> None:
        said, failure = self.tried(*self._ask, "-Sy")
        if failure and locked_by(said):
            raise self.failed(self._ask, said, failure)
        self.stale = self.words(said) if failure else []

    def simulate(self, packages: Sequence[str]) -> Changes:
        """Without removals: it removes nothing that nobody confirms."""
        argv = (*self._ask, "-S", "--needed", "--print", "--print-format", "%n", *packages)
        come = [line for line in self.command(*argv) if re.fullmatch(r"[\w@.+-]+", line)]
        there = self.versions(come) if come else {}
        return Changes(
            new=tuple(name for name in come if name not in there),
            replaced=tuple(name for name in come if name in there),
        )

    def install(self, packages: Sequence[str]) -> None:
        self.command(*self._ask, "-S", "--needed", *packages)

    def versions(self, packages: Sequence[str]) -> dict[str, str]:
        rows = (line.split(" ") for line in self.asked("pacman", "-Q", *packages))
        return {row[0]: row[1] for row in rows if len(row) == 2 and row[0] in packages}


class Apk(PackageManager):
    name = "apk"
    wrong = re.compile(r"ERROR: |WARNING: ")
    _ask = (managers.MANAGERS["apk"].program,)

    def refresh(self) -> None:
        said, failure = self.tried(*self._ask, "update")
        self.stale = self.words(said) if failure else []

    def simulate(self, packages: Sequence[str]) -> Changes:
        return apk_changes(self.command(*self._ask, "add", "--simulate", *packages))

    def install(self, packages: Sequence[str]) -> None:
        self.command(*self._ask, "add", *packages)

    def versions(self, packages: Sequence[str]) -> dict[str, str]:
        found = {}
        for name in packages:
            for line in self.asked("apk", "info", "--installed", name):
                if line.strip() == name:
                    found[name] = ""
        return found


def rpm_versions(asked: Callable[..., list[str]], packages: Sequence[str]) -> dict[str, str]:
    rows = (
        line.split(" ") for line in asked("rpm", "-q", "--qf", "%{NAME} %{VERSION}\n", *packages)
    )
    return {row[0]: row[1] for row in rows if len(row) == 2 and row[0] in packages}


MANAGERS: dict[AnyManager, type[PackageManager]] = {
    kind.name: kind for kind in (Apt, Dnf, Zypper, Pacman, Apk)
}
