"""The hold on the driver's packages: a table of packages, holds, and records of earlier runs."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import pytest

from llamafleet.facts.host import HostSnapshot
from llamafleet.plans.driver.hold import expressions, plan_hold, release
from llamafleet.plans.driver.verdict import driver_verdict
from llamafleet.plans.make import explain
from llamafleet.plans.plan import HoldPlan, Problem
from llamafleet.settings import Settings
from tests.plans.driver.test_verdict import CASES as VERDICTS
from tests.plans.driver.test_verdict import NEW, OLD, failing, ubuntu
from tests.plans.hosts import GPU_HOST, driver, only_problem, plan

PARTS = ("libcuda1:amd64", "nvidia-driver", "nvidia-kernel-dkms")
ON = Settings(hold_driver=True)


def host(
    parts: tuple[str, ...] = PARTS,
    held: tuple[str, ...] = (),
    record: tuple[str, ...] = (),
    manager: str | None = "apt",
) -> HostSnapshot:
    return replace(
        GPU_HOST,
        driver=driver(parts=parts, held=held),
        hold_record=record,
        package_manager=manager,
        dnf_locks=True,
    )


def held_by(snapshot: HostSnapshot, settings: Settings = ON) -> HoldPlan:
    made = plan_hold(settings, snapshot)
    assert isinstance(made, HoldPlan), made
    return made


@dataclass(frozen=True)
class Case:
    host: HostSnapshot
    hold: tuple[str, ...]
    record: tuple[str, ...]
    reason: str


CASES = {
    "the first time": Case(host(), PARTS, PARTS, "hold_driver"),
    "all held": Case(host(held=PARTS, record=PARTS), (), PARTS, "hold_driver: 3 held"),
    "a new one": Case(
        host(held=PARTS[:2], record=PARTS[:2]), PARTS[2:], PARTS, "NEW, outside the hold so far"
    ),
    "one that somebody released": Case(
        host(held=PARTS[1:], record=PARTS), PARTS[:1], PARTS, "NEW, outside the hold so far"
    ),
    "held by somebody else": Case(host(held=PARTS), (), (), "hold_driver: 3 held"),
    "some held by somebody else": Case(host(held=PARTS[:1]), PARTS[1:], PARTS[1:], "hold_driver"),
    "one of two architectures": Case(
        host(parts=("libcuda1:amd64", "libcuda1:i386"), held=("libcuda1:amd64",)),
        ("libcuda1:i386",),
        ("libcuda1:i386",),
        "hold_driver",
    ),
    "one was removed": Case(host(PARTS[:2], PARTS[:2], PARTS), (), PARTS[:2], "2 held"),
    "one was removed and its lock is left": Case(
        host(PARTS[:2], PARTS, PARTS), (), PARTS, "2 held"
    ),
    "no packages": Case(host(()), (), (), "no package of the driver is installed"),
    "held before, no part today": Case(
        host((), ("nvidia-prime",), ("nvidia-prime",)), (), ("nvidia-prime",), "no package"
    ),
    "locked by a pattern": Case(host(held=("*nvidia*", "libcuda1*")), (), (), "3 held"),
}


@pytest.mark.parametrize("name", CASES)
def test_hold(name: str) -> None:
    case = CASES[name]
    made = held_by(case.host)
    assert (made.hold, made.record, made.release) == (case.hold, case.record, ())
    assert case.reason in made.reason
    assert made.commands == ((f"apt-mark hold {' '.join(case.hold)}",) if case.hold else ())


def test_dnf_locks_the_versions_that_are_installed() -> None:
    (command,) = held_by(host(("akmod-nvidia",), manager="dnf")).commands
    assert command == "dnf -y '--disablerepo=*' versionlock add akmod-nvidia"
    (command,) = held_by(
        host(("akmod-nvidia",), ("akmod-nvidia",), ("akmod-nvidia",), "dnf"), Settings()
    ).commands
    assert command == "dnf -y '--disablerepo=*' versionlock delete akmod-nvidia"


def test_dnf_without_its_plugin() -> None:
    problem = plan_hold(ON, replace(host(manager="dnf"), dnf_locks=False))
    assert isinstance(problem, Problem)
    assert problem.next == "sudo dnf install python3-dnf-plugin-versionlock"


@pytest.mark.parametrize(
    ("manager", "by_hand"),
    [("pacman", "IgnorePkg"), ("zypper", "zypper addlock"), ("apk", "by hand"), (None, "by hand")],
)
def test_other_package_managers(manager: str | None, by_hand: str) -> None:
    problem = plan_hold(ON, host(manager=manager))
    assert isinstance(problem, Problem) and by_hand in problem.next
    assert (
        problem.found
        == f"hold_driver is not available with {manager or 'no known package manager'}"
    )
    assert plan_hold(Settings(), host(manager=manager)) is None


def test_packages_that_disagree_are_not_held_together() -> None:
    split = failing(library=NEW, packages=ubuntu(NEW, OLD), parts=PARTS)
    made = held_by(split)
    assert made.hold == () and made.commands == ()
    assert made.reason == f"not held until the packages agree: {', '.join(PARTS)}"


def test_a_driver_that_works_is_held_though_another_kernel_has_another_module() -> None:
    found = VERDICTS["another kernel's module differs"].host
    works = replace(found, driver=replace(found.driver, parts=PARTS))
    assert driver_verdict(works).state == "packages split"
    assert held_by(works).hold == PARTS


def test_release_only_what_llamafleet_holds() -> None:
    snapshot = host(held=PARTS, record=PARTS[1:])
    for made in (held_by(snapshot, Settings()), release(snapshot)):
        assert made and made.release == PARTS[1:] and made.record == ()
        assert made.commands == (f"apt-mark unhold {' '.join(PARTS[1:])}",)


def test_release_nothing_that_is_released_already() -> None:
    made = held_by(host(record=PARTS), Settings())
    assert (made.release, made.commands) == ((), ())


def test_without_hold_there_is_nothing_to_plan() -> None:
    assert plan_hold(Settings(), host(held=PARTS)) is None
    assert not any(line.startswith("hold:") for line in explain(plan(host(held=PARTS))))


def test_a_host_with_problems_is_held_and_says_so() -> None:
    made = plan(replace(host(), pythons=()), hold_driver=True)
    assert only_problem(made).check == "python"
    assert made.hold and made.hold.hold == PARTS
    assert f"hold: {' '.join(PARTS)} (hold_driver)" in explain(made)


def test_without_root_nothing_is_held() -> None:
    made = plan(replace(host(), uid=1000), hold_driver=True)
    assert only_problem(made).check == "rights" and made.hold is None


def test_a_release_is_explained() -> None:
    lines = explain(plan(host(held=PARTS, record=PARTS)))
    assert f"hold: release {' '.join(PARTS)} (held by llamafleet before)" in lines


@pytest.mark.parametrize(
    ("name", "blocks", "passes"),
    [
        ("nvidia-driver", ("nvidia-driver", "nvidia-driver:i386"), ("nvidia-driver-bin",)),
        ("libcuda1:amd64", ("libcuda1", "libcuda1:i386"), ("libcuda1-535", "xlibcuda1")),
        ("g++-nvidia-5.8", ("g++-nvidia-5.8",), ("ggg-nvidia-5.8", "g++-nvidia-5x8")),
    ],
)
def test_expressions_as_unattended_upgrades_matches_them(
    name: str, blocks: tuple[str, ...], passes: tuple[str, ...]
) -> None:
    (expression,) = expressions([name])
    assert all(re.match(expression, other) for other in blocks)
    assert not any(re.match(expression, other) for other in passes)


@pytest.mark.parametrize(
    ("manager", "fix"),
    [
        ("apt", "sudo apt-mark unhold nvidia-dkms-580; sudo apt-get install --only-upgrade"),
        ("dnf", "sudo dnf versionlock delete nvidia-dkms-580; sudo dnf upgrade nvidia-dkms-580"),
    ],
)
def test_a_repair_lifts_the_hold_first(manager: str, fix: str) -> None:
    split = failing(library=NEW, packages=ubuntu(NEW, OLD), held=("nvidia-dkms-580",))
    assert only_problem(plan(replace(split, package_manager=manager))).next.startswith(fix)


@pytest.mark.parametrize(
    ("manager", "held", "fix"),
    [
        (
            "apt",
            ("nvidia-utils-580", "nvidia-dkms-580:i386"),
            "sudo apt-mark unhold nvidia-dkms-580:i386; sudo apt-get install",
        ),
        ("dnf", ("bash", "nvidia-d*"), "sudo dnf versionlock delete 'nvidia-d*'; sudo dnf upgrade"),
    ],
)
def test_a_repair_lifts_a_hold_as_it_was_set(manager: str, held: tuple[str, ...], fix: str) -> None:
    """`apt-mark unhold NAME` leaves NAME of another architecture held, and with it all of NAME."""
    split = failing(library=NEW, packages=ubuntu(NEW, OLD), held=held)
    assert only_problem(plan(replace(split, package_manager=manager))).next.startswith(fix)
