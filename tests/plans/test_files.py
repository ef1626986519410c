"""Files and units of a host: what is found otherwise than wanted, and what repairs it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llamafleet.facts.host import HostSnapshot, Unit
from llamafleet.layout import (
    DEVICES_UNIT,
    DRIVER_CHECK_PATH,
    DRIVER_CHECK_UNIT,
    HOLD_APT,
    METRICS_PATH,
    METRICS_UNIT,
    VERIFY_TIMER,
    VERIFY_UNIT,
    Layout,
)
from llamafleet.managed import Group, Managed, rows
from llamafleet.plans.files import plan_files
from llamafleet.plans.make import explain, make_plan
from llamafleet.plans.plan import FilesPlan, HoldPlan, Plan
from llamafleet.settings import Settings
from tests.plans.hosts import CPU_HOST, GPU_HOST, LAYOUT, only_problem

UNITS = {
    DEVICES_UNIT: Unit("loaded", "inactive", "dead", "static"),
    VERIFY_UNIT: Unit("loaded", "inactive", "dead", "static"),
    VERIFY_TIMER: Unit("loaded", "active", "waiting", "enabled"),
    DRIVER_CHECK_UNIT: Unit("loaded", "inactive", "dead", "enabled"),
    DRIVER_CHECK_PATH: Unit("loaded", "active", "waiting", "enabled"),
}
"""As a deploy leaves them on a GPU host."""
ENABLED = Unit("loaded", "inactive", "dead", "enabled")


def sha256(row: Managed, plan: Plan) -> str:
    return f"sha256 of {row.source}"


def of(unit: str) -> str:
    """Where its file lies."""
    return f"/etc/systemd/system/{unit}"


def deployed(
    host: HostSnapshot = GPU_HOST, layout: Layout = LAYOUT, **changed: Unit
) -> HostSnapshot:
    """A host after a deploy; `changed`: some of its units, as their names' last two parts."""
    files = {
        row.path(layout): sha256(row, Plan("", "cuda"))
        for row in rows(layout, "settings")
        if "metrics" not in row.needs
    }
    units = {name: changed.get(short(name), unit) for name, unit in UNITS.items()}
    return replace(host, files=files, units=units)


def short(unit: str) -> str:
    """driver_check_path of llamafleet-driver-check.path."""
    return unit.removeprefix("llamafleet-").replace(".", "_").replace("-", "_")


def planned(
    snapshot: HostSnapshot, group: Group = "settings", hold: HoldPlan | None = None, **settings: Any
) -> FilesPlan:
    backend = "cuda" if snapshot.gpus else "cpu"
    wanted = Settings(**settings)
    layout = Layout.user("/home/joe") if wanted.scope == "user" else LAYOUT
    plan = Plan("gpu-a", backend, hold=hold)
    return plan_files(group, plan, wanted, snapshot, layout, sha256=sha256)


def test_a_first_run_writes_enables_and_starts_all_and_needs_no_reason() -> None:
    made = planned(GPU_HOST)
    assert made == FilesPlan(
        write=("/etc/llamafleet/llamafleet.env", "/etc/llamafleet/verify.json", *map(of, UNITS)),
        reload=True,
        enable=(VERIFY_TIMER, DRIVER_CHECK_UNIT, DRIVER_CHECK_PATH),
        restart=(VERIFY_TIMER, DRIVER_CHECK_PATH),
    )


def test_a_folder_that_node_exporter_reads_brings_its_units() -> None:
    made = planned(deployed(), metrics_folder="/srv/read")
    assert made.write == (of(METRICS_UNIT), of(METRICS_PATH))
    assert (made.enable, made.restart) == ((METRICS_UNIT, METRICS_PATH), (METRICS_PATH,))
    there = deployed()
    units = {METRICS_UNIT: ENABLED, METRICS_PATH: Unit("loaded", "active", "waiting", "enabled")}
    files = dict.fromkeys(map(of, units), "")
    without = planned(replace(there, files=there.files | files, units=there.units | units))
    assert without.remove == tuple(files)
    assert {*without.disable} == {*units} and METRICS_PATH in without.stop


