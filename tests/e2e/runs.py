"""Runs of the real command line, and what they left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
PYINFRA = str(Path(sys.executable).parent / "pyinfra")
LLAMAFLEET = str(Path(sys.executable).parent / "llamafleet")


@dataclass
class Run:
    """One ended run of pyinfra."""

    returncode: int
    output: str
    seconds: float
    json: dict[str, Any] | None

    @property
    def commands(self) -> list[str]:
        """Commands that went to hosts; only a run with -vv shows them."""
        return re.findall(r"^.*>>> .*$", self.output, re.MULTILINE)

    @property
    def unchanged(self) -> bool:
        """Every operation was a no-op on every host (needs a run with --json)."""
        assert self.json is not None, self.output
        results = self.json["results"]["operations"]
        return bool(results) and all(len(op["no_change"]) == op["hosts"] for op in results)


def checkout(folder: Path) -> Path:
    """A fresh copy of what git tracks, with the changes of this work tree."""
    target = folder / "llamafleet"
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    ).stdout.split(b"\0")
    for name in filter(None, names):
        source = REPOSITORY / os.fsdecode(name)
        if source.is_file():
            (target / os.fsdecode(name)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / os.fsdecode(name))
    return target


def environment(folder: Path, **extra: str) -> dict[str, str]:
    """This environment, with the code of `folder` in front of the installed one."""
    return {**os.environ, "PYTHONPATH": str(folder), "PYINFRA_PROGRESS": "off", **extra}


def pyinfra(folder: Path, *arguments: str, limit: float = 900, **extra: str) -> Run:
    """`pyinfra ARGUMENTS` in a checkout, to its end."""
    begun = time.monotonic()
    done = subprocess.run(
        [PYINFRA, *arguments],
        cwd=folder,
        env=environment(folder, **extra),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=limit,
    )
    parsed = None
    if "--json" in arguments and done.stdout.strip():
        parsed = json.loads(done.stdout.strip().splitlines()[-1])
    return Run(done.returncode, done.stdout + done.stderr, time.monotonic() - begun, parsed)


def llamafleet(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`llamafleet ARGUMENTS` in a checkout."""
    return subprocess.run(
        [LLAMAFLEET, *arguments],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def start(folder: Path, fleet: str) -> subprocess.Popen[str]:
    """A deployment that the test ends itself."""
    return subprocess.Popen(
        [PYINFRA, "-y", fleet, "deploy.py"],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def latest(folder: Path, host: str) -> dict[str, Any]:
    """The result that a run fetched for a host."""
    return json.loads((folder / "results" / host / "latest.json").read_text())  # type: ignore[no-any-return]


def write_inventory(folder: Path, hosts: dict[str, dict[str, Any]], name: str = "fleet") -> str:
    """An inventory file of these hosts and their data; returns its name."""
    (folder / name).write_text(f"hosts = {list(hosts.items())!r}\n")
    return name
