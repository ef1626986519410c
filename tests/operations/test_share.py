"""One host builds for all of its fingerprint: who, what goes to whom, and what if it goes wrong."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from base64 import b64encode
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamafleet.managed import Access
from llamafleet.protocol.decode import decode
from llamafleet.protocol.job import BuildConfig, JobError, SharedWheel
from llamafleet.wheelstore import FOLDER, RECORD, WheelStore
from operations import share, upload
from operations.build import build, take
from operations.share import agree
from operations.sharing import Sharing
from tests.operations import shells
from tests.operations.fake import STATUS, FakeHost, Fleet, answer_of, ended, fleet
from tests.operations.shells import LOGIN_SHELLS
from tests.operations.test_build import FOLDER as JOB
from tests.operations.test_build import KEY, LAYOUT, after_the_build, planned
from tests.plans.hosts import there

pytestmark = pytest.mark.usefixtures("frozen_tables")

WHEEL = bytes(range(256)) * 40
SHA256 = hashlib.sha256(WHEEL).hexdigest()
NAME = "llama_cpp_python-0.3.36-py3-none-linux_x86_64.whl"
READ = "tail -c"
"""Part of the command that reads a wheel."""
TARGET = f"{LAYOUT.shared}/{NAME}"
CONFIG = f"/etc/llamafleet/jobs/build-{KEY}.json"
GAVE = f"{share.BEGIN}\n{b64encode(WHEEL).decode()}"


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the run is called: the wheels come to lie there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(share, "POLL_SECONDS", 0.01)
    # The time stands for all hosts here: pyinfra's own program makes sleep() let others go on.
    monkeypatch.setattr(share, "BEGIN_S", 0.02)
    return tmp_path


def keeps(**product: Any) -> Any:
    """The planned build, its wheel kept."""
    made = there(planned())
    assert made.product is not None
    told = {"wheel": NAME, "wheel_sha256": SHA256, "wheel_bytes": len(WHEEL), "needs": ("AVX2",)}
    return replace(made, product=replace(made.product, **{**told, **product}))


def new(**data: Any) -> FakeHost:
    """A host that must build, and then has built."""
    host = FakeHost(build_sharing="wheel", **data)
    host.answers[STATUS] = answer_of(ended("build", KEY))
    host.answers[READ] = GAVE
    host.becomes[STATUS] = FakeHost().build(keeps())
    return host


def deploy(run: Fleet, serial: bool = False) -> list[str]:
    return run.run(agree, build, take, **({"_serial": True} if serial else {}))


def told(host: FakeHost) -> BuildConfig:
    config: BuildConfig = decode(BuildConfig, json.loads(host.uploads[CONFIG]))
    return config


def started(host: FakeHost) -> int:
    return sum("systemd-run" in sent for sent in host.sent)


def test_the_first_builds_and_the_others_get_its_wheel(
    monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    hosts = {name: new() for name in "abc"}
    with fleet(monkeypatch, hosts) as run:
        assert deploy(run) == []
        changes = [run.runs[name].changes for name in "abc"]
    why = "nothing was built on this host yet"
    assert changes[0] == [f"build {KEY[:8]} ({why})"]
    assert changes[1] == changes[2] == [f"build {KEY[:8]} (wheel of @fake/a; {why})"]
    assert [started(host) for host in hosts.values()] == [1, 1, 1]

    config = told(hosts["a"])
    assert config.keep_wheel and config.wheel is None and TARGET not in hosts["a"].uploads
    for name in "bc":
        config = told(hosts[name])
        assert config.wheel is not None and not config.keep_wheel
        assert (config.wheel.host, config.wheel.sha256) == ("@fake/a", SHA256)
        assert (config.wheel_file, config.wheel.needs) == (TARGET, ("AVX2",))
        assert hosts[name].uploads[TARGET] == WHEEL
        # Root's, below a folder of root's, and gone when it is installed.
        assert hosts[name].access[TARGET] == "root:root 644"
        assert hosts[name].sent[-1] == f"rm -rf -- {LAYOUT.shared}"
        assert not any(READ in sent for sent in hosts[name].sent)

    read = next(sent for sent in hosts["a"].sent if READ in sent)
    assert "setpriv --reuid=llamafleet " in read and " env -i " in read
    assert f"path=/opt/llamafleet/versions/{KEY}/wheel/{NAME} start=1 size={len(WHEEL)}" in read
    kept = here / FOLDER / KEY
    assert (kept / NAME).read_bytes() == WHEEL and (kept / NAME).stat().st_mode & 0o022 == 0
    assert json.loads((kept / RECORD).read_text())["host"] == "@fake/a"


def test_without_the_setting_each_builds(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    hosts = {name: new() for name in "ab"}
    for host in hosts.values():
        del host.data["build_sharing"]
    with fleet(monkeypatch, hosts) as run:
        assert deploy(run) == []
    assert not any(READ in sent for host in hosts.values() for sent in host.sent)
    assert not told(hosts["b"]).keep_wheel and not (here / FOLDER).exists()


def stored(here: Path, content: bytes = WHEEL, **changes: Any) -> SharedWheel:
    """A wheel of an earlier run."""
    wheel = share.wheel_of("@fake/old", keeps(**changes).product)
    assert isinstance(wheel, SharedWheel), wheel
    with WheelStore(here / FOLDER).incoming(KEY, wheel) as coming:
        coming.add(WHEEL)
    (here / FOLDER / KEY / NAME).write_bytes(content)
    return wheel


def test_a_wheel_of_an_earlier_run_saves_every_build(
    monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    """Also where --limit leaves out the host that built it."""
    stored(here)
    hosts = {name: new() for name in "ab"}
    with fleet(monkeypatch, hosts) as run:
        assert deploy(run) == []
        assert "wheel of @fake/old; " in run.runs["a"].changes[0]
    assert all(host.uploads[TARGET] == WHEEL for host in hosts.values())


def test_a_host_that_is_to_rebuild_takes_no_older_wheel(
    monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    stored(here)
    hosts = {name: new(rebuild=True) for name in "ab"}
    with fleet(monkeypatch, hosts) as run:
        assert deploy(run) == []
        assert "wheel of @fake/a; " in run.runs["b"].changes[0]
    assert told(hosts["a"]).keep_wheel


def test_one_that_has_built_gives_what_it_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    has = FakeHost(build_sharing="wheel").build(keeps()).found(f"current={KEY}")
    has.answers[READ] = GAVE
    hosts = {"a": new(), "b": has}
    with fleet(monkeypatch, hosts) as run:
        assert deploy(run) == []
        assert "wheel of @fake/b; " in run.runs["a"].changes[0]
        assert run.runs["b"].changes == []
    assert started(has) == 0


def test_with_all_built_nothing_is_read_or_sent(
    monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    hosts = {
        name: FakeHost(build_sharing="wheel").build(keeps()).found(f"current={KEY}")
        for name in "ab"
    }
    with fleet(monkeypatch, hosts) as run:
        assert deploy(run) == []
    assert all(host.sent == [] for host in hosts.values()) and not (here / FOLDER).exists()


def test_where_the_first_fails_the_others_build_and_say_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = new()
    broken.becomes.clear()
    error = JobError(phase="compile", cause="out of memory", fix="set jobs = 1")
    broken.answers[STATUS] = answer_of(ended("build", KEY, ok=False, error=error))
    hosts = {"a": broken, "b": new(), "c": new()}
    with fleet(monkeypatch, hosts) as run:
        assert deploy(run) == ["@fake/a"]
        assert all(len(run.runs[name].changes) == 1 for name in "bc")
    # Here the fake has built at once, and the second one finds that wheel.
    assert [told(hosts[name]).wheel is None for name in "bc"].count(True) == 1
    assert (
        "build: found no wheel of @fake/a (its build failed in phase compile: out of memory); "
        "expected one to install; it is built here"
    ) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (f"{share.BEGIN}\n{b64encode(WHEEL[:-1]).decode()}", f"found {len(WHEEL) - 1} bytes of "),
        (f"{share.BEGIN}\n{b64encode(WHEEL[::-1]).decode()}", f"found {len(WHEEL)} bytes of "),
        (f"{share.BEGIN}\n{b64encode(WHEEL + WHEEL).decode()}", f"found {2 * len(WHEEL)} bytes "),
        (f"{share.BEGIN}\n!!", "found 0 bytes of "),
        ("Welcome to lab 3!", "found 0 bytes of "),
        (False, "found 0 bytes of "),
    ],
)
def test_what_is_not_the_wheel_of_the_stamp_is_never_kept(
    monkeypatch: pytest.MonkeyPatch,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    answer: str | bool,
    said: str,
) -> None:
    """Its own build is good all the same, and the other host builds for itself."""
    hosts = {name: new() for name in "ab"}
    hosts["a"].answers[READ] = [answer, False]
    with fleet(monkeypatch, hosts) as run:
        assert deploy(run) == []
    assert told(hosts["b"]).wheel is None and TARGET not in hosts["b"].uploads
    assert said in capsys.readouterr().err
    # Of the other host, that has built it meanwhile.
    assert json.loads((here / FOLDER / KEY / RECORD).read_text())["host"] == "@fake/b"
    assert sorted(path.name for path in (here / FOLDER / KEY).iterdir()) == [NAME, RECORD]


def test_a_login_shell_that_greets_spoils_no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = {name: new() for name in "ab"}
    hosts["a"].answers[READ] = f"Welcome\n{GAVE}"
    with fleet(monkeypatch, hosts) as run:
        assert deploy(run) == []
    assert hosts["b"].uploads[TARGET] == WHEEL


@pytest.mark.parametrize(
    ("product", "said"),
    [
        ({"wheel": "../../etc/cron.d/x.whl"}, "found no sound name in its stamp"),
        ({"wheel_bytes": 1 << 31}, "found no sound size in its stamp"),
        ({"wheel_sha256": None}, "found no sound sha256 in its stamp"),
        ({"needs": ("AVX2; rm",)}, "found no sound needs in its stamp"),
        ({"libraries": {}}, "found no whole build"),
        ({"wheel": ""}, "found that it kept no wheel"),
    ],
)
def test_an_unsound_offer_of_a_host_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    product: dict[str, Any],
    said: str,
) -> None:
    hosts = {name: new() for name in "ab"}
    hosts["a"].becomes[STATUS] = FakeHost().build(keeps(**product))
    with fleet(monkeypatch, hosts) as run:
        deploy(run)
    assert said in capsys.readouterr().err
    assert not any(READ in sent for sent in hosts["a"].sent)
    assert told(hosts["b"]).wheel is None


@pytest.mark.parametrize("content", [WHEEL[:-1], WHEEL[::-1]])
def test_a_wheel_that_was_changed_on_the_controller_goes_to_no_host(
    monkeypatch: pytest.MonkeyPatch, here: Path, content: bytes
) -> None:
    stored(here, content)
    hosts = {name: new() for name in "ab"}
    with fleet(monkeypatch, hosts) as run:
        assert deploy(run) == ["@fake/a", "@fake/b"]
        (said,) = run.runs["a"].failures
    found = hashlib.sha256(content).hexdigest()
    assert said == (
        f"build_sharing: found {FOLDER}/{KEY}/{NAME} with sha256 {found}; expected sha256 "
        f"{SHA256}, the wheel of @fake/old; next: rm -r {FOLDER}/{KEY}, and run the same command "
        "again"
    )
    assert all(host.uploads == {} and started(host) == 0 for host in hosts.values())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 3}', '{"version": 1}'])
def test_a_record_that_can_t_be_read_is_none(here: Path, text: str) -> None:
    wheel = stored(here)
    store = WheelStore(here / FOLDER)
    assert store.all() == {KEY: wheel}
    (here / FOLDER / KEY / RECORD).write_text(text)
    assert store.all() == {}
    bad = json.dumps({**asdict(wheel), "name": "../x.whl"})
    (here / FOLDER / KEY / RECORD).write_text(bad)
    assert store.all() == {}


def test_a_folder_that_can_t_be_written_fails_no_build(
    monkeypatch: pytest.MonkeyPatch, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / FOLDER).touch()
    hosts = {name: new() for name in "ab"}
    with fleet(monkeypatch, hosts) as run:
        assert deploy(run) == []
    assert f"found that {FOLDER} can't be written (" in capsys.readouterr().err
    assert told(hosts["b"]).wheel is None


def test_one_host_after_the_other_shares_too(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = {name: new() for name in "ab"}
    with fleet(monkeypatch, hosts) as run:
        assert deploy(run, serial=True) == []
        assert "wheel of @fake/a; " in run.runs["b"].changes[0]


def test_a_wheel_that_fails_where_it_is_taken_fails_that_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = ("CPU: found that it lacks AVX2; expected all; next: set build_sharing = 'host'",)
    hosts = {name: new() for name in "abc"}
    hosts["b"].becomes.clear()
    error = JobError(phase="resolve", lines=lines)
    hosts["b"].answers[STATUS] = answer_of(ended("build", KEY, ok=False, error=error))
    with fleet(monkeypatch, hosts) as run:
        assert deploy(run) == ["@fake/b"]
        assert "found that it lacks AVX2" in run.runs["b"].failures[0]
    assert started(hosts["b"]) == 1


def test_a_build_of_before_that_kept_no_wheel_is_no_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hosts = {"a": after_the_build(FakeHost(build_sharing="wheel")), "b": new(), "c": new()}
    with fleet(monkeypatch, hosts) as run:
        assert deploy(run) == []
        assert "wheel of @fake/b; " in run.runs["c"].changes[0]
    assert hosts["a"].sent == [] and JOB


@pytest.mark.parametrize("login", LOGIN_SHELLS)
def test_each_byte_of_a_wheel_comes_and_goes_under_any_login_shell(
    here: Path, monkeypatch: pytest.MonkeyPatch, login: str
) -> None:
    """The commands themselves, run: in three parts, the last a short one."""
    if shutil.which(login.split(maxsplit=1)[0]) is None:
        pytest.skip(f"no {login} here")
    source, fact = here / NAME, share.WheelPart()
    source.write_bytes(WHEEL)
    wheel = share.wheel_of("@fake/a", keeps().product)
    assert isinstance(wheel, SharedWheel)
    store = WheelStore(here / FOLDER)
    with store.incoming(KEY, wheel) as coming:
        while coming.size < len(WHEEL):
            size = min(4096, len(WHEEL) - coming.size)
            command = fact.command("", str(source), coming.size, size)
            coming.add(fact.process(shells.run(command, login).stdout.splitlines()))
        assert coming.wrong == ""
    assert store.wrong(KEY, wheel) == ""
    target, own = here / "host" / NAME, Access("", "", 0o644)
    assert shells.run_all(upload.write(store.file(KEY, wheel), str(target), own, SHA256)) == []
    assert target.read_bytes() == WHEEL and target.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("content", [WHEEL[:-1], WHEEL[::-1], b""])
def test_the_store_keeps_nothing_of_a_wheel_that_is_wrong(here: Path, content: bytes) -> None:
    wheel = stored(here)
    store = WheelStore(here / FOLDER)
    other = replace(wheel, host="@fake/b")
    with store.incoming(KEY, other) as coming:
        coming.add(content)
    assert store.all() == {KEY: wheel} and store.wrong(KEY, wheel) == ""
    assert sorted(path.name for path in (here / FOLDER / KEY).iterdir()) == [NAME, RECORD]


def test_one_that_waits_keeps_its_lock_though_its_maker_begins_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That of a build that runs already may stand behind those that wait for it."""
    sharing, kept = Sharing(), []

    def keep(run: object) -> None:
        kept.append(run)
        if len(kept) == 1:
            sharing.begins("b")
        elif len(kept) == 3:
            sharing.building.discard("b")

    monkeypatch.setattr(share.lock, "keep", keep)
    monkeypatch.setattr(share, "BEGIN_S", 10)
    waits: Any = SimpleNamespace(
        sharing=sharing, host=SimpleNamespace(state=SimpleNamespace(failed_hosts=set()))
    )
    nobody: Any = None
    assert share.wait(waits, "b").function(nobody, nobody) and len(kept) == 3
    # With --serial one that stands behind never begins before.
    monkeypatch.setattr(share, "BEGIN_S", 0.02)
    assert share.wait(waits, "c").function(nobody, nobody)


def test_what_a_killed_run_left_in_the_store_is_removed_and_what_comes_just_now_is_not(
    here: Path,
) -> None:
    wheel = stored(here)
    gone = subprocess.Popen(["true"])
    gone.wait()
    folder = here / FOLDER / KEY
    left, comes = (folder / f".{NAME}.{pid}" for pid in (gone.pid, os.getppid()))
    left.write_bytes(WHEEL)
    comes.write_bytes(WHEEL)
    with WheelStore().incoming(KEY, wheel) as coming:
        coming.add(WHEEL)
    assert not left.exists() and comes.exists()
    assert WheelStore().wrong(KEY, wheel) == ""