def test_after_it_nothing_is_needed() -> None:
    assert planned(deployed()) == FilesPlan()
    assert not planned(deployed()).needed


def test_a_timer_that_somebody_disabled_is_enabled_again() -> None:
    made = planned(deployed(verify_timer=Unit("loaded", "inactive", "dead", "disabled")))
    reason = f"enable, start {VERIFY_TIMER} (found disabled, inactive)"
    assert made == FilesPlan(enable=(VERIFY_TIMER,), restart=(VERIFY_TIMER,), reasons=(reason,))


def test_one_that_runs_is_enabled_for_the_next_boot_alone() -> None:
    made = planned(deployed(verify_timer=Unit("loaded", "active", "waiting", "enabled-runtime")))
    reason = f"enable {VERIFY_TIMER} (found enabled-runtime)"
    assert made == FilesPlan(enable=(VERIFY_TIMER,), reasons=(reason,))


@pytest.mark.parametrize("active", ["inactive", "failed"])
def test_a_path_unit_that_does_not_watch_is_started(active: str) -> None:
    made = planned(deployed(driver_check_path=Unit("loaded", active, active, "enabled")))
    reason = f"start {DRIVER_CHECK_PATH} (found {active})"
    assert made == FilesPlan(restart=(DRIVER_CHECK_PATH,), reasons=(reason,))


def test_a_service_need_not_run_but_start_at_boot() -> None:
    for active in ("inactive", "active", "activating", "failed"):
        unit = Unit("loaded", active, "", "enabled")
        assert not planned(deployed(driver_check_service=unit, verify_service=unit)).needed
    made = planned(deployed(driver_check_service=Unit("loaded", "inactive", "dead", "disabled")))
    assert made.enable == (DRIVER_CHECK_UNIT,) and made.restart == ()


def test_units_that_were_written_and_never_enabled() -> None:
    """The connection broke after the upload: systemd has not read them, or knows none."""
    unread = Unit("loaded", "inactive", "dead", "disabled")
    made = planned(deployed(verify_timer=unread, driver_check_path=unread))
    assert made.enable == made.restart == (VERIFY_TIMER, DRIVER_CHECK_PATH)
    unknown = planned(replace(deployed(), units={}))
    assert unknown.reload and unknown.write == ()
    assert unknown.enable == (VERIFY_TIMER, DRIVER_CHECK_UNIT, DRIVER_CHECK_PATH)
    assert f"reload {VERIFY_UNIT} (found not-found)" in unknown.reasons


def test_a_file_that_systemd_has_not_read_is_read() -> None:
    made = planned(deployed(verify_service=replace(UNITS[VERIFY_UNIT], stale=True)))
    reason = f"reload {VERIFY_UNIT} (found a file that systemd has not read)"
    assert made == FilesPlan(reload=True, reasons=(reason,))


def test_a_unit_that_systemd_can_t_load_is_no_success() -> None:
    made = planned(deployed(verify_service=Unit("bad-setting", "inactive", "dead", "static")))
    assert made.needed and made.reasons == (f"reload {VERIFY_UNIT} (found bad-setting)",)


def test_a_changed_file_is_written_and_a_unit_that_runs_is_left_running() -> None:
    snapshot = deployed()
    snapshot.files[of(VERIFY_TIMER)] = snapshot.files[LAYOUT.env] = "another"
    made = planned(snapshot)
    assert made.write == (LAYOUT.env, of(VERIFY_TIMER))
    assert made.reload and made.enable == (VERIFY_TIMER,) and made.restart == ()
    assert made.reasons[0] == "write llamafleet.env (found other content)"


def test_a_timer_that_has_elapsed_for_good_is_started_for_another_schedule() -> None:
    elapsed = deployed(verify_timer=Unit("loaded", "active", "elapsed", "enabled"))
    assert not planned(elapsed).needed, "its last time may be past"
    elapsed.files[of(VERIFY_TIMER)] = "another"
    assert planned(elapsed).restart == (VERIFY_TIMER,)


