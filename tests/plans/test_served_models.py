"""Which models must come, from where, how large they are, and which may go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llamafleet.facts.host import HostSnapshot, Job, ModelFile, PlacedModel
from llamafleet.layout import Layout
from llamafleet.plans.host import state_needs
from llamafleet.plans.make import explain, make_plan
from llamafleet.plans.plan import ModelsPlan, Problem
from llamafleet.plans.served_models import RESERVE_MIB, model_lines, plan_models
from llamafleet.plans.supplies import LocalFile, Supplies
from llamafleet.protocol.job import Stamp
from llamafleet.protocol.place import ModelProduct, PlacedFile
from llamafleet.settings import Settings
from tests.plans.hosts import CPU_HOST

LAYOUT = Layout.system()
A, B, C, D = (letter * 64 for letter in "abcd")
GIB = 1 << 30
NS = 10**9


def placed(sha256: str, finished: float = 0.0, size: int = 4 * GIB, path: str = "") -> PlacedModel:
    """A model as it was proven."""
    file = PlacedFile(name="model.gguf", sha256=sha256, size=size, changed_ns=7 * NS + 5)
    stamp = Stamp(kind="model", key=sha256[:16], ok=True, finished=finished)
    return PlacedModel(
        sha256[:16],
        replace(stamp, inputs={"parts": [path or sha256]}),
        ModelProduct(files=(file,)),
        {"model.gguf": ModelFile(size, 7)},
    )


def host(*models: PlacedModel, free_gib: float = 100, **more: Any) -> HostSnapshot:
    return replace(
        CPU_HOST,
        models={model.name: model for model in models},
        disk_free_mib={"state": int(free_gib * 1024), "prefix": 10**6},
        **more,
    )


def settings(serve: dict[str, dict[str, Any]], **more: Any) -> Settings:
    ports = {name: {"port": 8000 + at} for at, name in enumerate(serve)}
    return Settings.model_validate(
        {"serve": {name: {**ports[name], **told} for name, told in serve.items()}, **more}
    )


def made(
    told: Settings, snapshot: HostSnapshot, besides_mib: int = 0, **local: LocalFile
) -> ModelsPlan | Problem | None:
    return plan_models(
        told,
        snapshot,
        LAYOUT,
        python="/usr/bin/python3",
        supplies=Supplies(models=local),
        besides_mib=besides_mib,
    )


def plan(told: Settings, snapshot: HostSnapshot, **local: LocalFile) -> ModelsPlan:
    found = made(told, snapshot, **local)
    assert isinstance(found, ModelsPlan), found
    return found


def url(sha256: str = A, **more: Any) -> dict[str, Any]:
    return {"model": f"https://example.org/{sha256[0]}.gguf", "sha256": sha256, **more}


def test_nothing_served_is_no_plan() -> None:
    assert made(settings({}), host()) is None


def test_a_model_is_brought_once_for_all_profiles_that_name_it() -> None:
    found = plan(settings({"chat": url(size=4 * GIB), "code": url(size=4 * GIB)}), host())
    (model,) = found.models
    assert (model.action, model.profiles, model.coming) == ("bring", ("chat", "code"), 4 * GIB)
    assert model.path == f"/var/lib/llamafleet/gguf/{A[:16]}/model.gguf"
    assert found.paths == {"chat": model.path, "code": model.path}
    assert model.job and model.job.start and not model.job.root and found.needed
    assert model.config.parts[0].url == "https://example.org/a.gguf" and not model.send
    assert model_lines(found) == [
        "model aaaaaaaaaaaaaaaa: bring for chat, code (the host has none)",
        "  4.0 GiB from https://example.org/a.gguf, fetched by the host",
    ]


def test_what_is_there_is_left_and_told() -> None:
    found = plan(settings({"chat": url()}), host(placed(A)))
    (model,) = found.models
    assert (model.action, model.job, found.needed) == ("none", None, False)
    assert model.product and model.product.bytes == 4 * GIB


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"files": {}}, "the host has none"),
        ({"stamp": None}, "it is not whole"),
        ({"files": {"model.gguf": ModelFile(4 * GIB, 8)}}, "has changed since it was checked"),
        ({"files": {"model.gguf": ModelFile(4 * GIB - 1, 7)}}, "has changed since it was checked"),
        ({"files": {"other.gguf": ModelFile(1, 7)}}, "model.gguf is gone"),
        ({"stamp": Stamp(kind="model", key="k", ok=False)}, "it was never whole"),
        (
            {"stamp": Stamp(kind="model", key="k", ok=True, machine_id="f" * 32)},
            "it was checked on another machine",
        ),
        ({"product": ModelProduct(files=())}, "its proof names no files"),
    ],
)
def test_what_is_not_as_it_was_proven_is_looked_at_again(change: dict[str, Any], why: str) -> None:
    (model,) = plan(settings({"chat": url()}), host(replace(placed(A), **change))).models
    assert model.action == "bring" and why in model.reason


def test_a_job_that_runs_is_attached_to() -> None:
    snapshot = host(jobs=(Job("model", A[:16], alive=True),))
    (model,) = plan(settings({"chat": url()}), snapshot).models
    assert model.action == "attach" and model.job and not model.job.start


def test_a_file_of_the_host_is_looked_at_and_stays() -> None:
    told = settings({"chat": {"model": "/srv/m.gguf"}})
    found = plan(told, host())
    (model,) = found.models
    assert (model.path, model.coming) == ("/srv/m.gguf", 0)
    assert "which stays where it is" in model_lines(found)[1]
    there = placed(model.key.ljust(64, "0"), path="/srv/m.gguf")
    proven = replace(there, product=replace(there.product, files=there.product.files))  # type: ignore[type-var]
    assert plan(told, host(replace(proven, name=model.key))).models[0].action == "none"
    stated = settings({"chat": {"model": "/srv/m.gguf", "sha256": B}})
    (model,) = plan(stated, host(replace(proven, name=model.key))).models
    assert model.reason == "its sha256 was not compared"


def test_the_controller_sends_its_own_files_and_what_it_fetches() -> None:
    told = settings({"chat": {"model": "file:/models/m.gguf"}})
    found = plan(told, host(), **{"/models/m.gguf": LocalFile(3 * GIB, B)})
    (model,) = found.models
    assert (model.key, model.coming, model.send[0].origin) == (B[:16], 3 * GIB, "/models/m.gguf")
    assert (model.config.parts[0].url, model.config.parts[0].sha256) == ("", B)
    assert "3.0 GiB from /models/m.gguf, sent over" in model_lines(found)[1]
    told = settings({"chat": url()}, model_source="controller")
    found = plan(told, host())
    assert found.models[0].send[0].origin == "https://example.org/a.gguf"
    assert found.models[0].config.parts[0].url == ""
    assert "of a size that its server tells" in model_lines(found)[1]
    assert "fetched once by this machine" in model_lines(found)[1]


def test_a_split_model_is_one_of_several_files() -> None:
    told = {"model": "https://example.org/m-00001-of-00002.gguf", "sha256": [A, B]}
    found = plan(settings({"chat": told}), host())
    (model,) = found.models
    assert model.path.endswith("/model-00001-of-00002.gguf") and len(model.config.parts) == 2
    assert model.config.parts[1].url == "https://example.org/m-00002-of-00002.gguf"


# -- what goes -------------------------------------------------------------------------------------


def test_the_last_that_no_profile_names_stays() -> None:
    snapshot = host(placed(B, 1), placed(C, 3), placed(D, 2), placed(A))
    found = plan(settings({"chat": url()}), snapshot)
    assert (found.discard, found.stay, found.room) == ((B[:16], D[:16]), (C[:16],), ())
    assert [line.split(":")[1].split()[0] for line in model_lines(found)[1:]] == [
        "remove",
        "remove",
        "keep",
    ]
    assert plan(settings({}, models_kept=0), snapshot).stay == ()
    assert len(plan(settings({}, models_kept=9), snapshot).stay) == 4


def test_what_never_was_whole_goes_unless_a_job_is_at_it() -> None:
    half = PlacedModel(B[:16], files={"model.gguf.incoming": ModelFile(GIB, 7)})
    assert plan(settings({}), host(half)).discard == (B[:16],)
    at_it = host(half, jobs=(Job("model", B[:16], alive=True),))
    assert plan(settings({}), at_it).discard == ()


def test_a_link_to_a_file_of_the_host_is_forgotten() -> None:
    found = plan(settings({}), host(placed(B, path="/srv/b.gguf")))
    assert found.discard == (B[:16],)
    assert "it stays" in model_lines(found)[0]


def test_room_is_made_by_what_no_profile_names() -> None:
    """The oldest goes first, and no more than is needed."""
    told = settings({"chat": url(size=4 * GIB)}, models_kept=5)
    snapshot = host(placed(B, 2), placed(C, 1), free_gib=2)
    found = plan(told, snapshot)
    assert (found.room, found.stay) == ((C[:16],), (B[:16],))
    assert "there is no room beside it" in "\n".join(model_lines(found))
    assert plan(told, host(placed(B, 2), free_gib=5)).room == ()


def test_too_small_a_disk_is_said_before_anything_is_done() -> None:
    told = settings({"chat": url(size=40 * GIB)})
    found = made(told, host(placed(B), free_gib=20))
    assert isinstance(found, Problem) and found.check == "disk"
    assert "24576 MiB free" in found.found and "1 models that no profile names" in found.found
    assert found.expected.startswith(f"{40 * 1024 + RESERVE_MIB} MiB")
    half = PlacedModel(A[:16], files={"model.gguf.incoming": ModelFile(25 * GIB, 7)})
    assert isinstance(made(told, host(half, free_gib=20)), ModelsPlan), "only the rest must fit"
    assert isinstance(made(told, host(half, free_gib=20), besides_mib=6000), Problem)


def test_what_another_disk_must_hold_is_not_counted() -> None:
    needs = {"state": 100, "prefix": 3000}
    assert state_needs(host(), needs) == 100
    both = replace(CPU_HOST, disk_free_mib={"state": 5000, "prefix": 5000})
    assert state_needs(both, needs) == 3100


def test_the_plan_of_a_host_says_what_will_come() -> None:
    told = settings({"chat": url(size=4 * GIB)}, accelerator="cpu")
    snapshot = replace(host(placed(B)), init="systemd", systemd=252)
    made = make_plan("a", told, snapshot, LAYOUT)
    assert made.problems == () and made.models
    lines = explain(made)
    assert "  4.0 GiB from https://example.org/a.gguf, fetched by the host" in lines
    assert any(line.startswith(f"model: keep {B[:16]}") for line in lines)
    small = replace(snapshot, models={}, disk_free_mib={"state": 6600, "prefix": 10**6})
    assert [one.check for one in make_plan("a", told, small, LAYOUT).problems] == ["disk"]


def test_what_a_profile_names_by_its_path_is_not_removed() -> None:
    """A model that a job brought, named by its place: it is wanted as any other."""
    path = f"/var/lib/llamafleet/gguf/{B[:16]}/model.gguf"
    full = host(placed(B), placed(C), free_gib=1)
    wanted = settings({"chat": {"model": path}, "code": url(size=3 * GIB)}, models_kept=0)
    found = made(wanted, full)
    assert isinstance(found, ModelsPlan)
    assert B[:16] not in (*found.discard, *found.room)
    assert C[:16] in (*found.discard, *found.room)


def test_a_sha256_that_one_of_two_profiles_states_is_compared() -> None:
    path = {"model": "/srv/chat.gguf"}
    found = plan(settings({"chat": path, "code": path | {"sha256": A}}), host())
    (model,) = found.models
    assert model.profiles == ("chat", "code") and model.config.parts[0].sha256 == A


def test_two_profiles_that_state_another_sha256_of_one_file_are_refused() -> None:
    path = {"model": "/srv/chat.gguf"}
    found = made(settings({"chat": path | {"sha256": B}, "code": path | {"sha256": A}}), host())
    assert isinstance(found, Problem)
    assert "chat" in found.check and "code" in found.found and A in found.found
