"""A package manager's program for a test: a shell script that answers as the real one did."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llamafleet.onhost.job import Job
from llamafleet.onhost.toolkit import packages
from llamafleet.onhost.toolkit.managers import MANAGERS, PackageManager
from llamafleet.protocol.job import AnyManager, ManagerConfig


class Programs:
    """A folder of scripts that stand for a host's programs, and what they were asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "programs"
        self.folder.mkdir()
        self.log = folder / "asked"
        self.env = {
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "ASKED": str(self.log),
            "STATE": str(folder),
        }

    def add(self, name: str, script: str) -> None:
        """`script`: of sh; its arguments are noted first, a line for each call."""
        file = self.folder / name
        file.write_text(f'#!/bin/sh\necho "{name} $*" >>"$ASKED"\n{script}\n')
        file.chmod(0o755)

    @property
    def asked(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def manager(self, job: Job, name: AnyManager) -> PackageManager:
        return MANAGERS[name](job, self.env)

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What jobs ask from now on."""

        def made(job: Job, config: ManagerConfig, tmp: Path) -> PackageManager:
            return self.manager(job, config.manager)

        monkeypatch.setattr(packages, "manager_of", made)


APT = """\
case "$*" in
  *" check") {check} ;;
  *" update") {update} ;;
  *--simulate*) {simulate} ;;
  *" install "*) {install} ;;
esac
"""


def apt(
    check: str = ":",
    update: str = ":",
    simulate: str = "echo 'Inst g++ (4:12 Debian:12 [amd64])'",
    install: str = "touch $STATE/installed",
) -> str:
    """A script for apt-get whose commands do that."""
    return APT.format(check=check, update=update, simulate=simulate, install=install)


DPKG_QUERY = "[ -e $STATE/installed ] && echo 'g++ installed 4:12.2.0-3'"