def test_a_file_that_somebody_removed_is_written_again() -> None:
    snapshot = deployed(verify_timer=Unit("loaded", "active", "waiting", "bad", stale=True))
    del snapshot.files[of(VERIFY_TIMER)]
    made = planned(snapshot)
    assert made.write == (of(VERIFY_TIMER),) and made.reload and made.enable == (VERIFY_TIMER,)
    assert made.reasons == (f"write, enable {VERIFY_TIMER} (found no file)",)


def test_without_a_schedule_the_timer_goes() -> None:
    made = planned(deployed(), verify_schedule=None)
    assert made == FilesPlan(
        stop=(VERIFY_TIMER,),
        disable=(VERIFY_TIMER,),
        remove=(of(VERIFY_TIMER),),
        reload=True,
        reasons=(f"stop, disable, remove {VERIFY_TIMER} (not wanted)",),
    )


def test_without_a_gpu_the_driver_check_goes() -> None:
    made = planned(deployed(CPU_HOST))
    assert made.remove == tuple(map(of, (DEVICES_UNIT, DRIVER_CHECK_UNIT, DRIVER_CHECK_PATH)))
    assert made.stop == (DRIVER_CHECK_PATH,)
    assert made.disable == (DRIVER_CHECK_UNIT, DRIVER_CHECK_PATH)


def test_a_unit_that_is_not_wanted_and_has_no_file_is_stopped() -> None:
    snapshot = deployed(verify_timer=Unit("not-found", "active", "waiting", "bad"))
    del snapshot.files[of(VERIFY_TIMER)]
    made = planned(snapshot, verify_schedule=None)
    assert (made.stop, made.disable, made.remove) == ((VERIFY_TIMER,), (VERIFY_TIMER,), ())
    gone = replace(UNITS[VERIFY_TIMER], load="not-found", active="failed", enabled="")
    assert not planned(
        replace(snapshot, units={**UNITS, VERIFY_TIMER: gone}), verify_schedule=None
    ).needed, "systemd merely remembers it"


MASKED = Unit("masked", "inactive", "dead", "masked")


@pytest.mark.parametrize("unit", UNITS)
def test_a_masked_unit_is_an_administrator_s_word(unit: str) -> None:
    snapshot = deployed(**{short(unit): MASKED})
    del snapshot.files[of(unit)]
    problem = only_problem(make_plan("gpu-a", Settings(), snapshot, LAYOUT))
    assert problem.check == "units" and f"{unit} is masked" in problem.found
    assert problem.next.startswith(f"sudo systemctl unmask {unit}")
    assert ("or set verify_schedule = None" in problem.next) is (unit == VERIFY_TIMER)


def test_a_masked_unit_that_is_not_wanted_is_left_so() -> None:
    snapshot = deployed(CPU_HOST, verify_timer=MASKED, driver_check_path=MASKED)
    for unit in (VERIFY_TIMER, DRIVER_CHECK_PATH):
        del snapshot.files[of(unit)]
    made = make_plan(
        "a", Settings(accelerator="cpu", verify_schedule=None), snapshot, LAYOUT, sha256=sha256
    )
    assert made.problems == () and made.files
    assert made.files.remove == (of(DEVICES_UNIT), of(DRIVER_CHECK_UNIT))
    assert DRIVER_CHECK_PATH not in (*made.files.stop, *made.files.disable)


@pytest.mark.parametrize("init", ["none", "silent"])
def test_where_no_systemd_answers_units_are_left_alone(init: str) -> None:
    """Unknown is not disabled: neither written, nor removed, nor enabled."""
    snapshot = replace(deployed(CPU_HOST), init=init, units={})
    assert not planned(snapshot).needed
    first = planned(replace(GPU_HOST, init=init))
    assert first == FilesPlan(write=(LAYOUT.env, LAYOUT.verify_config))


