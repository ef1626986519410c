"""`python -m tests.bench.costs SOURCE`: seconds of each unit, as rows of tables/unit-costs.yaml.

Of a configured CMake tree: CPU time, one unit after another, so that what else the machine does
counts little. Of a .ninja_log: what each took beside the others.
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


def of_tree(tree: Path) -> dict[str, float]:
    """By unit."""
    entries = json.loads((tree / "compile_commands.json").read_text())
    took: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for entry in entries:
            name = ninja.unit(entry["output"])
            took[name] = seconds(entry["command"], entry["directory"], Path(folder) / "unit.o")
            print(f"# {len(took)}/{len(entries)} {name}", file=sys.stderr, flush=True)
    return took


def of_log(log: Path) -> dict[str, float]:
    """By unit."""
    made = [one for one in ninja.logged(log.read_text()) if one.output.endswith(".o")]
    return {ninja.unit(one.output): one.took / 1000 for one in made}


def main(source: str) -> int:
    """Print a row for each unit, the longest first."""
    took = of_tree(Path(source)) if Path(source).is_dir() else of_log(Path(source))
    for name in sorted(took, key=lambda name: -took[name]):
        print(f"  {name}: {max(took[name], 0.01):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
