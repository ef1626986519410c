"""`python -m tests.mutants [--room ROOM] [--sample N]`: how many mutants the tests kill."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from tests.mutants.make import COPIES, Mutant, copy_project, mutate
from tests.mutants.plugin import RESULTS, WANTED


@dataclass(frozen=True)
class Room:
    """A folder of the package, and the tests that speak of it."""

    folder: str
    tests: tuple[str, ...]


ROOMS = {
    "protocol": Room(
        "llamafleet/protocol",
        (
            "tests/protocol",
            "tests/plans",
            "tests/onhost/verify",
            "tests/history",
            "--ignore=tests/history/test_command.py",  # It patches the whole process.
            "tests/test_received.py",
        ),
    ),
    "checks": Room(
        "llamafleet/onhost/verify/checks", ("tests/onhost/verify", "tests/history/test_store.py")
    ),
    "plans": Room("llamafleet/plans", ("tests/plans", "tests/hosts", "tests/protocol")),
}
PYTEST = (
    *("-q", "-n", "0", "-p", "no:cacheprovider", "-p", "tests.mutants.plugin", "--capture=no"),
    *("-m", "not e2e and not gpu", "-o", "tmp_path_retention_policy=failed"),
)
SEED = 0


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    arguments.add_argument("--room", choices=ROOMS, action="append", help="all, if none is named")
    arguments.add_argument("--sample", type=int, help="so many of each room, drawn by a fixed seed")
    chosen = arguments.parse_args()
    return max(_run(room, chosen.sample) for room in chosen.room or ROOMS)


def _run(name: str, sample: int | None) -> int:
    room, copy = ROOMS[name], COPIES / name
    copy_project(copy)
    made = mutate(copy, room.folder)
    drawn = made if sample is None else Random(SEED).sample(made, min(sample, len(made)))
    wanted = [mutant.name for mutant in drawn]
    (copy / WANTED).write_text(json.dumps(wanted), encoding="utf-8")
    # pytest's own folder is emptied by others that run meanwhile.
    argv = [sys.executable, "-m", "pytest", *PYTEST, f"--basetemp={copy}/tmp", *room.tests]
    with (copy / "pytest.log").open("w") as log:
        done = subprocess.run(argv, cwd=copy, stdout=log, check=False)
    if done.returncode:
        print(f"{name}: pytest ended with {done.returncode}: see {log.name}", file=sys.stderr)
        return 1
    _show(name, len(made), drawn, json.loads((copy / RESULTS).read_text(encoding="utf-8")))
    return 0


def _show(room: str, made: int, mutants: Sequence[Mutant], results: dict[str, str]) -> None:
    left = [mutant for mutant in mutants if results[mutant.name] in ("survived", "no test")]
    for mutant in left:
        print(f"\n{mutant.name}: {results[mutant.name]}\n{mutant.change}")
    outcomes = Counter(results[mutant.name] for mutant in mutants)
    killed = outcomes["killed"] + outcomes["timeout"]
    print(
        f"\n{room}: {made} mutants, {len(mutants)} of them run: {outcomes['killed']} killed, "
        f"{outcomes['timeout']} timeout, {outcomes['survived']} survived, {outcomes['no test']} "
        f"without a test; {sum(mutant.text_alone for mutant in left)} of those left change the "
        f"letters of a text alone\n{room}: {killed / len(mutants):.1%} killed"
    )
    if len(mutants) < made:
        low, high = wilson(killed, len(mutants))
        print(f"{room}: of all mutants between {low:.1%} and {high:.1%}, at 95 % (Wilson)")


def wilson(hits: int, size: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share that was seen as `hits` of `size`."""
    share, scale = hits / size, 1 + z * z / size
    middle = share + z * z / (2 * size)
    half = z * math.sqrt(share * (1 - share) / size + z * z / (4 * size * size))
    return (middle - half) / scale, (middle + half) / scale


if __name__ == "__main__":
    sys.exit(main())
