"""The plan of every recorded host: as reviewed, and as its description expects.

LLAMAFLEET_UPDATE_GOLDEN=1 rewrites golden/; read the diff: is the advice right for that host?
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest

from tests.hosts.recorded import FOLDER, NAMES, RecordedHost, change, load

GOLDEN = FOLDER / "golden"


def golden(name: str) -> str:
    return (GOLDEN / f"{name}.txt").read_text("utf-8")


def found(host: RecordedHost) -> dict[str, Any]:
    """The plan in the words of `expect`."""
    plan = host.plan
    options = dict(
        argument.removeprefix("-D").split("=", 1)
        for argument in (plan.build.config.cmake_args if plan.build else ())
    )
    toolkit = plan.toolkit
    return {
        "backend": plan.backend,
        "problems": [problem.check for problem in plan.problems],
        "toolkit": f"{toolkit.version} {toolkit.method}" if toolkit else None,
        "architectures": options.get("CMAKE_CUDA_ARCHITECTURES"),
        "compiler": plan.build.config.environment["CXX"] if plan.build else None,
        "packages": list(plan.packages.names),
    }


def failures(host: RecordedHost) -> list[str]:
    """Where the plan is not as expected. `says` and `never` are texts of the explanation."""
    wanted = {
        **{"backend": "cuda", "problems": [], "toolkit": None, "architectures": None},
        **{"packages": []},
        **{k: v for k, v in host.expect.items() if k not in ("says", "never")},
    }
    seen, text = found(host), host.explanation
    wrong = [f"{k}: found {seen[k]!r}, expected {v!r}" for k, v in wanted.items() if seen[k] != v]
    wrong += [f"does not say {part!r}" for part in host.expect.get("says", []) if part not in text]
    wrong += [f"says {part!r}" for part in host.expect.get("never", []) if part in text]
    return wrong


@pytest.mark.parametrize("name", NAMES)
def test_plan_is_as_expected(name: str) -> None:
    host = load(name)
    assert host.expect, "every host says what its plan must be"
    assert failures(host) == []


@pytest.mark.parametrize("name", NAMES)
def test_plan_is_the_reviewed_one(name: str) -> None:
    host = load(name)
    if os.environ.get("LLAMAFLEET_UPDATE_GOLDEN"):
        (GOLDEN / f"{name}.txt").write_text(host.explanation, "utf-8")
    assert host.explanation == golden(name)


def test_every_golden_file_has_its_host() -> None:
    assert sorted(path.stem for path in GOLDEN.glob("*.txt")) == NAMES


def test_there_are_hosts_enough() -> None:
    assert len(NAMES) >= 25


def test_a_shell_in_another_language_changes_nothing() -> None:
    assert golden("rtx4090-580-ubuntu24-german") == golden("rtx4090-580-ubuntu24")


PLANTED: dict[str, dict[str, Any]] = {
    "older driver": {"replace": {"CUDA Version: 13.0": "CUDA Version: 12.8"}},
    "half an update": {"lines": {"module": ["570.211.01"]}},
    "compiler too new": {"lines": {"compiler": ["/usr/bin/g++-16 | gcc | 16.1.0"]}},
    "C library too new": {"lines": {"glibc": ["glibc 2.42"]}},
    "Python too old": {"lines": {"python": ["/usr/bin/python3.9 | 3.9.2 | 1"]}},
    "another GPU": {"replace": {", 8.9": ", 6.1"}},
    "no room": {"lines": {"disk": ["prefix | 900000", "state | 900000"]}},
    "not root": {"lines": {"uid": ["1000"]}},
    "card given away": {
        "lines": {"pci": ["0000:01:00.0 | 0x2684 | vfio-pci"], "smi": [], "module": []},
    },
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_seen_by_both(fault: str) -> None:
    good = load("rtx4090-580-ubuntu24")
    assert failures(good) == []
    bad = replace(good, text=change(good.text, PLANTED[fault]))
    assert bad.explanation != golden(good.name)
    assert failures(bad)


def test_a_wrong_expectation_is_seen() -> None:
    host = load("rtx4090-580-ubuntu24")
    wrong = {**host.expect, "architectures": "90", "says": ["sudo reboot"], "never": ["89"]}
    assert failures(replace(host, expect=wrong)) == [
        "architectures: found '89', expected '90'",
        "does not say 'sudo reboot'",
        "says '89'",
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"replace": {"no such text": "x"}}, "does not occur"),
        ({"lines": {"compilers": []}}, "is no key of a recording"),
        ({"blocks": {"os_release": None}}, "is no block of a recording"),
    ],
)
def test_a_mistyped_change_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        change(load("rtx4090-580-ubuntu24").text, changes)
