"""What pip, CMake and ninja print of a build."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from llamafleet.onhost import ninja
from llamafleet.onhost.job import JobFailed
from llamafleet.protocol.options import OWN, READ_UNDECLARED

NINJA_STEP = re.compile(r"^\s*\[([0-9]{1,9})/([0-9]{1,9})\] (.*)")
WHEEL = re.compile(
    r"Created wheel for llama.cpp.python: .*\bsize=([0-9]{1,15}) sha256=([0-9a-f]{64})"
)
UNUSED = "Manually-specified variables were not used by the project"
PHASES = {
    "*** Configuring CMake": "configure",
    "*** Building project with": "compile",
    "*** Installing project into wheel": "install",
}
"""scikit-build-core's own lines (1.1.2), by the phase that begins there."""


class BuildLog:
    """Reads pip's verbose output line by line and keeps what the stamp needs."""

    def __init__(self) -> None:
        self.phase = "resolve"
        self.step = 0
        self.steps = 0
        self.line = ""
        self.unused: list[str] = []
        """Options that CMake says it did not use."""
        self.order = ""
        """In which order the units were compiled; "": nothing was said of it."""
        self.wheel_bytes: int | None = None
        self.wheel_sha256: str | None = None
        self._before = self._run = 0
        self._in_unused = False

    def feed(self, line: str) -> None:
        self.line = line.strip()
        if self._in_unused and self.line:
            # The list ends where CMake speaks again: its status lines begin with two dashes.
            self._in_unused = bool(re.fullmatch(r"\w[\w.:-]*", self.line))
            if self._in_unused:
                self.unused.append(self.line)
        if UNUSED in line:
            self._in_unused = True
        elif found := NINJA_STEP.match(line):
            self._count(int(found[1]), int(found[2]))
            self.line = target(found[3])
        elif self.line.startswith(ninja.SAYS):
            self.order = self.line.removeprefix(ninja.SAYS)
        elif found := WHEEL.search(line):
            self.wheel_bytes, self.wheel_sha256 = int(found[1]), found[2]
        else:
            for marker, phase in PHASES.items():
                if self.line.startswith(marker):
                    self.phase = phase

    def _count(self, step: int, steps: int) -> None:
        """Count the steps of all runs of ninja together; each begins at 1 of its own steps."""
        if steps != self._run:
            self._before, self._run = self.steps, steps
        self.step, self.steps = self._before + step, self._before + steps


def target(command: str) -> str:
    """What a ninja step makes: the argument of its last -o, else the command's first words."""
    words = command.split()
    outputs = [after for word, after in itertools.pairwise(words) if word == "-o"]
    return outputs[-1] if outputs else command[:120]


def undeclared_options(cache: str) -> list[str]:
    """Options of llama.cpp's name space in CMakeCache.txt that nothing has declared.

    CMake does not report a mistyped GGML_* as unused: ggml reads every variable of that prefix to
    write its package file (measured with 0.3.36). An option that is declared has a type.
    """
    names = re.findall(rf"^({OWN.pattern}):UNINITIALIZED=", cache, re.MULTILINE)
    return [name for name in names if name not in READ_UNDECLARED]


def refuse_unused(unused: Sequence[str], allowed: Sequence[str]) -> None:
    """Raise JobFailed where CMake did not use an option: a typing error builds something else."""
    wrong = [name for name in dict.fromkeys(unused) if name not in allowed]
    if wrong:
        raise JobFailed(
            f"{UNUSED}: found {', '.join(wrong)}; expected options that this version knows; "
            "next: correct cmake_options in the inventory"
        )
