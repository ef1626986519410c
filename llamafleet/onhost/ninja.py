"""Ninja: the longest units first, and what its log tells.

CMake is given a wrapper as its ninja, and this file is the program that the wrapper runs:
`python ninja.py COSTS NINJA ARGUMENT...` in the build tree. It has ninja compile all units in an
order of its own; unless one of them fails, ninja then makes what CMake wrote, as ever. Of several
ready steps ninja (1.12 to 1.14, graph.h) takes the one with the most steps behind it, then the one
that stands first in its file. So the units alone are asked for, from a copy of build.ninja whose
statements are sorted: else a long unit of the last library would start last. CMake's own file, and
with it what is linked, stays as it is.
"""

from __future__ import annotations

import json
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

TABLE = "unit-costs.json"
"""Name of the table in the zipapp, beside this module; made from tables/unit-costs.yaml."""
SAYS = "build order: "
"""How a line begins that tells which order it was."""
AS_WRITTEN = "as CMake wrote it: "
"""How it goes on where the units are in CMake's own order; the reason follows."""
SORTED = "longest-first.ninja"
"""The sorted copy, beside build.ninja."""
UNIT_FAILED = 3
"""Status: a unit does not compile. Not 1 or 2: with these Python itself ends."""
PROBE_S = 60.0
"""For ninja to answer without building."""

_TOKEN = re.compile(r"(?:\$\{[^}$]*\}|\$.|[^ :|$])+|:|\|\||\|@|\|")
_ASSIGNMENT = re.compile(r"[A-Za-z_][\w.-]*\s*=")
_PLAIN = re.compile(r"-v|--verbose|-[jkl]\d{0,9}|\d{1,9}")
"""Of arguments that ask for the default targets and for nothing else."""
_LINK = re.compile(r"\.(?:a|so(?:\.\d+)*)$")
_WRAPPER = """\
#!/bin/sh
# In the build tree the longest units first; then, whatever came of it, ninja itself.
if [ "$(pwd -P)" = {tree} ] && [ -f build.ninja ]; then
  {python} -I {program} {costs} {ninja} "$@"
  status=$?
  case $status in
    0) ;;
    {failed}) exit 1 ;;
    *) echo "{says}the program for it ended with status $status" ;;
  esac
fi
exec {ninja} "$@"
"""


class Unordered(Exception):
    """Why the units are built in CMake's own order."""


# -- what a unit costs -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Costs:
    """CPU-seconds by unit: only how they compare matters."""

    units: Mapping[str, float]
    families: Sequence[tuple[str, float]]
    """(pattern of a whole unit, seconds) for those that are not among `units`; the first counts."""

    def of(self, unit: str) -> float:
        """Seconds of a unit; one that nothing is known of counts as short."""
        known = self.units.get(unit)
        if known is not None:
            return known
        return next((s for pattern, s in self.families if re.fullmatch(pattern, unit)), 0.0)


def costs_from(data: Mapping[str, Any]) -> Costs:
    """From the table as plain data, or from a file that `wrap` wrote."""
    return Costs(dict(data["units"]), [(str(p), float(s)) for p, s in data["families"]])


@cache
def shipped() -> Costs:
    """The zipapp's own table; empty where these modules run from elsewhere."""
    try:
        data = pkgutil.get_data(__package__, TABLE)
    except OSError:
        data = None
    return costs_from(json.loads(data)) if data else Costs({}, [])


def learned(ninja_log: str) -> Costs:
    """The table, and for the units that it does not name what they took by that log."""
    table = shipped()
    took = {unit(one.output): one.took / 1000 for one in logged(ninja_log)}
    return Costs(took | dict(table.units), table.families)


def unit(output: str) -> str:
    """Name of a unit from the path of its object: ggml-cuda.dir/mmvq.cu."""
    return output.rpartition("CMakeFiles/")[2].removesuffix(".o")


# -- what ninja is told ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Statement:
    """One build statement: its lines are those from `first` up to `last`."""

    first: int
    last: int
    outputs: tuple[str, ...]
    rule: str
    inputs: tuple[str, ...]
    """Of every kind, order-only ones too."""

    @property
    def compiles(self) -> bool:
        """CMake's own names of rules."""
        return "_COMPILER__" in self.rule and self.outputs[0].endswith(".o")


