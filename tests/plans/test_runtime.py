"""Serving from a container: what a host must have, what is rendered, what proves it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from llamafleet.facts.host import HostSnapshot, Owner, Tool, Unit
from llamafleet.inventory import SettingsError, validate_fleet
from llamafleet.layout import (
    CDI_FILE,
    DEVICES_UNIT,
    DRIVER_CHECK_PATH,
    DRIVER_CHECK_UNIT,
    SERVE_TARGET,
    VERIFY_TIMER,
    VERIFY_UNIT,
    container_of,
    quadlet,
    serve_unit,
)
from llamafleet.managed import Managed, container_row, profile_rows
from llamafleet.managed import rows as catalogue
from llamafleet.plans.files import Sha256
from llamafleet.plans.make import explain, make_plan
from llamafleet.plans.plan import Plan, ServePlan
from llamafleet.plans.runtime import why_unproven
from llamafleet.plans.supplies import Supplies
from llamafleet.plans.uninstall import plan_uninstall
from llamafleet.protocol.result import CPU_ONLY, FAIL, PASS
from llamafleet.protocol.serve import Status
from llamafleet.render import content
from llamafleet.settings import Settings
from llamafleet.tables import overlaid
from tests.frozen_tables import FROZEN
from tests.history import RESULT
from tests.history import gpu as row
from tests.plans.hosts import CPU_HOST, GPU_HOST, LAYOUT, driver

IMAGE = f"registry.lab:5000/llama-rtx4090@sha256:{'a' * 64}"
PODMAN = Tool("/usr/bin/podman", "5.4.2")
CTK = Tool("/usr/bin/nvidia-ctk", "1.18.0")
GPU = replace(
    GPU_HOST, podman=PODMAN, nvidia_ctk=CTK, quadlet=True, account_ids=(998, 997), systemd=257
)
CPU = replace(GPU, pci_gpus=(), gpus=(), driver=CPU_HOST.driver, nvidia_ctk=None)
ENABLED = Unit("loaded", "active", "running", "enabled")
GENERATED = replace(ENABLED, enabled="generated")
CHAT: dict[str, Any] = {"model": "/srv/models/chat.gguf"}


def settings(**changes: Any) -> Settings:
    data = {"runtime": "container", "image": IMAGE, "serve": {"chat": CHAT}} | changes
    return Settings.model_validate(data)


@overlaid(FROZEN)
def plan(snapshot: HostSnapshot = GPU, sha256: Sha256 | None = None, **changes: Any) -> Plan:
    return make_plan("lab-1", settings(**changes), snapshot, LAYOUT, sha256=sha256)


def problem(snapshot: HostSnapshot, **changes: Any) -> str:
    made = plan(snapshot, **changes)
    (only,) = made.problems
    assert made.container is None and made.serve is None
    return str(only)


def rendered(made: Plan, **changes: Any) -> str:
    text = content(container_row("chat"), made, settings(**changes), LAYOUT, Supplies())
    return text.decode()


def test_nothing_is_built_and_the_profile_is_served() -> None:
    made = plan()
    assert not made.problems, made.problems
    assert (made.build, made.toolkit, made.verify, made.switch) == (None, None, None, None)
    assert made.container and made.container.image == IMAGE
    assert made.serve and [one.action for one in made.serve.services] == ["start"]
    assert quadlet("chat") in made.serve.files.write
    said = "\n".join(explain(made))
    assert f"container: {IMAGE}" in said and "device llamafleet.local/gpu=all" in said
    assert "verify_pauses_serving" not in said and "driver check" not in said


def test_a_host_with_an_old_podman_or_none_is_refused() -> None:
    assert "found no podman" in problem(replace(GPU, podman=None))
    assert "apt install podman" in problem(replace(GPU, podman=None))
    old = problem(replace(GPU, podman=Tool("/usr/bin/podman", "4.3.1")))
    assert "found podman 4.3.1; expected podman 4.5 or newer" in old
    assert "podman-system-generator" in problem(replace(GPU, quadlet=False))


def test_gpus_need_the_container_toolkit_and_a_cpu_none() -> None:
    assert "found no nvidia-ctk" in problem(replace(GPU, nvidia_ctk=None))
    assert not plan(CPU, accelerator="cpu").problems


def test_a_driver_that_does_not_work_is_refused_as_for_a_build() -> None:
    broken = replace(GPU, driver=replace(GPU.driver, smi=None, cuda=None, smi_state="failed"))
    assert plan(broken).problems


def test_the_file_of_the_container() -> None:
    text = rendered(plan())
    for line in (
        f"Image={IMAGE}",
        "User=998",
        "Group=997",
        "ReadOnly=true",
        "NoNewPrivileges=true",
        "DropCapability=all",
        "Network=host",
        "HealthCmd=none",
        "Volume=/var/lib/llamafleet:/var/lib/llamafleet",
        "Volume=/srv/models:/srv/models:ro",
        "AddDevice=llamafleet.local/gpu=all",
        "ExecStartPre=/usr/bin/nvidia-ctk cdi generate --vendor=llamafleet.local --class=gpu "
        f"--device-name-strategy=uuid --format=json --output={CDI_FILE}",
    ):
        assert line in text.splitlines(), text
    assert "Secret=" not in text and "{" not in text


def test_named_gpus_alone_are_given_to_it() -> None:
    uuid = "GPU-5f3d2c1b-0000-0000-0000-000000000000"
    named = replace(GPU, gpus=(replace(GPU.gpus[0], uuid=uuid),))
    for changes in ({"gpus": (uuid,)}, {"serve": {"chat": CHAT | {"gpus": (uuid,)}}}):
        made = plan(named, **changes)
        assert not made.problems, made.problems
        assert made.container and made.container.devices == (f"llamafleet.local/gpu={uuid}",)


def test_a_container_for_the_cpu_gets_no_device() -> None:
    text = rendered(plan(CPU, accelerator="cpu"), accelerator="cpu")
    assert "AddDevice" not in text and CDI_FILE not in text


def test_the_key_is_a_secret_of_podman_that_ends_with_the_service(tmp_path: Any) -> None:
    key = tmp_path / "key"
    profile = {"serve": {"chat": CHAT | {"api_key_file": str(key)}}}
    text = rendered(plan(**profile), **profile)
    assert re.search(r"^Secret=llamafleet-serve-chat,type=mount,target=api-key,uid=998", text, re.M)
    assert "ExecStartPre=podman secret create llamafleet-serve-chat /etc/llamafleet/" in text
    assert "ExecStopPost=-podman secret rm llamafleet-serve-chat" in text


def test_units_of_a_build_are_not_wanted_beside_a_container() -> None:
    made = plan()
    assert made.files
    written = {path.rpartition("/")[2] for path in made.files.write}
    assert written == {DEVICES_UNIT}
    assert not {VERIFY_UNIT, DRIVER_CHECK_UNIT, "verify.json", "llamafleet.env"} & written


def every(*rows: Managed) -> dict[str, str]:
    return {row.path(LAYOUT): "a" * 64 for row in rows}


@overlaid(FROZEN)
def test_a_change_of_runtime_leaves_nothing_of_the_other_one() -> None:
    """Both make the unit of one name; a timer of a build would write over the container's proof."""
    build = [row for row in catalogue(LAYOUT) if row.group in ("settings", "serve")]
    venv = [row for row in profile_rows("chat") if not row.private]
    of_venv = {*map(lambda row: row.path(LAYOUT), (*build, venv[-1]))}
    units = {row.unit: ENABLED for row in (*build, *venv) if row.unit}
    made = plan(replace(GPU, files=every(*build, *venv), units=units))
    assert not made.problems and made.files and made.serve
    kept = {f"{LAYOUT.units}/{DEVICES_UNIT}", f"{LAYOUT.units}/{SERVE_TARGET}"}
    assert {*made.files.remove, *made.serve.files.remove} == of_venv - kept
    assert {VERIFY_TIMER, DRIVER_CHECK_PATH} <= {*made.files.stop} & {*made.files.disable}
    assert serve_unit("chat") in made.serve.files.stop
    assert made.serve.files.write == (quadlet("chat"),) and made.serve.files.reload
    assert [one.action for one in made.serve.services] == ["restart"]

    there = every(*catalogue(LAYOUT, "serve"), venv[0], container_row("chat"))
    contained = replace(GPU, files=there, units={serve_unit("chat"): GENERATED})
    back = make_plan("lab-1", Settings.model_validate({"serve": {"chat": CHAT}}), contained, LAYOUT)
    assert not back.problems and back.serve
    assert back.serve.files.remove == (quadlet("chat"),)
    assert back.serve.files.write == (f"{LAYOUT.units}/{serve_unit('chat')}",)
    assert back.serve.files.stop == (serve_unit("chat"),) and back.serve.files.reload
    assert [one.action for one in back.serve.services] == ["restart"]


