"""What root tries of an installation: with whose rights, in which environment, for how long."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamafleet.onhost.job import Job, JobFailed
from llamafleet.onhost.toolkit import account, install
from llamafleet.onhost.toolkit.account import Account, Bench, bench
from llamafleet.protocol.job import PackagesConfig, ToolkitInputs
from tests.onhost.runner import processes_below

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to drop")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of root's that everybody may read, as below /opt."""
    for folder in [tmp_path, *tmp_path.parents]:
        if str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    return tmp_path


@pytest.fixture
def tried(place: Path) -> Iterator[Bench]:
    with bench(Job("toolkit", place, "k"), Account.named("nobody"), place) as made:
        yield made


def script(place: Path, text: str) -> str:
    file = place / "nvcc"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return str(file)


def test_it_runs_with_the_account_s_rights_alone(
    place: Path, tried: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "root's own")
    with pytest.raises(JobFailed):
        tried.run([script(place, "touch /root/planted")], tried.environment())
    planted = script(place, "id -u; id -G; echo x >$TMPDIR/mine; env; pwd")
    said = tried.run([planted], tried.environment(Path("/opt/x/bin")))
    nobody = Account.named("nobody")
    assert said.splitlines()[:2] == [str(nobody.uid), str(nobody.gid)]
    assert "SECRET" not in said and "PATH=/opt/x/bin:/usr/local/sbin" in said
    assert said.splitlines()[-1] == str(tried.folder)
    assert not Path("/root/planted").exists()
    assert tried.folder.stat().st_mode & 0o777 == 0o700
    assert "nvcc" in (place / "toolkit.log").read_text()


def test_nothing_of_it_is_left(place: Path) -> None:
    with bench(Job("toolkit", place, "k"), Account.named("nobody"), place) as tried:
        planted = script(
            place, "ln -s /etc $TMPDIR/etc; mkdir -p $TMPDIR/a/b; echo x >$TMPDIR/a/b/c"
        )
        tried.run([planted], tried.environment())
    assert not tried.folder.exists() and Path("/etc/passwd").exists()


def test_what_it_leaves_running_is_ended(place: Path, tried: Bench) -> None:
    sleeper = script(place, "exec sleep 600")
    planted = place / "planted"
    planted.write_text(f"#!/bin/sh\n{sleeper} {place}/mark &\necho done\n")
    planted.chmod(0o755)
    begun = time.monotonic()
    assert tried.run([str(planted)], tried.environment()) == "done\n"
    assert time.monotonic() - begun < 60
    assert processes_below(place) == []


def test_its_time_and_its_words_have_limits(
    place: Path, tried: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(JobFailed, match="did not end within 1 s"):
        tried.run([script(place, "sleep 600")], tried.environment(), 1.0)
    with pytest.raises(JobFailed, match="did not end within 1 s"):
        tried.run([script(place, "exec >&- 2>&-; sleep 600")], tried.environment(), 1.0)
    monkeypatch.setattr(account, "LIMIT_OCTETS", 1000)
    with pytest.raises(JobFailed, match="said more than 1000 bytes"):
        tried.run([script(place, "exec cat /dev/zero")], tried.environment())
    assert processes_below(place) == []


def test_its_words_are_printable(place: Path, tried: Bench) -> None:
    said = tried.run([script(place, r"printf 'a\033[31m\r\000b\377'")], tried.environment())
    assert said.isprintable() and "[31m" in said


def test_ends_are_told(place: Path, tried: Bench) -> None:
    for text, why in (("exit 3", "nvcc ended with status 3"), ("kill -9 $$", "ended by SIGKILL")):
        with pytest.raises(JobFailed, match=why):
            tried.run([script(place, text)], tried.environment())
    with pytest.raises(JobFailed, match="can't run /no/such"):
        tried.run(["/no/such"], tried.environment())


def test_a_toolkit_that_root_installed_is_never_run_by_root(place: Path) -> None:
    """nvcc, what it starts, and the host compiler that the settings name."""
    planted = script(place, 'id -u >>"$HOME/../ids"; id -u; echo "release 12.8, V12.8.93"')
    root = place / "root"
    (root / "bin").mkdir(parents=True)
    Path(planted).rename(root / "bin/nvcc")
    (place / "ids").touch()
    (place / "ids").chmod(0o666)
    config = PackagesConfig(
        key="apt-12.8",
        inputs=ToolkitInputs(method="apt"),
        method="apt",
        cuda="12.8",
        root=str(root),
        cxx="/usr/bin/g++",
        manager="apt",
        packages=("cuda-nvcc-12-8",),
        record=str(place / "record"),
        account="nobody",
        repository=None,
    )
    nobody = Account.named("nobody")
    job = Job("toolkit", place, config.key)
    assert install.check(job, config, root, place, nobody) == "12.8.93"
    assert (place / "ids").read_text().split() == [str(nobody.uid)] * 2


def test_root_and_nobody_known_are_no_account() -> None:
    with pytest.raises(JobFailed, match="found no account 'no-such'"):
        Account.named("no-such")
    with pytest.raises(JobFailed, match="found uid 0"):
        Account.named("root")
    assert not Account.named(None).another