def statements(lines: Sequence[str]) -> list[Statement]:
    """The build statements of a build.ninja that CMake wrote. Raises Unordered."""
    found = []
    for number, line in enumerate(lines):
        if not line.startswith("build "):
            continue
        last = number + 1
        while last < len(lines) and lines[last].startswith(" "):
            last += 1
        if any((len(part) - len(part.rstrip("$"))) % 2 for part in lines[number:last]):
            raise Unordered(f"line {number + 1} of build.ninja goes on in the next")
        found.append(_statement(line, number, last))
    return found


def _statement(line: str, first: int, last: int) -> Statement:
    tokens = _TOKEN.findall(line.removeprefix("build "))
    if ":" not in tokens[:-1]:
        raise Unordered(f"line {first + 1} of build.ninja is no build statement")
    colon = tokens.index(":")
    outputs, inputs = (_paths(part) for part in (tokens[:colon], tokens[colon + 2 :]))
    if not outputs:
        raise Unordered(f"line {first + 1} of build.ninja makes nothing")
    return Statement(first, last, outputs, tokens[colon + 1], inputs)


def _paths(tokens: Iterable[str]) -> tuple[str, ...]:
    return tuple(re.sub(r"\$([ :$])", r"\1", one) for one in tokens if one.strip("|@"))


def needed(lines: Sequence[str], all_of: Sequence[Statement]) -> list[Statement]:
    """The statements that ninja carries out where it is told no target."""
    made = {output: one for one in all_of for output in one.outputs}
    waiting = [name for line in lines if line.startswith("default ") for name in line.split()[1:]]
    seen: set[int] = set()
    while waiting:
        one = made.get(waiting.pop())
        if one and one.first not in seen:
            seen.add(one.first)
            waiting += one.inputs
    return [one for one in all_of if one.first in seen]


def ordered(text: str, cost: Callable[[str], float]) -> tuple[str, list[str]]:
    """build.ninja with the longest units first, and the objects of those that are needed.

    Statements change places with each other and nothing else changes. `cost`: of a unit. Raises
    Unordered.
    """
    lines = text.split("\n")
    all_of = statements(lines)
    units = [one for one in needed(lines, all_of) if one.compiles]
    if not units:
        raise Unordered("found no unit in build.ninja")
    if any(_ASSIGNMENT.match(line) for line in lines[units[0].first : units[-1].last]):
        # A statement sees the variables that stand above it.
        raise Unordered("a variable is set between the units of build.ninja")
    longest = sorted(units, key=lambda one: -cost(unit(one.outputs[0])))
    made, done = [], 0
    for place, one in zip(units, longest, strict=True):
        made += [*lines[done : place.first], *lines[one.first : one.last]]
        done = place.last
    return "\n".join([*made, *lines[done:]]), [one.outputs[0] for one in longest]


def main(costs: str, ninja: str, *arguments: str) -> int:
    """Compile all units, the longest first; 0: ninja may go on, UNIT_FAILED: it need not.

    Raises Unordered.
    """
    if not all(_PLAIN.fullmatch(one) for one in arguments):
        return 0
    known = costs_from(json.loads(Path(costs).read_text(encoding="utf-8")))
    text, objects = ordered(Path("build.ninja").read_text(encoding="utf-8"), known.of)
    Path(SORTED).write_text(text, encoding="utf-8")
    command = [ninja, "-f", SORTED, *arguments]
    _rehearse([*command, "-n", *objects])
    named = sum(unit(one) in known.units for one in objects)
    print(f"{SAYS}longest first, {len(objects)} units, {named} of them by name", flush=True)
    return UNIT_FAILED if subprocess.run([*command, *objects], check=False).returncode else 0


def _rehearse(command: Sequence[str]) -> None:
    """Have ninja read the sorted file and build nothing. Raises Unordered."""
    tried = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=PROBE_S,
        check=False,
    )
    if tried.returncode:
        said = (tried.stderr + tried.stdout).strip().splitlines()
        raise Unordered(said[-1] if said else f"ninja ended with status {tried.returncode}")


