"""What the catalogue of failures adds to a verdict on the driver, and where it adds nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llamafleet.facts.host import HostSnapshot
from llamafleet.plans.driver import known
from llamafleet.plans.driver.cure import cure
from llamafleet.plans.driver.verdict import driver_verdict
from llamafleet.plans.plan import Problem
from llamafleet.tables import failures
from tests.plans.driver.test_verdict import (
    MISMATCH,
    UPDATED,
    XID_45,
    XID_62,
    XID_79,
    failing,
    host,
)

NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that "
    "the latest NVIDIA driver is installed and running."
)
NOT_STARTED = "NVRM: GPU 0000:01:00.0: RmInitAdapter failed! (0x62:0x65:1792)"
"""From NVIDIA/open-gpu-kernel-modules#789, whose nvidia-smi finds no devices."""
XID_63 = (
    "NVRM: Xid (PCI:0000:01:00): 63, pid=1896, Row Remapper: New row marked for remapping, reset "
    "gpu to activate."
)
NONE_FOUND = "No devices were found"
UNTOLD = dict.fromkeys(("module", "library", "module_on_disk", "next_kernel"))


def problem_of(snapshot: HostSnapshot) -> Problem:
    problem = driver_verdict(snapshot).problem
    assert problem is not None
    return problem


def test_rows_that_the_code_names_are_in_the_table() -> None:
    assert {known.MISMATCH} <= {row["id"] for row in failures.rows()}


@pytest.mark.parametrize(
    ("snapshot", "id"),
    [
        (failing(smi_error=NO_DRIVER), "nvidia-smi-no-driver"),
        (failing(smi_error=NONE_FOUND, kernel_log=(XID_45,)), "xid-other"),
        (failing(smi_state="timeout", smi_error="", kernel_log=(XID_45,)), "xid-other"),
        (failing(**UNTOLD, packages=()), "nvml-driver-library-mismatch"),
        # nvidia-smi's own words are nearer than the log of the whole boot.
        (failing(smi_error=NO_DRIVER, kernel_log=(XID_45,)), "nvidia-smi-no-driver"),
    ],
)
def test_what_is_known_is_said_with_its_fix(snapshot: HostSnapshot, id: str) -> None:
    problem = problem_of(snapshot)
    fix = next(row["fix"] for row in failures.rows() if row["id"] == id)
    assert f"known as {id}: " in problem.found and problem.next == fix


@pytest.mark.parametrize(
    ("snapshot", "id"),
    [
        (failing(smi_error=NONE_FOUND, kernel_log=(NOT_STARTED,)), "gpu-not-started"),
        (failing(smi_error=NONE_FOUND, kernel_log=(XID_79,)), "xid-79-fallen-off-bus"),
        (failing(smi_error="GPU is lost.  Reboot the system"), "xid-79-fallen-off-bus"),
        (host(kernel_log=(f"[89990.1] {XID_62}",)), "xid-other"),
    ],
)
def test_what_is_known_of_a_card_is_said_beside_its_own_cure(
    snapshot: HostSnapshot, id: str
) -> None:
    verdict = driver_verdict(snapshot)
    assert verdict.problem and f"known as {id}: " in verdict.problem.found
    assert verdict.cure and verdict.problem.next.startswith(
        cure(verdict.cure, snapshot, "0000:01:00.0")[:20]
    )


def test_a_row_of_memory_that_is_put_out_of_use_is_a_note() -> None:
    verdict = driver_verdict(host(kernel_log=(f"[89990.1] {XID_63}",)))
    assert verdict.state == "ok" and verdict.notes == (f"GPU 0000:01:00.0: [89990.1] {XID_63}",)


@pytest.mark.parametrize(
    ("snapshot", "advice"),
    [
        (failing(smi_error="boom"), "run nvidia-smi on the host"),
        (failing(smi_error=NONE_FOUND), "dmesg"),
        # The versions themselves say more.
        (failing(**UPDATED, smi_error=MISMATCH), "sudo reboot"),
        # The log is the whole machine's, and the container has no nvidia-smi at all.
        (
            replace(
                failing(smi_state="absent", smi_error="", kernel_log=(XID_45,)),
                container="docker",
            ),
            "docker run --gpus all",
        ),
    ],
)
def test_what_is_known_better_or_not_at_all_stays(snapshot: HostSnapshot, advice: str) -> None:
    problem = problem_of(snapshot)
    assert "known as" not in problem.found and advice in problem.next


def test_versions_that_nothing_tells_are_not_compared() -> None:
    verdict = driver_verdict(failing(**UNTOLD, packages=()))
    assert verdict.state == "reboot needed"
    assert verdict.problem and "None" not in verdict.problem.found


def test_a_working_host_is_not_explained() -> None:
    verdict = driver_verdict(host(kernel_log=(f"[89990.1] {XID_45}", NOT_STARTED)))
    assert (verdict.state, verdict.problem, verdict.notes) == ("ok", None, ())