OLD = f"registry.lab:5000/llama-rtx4090@sha256:{'0' * 64}"
KEPT = (LAYOUT.former_config("chat"), LAYOUT.former_container("chat"))
ROOTS = Owner("file", "root", "root", 0o644)


def wanted(row: Managed, plan: Plan) -> str:
    """sha256 of the planned content."""
    return "b" * 64


def serving(sha256: str = "a" * 64) -> HostSnapshot:
    """A host that serves from the container of OLD."""
    rows = [row for row in catalogue(LAYOUT) if row.group in ("settings", "serve")]
    files = every(*rows, profile_rows("chat")[0], container_row("chat"))
    return replace(
        GPU,
        files=dict.fromkeys(files, sha256),
        owners=dict.fromkeys(files, ROOTS),
        units={row.unit: ENABLED for row in rows if row.unit} | {serve_unit("chat"): GENERATED},
        services={"chat": Status(1, "chat", "ready", 1.0, 7)},
        images={quadlet("chat"): OLD},
    )


def kept(host: HostSnapshot, sha256: str = "0" * 64) -> HostSnapshot:
    """The same as a run leaves it that was cut off before the new image had answered."""
    files = host.files | dict.fromkeys(KEPT, sha256)
    images, owners = {quadlet("chat"): IMAGE, KEPT[-1]: OLD}, dict.fromkeys(files, ROOTS)
    return replace(host, files=files, images=images, owners=owners)