def wrap(folder: Path, ninja: Path, tree: Path, costs: Costs) -> Path:
    """A program that takes the place of `ninja` in `tree`; it and what it needs are in `folder`.

    Raises Unordered where it does not answer as ninja itself.
    """
    source = pkgutil.get_data(__package__, Path(__file__).name)
    if source is None:
        raise Unordered("this module has no source")
    folder.mkdir(exist_ok=True)
    program, table, wrapper = (folder / name for name in ("order.py", "costs.json", "ninja"))
    program.write_bytes(source)
    table.write_text(json.dumps({"units": dict(costs.units), "families": list(costs.families)}))
    paths = {"python": sys.executable, "program": program, "costs": table, "ninja": ninja}
    paths["tree"] = tree.resolve()
    quoted = {name: shlex.quote(str(path)) for name, path in paths.items()}
    words = {"failed": str(UNIT_FAILED), "says": SAYS + AS_WRITTEN}
    wrapper.write_text(_WRAPPER.format(**quoted, **words), encoding="utf-8")
    wrapper.chmod(0o755)
    told, expected = _version(wrapper), _version(ninja)
    if told != expected or not told:
        raise Unordered(f"{wrapper} told version {told or 'none'}, and {ninja} {expected}")
    return wrapper


def _version(ninja: Path) -> str:
    try:
        return subprocess.check_output(
            [ninja, "--version"], stdin=subprocess.DEVNULL, text=True, timeout=PROBE_S
        ).strip()
    except (OSError, subprocess.SubprocessError):
        return ""


# -- what its log tells ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One line of .ninja_log, in milliseconds."""

    start: int
    end: int
    output: str
    command: str
    """A hash of it."""

    @property
    def took(self) -> int:
        return self.end - self.start


def steps(ninja_log: str, jobs: int) -> list[Step]:
    """What ninja made, `jobs` at once: by times since the first of its runs began.

    It counts from the start of each run, and when a step ends adds a line for each of its outputs;
    the first stands for it here. So it is another run where a step ends before the one above it,
    or begins while `jobs` of those above it were still at work. A run that neither tells apart
    seems to have been beside the one before.
    """
    found: list[Step] = []
    begun, first = 0, 0
    above: Step | None = None
    for line in logged(ninja_log):
        if above and replace(line, output=above.output) == above:
            continue
        above = line
        one = replace(line, start=begun + line.start, end=begun + line.end)
        at_work = sum(other.start <= one.start < other.end for other in found[first:])
        if at_work >= jobs or (found and one.end < found[-1].end):
            begun, first = found[-1].end, len(found)
            one = replace(line, start=begun + line.start, end=begun + line.end)
        found.append(one)
    return found


def logged(ninja_log: str) -> Iterator[Step]:
    """Its lines by the times that they tell: since the run of each began."""
    for line in ninja_log.splitlines():
        fields = line.split("\t")
        if len(fields) >= 4 and all(re.fullmatch(r"[0-9]{1,15}", one) for one in fields[:2]):
            yield Step(int(fields[0]), int(fields[1]), fields[3], "".join(fields[4:]))


def link_seconds(ninja_log: str, jobs: int) -> float:
    """Seconds in which ninja linked and did nothing else.

    A link that ran beside a compilation cost no time of its own, so only the time in which at
    least one library was being made and no other step ran is counted.
    """
    found = steps(ninja_log, jobs)
    others = [one for one in found if not _LINK.search(one.output)]
    return (_covered(found) - _covered(others)) / 1000


def _covered(found: Iterable[Step]) -> int:
    """Length of the union of the steps' spans."""
    total, end = 0, 0
    for one in sorted(found, key=lambda one: (one.start, one.end)):
        total += max(0, one.end - max(one.start, end))
        end = max(end, one.end)
    return total


def packing(ninja_log: str, jobs: int) -> float | None:
    """Share of `jobs` that was at work, from the first step's start to the last one's end.

    None: it made nothing.
    """
    found = steps(ninja_log, jobs)
    span = max((one.end for one in found), default=0) - min((one.start for one in found), default=0)
    return sum(one.took for one in found) / (span * jobs) if span > 0 else None


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except (Unordered, OSError, ValueError, subprocess.SubprocessError) as reason:
        print(f"{SAYS}{AS_WRITTEN}{reason}", flush=True)
