"""Writes the pins of what pip installs on hosts, NAME.txt, again from each NAME.in of this folder.

    .venv/bin/python -m llamafleet.tables.pins              # the versions stay as they are
    .venv/bin/python -m llamafleet.tables.pins --upgrade    # the newest ones that NAME.in allows

It needs `uv`; options go to `uv pip compile`. A new CUDA version is a new
toolkit-wheels-VERSION.in, this command, and rows in toolkits.yaml.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence

from llamafleet.tables import FOLDER

COMMAND = ".venv/bin/python -m llamafleet.tables.pins"
"""As it stands in the head of each file."""

COMPILE = (
    *("uv", "pip", "compile", "--universal", "--generate-hashes", "--python-version", "3.10"),
    *("--no-python-downloads", "--no-annotate", "--custom-compile-command", COMMAND),
    # toolkits.yaml says why NVRTC is left out of the wheels.
    *("--no-emit-package", "nvidia-cuda-nvrtc"),
)


def main(options: Sequence[str]) -> int:
    """0: all are written; else the status of uv, which has said why."""
    if shutil.which("uv") is None:
        print("found no uv on PATH; expected one; next: pip install uv", file=sys.stderr)
        return 1
    for source in sorted(FOLDER.glob("*.in")):
        print(source.name)
        argv = [*COMPILE, *options, source.name, "-o", source.with_suffix(".txt").name]
        done = subprocess.run(argv, cwd=FOLDER, stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            print(f"{source.name}: uv ended with status {done.returncode}", file=sys.stderr)
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