def served(host: HostSnapshot, **changes: Any) -> ServePlan:
    made = plan(host, wanted, **changes)
    assert not made.problems and made.serve is not None, made.problems
    return made.serve


def test_another_image_says_what_it_goes_back_to() -> None:
    made = served(serving())
    assert (made.back, made.keep, made.doubt) == (OLD, True, False)
    assert [one.action for one in made.services] == ["restart"]
    assert f"serve: back to {OLD} where one does not answer" in explain(plan(serving(), wanted))
    assert made.former and [kept for _, kept in made.former.files] == [*KEPT]


def test_where_the_container_is_as_planned_nothing_is_gone_back_to() -> None:
    made = served(serving("b" * 64))
    assert (made.back, made.keep, made.needed) == ("", False, False)
    first = served(GPU)
    assert (first.back, first.keep) == ("", False)


def test_an_image_that_no_run_has_seen_serve_is_asked_again() -> None:
    host = kept(serving("b" * 64))
    made = served(host)
    assert made.needed and made.doubt and not made.keep and made.changed == ()
    assert made.back == OLD
    told = f"serve: no run has seen the image serve: asked again; back to {OLD} where one does not"
    assert any(line.startswith(told) for line in explain(plan(host, wanted)))
    # Another one again: still the one of which it is known, and not the one in between.
    assert (served(kept(serving())).back, served(kept(serving())).keep) == (OLD, False)


def test_what_is_kept_and_planned_is_not_gone_back_to() -> None:
    made = served(kept(serving("b" * 64), "b" * 64))
    assert (made.back, made.doubt) == ("", True)


@pytest.mark.parametrize("path", [quadlet("chat"), LAYOUT.serve_config("chat")])
def test_what_another_wrote_is_not_gone_back_to(path: str) -> None:
    host, owner = serving(), Owner("file", "llamafleet", "llamafleet", 0o644)
    made = served(replace(host, owners=host.owners | {path: owner}))
    assert (made.back, made.keep) == ("", False)
    unknown = {name: owner for name, owner in host.owners.items() if name != path}
    made = served(replace(host, owners=unknown))
    assert (made.back, made.keep) == ("", False), "nobody knows whose it is"


