"""When a host is rebooted, and what is planned before that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llamafleet.facts.host import HostSnapshot
from llamafleet.plans.driver.reboot import Barred
from llamafleet.plans.make import explain, make_plan
from llamafleet.plans.plan import Plan
from llamafleet.settings import Settings
from tests.plans.driver.test_verdict import CASES, HALF_INSTALLED, NEW, OLD, UPDATED, failing
from tests.plans.hosts import GPU_HOST, LAYOUT, only_problem

PENDING = failing(**UPDATED)


def planned(
    snapshot: HostSnapshot = PENDING, barred: Barred | None = None, **settings: Any
) -> Plan:
    wanted = Settings(**{"reboot": "allow", **settings})
    return make_plan("lab-1", wanted, snapshot, LAYOUT, barred)


def test_a_reboot_takes_the_problem_s_place() -> None:
    made = planned()
    assert made.problems == () and made.reboot
    assert f"module {OLD}, library {NEW}" in made.reboot.reason
    assert (made.toolkit, made.build, made.verify) == (None, None, None)


def test_it_is_explained_with_the_evidence() -> None:
    lines = explain(planned())
    assert "note: driver verdict: reboot needed" in lines
    assert f"note: library: {NEW}" in lines
    assert any(line.startswith("reboot: for the updated driver (loaded kernel") for line in lines)
    assert lines[-1] == "toolkit, build, verify: planned once it has rebooted"


def test_not_without_the_setting() -> None:
    assert only_problem(planned(reboot="never")).next == "sudo reboot"


def test_not_in_a_container() -> None:
    # Its own kernel folder does not make it a machine.
    inside = CASES["installed for a newer kernel than the running one"].host
    assert planned(inside).reboot
    assert only_problem(planned(replace(inside, container="lxc"))).next.startswith("on the host")


def test_not_amid_an_installation() -> None:
    amid = failing(**{**UPDATED, "packages": HALF_INSTALLED})
    assert only_problem(planned(amid)).next.startswith("sudo dpkg --configure -a")


def test_not_the_controller() -> None:
    problem = only_problem(planned(barred="not over SSH"))
    assert problem.next.startswith("sudo reboot, then run the same command again")


def test_not_twice() -> None:
    problem = only_problem(planned(barred="rebooted"))
    assert problem.found.startswith("after the reboot of this run: loaded kernel module")
    assert "reboot" not in problem.next
    assert f"sudo update-initramfs -u -k {PENDING.driver.next_kernel}" in problem.next


def test_not_for_an_administrator_without_root() -> None:
    made = planned(replace(PENDING, uid=1000, user="joe"))
    assert only_problem(made).check == "rights" and made.reboot is None


def test_not_where_another_problem_would_stop_the_host_all_the_same() -> None:
    made = planned(replace(PENDING, pythons=()))
    assert only_problem(made).check == "python" and made.reboot is None


@pytest.mark.parametrize("name", CASES)
def test_only_for_the_verdict_that_a_reboot_solves(name: str) -> None:
    case = CASES[name]
    made = planned(case.host)
    assert (made.reboot is not None) == (case.state == "reboot needed")
    stopped = any(problem.check == "driver" for problem in made.problems)
    assert stopped == (case.blocks and made.reboot is None)


def test_packages_are_planned_at_once_and_the_rest_later() -> None:
    made = planned(replace(PENDING, compilers=()))
    assert made.reboot and made.packages.names and made.build is None


def test_after_the_reboot_the_plan_is_whole() -> None:
    assert planned(GPU_HOST, barred="rebooted").verify
