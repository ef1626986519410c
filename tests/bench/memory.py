"""`python -m tests.bench.memory [--records N] [--hosts N] [--postgres]`: what questions take.

Prints the figures of docs/history.md: of each command that reads all of a history the most memory
that it had at a time, and seconds of a processor. The records are those of tests/bench/history.py;
half of each GPU's are of one driver, half of the next, so that all of them are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from llamafleet.history.record import Record
from llamafleet.history.records import VARIABLE, History
from llamafleet.history.runs import Runs
from llamafleet.history.store import Row
from llamafleet.protocol.result import PASS
from tests.bench.history import GPUS, HOSTS, fill, made
from tests.history.postgres import serving

DRIVERS = ("570.86.10", "580.95.05")
COMMANDS = (
    "history --last 1",
    "compare --last-update",
    f"compare --by driver {' '.join(DRIVERS)}",
    "outliers --window 2020-01-01",
    "bands",
    "history --json",
    "report --format html",
)
MEASURED = """
import json, resource, subprocess, sys
with open(sys.argv[1], "w") as said:
    done = subprocess.run(sys.argv[2:], stdout=said)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([done.returncode, used.ru_maxrss / 1024, used.ru_utime + used.ru_stime]))
"""
"""A program of its own: a child's peak begins with that of its parent."""


def updated(count: int, hosts: int) -> Iterator[Record]:
    for number, record in enumerate(made(count, hosts)):
        yield replace(record, driver=DRIVERS[2 * number >= count])


def measure(history: History, only: str) -> None:
    print("| | MiB | s of a processor |\n|---|---:|---:|")
    for words in COMMANDS:
        if only not in words:
            continue
        code, mib, seconds = asked(history, words.split())
        print(f"| `{words}` | {mib:.0f} | {seconds:.1f} |", flush=True)
        if code not in (0, 1):
            raise SystemExit(f"llamafleet {words}: found exit code {code}; expected 0 or 1")


def asked(history: History, words: list[str]) -> tuple[int, float, float]:
    """Exit code, MiB and seconds of a command."""
    said = history.results.parent / "said"
    command = [Path(sys.executable).parent / "llamafleet", *words, "--results", history.results]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, said, *command],
        env={**os.environ, VARIABLE: history.url}, check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    code, mib, seconds = json.loads(done.stdout)
    return int(code), float(mib), float(seconds)


def kept(history: History, hosts: int) -> None:
    """A run of these hosts: without one there is no report."""
    names = [f"gpu-{number}" for number in range(hosts)]
    runs = Runs(history.results)
    run = runs.begin(command=["pyinfra"], hosts=names, fleet=hosts, waves=[names])
    runs.finish(run, "complete", [Row(host=name, verdict=PASS) for name in names])


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.memory", description=__doc__)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--hosts", type=int, default=HOSTS, help=f"Of {GPUS} GPUs each.")
    parser.add_argument("--only", default="", help="Commands that have this in them.")
    parser.add_argument("--postgres", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llamafleet-m-") as name:
        results = Path(name, "results")
        results.mkdir()

        def measured(url: str = "") -> None:
            history = History(results, url)
            fill(history, updated(options.records, options.hosts))
            kept(history, options.hosts)
            measure(history, options.only)

        if not options.postgres:
            measured()
            return
        folder = Path(name, "pg")
        folder.mkdir()
        Path(name).chmod(0o755)  # The server's account goes through it.
        with serving(folder) as url:
            measured(url)


if __name__ == "__main__":
    main()
