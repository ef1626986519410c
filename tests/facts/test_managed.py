"""What llamafleet itself left on the host: builds, jobs, results, files, units."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, replace
from typing import Any

import pytest

from llamafleet.facts.host import Job, Unit
from llamafleet.managed import unit_names
from llamafleet.protocol.decode import decode
from llamafleet.protocol.job import Progress, Stamp
from llamafleet.received import Unreadable
from tests.facts.fakehost import FakeHost
from tests.history import OFFLOAD, RESULT

TICKS = 8_514_203
STAT = f"4711 (a (b) c 1) S {' '.join('7' * 18)} {TICKS} 5 6\n"
"""proc(5): the name may hold blanks and brackets, the start is the 22nd field."""
COMMAND = b"python3\0/opt/llamafleet/llamafleet-host.pyz\0job\0--kind\0build\0"


def progress(key: str = "0123", **changes: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "kind": "build",
        "key": key,
        "pid": 4711,
        "start_ticks": TICKS,
        "phase": "compile",
        "line": '[7/190] "pid": 1',
        **changes,
    }


def running(fake: FakeHost, command: bytes = COMMAND) -> None:
    """A host with one process of interest."""
    fake.write(fake.root / "proc/4711/stat", STAT)
    fake.write(fake.root / "proc/4711/cmdline", command)


def test_nothing_yet(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    snapshot = fake.snapshot()
    for nothing in (snapshot.current, snapshot.result, snapshot.wheelhouse, snapshot.verifying):
        assert nothing is None
    assert (snapshot.versions, snapshot.jobs, snapshot.files) == ((), (), {})


def test_versions_and_the_switch(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    for name in ("bbbb", "aaaa"):
        (fake.prefix / "versions" / name).mkdir(parents=True)
    fake.write(fake.prefix / "versions/notes.txt", "")
    (fake.prefix / "current").symlink_to("versions/bbbb/")
    snapshot = fake.snapshot()
    assert (snapshot.current, snapshot.versions) == ("bbbb", ("aaaa", "bbbb"))


def test_the_build_that_served_before_is_looked_into_as_well(fake: FakeHost) -> None:
    for number in range(20):
        (fake.prefix / f"versions/{number:04}").mkdir(parents=True)
    (fake.prefix / "current").symlink_to("versions/0000")
    (fake.prefix / "previous").symlink_to(fake.prefix / "versions/0001")
    snapshot = fake.snapshot()
    assert (snapshot.current, snapshot.previous) == ("0000", "0001")
    assert {"0000", "0001"} <= set(snapshot.builds)
    (fake.prefix / "previous").unlink()
    assert fake.snapshot().previous is None


def test_current_that_is_no_link(fake: FakeHost) -> None:
    (fake.prefix / "current").mkdir(parents=True)
    assert fake.snapshot().current is None


def test_jobs(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    running(fake)
    stamp = Stamp(kind="toolkit", key="13.0", ok=True)
    fake.write(fake.state / "build/0123/progress.json", json.dumps(progress()))
    fake.write(fake.state / "toolkit/13.0/stamp.json", json.dumps(asdict(stamp), indent=1) + "\n")
    jobs = fake.snapshot().jobs
    assert jobs == (
        Job("build", "0123", alive=True, progress=decode(Progress, progress())),
        Job("toolkit", "13.0", alive=False, stamp=stamp),
    )
    assert [job.ok for job in jobs] == [False, True]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({"start_ticks": TICKS - 1}, COMMAND),
        ({"start_ticks": None}, COMMAND),
        ({"pid": 4712}, COMMAND),
        ({"pid": None}, COMMAND),
        ({}, b"/usr/sbin/sshd\0-D\0"),
    ],
)
def test_job_that_no_longer_runs(
    fake: FakeHost, changes: dict[str, Any], command: bytes, indent: int | None
) -> None:
    """After a reboot, after its end, or when its pid is another program's."""
    path = fake.state / "build/0123/progress.json"
    running(fake)
    fake.write(path, json.dumps(progress(line=""), indent=indent))
    assert fake.snapshot().jobs[0].alive
    running(fake, command)
    fake.write(path, json.dumps(progress(line="", **changes), indent=indent))
    assert not fake.snapshot().jobs[0].alive


