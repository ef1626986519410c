"""A job's folder: what older code wrote is read, what nobody should have written is refused.

data/version-1: as the first version of this code wrote it, for and on a host; paths are adapted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from llamafleet.layout import Layout
from llamafleet.protocol.decode import DecodeError, decode
from llamafleet.protocol.job import (
    LIMIT,
    METHODS,
    PROCESS_NAME,
    PROGRESS,
    STAMP,
    BuildConfig,
    BuildProduct,
    JobError,
    JobStatus,
    PackagesConfig,
    Product,
    Progress,
    RunfileConfig,
    Stamp,
    ToolkitConfig,
    ToolkitProduct,
    WheelsConfig,
    alive,
    read_json,
    start_ticks,
    status,
    toolkit_config,
    write_json,
    write_stamp,
)
from llamafleet.received import LIMIT as RECEIVED_LIMIT
from llamafleet.received import Unreadable, received, received_text

VERSION_1 = Path(__file__).parent / "data" / "version-1"


def recorded(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((VERSION_1 / f"{name}.json").read_text())
    return data


def as_json(value: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(asdict(value)))
    return data


NEWER = {"proxies": {}, "ca_bundle": None, "netrc": None}
SHARED = {"keep_wheel": False, "wheel": None, "wheel_file": ""}
"""What no job of version 1 was told."""

# What the first version wrote


def test_a_build_s_settings_of_version_1() -> None:
    config = decode(BuildConfig, recorded("build-config"))
    assert (config.key, config.jobs, config.inputs.backend) == ("f498d04545a73273", 16, "cuda")
    assert config.prefix == "/opt/llamafleet/versions/f498d04545a73273"
    assert as_json(config) == recorded("build-config") | NEWER | SHARED | {
        "cache": None,
        "notes": [],
    }


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("wheels", WheelsConfig),
        ("runfile", RunfileConfig),
        ("apt", PackagesConfig),
        ("dnf", PackagesConfig),
    ],
)
def test_a_toolkit_s_settings_of_version_1(name: str, kind: type[ToolkitConfig]) -> None:
    config = toolkit_config(recorded(f"{name}-config"))
    assert type(config) is kind
    assert config.method == config.inputs.method == name
    assert as_json(config) == recorded(f"{name}-config") | NEWER | {"compute_capabilities": []}


def test_every_method_has_settings_of_its_own() -> None:
    common = {"key": "k", "cuda": "13.0", "root": "/r", "cxx": "/c"}
    for method in METHODS:
        with pytest.raises(DecodeError, match="found nothing"):
            toolkit_config({**common, "method": method, "inputs": {"method": method}})
    with pytest.raises(DecodeError, match='method: found "snap", expected wheels or apt or dnf'):
        toolkit_config({**common, "method": "snap", "inputs": {"method": "wheels"}})


@pytest.mark.parametrize("read", [received, decode])
def test_what_a_job_of_version_1_tells(read: Any) -> None:
    progress = read(Progress, recorded("build-progress"))
    assert (progress.kind, progress.key, progress.phase) == (
        "build",
        "f498d04545a73273",
        "compile",
    )
    assert as_json(progress) == recorded("build-progress") | {"retry": None}


@pytest.mark.parametrize("read", [received, decode])
@pytest.mark.parametrize("name", ["build", "build-failed", "wheels", "apt", "verify"])
def test_a_stamp_of_version_1(read: Any, name: str) -> None:
    data = recorded(f"{name}-stamp")
    stamp = read(Stamp, data)
    assert isinstance(stamp, Stamp), stamp
    assert stamp.ok is (name != "build-failed") and stamp.finished > stamp.started
    assert stamp.inputs == data["inputs"]
    if name == "build-failed":
        assert stamp.error is not None and stamp.error.phase == "compile"
        assert stamp.error.signature == "wheel-build-failed"
        assert stamp.error.lines[0] == "python ended with status 1"
    # All else that it holds is what the job made.
    products: dict[str, type[Product]] = {
        "build": BuildProduct,
        "wheels": ToolkitProduct,
        "apt": ToolkitProduct,
    }
    if name in products:
        made = decode(products[name], data)
        assert data.items() <= (as_json(stamp) | as_json(made)).items()


# The folder


STAMPED = Stamp(kind="build", key="k", ok=True, started=1.0, finished=2.5, phases={"start": 1.5})


def test_a_stamp_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_stamp(tmp_path, STAMPED, ToolkitProduct(nvcc="13.0", packages=("a 1",)))
    written = json.loads((tmp_path / STAMP).read_text())
    assert (written["nvcc"], written["packages"], written["version"]) == ("13.0", ["a 1"], 1)
    assert status(tmp_path) == JobStatus(state="ok", stamp=STAMPED)
    failed = replace(STAMPED, ok=False, error=JobError(phase="start", lines=("why",)))
    write_stamp(tmp_path, failed, None)
    assert status(tmp_path) == JobStatus(state="failed", stamp=failed)


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    before = path.stat().st_ino
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    write_json(path, {"a": 2})
    assert path.stat().st_ino != before
    assert read_json(path) == {"version": 1, "a": 2}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """One that is named as the zipapp's are."""
    argv = [sys.executable, "-c", "import time; time.sleep(60)", PROCESS_NAME]
    started = subprocess.Popen(argv)
    # Popen returns when exec closes its pipe, which is before the kernel shows the new arguments.
    while PROCESS_NAME.encode() not in Path(f"/proc/{started.pid}/cmdline").read_bytes():
        time.sleep(0.01)
    yield started
    started.kill()
    started.wait()


