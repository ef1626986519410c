"""The zipapp on disk and jobs run with it, as on a host."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llamafleet import zipapps

# A venv made from a venv's interpreter would inherit nothing, but its `home` would be a venv too.
PYTHON = str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())


class Runner:
    """A host's prefix below `root`: the two zipapps, and job folders."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.zipapp = root / "llamafleet-host.pyz"
        self.zipapp.write_bytes(zipapps.host_zipapp())
        self.pip = root / "pip.pyz"
        self.pip.write_bytes(zipapps.pip_zipapp())

    def job(self, kind: str, key: str, config: dict[str, Any]) -> Path:
        """The folder of a job, yet to be made, and the file with its settings."""
        folder = self.root / kind / key
        common = {"version": 1, "kind": kind, "key": key, "python": PYTHON, "pip": str(self.pip)}
        self.config(folder).write_text(json.dumps(common | config))
        return folder

    def config(self, folder: Path) -> Path:
        """What the job in `folder` is told."""
        return self.root / f"{folder.parent.name}-{folder.name}.json"

    def command(self, folder: Path) -> list[str]:
        """Of the zipapp, that runs the job."""
        told = ["--config", str(self.config(folder)), "--dir", str(folder)]
        return ["job", "--kind", folder.parent.name, *told]

    def run(self, *args: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PYTHON, "-I", self.zipapp, *args],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            **options,
        )

    def start(self, folder: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [PYTHON, "-I", self.zipapp, *self.command(folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def status(self, folder: Path) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.run("status", "--dir", folder).stdout)
        return answer


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)


def processes_below(folder: Path) -> list[str]:
    """Command lines of live processes that name a path below `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if str(folder) in line:
                found.append(line)
    return found


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
