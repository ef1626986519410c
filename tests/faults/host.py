"""A host with a build in use, as the loop sees it: how a build is started, and what is there."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import time
from dataclasses import asdict
from pathlib import Path

from llamafleet.onhost.build import proof
from llamafleet.plans.build import names_of
from llamafleet.protocol.job import BUILD, STAMP, read_json
from tests.faults.archive import write_index
from tests.onhost.runner import Runner
from tests.onhost.test_build import INPUTS

KEY = "f00d"
MORE_THAN_ANY_S = 120


class Host:
    """Folders below `root`, which may be a file system of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runner = Runner(root)
        self.versions, self.current = root / "versions", root / "current"
        self.folder = root / "build" / KEY
        self._settings = write_index(root / "index")

    # -- what a run of deploy.py does --------------------------------------------------------------

    def next_name(self) -> str:
        """The first free folder of the fingerprint, as the plan takes it."""
        numbered = itertools.chain([KEY], (f"{KEY}-{number}" for number in itertools.count(2)))
        return next(name for name in numbered if not os.path.lexists(self.versions / name))

    def start(self) -> tuple[str, subprocess.Popen[bytes]]:
        """Tell and start a build that has not been there."""
        name = self.next_name()
        told = {
            "inputs": asdict(INPUTS),
            "prefix": str(self.versions / name),
            "cmake_args": [],
            "allowed_unused": [],
            "environment": {},
            "jobs": 2,
            "index_url": None,
            **self._settings,
        }
        self.runner.job("build", KEY, told)
        # What a watcher waits for is the end of this attempt.
        (self.folder / STAMP).unlink(missing_ok=True)
        return name, self.runner.start(self.folder)

    def converge(self) -> str:
        """One whole run: build, switch, remove what it stands for; "" or what is wrong."""
        name, process = self.start()
        code = process.wait(timeout=MORE_THAN_ANY_S)
        if code:
            stamp = read_json(self.folder / STAMP) or {}
            return f"the next run ended with {code}: {(stamp.get('error') or {}).get('lines')}"
        if name not in self.whole():
            return f"the next run ended well without {name}"
        self.switch(name)
        others = names_of(KEY, [path.name for path in self.versions.iterdir()])
        others.remove(name)
        if others:
            names = ("--versions", self.versions, "--current", self.current, "--", *others)
            done = self.runner.run("discard", *names)
            if done.returncode:
                return f"discard ended with {done.returncode}: {done.stderr}"
        return ""

    def switch(self, name: str) -> None:
        partial = self.current.with_name("current.partial")
        partial.unlink(missing_ok=True)
        partial.symlink_to(self.versions / name)
        partial.rename(self.current)

    # -- what is there -----------------------------------------------------------------------------

    def whole(self) -> set[str]:
        """Builds that prove themselves, whose libraries are as stamped, and that run."""
        if not self.versions.is_dir():
            return set()
        return {path.name for path in self.versions.iterdir() if not self.fault(path)}

    def fault(self, prefix: Path) -> str:
        """Why a folder is no whole build; "": it is one."""
        product = proof(prefix, KEY)
        if product is None:
            return "no proof"
        for path, sha256 in product.libraries.items():
            file = prefix / path
            if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
                return f"{path} is not as stamped"
        command = [prefix / "bin/python", "-I", "-c", "import llama_cpp"]
        ran = subprocess.run(command, capture_output=True, check=False)
        return "" if ran.returncode == 0 else f"it does not run: {ran.stderr.decode()[-200:]}"

    def claims(self) -> list[str]:
        """Proofs and stamps of success that are not borne out by what is there."""
        wrong = []
        for prefix in self.versions.iterdir() if self.versions.is_dir() else ():
            stamp = read_json(prefix / BUILD)
            if stamp and stamp.get("ok") and (fault := self.fault(prefix)):
                wrong.append(f"{prefix.name}: {fault}")
        stamp = read_json(self.folder / STAMP)
        if stamp and stamp.get("ok") and not self.whole():
            wrong.append("the job's stamp says ok and there is no build")
        return wrong

    def files(self) -> dict[str, int]:
        """Everything but the builds' own files, and how many folders of builds there are."""
        found = {
            str(path.relative_to(self.root)): 1
            for path in self.root.rglob("*")
            if self.versions not in path.parents and not path.is_dir()
        }
        found["builds"] = len(list(self.versions.iterdir())) if self.versions.is_dir() else 0
        return found


def processes(root: Path) -> list[int]:
    """Live processes that work below `root`: by command line, current folder or program."""
    inside = str(root).encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            told = [(entry / "cmdline").read_bytes(), os.fsencode((entry / "cwd").readlink())]
        except OSError:
            continue
        if any(inside in one for one in told):
            found.append(int(entry.name))
    return found


def wait_until_gone(root: Path, seconds: float = 20) -> list[int]:
    """What is left after a while."""
    end = time.monotonic() + seconds
    while (left := processes(root)) and time.monotonic() < end:
        time.sleep(0.1)
    return left