def told(pid: int) -> Progress:
    return Progress(kind="build", key="k", pid=pid, start_ticks=start_ticks(pid))


def test_a_job_is_alive_while_its_process_is(process: subprocess.Popen[bytes]) -> None:
    progress = told(process.pid)
    assert alive(progress)
    assert progress.start_ticks is not None
    assert not alive(replace(progress, start_ticks=progress.start_ticks - 1)), "a reused pid"
    assert not alive(replace(progress, start_ticks=None))
    assert not alive(told(os.getpid())), "this process is not the zipapp's"
    for nobody in (-1, 0, 2**40, 10**400):
        assert not alive(replace(progress, pid=nobody))
    process.kill()
    process.wait()
    assert not alive(progress)


def test_the_zipapp_s_name_is_in_its_path() -> None:
    assert PROCESS_NAME in Layout.system().zipapp


def test_states(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    assert status(tmp_path) == JobStatus(state="absent")
    write_json(tmp_path / PROGRESS, asdict(told(process.pid)))
    assert status(tmp_path).state == "running"
    write_json(tmp_path / PROGRESS, asdict(told(os.getpid())))
    assert status(tmp_path).state == "dead"
    (tmp_path / PROGRESS).write_text("half a fi")
    assert status(tmp_path).state == "absent"


# What can't be read


def deep(levels: int) -> str:
    return '{"inputs": ' + '{"a": ' * levels + "1" + "}" * levels + "}"


def changed(**changes: Any) -> str:
    return json.dumps({**as_json(STAMPED), **changes})


UNREADABLE = [
    ("", "found no JSON object"),
    ("{", "found no JSON object"),
    ("[1, 2]", "found no JSON object"),
    ("\0" * 4096, "found no JSON object"),
    (deep(100_000), "found no JSON object"),
    ('{"kind": "build", "key": "k"}', "ok: found nothing"),
    (changed(version=2), "version: found 2, expected 1"),
    (changed(ok=1), "ok: found 1, expected true or false"),
    (changed(kind="other"), 'kind: found "other"'),
    (changed(phases={"a": "long"}), 'phases.a: found "long"'),
    (changed(inputs=[]), "inputs: found []"),
    (changed(error="why"), 'error: found "why"'),
    (changed(error={"lines": ["x"]}), "error.phase: found nothing"),
]


@pytest.mark.parametrize(("text", "why"), UNREADABLE, ids=range(len(UNREADABLE)))
def test_a_stamp_that_can_not_be_read_is_none(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / STAMP).write_text(text)
    found = status(tmp_path)
    assert (found.state, found.stamp) == ("dead", None)
    assert why in found.unreadable
    answer = received_text(Stamp, text)
    assert isinstance(answer, Unreadable)
    assert len(answer.reason) < 600 and answer.reason.isprintable()


def test_a_stamp_of_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / STAMP).write_bytes(b"\xff\xfe\x00")
    assert status(tmp_path).unreadable


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / STAMP
    with path.open("wb") as file:
        file.truncate(3 << 30)
    assert read_json(path) is None
    assert "at most" in status(tmp_path).unreadable
    fits = '{"a": 1' + " " * (LIMIT - 8) + "}"
    path.write_text(fits)
    assert read_json(path) == {"a": 1}
    path.write_text(fits + " ")
    assert read_json(path) is None


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / STAMP)
    assert read_json(tmp_path / STAMP) is None
    assert status(tmp_path).state == "dead"


