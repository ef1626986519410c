"""Models come to hosts, by the commands that these get: few at a time, sent ones in parts."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyinfra.api import StringCommand

from llamafleet.modelstore import ModelStore
from llamafleet.onhost.job import JobFailed
from llamafleet.protocol.decode import decode
from llamafleet.protocol.job import JobError, ModelConfig, Progress, Stamp
from llamafleet.protocol.place import ModelProduct, PlacedFile
from operations import models, watch
from operations.models import discard_models
from operations.upload import Input
from tests.onhost.gguf_files import gguf
from tests.operations.fake import CPU, STATUS, FakeHost, answer_of, ended, fleet
from tests.operations.shells import run, run_all, under_any_login_shell

pytestmark = pytest.mark.usefixtures("frozen_tables")
MODEL = gguf()
SHA256 = hashlib.sha256(MODEL).hexdigest()
KEY = SHA256[:16]
CONFIG = f"/etc/llamafleet/jobs/model-{KEY}.json"
FOLDER = f"/var/lib/llamafleet/gguf/{KEY}"
INCOMING = f"{FOLDER}/model.gguf.incoming"
URL = "https://example.org/m.gguf"
THERE = "@model"
"""Part of the command that asks how much of a part has come."""


def host(model: str = URL, **settings: Any) -> FakeHost:
    """A host on which the job ends well."""
    served = {"chat": {"model": model, "sha256": SHA256}}
    made = FakeHost(CPU, serve=served, **settings).found("systemctl=0")
    made.answers[STATUS] = answer_of(ended("model", KEY))
    made.answers[f"PUT {INCOMING}"] = f"@model\n{len(MODEL)}\n"
    made.answers[THERE] = "@model\n0\n"
    return made


def there(made: FakeHost, key: str = KEY, finished: float = 0.0, name: str = "a") -> FakeHost:
    """The same host with a model."""
    stamp = Stamp(kind="model", key=key, ok=True, finished=finished, inputs={"parts": [name]})
    file = PlacedFile(name="model.gguf", sha256=SHA256, size=9, changed_ns=7 * 10**9)
    made.found(f"model={key}", f"model_file={key} | model.gguf | 9 | 7")
    told = asdict(stamp) | asdict(ModelProduct(files=(file,)))
    return made.file("model", key, "model.json", text=json.dumps(told))


def test_a_job_of_the_account_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = host()
    with fleet(monkeypatch, {"a": made}) as run:
        assert run.run(models.models) == []
        assert run.runs["a"].changes == [f"model {KEY} for chat (the host has none)"]
    told = decode(ModelConfig, json.loads(made.uploads[CONFIG]))
    assert (told.folder, told.parts[0].url, told.parts[0].sha256) == (FOLDER, URL, SHA256)
    start = next(one for one in made.sent if "systemd-run" in one)
    assert f"--unit=llamafleet-model-{KEY}.service" in start and "User=llamafleet" in start
    assert list(made.uploads) == [CONFIG], "nothing else was sent"


def test_what_is_there_costs_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    made = there(host())
    with fleet(monkeypatch, {"a": made}) as run:
        assert run.run(models.models, discard_models) == []
        assert made.sent == [] and run.runs["a"].changes == []


def test_a_job_that_runs_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Progress(kind="model", key=KEY, pid=5, start_ticks=9, phase="download")
    made = host().job("model", KEY, progress)
    with fleet(monkeypatch, {"a": made}) as run:
        assert run.run(models.models) == []
    assert CONFIG not in made.uploads and not any("systemd-run" in one for one in made.sent)


def test_a_job_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    made = host()
    line = f"{URL}: found HTTP 404 Not Found: no such file there; expected ...; next: curl -I {URL}"
    error = JobError(phase="download", lines=(line,), log="/x/model.log")
    made.answers[STATUS] = answer_of(ended("model", KEY, ok=False, error=error))
    with fleet(monkeypatch, {"a": made}) as run:
        assert run.run(models.models) == ["@fake/a"]
        (said,) = run.runs["a"].failures
        assert said.startswith("model failed in phase download:") and line in said


def test_how_far_it_is_is_told_in_bytes() -> None:
    class Job:
        kind, key = "model", KEY

    told = Progress(
        kind="model",
        key=KEY,
        pid=1,
        start_ticks=None,
        started=100.0,
        updated=165.0,
        phase="download",
        line="1.2 GiB of 4.5 GiB, 88.0 MiB/s, 40 s left",
    )
    line = watch._line(Job(), told)  # type: ignore[arg-type]
    assert line == f"model {KEY} download: 1.2 GiB of 4.5 GiB, 88.0 MiB/s, 40 s left, 1m05s"


def test_a_dry_run_asks_and_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = host(model_source="controller")
    monkeypatch.setattr(ModelStore, "bring", lambda *_: pytest.fail("the network was asked"))
    with fleet(monkeypatch, {"a": made}, dry=True) as run:
        run.run(models.models)
    assert made.uploads == {} and not any("systemd-run" in one for one in made.sent)


# -- a few at a time -------------------------------------------------------------------------------


def test_no_more_hosts_than_the_setting_says_are_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that waits tells its lock, and goes on once another has ended."""
    hosts = {name: host(model_downloads=2) for name in "abc"}
    waited: list[str] = []
    with fleet(monkeypatch, hosts) as run:
        sharing = run.runs["a"].sharing
        sharing.getting.update({"x", "y"})

        def sleep(_: float) -> None:
            waited.append("a")
            sharing.getting.discard("y")

        monkeypatch.setattr(models, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
        kept: list[str] = []
        monkeypatch.setattr(models.lock, "keep", lambda one: kept.append(one.name))
        assert models._wait(run.state, run.runs["a"].host, run.runs["a"])
        assert waited == ["a"] and kept and sharing.getting == {"x", run.runs["a"].name}
        sharing.getting.clear()
        assert run.run(models.models) == [] and sharing.getting == set(), "given back"


# -- from the controller ---------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    file = tmp_path / "m.gguf"
    file.write_bytes(MODEL)
    return file


def test_a_file_of_the_controller_is_sent_with_the_account_s_rights(
    monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    made = host(f"file:{model}")
    with fleet(monkeypatch, {"a": made}) as run:
        assert run.run(models.models) == []
    assert made.uploads[INCOMING] == MODEL
    (sent,) = [one for one in made.sent if INCOMING in one and "PUT" in one]
    told = decode(ModelConfig, json.loads(made.uploads[CONFIG]))
    assert (told.parts[0].url, told.parts[0].path, told.parts[0].size) == ("", "", len(MODEL))
    order = [i for i, one in enumerate(made.sent) if one == sent or "systemd-run" in one]
    assert made.sent[order[0]] == sent, "before the job that checks it"


def test_what_has_come_is_not_sent_again(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    for said, rest in [("500", MODEL[500:]), (str(len(MODEL)), None), (str(models.WHOLE), None)]:
        made = host(f"file:{model}")
        made.answers[THERE] = f"Welcome!\n@model\n{said}\n"
        with fleet(monkeypatch, {"a": made}) as run:
            assert run.run(models.models) == []
        assert made.uploads.get(INCOMING) == rest


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the operation, that passes only while it waits."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(models, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: now[0]))
    return now


@pytest.mark.usefixtures("clock")
def test_an_odd_answer_sends_nothing(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    for said in ("@model\n-5\n", "@model\n\x1b[2J\n", "@model\n" + "9" * 400, "x"):
        made = host(f"file:{model}")
        made.answers[THERE] = said
        with fleet(monkeypatch, {"a": made}) as run:
            assert run.run(models.models) == ["@fake/a"]
        assert made.uploads == {}


def test_the_controller_fetches_once_for_all(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    asked: list[str] = []

    def bring(self: ModelStore, url: str, sha256: str, *_: Any) -> Path:
        asked.append(url)
        return model

    monkeypatch.setattr(ModelStore, "bring", bring)
    hosts = {name: host(model_source="controller") for name in "ab"}
    with fleet(monkeypatch, hosts) as run:
        assert run.run(models.models) == []
    assert all(one.uploads[INCOMING] == MODEL for one in hosts.values())
    assert set(asked) == {URL}


def test_what_does_not_come_to_the_controller_fails_all_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def bring(self: ModelStore, url: str, *_: Any) -> Path:
        asked.append(url)
        raise JobFailed(f"{url}: found HTTP 404; expected the model's file; next: curl")

    monkeypatch.setattr(ModelStore, "bring", bring)
    hosts = {name: host(model_source="controller") for name in "ab"}
    with fleet(monkeypatch, hosts) as run:
        assert run.run(models.models) == ["@fake/a", "@fake/b"]
        assert "found HTTP 404" in run.runs["b"].failures[0]
    assert len(asked) == 1


@under_any_login_shell
def test_each_byte_is_appended_under_any_login_shell(login: str, tmp_path: Path) -> None:
    content = bytes(range(256)) * 700 + b"no line end"
    source, target = tmp_path / "source", tmp_path / "with a blank" / "it's $HOME"
    source.write_bytes(content)
    assert run_all([append(source, target, 0)], login) == []
    assert target.read_bytes() == content and target.stat().st_mode & 0o777 == 0o600


def test_what_is_cut_off_goes_on_at_its_byte(tmp_path: Path) -> None:
    content = bytes(range(256)) * 700
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content)
    target.write_bytes(content[:1001])
    assert run_all([append(source, target, 1001)]) == []
    assert target.read_bytes() == content
    # Another run was here meanwhile: nothing is written twice.
    (said,) = run_all([append(source, target, 1001)])
    assert f"found {len(content)} bytes; expected 1001; next: " in said
    assert target.read_bytes() == content


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    theirs, target, source = (tmp_path / name for name in ("theirs", "target", "source"))
    theirs.write_text("")
    target.symlink_to(theirs)
    source.write_bytes(b"x")
    (said,) = run_all([append(source, target, 0)])
    assert "found a link; expected a file, or none" in said and theirs.read_text() == ""


def test_how_much_has_come_is_asked(tmp_path: Path) -> None:
    asked = models.PartThere()
    path = tmp_path / "it's"

    def said(most: int = 100) -> int | None:
        done = run(asked.command("", str(path), most))
        return asked.process(done.stdout.splitlines())

    assert said() == 0
    incoming = path.with_name("it's.incoming")
    incoming.write_bytes(b"x" * 77)
    assert said() == 77
    assert said(most=76) == 0 and not incoming.exists(), "of another file"
    path.write_bytes(b"x")
    assert said() == models.WHOLE


def append(source: Path, target: Path, start: int) -> StringCommand:
    command = models.Appended().command("", str(target))
    command.connector_arguments["_stdin"] = Input(source, str(start), start, models.PART)
    return command


def test_a_lost_connection_is_made_anew_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    """The host is asked how much has come, since nobody knows; it may not answer at once."""
    made = host(f"file:{model}")
    made.answers[THERE] = ["@model\n0\n", False, "@model\n400\n"]
    made.answers[f"PUT {INCOMING}"] = [False, f"@model\n{len(MODEL)}\n"]
    waited: list[float] = []
    own = SimpleNamespace(sleep=waited.append, monotonic=time.monotonic)
    monkeypatch.setattr(models, "time", own)
    with fleet(monkeypatch, {"a": made}) as run:
        assert run.run(models.models) == []
    assert made.uploads[INCOMING] == MODEL[400:] and waited


def test_a_host_that_stays_away_is_given_up(
    monkeypatch: pytest.MonkeyPatch, model: Path, clock: list[float]
) -> None:
    made = host(f"file:{model}")
    made.answers[THERE] = ["@model\n0\n", False]
    made.answers[f"PUT {INCOMING}"] = False
    with fleet(monkeypatch, {"a": made}) as run:
        assert run.run(models.models) == ["@fake/a"]
        assert "what is there is kept" in run.runs["a"].failures[0]
    assert 90 < clock[0] < 120


@pytest.mark.usefixtures("clock")
def test_what_the_host_can_t_take_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    made = host(f"file:{model}")
    made.answers[f"PUT {INCOMING}"] = False
    with fleet(monkeypatch, {"a": made}) as run:
        assert run.run(models.models) == ["@fake/a"]
        (said,) = run.runs["a"].failures
    assert "expected it to take the file that is sent; next: df -h" in said


# -- what goes -------------------------------------------------------------------------------------


def test_what_no_profile_names_goes_last_and_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    old, kept = "b" * 16, "c" * 16
    made = there(there(there(host()), old, 1.0), kept, 2.0)
    gone = there(there(host()), kept, 2.0)
    made.becomes[f"discard --versions /var/lib/llamafleet/gguf -- {old}"] = gone
    with fleet(monkeypatch, {"a": made}) as run:
        assert run.run(models.models, discard_models) == []
        assert run.runs["a"].changes == [f"model {old} removed"]
    (command,) = made.sent
    assert "setpriv" in command and kept not in command


def test_one_that_is_in_use_stays_and_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = there(there(host(models_kept=0)), "b" * 16)
    with fleet(monkeypatch, {"a": made}) as run:
        assert run.run(discard_models) == []
        assert run.runs["a"].changes == []
    assert f"model {'b' * 16} is in use, and stays" in capsys.readouterr().err