DAMAGED = [
    b"",
    b"{",
    b'{"pid": 4711, "start_ticks": ',
    b"[1, 2]",
    b"\0" * 4096,
    b"#end\n@end\n",
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b'{"a": ' + b"9" * 10_000 + b"}",
]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_files(fake: FakeHost, content: bytes) -> None:
    for name in ("build/0123/progress.json", "build/0123/stamp.json", "results/latest.json"):
        fake.write(fake.state / name, content)
    fake.borrow("iconv")
    snapshot = fake.snapshot()
    (job,) = snapshot.jobs
    assert job == Job("build", "0123", alive=False, unreadable=job.unreadable)
    assert job.unreadable and job.unreadable.isprintable()
    # Not none: a host that was never verified is another one.
    assert isinstance(snapshot.result, Unreadable) and snapshot.result.reason.isprintable()


def test_endless_file_is_cut(fake: FakeHost) -> None:
    fake.write(fake.state / "results/latest.json", json.dumps({"a": "x" * 3_000_000}))
    cut = fake.snapshot().result
    assert isinstance(cut, Unreadable) and "1 MiB" in cut.reason
    assert sum(map(len, fake.lines())) < 1_100_000


def test_file_that_is_no_file(fake: FakeHost) -> None:
    (fake.state / "results/latest.json").mkdir(parents=True)
    (fake.state / "build/0123").mkdir(parents=True)
    for name in ("progress", "stamp"):
        os.mkfifo(fake.state / f"build/0123/{name}.json")
    snapshot = fake.snapshot()
    assert snapshot.result is None and snapshot.jobs[0].stamp is None


def test_only_the_newest_jobs_and_the_one_in_use(fake: FakeHost) -> None:
    for number in range(15):
        folder = fake.state / f"build/{number:04}"
        fake.write(folder / "stamp.json", json.dumps({"ok": True}))
        os.utime(folder, (1000 + number, 1000 + number))
    fake.prefix.mkdir()
    (fake.prefix / "current").symlink_to("versions/0002")
    keys = [job.key for job in fake.snapshot().jobs]
    assert keys == ["0002"] + [f"{number:04}" for number in range(14, 4, -1)]


def test_odd_names_are_no_jobs(fake: FakeHost) -> None:
    for name in ("a b", "x=y", "new\nline", "tab\there", ".hidden"):
        (fake.state / "build" / name).mkdir(parents=True)
    fake.write(fake.state / "build/file", "")
    assert fake.snapshot().jobs == ()


@pytest.mark.parametrize("name", ["progress", "stamp"])
def test_verification(fake: FakeHost, name: str) -> None:
    contents: dict[str, Progress | Stamp] = {
        "progress": Progress(kind="verify", key="abcd", pid=4711, start_ticks=TICKS),
        "stamp": Stamp(kind="verify", key="abcd", ok=True),
    }
    content = contents[name]
    fake.write(fake.state / f"verify/run/{name}.json", json.dumps(asdict(content)))
    snapshot = fake.snapshot()
    assert snapshot.jobs == ()
    assert snapshot.verifying is not None
    assert (snapshot.verifying.kind, snapshot.verifying.key) == ("verify", "abcd")
    assert getattr(snapshot.verifying, name) == content


def test_verification_whose_files_are_damaged(fake: FakeHost) -> None:
    fake.write(fake.state / "verify/run/progress.json", "{")
    assert fake.snapshot().verifying == Job("verify", "run", alive=False)