NO_NUMBER = ["NaN", "Infinity", "-Infinity", "1e999", "9" * 10_000]


@pytest.mark.parametrize("number", NO_NUMBER, ids=range(len(NO_NUMBER)))
@pytest.mark.parametrize("place", ['"finished": {}', '"inputs": {{"a": {}}}'])
def test_the_controller_reads_no_number_that_is_none(place: str, number: str) -> None:
    text = f'{{"kind": "build", "key": "k", "ok": true, {place.format(number)}}}'
    assert isinstance(received_text(Stamp, text), Unreadable)


def test_the_controller_reads_so_much_and_no_more() -> None:
    fits = changed()
    fits += " " * (RECEIVED_LIMIT - len(fits))
    assert received_text(Stamp, fits) == STAMPED
    found = received_text(Stamp, fits + " ")
    assert isinstance(found, Unreadable) and f"at most {RECEIVED_LIMIT}" in found.reason


def test_what_a_terminal_would_obey_is_in_no_value_and_in_no_reason() -> None:
    evil = "\x1b[2J\x9b\x7f\n\u202e"
    found = received_text(Stamp, changed(key=evil))
    assert isinstance(found, Stamp) and found.key == " [2J    "
    for text in (changed(ok=evil), changed(phases={evil: evil}), evil):
        answer = received_text(Stamp, text)
        assert isinstance(answer, Unreadable) and answer.reason.isprintable()


def test_half_a_character_is_a_blank() -> None:
    # It could be stored in no file and shown on no terminal.
    found = received_text(Stamp, changed(key="\ud800"))
    assert isinstance(found, Stamp) and found.key == " "


def test_keys_that_are_newer_are_left_out() -> None:
    error = {"phase": "start", "newer": 1}
    found = received_text(Stamp, changed(newer=[1], ok=False, error=error))
    assert found == replace(STAMPED, ok=False, error=JobError(phase="start"))


def test_a_process_is_told_by_field_22_of_its_stat() -> None:
    """Of proc(5), which counts from 1; a blank in the process's name moves it."""
    text = Path("/proc/self/stat").read_text(encoding="utf-8")
    blanks = text[: text.rindex(")")].count(" ") - 1
    assert start_ticks(os.getpid()) == int(text.split()[21 + blanks])


def test_the_state_comes_with_what_the_job_told(tmp_path: Path) -> None:
    told = Progress(kind="build", key="f00", pid=1, start_ticks=None, phase="compile")
    write_json(tmp_path / PROGRESS, asdict(told))
    assert status(tmp_path) == JobStatus(state="dead", progress=told)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """The account could have it lead to what root alone may read."""
    secret = tmp_path / "shadow"
    secret.write_text(changed())
    (tmp_path / STAMP).symlink_to(secret)
    assert read_json(tmp_path / STAMP) is None
    found = status(tmp_path)
    assert found.stamp is None and "found no JSON object" in found.unreadable


def test_nothing_that_lies_at_the_partial_s_name_is_written_to(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / f".a.json.{os.getpid()}").symlink_to(victim)
    write_json(tmp_path / "a.json", {"a": 1})
    assert victim.read_text() == "mine" and read_json(tmp_path / "a.json") == {"version": 1, "a": 1}


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "a.json", {"a": 1})
    assert list(tmp_path.iterdir()) == []


def test_file_and_folder_are_on_the_disk_before_it_counts_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def seen(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", seen)
    write_json(tmp_path / "a.json", {"a": 1})
    assert synced == [f".a.json.{os.getpid()}", tmp_path.name]
