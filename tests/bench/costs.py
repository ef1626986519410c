"""`python -m tests.bench.costs TREE`: CPU-seconds of each unit of a configured CMake tree, as the
rows of tables/unit-costs.yaml. One unit after another; what else the machine does counts little.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from llamafleet.onhost import ninja


def seconds(command: str, folder: str, object_file: Path) -> float:
    """CPU time of one compilation with all its children. Raises RuntimeError."""
    argv = shlex.split(command)
    argv[argv.index("-o") + 1] = str(object_file)
    if "-MF" in argv:
        argv[argv.index("-MF") + 1] = f"{object_file}.d"
    process = subprocess.Popen(argv, cwd=folder, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{command}: ended with status {os.waitstatus_to_exitcode(status)}")
    return used.ru_utime + used.ru_stime


def main(tree: str) -> int:
    """Print a row for each unit, the longest first."""
    entries = json.loads((Path(tree) / "compile_commands.json").read_text())
    took = {}
    with tempfile.TemporaryDirectory() as folder:
        for entry in entries:
            name = ninja.unit(entry["output"])
            took[name] = seconds(entry["command"], entry["directory"], Path(folder) / "unit.o")
            print(f"# {len(took)}/{len(entries)} {name}", file=sys.stderr, flush=True)
    for name in sorted(took, key=lambda name: -took[name]):
        print(f"  {name}: {max(took[name], 0.01):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