def test_what_is_kept_goes_with_its_profile_its_runtime_and_all_the_rest() -> None:
    host = kept(serving())
    other = {"serve": {"web": CHAT}}
    assert {*KEPT} <= {*served(host, **other).files.remove}
    venv = make_plan("lab-1", Settings.model_validate({"serve": {"chat": CHAT}}), host, LAYOUT)
    assert venv.serve and {*KEPT} <= {*venv.serve.files.remove}
    assert {*KEPT} <= {*plan_uninstall(host, LAYOUT).files}
    alone = replace(GPU, files=dict.fromkeys(KEPT, "a" * 64))
    assert {*KEPT} <= {*plan_uninstall(alone, LAYOUT).found}


def test_podman_is_asked_where_it_was_told_of_a_container_alone() -> None:
    """Asked elsewhere it would make itself folders."""
    key = f"{LAYOUT.etc}/serve-other.json"
    there = replace(GPU, files={quadlet("chat"): "a", key: "a"})
    assert plan_uninstall(there, LAYOUT).containers == (container_of("chat"),)
    assert plan_uninstall(replace(there, podman=None), LAYOUT).containers == ()
    assert plan_uninstall(replace(GPU, files={key: "a"}), LAYOUT).containers == ()


@pytest.mark.parametrize(
    ("owner", "taken"),
    [
        (Owner("file", "root", "root", 0o644), True),
        (Owner("file", "llamafleet", "llamafleet", 0o644), False),
        (Owner("link", "root", "root", 0o777), False),
        (None, False),
    ],
)
def test_the_record_of_images_is_root_s_own_file(owner: Owner | None, taken: bool) -> None:
    there = replace(GPU, user="root", owners={LAYOUT.images: owner} if owner else {})
    assert plan_uninstall(there, LAYOUT).images == taken


def test_uninstall_removes_the_container_of_a_profile() -> None:
    there = replace(GPU, owners={quadlet("chat"): None})  # type: ignore[dict-item]
    gone = plan_uninstall(there, LAYOUT)
    assert quadlet("chat") in gone.files and serve_unit("chat") in gone.units
    assert quadlet("chat") in gone.found


PROVEN = replace(
    RESULT,
    verdict=PASS,
    inputs=replace(RESULT.inputs, driver=driver().smi),
    gpus=(replace(row(0), uuid=GPU.gpus[0].uuid, verdict=PASS),),
)


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (PROVEN, ""),
        (None, "no result"),
        (replace(PROVEN, verdict=FAIL), "the verdict FAIL"),
        (replace(PROVEN, verdict=CPU_ONLY), "the verdict CPU ONLY"),
        (replace(PROVEN, gpus=()), f"a result without {GPU.gpus[0].uuid}"),
        (
            replace(PROVEN, inputs=replace(PROVEN.inputs, driver="535.1.1")),
            "a result on driver 535.1.1, and 580.159.04 is there",
        ),
    ],
)
def test_what_proves_what_the_container_serves(result: Any, why: str) -> None:
    assert why_unproven(settings(), replace(GPU, result=result), "cuda") == why


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"image": None}, "image: found None"),
        ({"image": "llama-rtx4090:latest"}, "a name with its digest"),
        ({"image": f"Registry/x@sha256:{'a' * 64}"}, "a name with its digest"),
        ({"image": f"registry.lab/x@sha256:{'a' * 63}"}, "a name with its digest"),
        ({"runtime": "docker"}, "venv or container"),
        ({"runtime": "venv"}, 'runtime = "container" beside it'),
        ({"scope": "user"}, "scope"),
        ({"serve": {}}, "found 0 profiles"),
        ({"serve": {"a": CHAT, "b": CHAT | {"port": 8001}}}, "found 2 profiles"),
    ],
)
def test_bad_settings_are_refused_before_a_host_is_touched(
    changes: dict[str, object], word: str
) -> None:
    data = {"runtime": "container", "image": IMAGE, "serve": {"chat": CHAT}} | changes
    with pytest.raises(SettingsError) as refused:
        validate_fleet({"a": data})
    assert word in str(refused.value)
