"""pytest's loop over mutants: each in a fork of a process that has collected the tests.

Loaded by `tests.mutants` alone, in its copy of the project.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import signal
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from _pytest.runner import runtestprotocol
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.state import state

WANTED = Path("mutants.json")
"""Names of the mutants to run."""
RESULTS = Path("results.json")
"""Outcome by name of the mutant."""
WORKERS = 2
SLOWEST_S = 2.0
"""A test that takes longer kills no mutant: too many would wait for it."""
CPU_FACTOR, CPU_S = 10, 5
"""A mutant's tests may take so many times their own time, and so many seconds more."""
SILENT_S = 120
"""A mutant that waits for ever takes no time of the CPU."""


@dataclass
class Called:
    """The tests of one function, those first that call least beside it."""

    tests: list[pytest.Item] = field(default_factory=list)
    seconds: float = 0.0
    at_import: set[str] = field(default_factory=set)
    """Files of tests that keep what it gave while they were imported, so without a mutant."""

    @property
    def modules(self) -> set[ModuleType]:
        return {test.module for test in self.tests if _file(test) in self.at_import}  # type: ignore[attr-defined]


functions: dict[str, Called] = defaultdict(Called)


def pytest_configure() -> None:
    set_mutant_under_test("stats")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    _calls()
    report: Any = yield
    for name in _calls():
        functions[name].at_import.add(collector.nodeid)
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool:
    _learn(session.items)
    gc.collect()
    gc.freeze()
    wanted: list[str] = json.loads(WANTED.read_text(encoding="utf-8"))
    results: dict[str, str] = {}
    running: dict[int, str] = {}
    for number, mutant in enumerate(wanted):
        if number % 100 == 0:
            print(f"{number} of {len(wanted)} mutants", flush=True)
        called = functions[mutant.rpartition("__mutmut_")[0]]
        if not called.tests:
            results[mutant] = "no test"
            continue
        if len(running) == WORKERS:
            results.update([_ended(running)])
        running[_start(mutant, called)] = mutant
    while running:
        results.update([_ended(running)])
    # What a mutant left behind may have made tests red that are not red on another mutant.
    _learn(session.items)
    RESULTS.write_text(json.dumps(results, indent=1), encoding="utf-8")
    return True


def _learn(items: Sequence[pytest.Item]) -> None:
    """Run every test without a mutant, as they are run with one; keep what each calls."""
    seconds: dict[pytest.Item, float] = {}
    calls: dict[pytest.Item, set[str]] = {}
    set_mutant_under_test("stats")
    for item in items:
        start = time.perf_counter()
        if red := _red(item):
            pytest.exit(f"red without a mutant: {item.nodeid}\n{red[0].longreprtext}", returncode=1)
        seconds[item], calls[item] = time.perf_counter() - start, _calls()
    for called in functions.values():
        called.tests, called.seconds = [], 0.0
    for item in sorted(items, key=lambda item: (len(calls[item]), seconds[item])):
        for name in calls[item] if seconds[item] < SLOWEST_S else ():
            functions[name].tests.append(item)
            functions[name].seconds += seconds[item]


def _calls() -> set[str]:
    """Functions called since the last time."""
    called = set(state()._stats)
    state()._stats.clear()
    return called


def _file(item: pytest.Item) -> str:
    return item.nodeid.split("::")[0]


def _red(item: pytest.Item) -> list[pytest.TestReport]:
    """The session stands for the next test: of all fixtures those of the session are kept."""
    session: Any = item.session
    return [one for one in runtestprotocol(item, log=False, nextitem=session) if one.failed]


def _start(mutant: str, called: Called) -> int:
    """The id of a process that runs a mutant's tests until one is red."""
    child = os.fork()
    if child:
        return child
    red = True
    try:
        os.setpgid(0, 0)
        limit = int(CPU_FACTOR * called.seconds) + CPU_S
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        signal.alarm(limit + SILENT_S)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        set_mutant_under_test(mutant)
        for module in called.modules:
            importlib.reload(module)
        red = any(_red(item) for item in called.tests)
    finally:
        os._exit(red)


def _ended(running: dict[int, str]) -> tuple[str, str]:
    """Wait for one; what it left running ends with it."""
    child, status = os.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(status)
    return running.pop(child), "timeout" if code < 0 else "killed" if code else "survived"