def test_a_user_s_units_lie_in_the_home() -> None:
    user = Layout.user("/home/joe")
    made = planned(GPU_HOST, scope="user")
    assert f"/home/joe/.config/systemd/user/{VERIFY_TIMER}" in made.write
    disabled = Unit("loaded", "inactive", "dead", "disabled")
    snapshot = deployed(layout=user, verify_timer=disabled)
    assert planned(snapshot, scope="user").enable == (VERIFY_TIMER,)
    problem = only_problem(
        make_plan("a", Settings(scope="user"), deployed(layout=user, verify_timer=MASKED), user)
    )
    assert problem.next.startswith(f"systemctl --user unmask {VERIFY_TIMER}")


@pytest.mark.parametrize(
    ("scope", "init", "linger", "said"),
    [
        ("system", "silent", False, "systemd does not answer: units are neither looked at"),
        ("user", "silent", False, "the systemd of user joe does not answer"),
        ("user", "silent", True, "the systemd of user joe does not answer"),
        ("user", "systemd", False, "units end with the last session of user joe"),
        ("user", "systemd", True, ""),
        ("system", "systemd", False, ""),
        ("system", "none", False, ""),
        ("user", "none", False, ""),
    ],
)
def test_what_is_not_known_of_units_is_said(scope: str, init: str, linger: bool, said: str) -> None:
    host = replace(CPU_HOST, init=init, linger=linger, user="joe")
    settings = Settings.model_validate({"scope": scope, "accelerator": "cpu"})
    notes = make_plan("a", settings, host, Layout.user("/home/joe")).notes
    assert notes == () if not said else len(notes) == 1 and said in notes[0] and "next:" in notes[0]


RECORD = LAYOUT.hold_record


def test_the_hold_s_files_go_by_its_record() -> None:
    held = HoldPlan("", record=("nvidia-driver",))
    assert planned(GPU_HOST, "hold", held).write == (RECORD, HOLD_APT)
    dnf = replace(GPU_HOST, package_manager="dnf")
    assert planned(dnf, "hold", held).write == (RECORD,)
    there = replace(GPU_HOST, files={RECORD: "", HOLD_APT: ""})
    released = planned(there, "hold", HoldPlan(""))
    assert replace(released, reasons=()) == FilesPlan(remove=(RECORD, HOLD_APT))


def test_the_tools_are_wanted_on_each_host() -> None:
    made = planned(replace(CPU_HOST, files={LAYOUT.zipapp: "old"}), "tools")
    assert made.write == (LAYOUT.zipapp, LAYOUT.pip)


def test_the_plan_says_what_is_repaired_and_why() -> None:
    snapshot = deployed(verify_timer=Unit("loaded", "inactive", "dead", "disabled"))
    lines = explain(make_plan("gpu-a", Settings(), snapshot, LAYOUT))
    assert f"files: enable, start {VERIFY_TIMER} (found disabled, inactive)" in lines
    assert not any(
        "files:" in line for line in explain(make_plan("a", Settings(), GPU_HOST, LAYOUT))
    )


def test_content_is_compared_where_the_caller_renders() -> None:
    snapshot = deployed()
    snapshot.files[LAYOUT.verify_config] = "another"
    unrendered = make_plan("a", Settings(), snapshot, LAYOUT).files
    rendered = make_plan("a", Settings(), snapshot, LAYOUT, sha256=sha256).files
    assert unrendered is not None and not unrendered.needed
    assert rendered is not None and rendered.write == (LAYOUT.verify_config,)


def test_a_value_that_can_t_be_rendered_is_a_problem_before_the_build() -> None:
    def refuse(row: Managed, plan: Plan) -> str:
        raise ValueError("CMAKE_ARGS: '...' can't stand in an environment file")

    problem = only_problem(make_plan("a", Settings(), GPU_HOST, LAYOUT, sha256=refuse))
    assert problem.check == "environment" and "can't stand" in problem.found