def test_result(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    check = replace(OFFLOAD, found="33/33  tab  ü")
    result = replace(RESULT, checks=(check,))
    fake.write(fake.state / "results/latest.json", json.dumps(asdict(result), indent=2))
    assert fake.snapshot().result == result


def test_files(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    names = ["plain", "with blank", "it's", 'say "no"', "*", "$(touch gone)", "back\\slash", "-n"]
    paths = [fake.write(fake.folder / "etc" / name, name) for name in names]
    (fake.folder / "etc/folder").mkdir()
    fake.write(fake.folder / "etc/unasked", "")
    fake.files = (
        *map(str, paths),
        str(fake.folder / "etc/missing"),
        str(fake.folder / "etc/folder"),
    )
    assert fake.snapshot().files == {
        str(path): hashlib.sha256(path.name.encode()).hexdigest() for path in paths
    }


def test_wheelhouse(fake: FakeHost) -> None:
    fake.write(fake.prefix / "wheelhouse/manifest.json", "{}")
    snapshot = fake.snapshot()
    assert snapshot.wheelhouse == hashlib.sha256(b"{}").hexdigest()
    assert snapshot.files == {}


UNITS = """cat <<'END'
Id=llamafleet-verify.service
LoadState=loaded
ActiveState=inactive
SubState=dead
UnitFileState=static
NeedDaemonReload=yes
DropInPaths=/usr/lib/systemd/system/service.d/10-all.conf /etc/systemd/system/llamafleet-verify.service.d/x.conf

Id=llamafleet-serve@chat.service
LoadState=loaded
ActiveState=inactive
SubState=dead
UnitFileState=enabled
DropInPaths=/etc/systemd/system/llamafleet-serve@.service.d/a.conf /etc/systemd/system/llamafleet-.service.d/b.conf

Id=llamafleet-verify.timer
LoadState=not-found
ActiveState=inactive
SubState=dead
UnitFileState=

Id=llamafleet-driver-check.path
LoadState=masked
ActiveState=inactive
SubState=dead
UnitFileState=masked
NeedDaemonReload=no

Id=llamafleet-build-0123.service
LoadState=loaded
ActiveState=active
SubState=running
UnitFileState=transient
DropInPaths=/run/systemd/transient/llamafleet-build-0123.service.d/50-Nice.conf
END"""  # noqa: E501


def booted(fake: FakeHost, body: str) -> None:
    (fake.root / "run/systemd/system").mkdir(parents=True)
    fake.program("systemctl", f'echo "$*" >> {fake.folder}/asked\n{body}')


@pytest.mark.parametrize("scope", ["system", "user"])
def test_units(fake: FakeHost, scope: str) -> None:
    booted(fake, UNITS)
    if scope == "user":
        fake.layout = type(fake.layout).user("$HOME")
    snapshot = fake.snapshot()
    assert snapshot.init == "systemd"
    assert snapshot.units == {
        "llamafleet-verify.service": Unit(
            *("loaded", "inactive", "dead", "static"),
            stale=True,
            dropins=("/etc/systemd/system/llamafleet-verify.service.d/x.conf",),
        ),
        "llamafleet-serve@chat.service": Unit(
            *("loaded", "inactive", "dead", "enabled"),
            dropins=(
                "/etc/systemd/system/llamafleet-serve@.service.d/a.conf",
                "/etc/systemd/system/llamafleet-.service.d/b.conf",
            ),
        ),
        "llamafleet-driver-check.path": Unit("masked", "inactive", "dead", "masked"),
        "llamafleet-build-0123.service": Unit("loaded", "active", "running", "transient"),
    }
    asked = (fake.folder / "asked").read_text()
    assert asked.startswith(f"--{scope} show ")
    # By name: a pattern finds none of those that systemd has not loaded.
    assert {*unit_names(), "llamafleet-*"} < set(asked.split())


@pytest.mark.parametrize(
    ("said", "version"),
    [("252.39-1~deb12u2", 252), ("239 (239-82.el8)", 239), ("v260~rc1", 0), ("", 0)],
)
def test_the_version_of_systemd(fake: FakeHost, shell: str, said: str, version: int) -> None:
    fake.shell = shell
    booted(fake, f"case $* in *Version*) echo 'Version={said}' ;; esac")
    assert fake.snapshot().systemd == version


def test_systemd_that_does_not_answer(fake: FakeHost) -> None:
    booted(fake, "echo 'Failed to connect to bus: No medium found' >&2; exit 1")
    snapshot = fake.snapshot()
    assert (snapshot.init, snapshot.units) == ("silent", {})


def test_systemd_that_hangs(fake: FakeHost) -> None:
    booted(fake, "exec sleep 20")
    assert fake.snapshot().init == "silent"


def test_systemd_installed_but_not_booted(fake: FakeHost) -> None:
    fake.program("systemctl", UNITS)
    assert fake.snapshot().init == "none"


def test_linger(fake: FakeHost) -> None:
    assert not fake.snapshot().linger
    fake.write(fake.root / "var/lib/systemd/linger" / fake.snapshot().user, "")
    assert fake.snapshot().linger


@pytest.mark.parametrize("exists", [True, False])
def test_account(fake: FakeHost, exists: bool) -> None:
    (fake.bin / "id").unlink()
    answer = "echo 998" if exists else "exit 1"
    fake.program("id", f'case "$*" in "-u llamafleet") {answer} ;; *) echo 0 ;; esac')
    assert fake.snapshot().account is exists
