"""One host builds for all of its fingerprint: who, what goes to whom, and what if it goes wrong."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from base64 import b64encode
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from llamafleet.managed import Access
from llamafleet.plans.lock import changes_anything
from llamafleet.plans.share import wheel_of
from llamafleet.protocol.decode import decode
from llamafleet.protocol.job import BuildConfig, JobError, JobStatus, Progress, SharedWheel
from llamafleet.wheelstore import FOLDER, KEPT_DAYS, RECORD, WheelStore
from operations import share, upload, watch
from operations.build import build, take
from operations.share import agree
from operations.sharing import Sharing
from tests.operations import shells
from tests.operations.fake import STATUS, FakeHost, Fleet, answer_of, ended, fleet
from tests.operations.shells import under_any_login_shell
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
REMOVE = f"rm -rf -- {LAYOUT.shared} ;"
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


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As pyinfra's own program has it: other hosts go on while one sleeps."""
    monkeypatch.setattr(time, "sleep", gevent.sleep)
    monkeypatch.setattr(share, "BEGIN_S", 10)


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
    host.answers[REMOVE] = share.DONE
    host.becomes[STATUS] = FakeHost().build(keeps())
    return host


def cleared(host: FakeHost) -> int:
    """How often the folder of shared wheels was removed."""
    return sum(REMOVE in sent for sent in host.sent)


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
        assert cleared(hosts[name]) == 1 and REMOVE in hosts[name].sent[-1]
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
    wheel = wheel_of("@fake/old", keeps(**changes).product)
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


def test_where_the_first_fails_the_next_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = new()
    broken.becomes.clear()
    error = JobError(phase="compile", cause="out of memory", fix="set jobs = 1")
    broken.answers[STATUS] = answer_of(ended("build", KEY, ok=False, error=error))
    hosts = {"a": broken, "b": new(), "c": new()}
    with fleet(monkeypatch, hosts) as run:
        assert deploy(run) == ["@fake/a"]
        assert all(len(run.runs[name].changes) == 1 for name in "bc")
        why = run.runs["b"].sharing.why["@fake/a"]
    # Here the fake has built at once, and the second one finds that wheel.
    assert [told(hosts[name]).wheel is None for name in "bc"].count(True) == 1
    assert why == "its build failed in phase compile: out of memory"


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


