"""The image that a host pulls: recorded where it was pulled; gone back from where it fails."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamafleet.layout import Layout, quadlet, serve_unit
from llamafleet.plans.plan import Former, ServePlan
from llamafleet.protocol.serve import Placement, ServeConfig
from operations import serve
from operations.container import bring_image, keep_former, put_back
from tests.operations.fake import CPU, FakeHost, answer, fleet

IMAGE = f"registry.lab/llama@sha256:{'a' * 64}"


@pytest.mark.parametrize(
    ("there", "pulls", "status", "recorded"),
    [(0, 0, 0, ""), (1, 0, 0, f"{IMAGE}\n"), (1, 125, 125, "")],
)
def test_an_image_is_recorded_where_it_was_pulled(
    tmp_path: Path, there: int, pulls: int, status: int, recorded: str
) -> None:
    podman, record = tmp_path / "podman", tmp_path / "images"
    podman.write_text(f"#!/bin/sh\ncase $1 in image) exit {there} ;; pull) exit {pulls} ;; esac\n")
    podman.chmod(0o755)
    run: Any = SimpleNamespace(
        plan=lambda: SimpleNamespace(container=SimpleNamespace(image=IMAGE)),
        layout=lambda: SimpleNamespace(images=str(record)),
    )
    (command,) = bring_image(run)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", command.get_raw_value()], env=env, check=False)
    assert done.returncode == status
    assert (record.read_text() if record.exists() else "") == recorded


LAYOUT = Layout.system()
OLD = f"registry.lab/llama@sha256:{'0' * 64}"
UNIT, UNIT_FILE = serve_unit("chat"), quadlet("chat")
CONFIG = LAYOUT.serve_config("chat")
KEPT = (LAYOUT.former_config("chat"), LAYOUT.former_container("chat"))
COPIED = tuple(f"mv -T {kept}.partial {kept}" for kept in KEPT)
FORGOTTEN = f"rm -f -- {LAYOUT.previous} {' '.join(KEPT)}"
BACK = f"mv -T {KEPT[0]} {CONFIG} && mv -T {KEPT[1]} {UNIT_FILE}"
ASK = " serve-check "
BROKEN = "it is failed: found planted"


def serving(*files: str) -> FakeHost:
    """A host that serves from the container of OLD, and is to serve from that of IMAGE."""
    profile = {"model": "/srv/a.gguf", "port": 8001}
    made = FakeHost(CPU, serve={"chat": profile}, runtime="container", image=IMAGE)
    made.found("systemctl=0", "systemd=257", "quadlet=1", "podman=/usr/bin/podman | 5.4.2")
    for path in (UNIT_FILE, *files):
        made.found(*([f"image={path} | {OLD}"] if path.endswith(".container") else []))
    there = (CONFIG, UNIT_FILE, *files)
    made.files(dict.fromkeys(there, "a" * 64))
    made.found(owners=[f"81a4\troot\troot\t{path}" for path in there])
    made.answers[f"cat {CONFIG}"] = json.dumps(asdict(FORMER))
    made.answers[ASK] = answer()
    return made


FORMER = ServeConfig(
    version=1,
    profile="chat",
    host="a",
    verify="/v",
    folder=LAYOUT.serve_state("chat"),
    libraries="/",
    model="/srv/before.gguf",
    alias="before",
    placement=Placement(-1, 512),
    address="127.0.0.1",
    port=8000,
    key=False,
)
"""What the service of before was told."""


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("operations.serve.time.sleep", lambda seconds: None)
    monkeypatch.setattr("operations.serve._left", lambda run: None)


@pytest.mark.usefixtures("frozen_tables", "at_once")
class TestAnotherImage:
    """What a host gets on which the container is to be another one."""

    def test_one_that_does_not_serve_is_gone_back_from(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = serving()
        made.answers[ASK] = [answer("failed", BROKEN), answer()]
        with fleet(monkeypatch, {"a": made}) as run:
            assert run.run(serve.serve) == ["@fake/a"]
            failures = "\n".join(run.runs["a"].failures)
            assert f"failed on the new image: went back to {OLD}, they serve again" in failures
            assert "expected services that answer on the image of the settings; next: " in failures
            assert f"serve.chat: found {BROKEN}; expected chat at" in failures
            assert f"image -> {OLD} (gone back)" in run.runs["a"].changes
            (line,) = run.runs["a"].served
            told = (line.state, line.port, line.alias, line.model)
            assert told == ("ready", 8000, "before", "/srv/before.gguf")
        sent = "\n".join(made.sent)
        order = (
            f"podman pull --quiet {IMAGE}",
            *COPIED,
            f"PUT {CONFIG}",
            f"PUT {UNIT_FILE}",
            f"restart --no-block {UNIT}",
            ASK,
            f"{BACK} && systemctl daemon-reload",
        )
        places = [sent.index(part) for part in order]
        assert places == sorted(places), made.sent
        after = sent[places[-1] :]
        assert f"restart --no-block {UNIT}" in after and ASK in after
        assert FORGOTTEN not in sent

    def test_one_that_serves_leaves_nothing_to_go_back_to(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = serving()
        with fleet(monkeypatch, {"a": made}) as run:
            assert run.run(serve.serve) == [], run.runs["a"].failures
        sent = "\n".join(made.sent)
        assert BACK not in sent and sent.index(ASK) < sent.index(FORGOTTEN)

    def test_one_that_fails_as_the_one_of_before_says_so(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = serving()
        made.answers[ASK] = answer("failed", BROKEN)
        with fleet(monkeypatch, {"a": made}) as run:
            assert run.run(serve.serve) == ["@fake/a"]
            failures = "\n".join(run.runs["a"].failures)
            assert f"went back to {OLD}, {BROKEN}" in failures
            assert run.runs["a"].served[0].state == "FAILED"

    def test_settings_that_came_back_and_cannot_be_read_are_said(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is told of the service then is what was planned, and that did not come up."""
        made = serving()
        made.answers[ASK] = [answer("failed", BROKEN), answer()]
        made.answers[f"cat {CONFIG}"] = "{"
        with fleet(monkeypatch, {"a": made}) as run:
            assert run.run(serve.serve) == ["@fake/a"]
            (said,) = [one for one in run.runs["a"].failures if one.startswith("serve.chat.file: ")]
            assert f"found {CONFIG} " in said and "next: " in said

    def test_what_a_run_kept_that_was_cut_off_is_gone_back_to(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And nothing is copied over it: what is there by now is known to nobody."""
        made = serving(*KEPT)
        made.answers[ASK] = [answer("failed", BROKEN), answer()]
        with fleet(monkeypatch, {"a": made}) as run:
            assert run.run(serve.serve) == ["@fake/a"]
            assert f"went back to {OLD}, they serve again" in "\n".join(run.runs["a"].failures)
        sent = "\n".join(made.sent)
        assert BACK in sent and not any(copy in sent for copy in COPIED)

    def test_the_first_one_has_nothing_to_go_back_to(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = FakeHost(CPU, **serving().data)
        made.found("systemctl=0", "systemd=257", "quadlet=1", "podman=/usr/bin/podman | 5.4.2")
        made.answers[ASK] = answer("failed", BROKEN)
        with fleet(monkeypatch, {"a": made}) as run:
            assert run.run(serve.serve) == ["@fake/a"]
            (failure,) = run.runs["a"].failures
            assert failure.startswith(f"serve.chat: found {BROKEN}")
        assert not any(part in "\n".join(made.sent) for part in (BACK, *COPIED))

    def test_a_dry_run_sends_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = serving()
        with fleet(monkeypatch, {"a": made}, dry=True) as run:
            run.run(serve.serve)
        assert made.sent == [] and made.uploads == {}


@pytest.mark.parametrize("broken", ["", "mv", "cp"])
def test_what_is_kept_is_whole_and_comes_back(tmp_path: Path, broken: str) -> None:
    """By the commands themselves: a copy that breaks off is none of which anybody is told."""
    places = tuple((str(tmp_path / name), str(tmp_path / f"{name}.kept")) for name in "ab")
    for path, _ in places:
        Path(path).write_text(f"before {path}")
    if broken:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / broken).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "bin" / broken).chmod(0o755)
    (tmp_path / "systemctl").write_text("#!/bin/sh\n")
    (tmp_path / "systemctl").chmod(0o755)
    env = {"PATH": f"{tmp_path}/bin:{tmp_path}:{os.environ['PATH']}"}
    run: Any = SimpleNamespace(settings=SimpleNamespace(scope="system"))
    former = Former(places, kept=False, image=OLD)
    for command in keep_former(run, ServePlan(former=former)):
        done = subprocess.run(["sh", "-c", command.get_raw_value()], env=env, check=False)
        if done.returncode:
            break
    assert bool(done.returncode) == bool(broken)
    assert [Path(kept).exists() for _, kept in places] == [not broken] * 2
    if broken:
        return
    for path, _ in places:
        Path(path).write_text("after")
    subprocess.run(["sh", "-c", put_back(run, former).get_raw_value()], env=env, check=True)
    assert [Path(path).read_text() for path, _ in places] == [
        f"before {path}" for path, _ in places
    ]
    assert not any(Path(kept).exists() for _, kept in places)
