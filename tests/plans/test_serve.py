"""The plan of services: what is started, restarted, left or removed, and what stands in the way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llamafleet.facts.host import Gpu, HostSnapshot, Listener, Owner, Unit
from llamafleet.layout import SERVE_TARGET, VERIFY_UNIT, serve_unit
from llamafleet.managed import profile_rows, rows
from llamafleet.plans.make import explain, make_plan
from llamafleet.plans.plan import Plan, ServePlan
from llamafleet.plans.serve import profiles_there, running
from llamafleet.plans.uninstall import plan_uninstall
from llamafleet.protocol.serve import Status
from llamafleet.settings import Settings
from tests.plans.hosts import GPU_HOST, LAYOUT, build_of, plan, proven, there, with_builds

pytestmark = pytest.mark.usefixtures("frozen_tables")
CHAT: dict[str, Any] = {"chat": {"model": "/srv/a.gguf"}}
UNIT = serve_unit("chat")
ACTIVE = Unit("loaded", "active", "running", "enabled", started=1000)
TARGET = Unit("loaded", "active", "active", "enabled")
READY = Status(1, "chat", "ready", 1.0, 7)


def built() -> HostSnapshot:
    """A host with the planned build, proven and in use."""
    host = replace(GPU_HOST, init="systemd", systemd=257)
    build = build_of(host)
    host = with_builds(host, there(build), current=build.name)
    result = proven(plan(host).verify)
    return replace(host, result=result, time=int(result.finished) + 60)


def serving(
    host: HostSnapshot | None = None, unit: Unit = ACTIVE, status: Status | None = READY
) -> HostSnapshot:
    """The same, and CHAT is served."""
    host = host or built()
    made = plan(host, serve=CHAT).serve
    assert made is not None and made.libraries is not None, plan(host, serve=CHAT).problems
    ours = [row for row in profile_rows("chat") if not row.private]
    paths = [row.path(LAYOUT) for row in (*ours, *rows(LAYOUT, "serve"))]
    return replace(
        host,
        files={**host.files, **dict.fromkeys(paths, "a" * 64)},
        units={**host.units, UNIT: unit, SERVE_TARGET: TARGET},
        services={"chat": status} if status else {},
        servers={made.libraries.config.key: True},
        changed=dict.fromkeys(paths, 900),
    )


def of(host: HostSnapshot, serve: dict[str, Any] | None = None, **settings: Any) -> ServePlan:
    made: Plan = plan(host, serve=CHAT if serve is None else serve, **settings)
    assert made.serve is not None, made.problems
    return made.serve


def refused(host: HostSnapshot, serve: dict[str, Any]) -> list[str]:
    return [str(one) for one in plan(host, serve=serve).problems if one.check.startswith("serve")]


def test_without_profiles_nothing_is_said_of_services() -> None:
    assert plan(built()).serve is None
    assert not any("serve" in line for line in explain(plan(built())))


def test_a_first_profile_brings_packages_files_and_a_start() -> None:
    made = of(built())
    assert made.libraries is not None and made.libraries.job is not None
    assert made.files.write == (
        "/etc/llamafleet/serve-chat.json",
        f"/etc/systemd/system/{UNIT}",
        f"/etc/systemd/system/{SERVE_TARGET}",
    )
    assert made.files.enable == (UNIT, SERVE_TARGET) and made.files.reload
    (chat,) = made.services
    assert (chat.action, chat.reason) == ("start", "found inactive")
    assert chat.config.port == 8000 and chat.config.placement.n_gpu_layers == -1
    lines = explain(plan(built(), serve=CHAT))
    assert "server: install its packages (not there)" in lines
    assert "serve: start chat (found inactive): /srv/a.gguf as chat on 127.0.0.1 port 8000" in lines


def test_what_is_served_and_unchanged_is_left() -> None:
    made = of(serving())
    assert not made.needed and made.services[0].ready and made.changed == ()


@pytest.mark.parametrize(
    ("unit", "action", "reason"),
    [
        (Unit("loaded", "failed", "failed", "enabled"), "start", "found failed"),
        (Unit("loaded", "inactive", "dead", "enabled"), "start", "found inactive"),
        # Held, or ill: it is not waited for until systemd tries again.
        (Unit("loaded", "activating", "auto-restart", "enabled"), "start", "found activating"),
        (Unit("loaded", "activating", "start", "enabled"), "leave", "loading"),
        (Unit("loaded", "deactivating", "stop-sigterm", "enabled"), "start", "found deactivating"),
    ],
)
def test_one_that_does_not_run_is_started(unit: Unit, action: str, reason: str) -> None:
    state: Any = "loading" if action == "leave" else "held"
    (chat,) = of(serving(unit=unit, status=replace(READY, state=state))).services
    assert (chat.action, chat.reason, chat.ready) == (action, reason, False)


def test_why_it_did_not_run_is_told() -> None:
    unit = Unit("loaded", "failed", "failed", "enabled")
    status = replace(READY, state="failed", reason="found no GGUF")
    (chat,) = of(serving(unit=unit, status=status)).services
    assert chat.reason == "found failed, failed: found no GGUF"


def test_one_that_runs_and_does_not_serve_is_asked_again() -> None:
    made = of(serving(status=replace(READY, state="draining")))
    assert made.needed and made.services[0].action == "leave" and not made.services[0].ready
    assert of(serving(status=None)).needed


def test_a_setting_that_changed_restarts_it() -> None:
    host = serving()
    sha256 = "b" * 64
    settings = Settings.model_validate({"serve": CHAT})
    config = LAYOUT.serve_config("chat")
    made = make_plan(
        "a",
        settings,
        host,
        LAYOUT,
        sha256=lambda row, plan: (
            sha256 if row.path(LAYOUT) == config else host.files.get(row.path(LAYOUT), "")
        ),
    ).serve
    assert made is not None and config in made.files.write
    assert made.services[0].reason == "changed: serve-chat.json"


@pytest.mark.parametrize(
    "path", [LAYOUT.serve_config("chat"), LAYOUT.zipapp, LAYOUT.current, f"{LAYOUT.units}/{UNIT}"]
)
def test_what_is_newer_than_its_process_restarts_it(path: str) -> None:
    """As a run leaves it that was cut off between the file and the restart."""
    host = serving()
    (chat,) = of(replace(host, changed=host.changed | {path: 1001})).services
    assert chat.action == "restart"
    assert chat.reason == f"newer than it: {path.rpartition('/')[2]}"
    assert of(replace(host, changed=host.changed | {path: 1000})).services[0].ready


def test_a_switch_of_the_build_restarts_it() -> None:
    host = serving()
    (chat,) = of(replace(host, current=None)).services
    assert chat.action == "restart" and chat.reason.startswith("current becomes ")


def test_a_switch_that_no_run_has_seen_serve_is_asked_again() -> None:
    """As a run leaves it that was cut off behind the switch: the new build may serve nothing."""
    host = serving()
    old = "0123456789abcdef"
    before = replace(there(build_of(host), old), name=old)
    before = replace(before, stamp=replace(before.stamp, key=old) if before.stamp else None)
    host = replace(with_builds(host, before, current=host.current), previous=old)
    made = of(host)
    assert made.needed and made.back == old and made.doubt and made.changed == ()
    told = "serve: no run has seen current serve: asked again; back to 0123456789abcdef where "
    assert any(line.startswith(told) for line in explain(plan(host, serve=CHAT)))
    # Damaged, or the planned one itself: nothing is gone back to, and the link goes.
    for name in ("fedcba9876543210", host.current):
        made = of(replace(host, previous=name))
        assert made.needed and made.back == "" and made.doubt
    made = of(replace(host, files={}, units={}, services={}, servers={}, changed={}), {})
    assert made.needed and made.doubt and made.back == ""
    assert not of(replace(host, previous=None)).needed


def test_a_switch_of_what_is_served_says_what_it_goes_back_to() -> None:
    host = serving()
    newer = there(build_of(host), f"{host.current}-2", finished=200.0)
    host = with_builds(host, newer, current=host.current)
    made = plan(host, serve=CHAT)
    assert made.switch is not None and made.switch.keep == host.current
    assert f"serve: back to {host.current} where one does not answer" in explain(made)
    nothing = plan(host).switch
    assert nothing is not None and nothing.keep == ""


def test_a_profile_that_is_not_wanted_any_more_is_removed() -> None:
    other = {"web": {"model": "/srv/a.gguf"}}
    made = of(serving(), other)
    assert made.gone == ("chat",) and UNIT in made.files.stop and UNIT in made.files.disable
    assert LAYOUT.serve_config("chat") in made.files.remove
    lines = explain(plan(serving(), serve=other))
    assert "serve: remove chat (not wanted)" in lines


def test_the_last_profile_takes_all_of_it_along() -> None:
    host = serving()
    made = of(host, {})
    assert made.gone == ("chat",) and made.services == () and made.libraries is None
    assert f"/etc/systemd/system/{SERVE_TARGET}" in made.files.remove
    assert made.outdated == tuple(host.servers)
    # What a run left that was cut off there.
    files = {path: "a" * 64 for path in (f"/etc/systemd/system/{SERVE_TARGET}",)}
    assert of(replace(built(), files=files), {}).files.remove == tuple(files)


def test_profiles_are_known_by_any_trace() -> None:
    owner = Owner("file", "root", "root", 0o600)
    host = replace(
        GPU_HOST,
        files={"/etc/llamafleet/serve-a.json": "0", "/etc/llamafleet/verify.json": "0"},
        owners={"/etc/llamafleet/serve-b.key": owner, "/etc/llamafleet/serve-B.key": owner},
        units={serve_unit("c"): ACTIVE, VERIFY_UNIT: ACTIVE, "llamafleet-serve@.service": ACTIVE},
        services={"d": READY},
    )
    assert profiles_there(host, LAYOUT) == ("a", "b", "c", "d")
    assert running(host, LAYOUT) == ("c",)


def test_a_verification_says_whom_it_interrupts() -> None:
    host = replace(serving(), result=None)
    made = plan(host, serve=CHAT)
    assert made.pauses == ("chat",)
    assert any(
        line.startswith("verify: needed") and line.endswith("; chat not served meanwhile")
        for line in explain(made)
    )
    assert plan(serving(), serve=CHAT).pauses == ()


def test_no_timer_interrupts_what_is_served_unasked() -> None:
    quiet, asked = plan(built(), serve=CHAT), plan(built(), serve=CHAT, verify_pauses_serving=True)
    timer = "/etc/systemd/system/llamafleet-verify.timer"
    assert quiet.files and asked.files
    assert timer not in quiet.files.write and timer in asked.files.write
    assert any("no timer verifies" in note for note in quiet.notes)
    assert not any("no timer" in note for note in (*asked.notes, *plan(built()).notes))
    old = serving()
    old = replace(old, time=old.time + 30 * 86_400)
    # Of its age nothing is to be said where no timer would have renewed it.
    for pauses in (False, True):
        verify = plan(old, serve=CHAT, verify_pauses_serving=pauses).verify
        assert verify is not None and verify.needed is pauses, verify


@pytest.mark.parametrize(
    ("address", "wanted", "clash"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("::", "127.0.0.1", True),
    ],
)
def test_a_port_of_somebody_else_is_seen_before_anything_is_done(
    address: str, wanted: str, clash: bool
) -> None:
    profile = {"chat": {"model": "/srv/a.gguf", "address": wanted}}
    other = Listener(8000, address, 33, 4711, "nginx", "nginx.service")
    found = refused(replace(built(), listening=(other,)), profile)
    assert bool(found) is clash
    if clash:
        assert found[0] == (
            f"serve.chat.port: found {address}:8000 in use by process 4711 (nginx of "
            "nginx.service); expected a port that is free; next: ps -fp 4711; end it, or set "
            "another serve.chat.port"
        )


def test_a_port_of_our_own_is_none_of_somebody_else() -> None:
    ours = Listener(8000, "127.0.0.1", 999, 1, "llamafleet-host", serve_unit("other"))
    assert refused(replace(built(), listening=(ours,)), CHAT) == []
    unseen = Listener(8000, "127.0.0.1", 33)
    assert refused(replace(serving(), listening=(unseen,)), CHAT) == []
    (found,) = refused(replace(built(), listening=(unseen,)), CHAT)
    assert "in use by a process of user 33" in found and "next: end it" in found


@pytest.mark.parametrize(("init", "words"), [("none", "no systemd"), ("silent", "that answers")])
def test_without_systemd_there_is_no_service(init: str, words: str) -> None:
    (found,) = refused(replace(built(), init=init), CHAT)
    assert words in found


def test_a_key_needs_a_systemd_that_hands_it_on(tmp_path: Any) -> None:
    keyed = {"chat": {"model": "/srv/a.gguf", "api_key_file": str(tmp_path / "k")}}
    (found,) = refused(replace(built(), systemd=245), keyed)
    assert "systemd 245, which hands no unit a secret" in found
    assert refused(replace(built(), systemd=247), keyed) == []


def test_a_model_that_can_t_be_read_is_seen_before_anything_is_done() -> None:
    (found,) = refused(replace(built(), unreadable=("/srv/a.gguf",)), CHAT)
    assert found.startswith("serve.chat.model: found no file /srv/a.gguf")
    (own,) = refused(built(), {"chat": {"model": "/tmp/a.gguf"}})
    assert "its unit has a /tmp of its own" in own


def test_gpus_of_a_profile_are_among_the_proven_ones() -> None:
    two = replace(
        built(),
        gpus=(*GPU_HOST.gpus, Gpu(1, "NVIDIA L4", "GPU-b", "00000000:02:00.0", "8.9", 23034)),
    )
    (unknown,) = refused(built(), {"chat": {"model": "/srv/a.gguf", "gpus": ["GPU-12345678"]}})
    assert unknown.startswith("serve.chat.gpus: found GPU-12345678")
    wanted = {"chat": {"model": "/srv/a.gguf", "gpus": ["1"]}}
    problems = [str(one) for one in plan(two, serve=wanted, gpus=["0"]).problems]
    assert any("GPU-b, which the setting gpus leaves out" in one for one in problems), problems


def test_a_masked_service_is_a_person_s_word() -> None:
    masked = Unit("masked", "inactive", "dead", "masked")
    host = replace(built(), units={UNIT: masked})
    made = plan(host, serve=CHAT)
    assert any(f"{UNIT} is masked" in one.found for one in made.problems), made.problems


def test_a_unit_that_somebody_changed_is_told_and_left() -> None:
    file = f"/etc/systemd/system/{UNIT}.d/x.conf"
    host = serving(unit=replace(ACTIVE, dropins=(file,)))
    made = plan(host, serve=CHAT)
    assert f"{UNIT} is changed by {file}, which stays as it is" in made.notes
    assert made.serve is not None and not made.serve.needed
    assert f"{file} (it is not llamafleet's)" in plan_uninstall(host, LAYOUT).stays
    assert not any("is changed by" in note for note in plan(serving(), serve=CHAT).notes)


def test_uninstall_knows_services_that_no_setting_names() -> None:
    host = replace(serving(), made=(LAYOUT.prefix,))
    made = plan_uninstall(replace(host, previous="0123"), LAYOUT)
    assert LAYOUT.previous in made.files and "previous" in made.found
    made = plan_uninstall(host, LAYOUT)
    assert "previous" not in made.found
    assert {UNIT, SERVE_TARGET} <= set(made.units)
    assert {LAYOUT.serve_config("chat"), LAYOUT.serve_key("chat")} <= set(made.files)
    assert UNIT in made.found
