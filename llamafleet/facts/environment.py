"""Which interpreter is asked about its environment, how, and what it answers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import TypeVar

from llamafleet.facts.environment_probe import ANSWER
from llamafleet.protocol.decode import DecodeError, decode
from llamafleet.protocol.environment import Environment, Look, Trial
from llamafleet.protocol.pythons import PYTHONS, RANGE

T = TypeVar("T")

LOOK_S, TRIAL_S = 60.0, 180.0
"""An import of a CUDA build takes a second, and a slow disk's first one some more."""

VERSION = f"import sys; print('\\n{ANSWER}%d.%d' % sys.version_info[:2])"
"""For any Python, so that one that is too old is named; others may speak before and after it."""


class NoAnswer(Exception):
    """What was asked of an interpreter, and what came: found X; expected Y; next: command."""


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    status: int | None
    """Below 0: by that signal; None: it had no more time."""
    output: str
    error: str


Run = Callable[[Sequence[str], float, Mapping[str, str] | None], Said]
"""Runs a command, for so many seconds, with the caller's variables and these."""


def describe(python: str, run: Run) -> Environment:
    """The environment of `python`. Raises NoAnswer."""
    told = run([python, "-I", "-c", VERSION], LOOK_S, None)
    version = _answer(told)
    if told.status != 0 or not version:
        raise NoAnswer(_no_python(python, told))
    if version not in PYTHONS:
        raise NoAnswer(
            f"{python}: found Python {version[:20]}; expected {RANGE}; "
            "next: make an environment with one of those, as uv venv --python 3.12 PATH"
        )
    return _ask(Environment, run([python, "-I", "-c", _script(), "describe"], LOOK_S, None), python)


def look(python: str, run: Run) -> Look:
    """Which llama_cpp `python` would import, as its user starts it. Raises NoAnswer."""
    return _ask(Look, run([python, "-c", _script(), "look"], LOOK_S, None), python)


def attempt(python: str, run: Run) -> Trial:
    """What comes of that import; one that ends the interpreter is an answer too."""
    said = run([python, "-c", _script(), "try"], TRIAL_S, None)
    try:
        return _ask(Trial, said, python)
    except NoAnswer:
        how = f"status {said.status}"
        if said.status is None:
            how = f"no end after {TRIAL_S:.0f} s"
        elif said.status < 0:
            how = f"signal {-said.status}"
        return Trial(
            False, "", f"the interpreter ended with {how}: {_last(said.error)}", False, "", ()
        )


def _script() -> str:
    return package_files("llamafleet.facts").joinpath("environment_probe.py").read_text("utf-8")


def _no_python(python: str, said: Said) -> str:
    how = "it did not end" if said.status is None else f"it ended with status {said.status}"
    return (
        f"{python}: found no Python that runs ({how}: {_last(said.error)}); expected an "
        f"interpreter, version {RANGE}; next: name another with --python PATH"
    )


def _ask(kind: type[T], said: Said, python: str) -> T:
    try:
        return decode(kind, json.loads(_answer(said)))
    except (ValueError, RecursionError, DecodeError) as error:
        found = _last(said.error) or str(error)
        raise NoAnswer(
            f"{python}: found no answer that is understood ({found}); expected one about its "
            f"environment; next: {python} -I -c 'import sysconfig, importlib.metadata'"
        ) from error


def _answer(said: Said) -> str:
    """ "": there is none."""
    lines = [line for line in said.output.splitlines() if line.startswith(ANSWER)]
    return lines[-1].removeprefix(ANSWER).strip() if lines else ""


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else "no word"


@dataclass(frozen=True)
class Target:
    """The interpreter whose environment is looked at, and why that one."""

    python: str
    why: str
    others: tuple[tuple[str, str], ...] = ()
    """Interpreters of environments that were not looked at, each with what names it."""


def candidates(environ: Mapping[str, str], folder: Path, own: str) -> list[tuple[str, str]]:
    """(interpreter, what names it), best first; `own`: the prefix of this very program, which
    `uvx` puts in front of PATH and which nobody means."""
    found = []
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if value := environ.get(name):
            found.append((f"{value}/bin/python", f"${name}"))
    found.append((str(folder / ".venv/bin/python"), ".venv of this folder"))
    for place in environ.get("PATH", "").split(os.pathsep):
        if place:
            found.append((f"{place}/python3", "python3 on PATH"))
    seen: dict[str, str] = {}
    for python, why in found:
        same = Path(python).parent.resolve() == Path(own, "bin").resolve()
        if os.access(python, os.X_OK) and not same:
            seen.setdefault(python, why)
    return list(seen.items())


def broken(environ: Mapping[str, str]) -> str:
    """Folder of the active environment where it has no interpreter that runs; "": it has one.

    Another interpreter is not what its user means. A conda environment may have none.
    """
    value = environ.get("VIRTUAL_ENV", "")
    return value if value and not os.access(f"{value}/bin/python", os.X_OK) else ""