def test_a_wheel_that_was_changed_on_the_controller_is_set_aside_and_built_anew(
    monkeypatch: pytest.MonkeyPatch, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored(here, WHEEL[::-1])
    hosts = {name: new() for name in "ab"}
    with fleet(monkeypatch, hosts) as run:
        assert deploy(run) == []
        assert "wheel of @fake/a; " in run.runs["b"].changes[0]
    found = hashlib.sha256(WHEEL[::-1]).hexdigest()
    said = capsys.readouterr().err
    assert (
        f"build_sharing: found {FOLDER}/{KEY}/{NAME} with sha256 {found}; expected sha256 "
        f"{SHA256}, the wheel of @fake/old; next: see who wrote it, ls -la {FOLDER}/{KEY}; it is "
        "not used: one of the hosts builds anew"
    ) in said
    assert said.count("it is not used") == 1
    assert f"it lies in {FOLDER}/{KEY}.refused-1 now" in said
    assert (here / FOLDER / f"{KEY}.refused-1" / NAME).read_bytes() == WHEEL[::-1]
    assert told(hosts["a"]).keep_wheel and hosts["b"].uploads[TARGET] == WHEEL
    assert WheelStore().all()[KEY].host == "@fake/a"


def test_a_plan_alone_sets_nothing_aside(
    monkeypatch: pytest.MonkeyPatch, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored(here, WHEEL[::-1])
    hosts = {name: new() for name in "ab"}
    with fleet(monkeypatch, hosts, dry=True) as run:
        assert deploy(run) == []
        lines = run.runs["a"].sharing.lines()
    assert lines == [f"build {KEY[:8]}: the wheel of @fake/a is for @fake/b"]
    said = capsys.readouterr().err
    assert "it is not used" in said and "found no wheel of" not in said
    assert [path.name for path in (here / FOLDER).iterdir()] == [KEY]


def test_one_that_is_changed_after_the_hosts_agreed_goes_to_none(
    monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    stored(here, WHEEL[::-1])
    monkeypatch.setattr(share, "_judge", lambda *_: None)
    host = new()
    with fleet(monkeypatch, {"a": host}) as run:
        assert deploy(run) == ["@fake/a"]
        assert f"found {FOLDER}/{KEY}/{NAME} with sha256 " in run.runs["a"].failures[0]
    assert host.uploads == {} and started(host) == 0 and cleared(host) == 1


def test_a_wheel_that_another_account_can_write_is_not_used(here: Path) -> None:
    """Whoever can write the wheel can write its record too."""
    wheel, store = stored(here), WheelStore(here / FOLDER)
    place = here / FOLDER / KEY
    for path in (here / FOLDER, place, place / RECORD, place / NAME):
        mode = path.stat().st_mode & 0o777
        path.chmod(mode | 0o020)
        wrong = store.wrong(KEY, wheel)
        assert wrong and wrong.expected == "one that you alone can write", path
        path.chmod(mode)
    assert store.wrong(KEY, wheel) is None
    (place / NAME).rename(here / NAME)
    (place / NAME).symlink_to(here / NAME)
    wrong = store.wrong(KEY, wheel)
    assert wrong and "a link" in wrong.found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_wheel_of_another_account_is_not_used(here: Path) -> None:
    wheel, store = stored(here), WheelStore(here / FOLDER)
    os.chown(here / FOLDER / KEY / NAME, 1000, 1000)
    wrong = store.wrong(KEY, wheel)
    assert wrong and "uid 1000 as its owner" in wrong.found
    os.chown(here / FOLDER, 1000, 1000)
    with pytest.raises(PermissionError), store.incoming(KEY, wheel):
        pass


def test_what_is_kept_is_for_this_user_to_write_whatever_the_umask(here: Path) -> None:
    before = os.umask(0o002)
    try:
        wheel = wheel_of("@fake/old", keeps().product)
        assert isinstance(wheel, SharedWheel)
        with WheelStore().incoming(KEY, wheel) as coming:
            coming.add(WHEEL)
    finally:
        os.umask(before)
    assert WheelStore().wrong(KEY, wheel) is None


def test_wheels_that_nobody_uses_go_and_nothing_else(here: Path) -> None:
    stored(here)
    store, now, place = WheelStore(), time.time(), here / FOLDER
    shutil.copytree(place / KEY, place / "0123456789abcdef")
    aside = store.set_aside("0123456789abcdef")
    (place / "notes").mkdir()
    later = now + (KEPT_DAYS - 1) * 86400
    assert store.prune(later) == []
    os.utime(place / KEY / RECORD, (later, later))
    assert store.prune(now + (KEPT_DAYS + 1) * 86400) == [aside.name]
    assert sorted(path.name for path in place.iterdir()) == [KEY, "notes"]
    store.used(KEY)
    assert store.prune(now + (KEPT_DAYS + 1) * 86400) == [KEY]


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


@pytest.mark.parametrize("how", ["job", "start", "config"])
def test_a_wheel_does_not_stay_on_a_host_where_it_failed(
    monkeypatch: pytest.MonkeyPatch, here: Path, how: str
) -> None:
    stored(here)
    host = new()
    host.becomes.clear()
    host.answers[STATUS] = answer_of(ended("build", KEY, ok=False))
    failing = {"start": "systemd-run", "config": f"PUT {CONFIG}"}
    if how in failing:
        host.answers[failing[how]] = False
    with fleet(monkeypatch, {"a": host}) as run:
        assert deploy(run) == ["@fake/a"]
    assert host.uploads[TARGET] == WHEEL and cleared(host) == 1


def test_a_wheel_stays_for_a_job_that_may_go_on(
    monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    stored(here)
    host = new()
    host.becomes.clear()
    host.answers[STATUS] = answer_of(JobStatus(state="running", progress=progress()))
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.01)
    with fleet(monkeypatch, {"a": host}) as run:
        run.runs["a"].settings = run.runs["a"].settings.model_copy(
            update={"build_timeout_minutes": 0}
        )
        assert deploy(run) == ["@fake/a"]
        assert "left running" in run.runs["a"].failures[0]
    assert cleared(host) == 0


def test_what_a_run_that_was_cut_off_left_is_removed_by_the_next(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With sharing or without, be there something to build or not; no folder of somebody else's."""
    host = after_the_build(FakeHost())
    owners = [f"41ed\troot\troot\t{LAYOUT.shared}"]
    host.found(owners=owners, made=[LAYOUT.prefix])
    other = after_the_build(FakeHost()).found(owners=owners, made=["account"])
    host.answers[REMOVE] = other.answers[REMOVE] = ""
    with fleet(monkeypatch, {"a": host, "b": other}) as run:
        assert changes_anything(run.runs["a"].plan())
        assert deploy(run) == []
    assert cleared(host) == 1 and cleared(other) == 0
    assert f"found that {LAYOUT.shared} can't be removed" in capsys.readouterr().err


def progress(**told: Any) -> Progress:
    values = {"pid": 7, "start_ticks": 1, "phase": "compile", "step": 5, "steps": 9, **told}
    return Progress(kind="build", key=KEY, **values)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("others", ["", "bc"])
def test_a_build_that_stands_still_is_waited_for_no_longer_than_its_bound(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], others: str
) -> None:
    """As one whose processes are stopped: the next host builds, and the others wait for that."""
    frozen = new()
    frozen.becomes.clear()
    still = JobStatus(state="running", progress=progress())
    end = ended("build", KEY, ok=False)
    frozen.answers[STATUS] = answer_of(*[still] * (9 if not others else 400), end)
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(share, "STALLED_S", 0.05)
    monkeypatch.setattr(watch._Wait, "young", False)
    hosts = {"a": frozen, **{name: new() for name in others}}
    if others:
        moves = [JobStatus(state="running", progress=progress(step=step)) for step in range(6, 9)]
        hosts["b"].answers[STATUS] = answer_of(*moves, ended("build", KEY))
    with fleet(monkeypatch, hosts) as run:
        assert deploy(run) == ["@fake/a"]
        (said,) = run.runs["a"].failures
        assert run.runs["a"].known is not bool(others)
    assert ("found no step forward on @fake/a" in said) is bool(others)
    if others:
        assert "as other hosts wait for it; it was left running" in said
        assert told(hosts["b"]).keep_wheel and hosts["c"].uploads[TARGET] == WHEEL
        err = capsys.readouterr().err
        why = "build: found no wheel of @fake/a (it came to no end); expected one to install; "
        assert f"[@fake/b] {why}it is built here" in err
        assert f"[@fake/c] {why}waits for the wheel of @fake/b" in err


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("rebuild", [False, True])
def test_each_host_that_gives_none_is_followed_by_the_next(
    monkeypatch: pytest.MonkeyPatch, here: Path, rebuild: bool
) -> None:
    if rebuild:
        stored(here)
    hosts = {name: new(rebuild=rebuild) for name in "abcd"}
    for name in "ab":
        hosts[name].becomes.clear()
        hosts[name].answers[STATUS] = answer_of(ended("build", KEY, ok=False))
    with fleet(monkeypatch, hosts) as run:
        assert deploy(run) == ["@fake/a", "@fake/b"]
    built = [told(hosts[name]).wheel is None for name in "cd"]
    assert built.count(True) == 1, "of two that are left one builds"


@pytest.mark.usefixtures("at_once")
def test_of_two_that_have_built_the_second_gives_where_the_first_can_t(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = [
        FakeHost(build_sharing="wheel").build(keeps()).found(f"current={KEY}") for _ in range(2)
    ]
    built[0].answers[READ] = False
    built[1].answers[READ] = GAVE
    hosts = {"a": new(), "b": built[0], "c": built[1]}
    with fleet(monkeypatch, hosts) as run:
        assert deploy(run) == []
        assert "wheel of @fake/c; " in run.runs["a"].changes[0]


def test_a_wheel_that_comes_too_slowly_is_given_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(share, "FETCH_S", -1.0)
    hosts = {name: new() for name in "ab"}
    with fleet(monkeypatch, hosts) as run:
        assert deploy(run) == []
    assert told(hosts["b"]).wheel is None
    assert "found 0 bytes of" in capsys.readouterr().err


def test_a_build_of_before_that_kept_no_wheel_is_no_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hosts = {"a": after_the_build(FakeHost(build_sharing="wheel")), "b": new(), "c": new()}
    with fleet(monkeypatch, hosts) as run:
        assert deploy(run) == []
        assert "wheel of @fake/b; " in run.runs["c"].changes[0]
    assert hosts["a"].sent == [] and JOB


@under_any_login_shell
def test_each_byte_of_a_wheel_comes_and_goes_under_any_login_shell(
    here: Path, monkeypatch: pytest.MonkeyPatch, login: str
) -> None:
    """The commands themselves, run: in three parts, the last a short one."""
    source, fact = here / NAME, share.WheelPart()
    source.write_bytes(WHEEL)
    wheel = wheel_of("@fake/a", keeps().product)
    assert isinstance(wheel, SharedWheel)
    store = WheelStore(here / FOLDER)
    with store.incoming(KEY, wheel) as coming:
        while coming.size < len(WHEEL):
            size = min(4096, len(WHEEL) - coming.size)
            command = fact.command("", str(source), coming.size, size)
            coming.add(fact.process(shells.run(command, login).stdout.splitlines()))
        assert coming.wrong == ""
    assert store.wrong(KEY, wheel) is None
    target, own = here / "host" / NAME, Access("", "", 0o644)
    assert shells.run_all(upload.write(store.file(KEY, wheel), str(target), own, SHA256)) == []
    assert target.read_bytes() == WHEEL and target.stat().st_mode & 0o777 == 0o644
    gone = share.Gone()
    for _ in range(2):  # What is not there is gone too.
        said = shells.run(gone.command(str(target.parent)), login).stdout
        assert gone.process(["Welcome", *said.splitlines()]) and not target.parent.exists()
    assert not gone.process([])


@pytest.mark.parametrize("content", [WHEEL[:-1], WHEEL[::-1], b""])
def test_the_store_keeps_nothing_of_a_wheel_that_is_wrong(here: Path, content: bytes) -> None:
    wheel = stored(here)
    store = WheelStore(here / FOLDER)
    other = replace(wheel, host="@fake/b")
    with store.incoming(KEY, other) as coming:
        coming.add(content)
    assert store.all() == {KEY: wheel} and store.wrong(KEY, wheel) is None
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
    assert WheelStore().wrong(KEY, wheel) is None
