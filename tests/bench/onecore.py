"""`python -m tests.bench.onecore [--python PYTHON] WHEELHOUSE`: a build's work on one core, before
its first unit: pip as an archive and as a folder, with and without byte code.

Each row is the best of ROUNDS, in CPU-seconds: what else the machine does counts little.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from llamafleet.onhost.pip import AS_SOURCE, HASHES, WHEELS_ONLY, unpacked
from llamafleet.plans.requirements import host_requirements
from llamafleet.wheelhouse.manifest import load
from llamafleet.zipapps import pip_zipapp
from tests.bench.frame import Row, measured

ROUNDS = 3


def run(argv: list[str]) -> Row:
    """A row without a name."""
    env = {"PATH": os.environ["PATH"], "PIP_CONFIG_FILE": os.devnull}
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, env=env)
    return Row("")


def one(root: Path, python: str, house: Path, *, folder: bool, options: list[str]) -> list[float]:
    """CPU-seconds of what is pinned, installed by a new pip, and of the next pip."""
    venv, archive, listed = root / "venv", root / "pip.pyz", root / "listed.txt"
    subprocess.run([python, "-I", "-m", "venv", "--without-pip", str(venv)], check=True)
    archive.write_bytes(pip_zipapp())
    listed.write_text(host_requirements(load(house)))
    pip = unpacked(str(archive), root / "pip") if folder else str(archive)
    argv = [f"{venv}/bin/python", "-I", pip, "install", "--no-index", "--find-links", str(house)]
    argv += ["--no-cache-dir", HASHES, *WHEELS_ONLY, "-r", str(listed)]
    return [measured("", lambda: run([*argv, *options])).cpu_s for _ in range(2)]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("house", type=Path, metavar="WHEELHOUSE")
    args = parser.parse_args()
    print("| pip | byte code | what is pinned, CPU s | the next pip, CPU s |\n|---|---|---|---|")
    for folder in (False, True):
        for options in ([], [AS_SOURCE]):
            rounds = []
            for _ in range(ROUNDS):
                with tempfile.TemporaryDirectory() as root:
                    rounds.append(
                        one(Path(root), args.python, args.house, folder=folder, options=options)
                    )
            best = [f"{min(column):.2f}" for column in zip(*rounds, strict=True)]
            told = ("folder" if folder else "archive", "left out" if options else "by pip")
            print(f"| {' | '.join([*told, *best])} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
