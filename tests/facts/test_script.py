"""The script by itself: on this machine, under each shell, on poor and hostile hosts."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from llamafleet.facts.host import HostSnapshot
from llamafleet.facts.reader import SnapshotError
from llamafleet.facts.snapshot import parse, render
from llamafleet.layout import Layout
from llamafleet.received import Unreadable
from tests.facts.fakehost import FakeHost, shell_command

ONE_ARGUMENT_MAX = 131072
"""Bytes Linux takes as one argument of a program (MAX_ARG_STRLEN, execve(2))."""


def here(shell: str, layout: Layout, files: tuple[str, ...] = ()) -> HostSnapshot:
    done = subprocess.run(
        [*shell_command(shell), "-c", render(layout, files)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return parse(done.stdout.splitlines())


def test_this_machine(shell: str) -> None:
    snapshot = here(shell, Layout.system(), ("/etc/passwd", "/nonexistent"))
    assert snapshot.kernel == platform.release()
    assert snapshot.arch == platform.machine()
    assert snapshot.hostname == platform.node()
    assert snapshot.uid == os.getuid()
    assert snapshot.cores == len(os.sched_getaffinity(0))
    assert abs(snapshot.time - time.time()) < 60
    total_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    assert snapshot.memory_mib == pytest.approx(total_mib, rel=0.01)
    assert 0 < snapshot.memory_available_mib <= snapshot.memory_mib
    assert set(snapshot.disk_free_mib) == {"prefix", "state", "tmp"}
    expected_mib = shutil.disk_usage("/tmp").free // 2**20
    assert snapshot.disk_free_mib["tmp"] == pytest.approx(expected_mib, rel=0.05)
    assert snapshot.os_id
    assert snapshot.pythons
    assert list(snapshot.files) == ["/etc/passwd"]


def test_shells_agree(shell: str, tmp_path: Path) -> None:
    """On all that does not change from one second to the next."""
    layout = Layout.user(str(tmp_path))

    def steady(snapshot: HostSnapshot) -> HostSnapshot:
        snapshot = dataclasses.replace(snapshot, uptime_s=None)
        return dataclasses.replace(snapshot, time=0, memory_available_mib=0, disk_free_mib={})

    assert steady(here(shell, layout)) == steady(here("sh", layout))


def test_home_is_expanded_on_the_host(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    fake.home = fake.home.rename(fake.folder / 'it\'s $a "home"')
    fake.layout = Layout.user("$HOME")
    settings = fake.write(fake.home / ".config/llamafleet/verify.json", "{}")
    (fake.home / ".local/share/llamafleet/versions/0123").mkdir(parents=True)
    fake.files = (fake.layout.verify_config,)
    snapshot = fake.snapshot()
    assert snapshot.home == str(fake.home)
    assert list(snapshot.files) == [Layout.user(snapshot.home).verify_config] == [str(settings)]
    assert snapshot.versions == ("0123",)


def test_home_in_the_middle_of_a_path_is_kept(fake: FakeHost) -> None:
    literal = fake.write(fake.folder / "$HOME" / "a", "")
    fake.files = (str(literal),)
    assert list(fake.snapshot().files) == [str(literal)]


def test_without_home_the_account_database_is_asked(fake: FakeHost) -> None:
    fake.environment["HOME"] = ""
    assert fake.snapshot().home == os.path.expanduser(f"~{fake.snapshot().user}")  # noqa: PTH111


@pytest.mark.parametrize("path", ["relative/path", "$HOMEless", "~/a", "/two\nlines"])
def test_paths_that_the_script_could_not_take_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="found path"):
        render(Layout.system(), (path,))


def test_nothing_but_a_shell(fake: FakeHost, shell: str) -> None:
    """Not even sed: the promises hold and the reader says that it is not a snapshot."""
    fake.shell = shell
    for tool in fake.bin.iterdir():
        tool.unlink()
    with pytest.raises(SnapshotError, match="truncated"):
        parse(fake.lines())


def test_few_tools(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    for tool in fake.bin.iterdir():
        if tool.name not in ("sh", "sed", "cat", "id", "uname", "readlink", "date"):
            tool.unlink()
    snapshot = fake.snapshot()
    assert snapshot.arch == platform.machine()
    assert snapshot.cores == 1
    assert snapshot.disk_free_mib == {"prefix": 0, "state": 0, "tmp": 0}


def test_busybox_alone(fake: FakeHost) -> None:
    busybox = shutil.which("busybox")
    if not busybox:
        pytest.skip("this machine has no busybox")
    for tool in fake.bin.iterdir():
        tool.unlink()
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    for name in applets.stdout.split():
        (fake.bin / name).symlink_to(busybox)
    fake.shell = "busybox"
    settings = fake.write(fake.folder / "etc/a.json", "{}")
    fake.files = (str(settings),)
    fake.write(fake.root / "proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n")
    fake.program("nvidia-smi", "exec sleep 9")
    snapshot = fake.snapshot(smi_limit_s=1)
    assert list(snapshot.files) == [str(settings)]
    assert snapshot.disk_free_mib["tmp"] > 0
    assert (snapshot.memory_mib, snapshot.memory_available_mib) == (8192, 4096)
    assert snapshot.driver.smi_state == "timeout"
    # Its setpriv takes no user: as root nothing is asked of programs that others may have written.
    assert snapshot.setpriv is (os.getuid() != 0) and bool(snapshot.unseen) is (os.getuid() == 0)


def test_a_step_that_ends_the_shell_is_noticed(fake: FakeHost) -> None:
    script = f"LF_ROOT={fake.root}\n" + render(fake.layout, ())
    broken, count = re.subn(r"\n    read_gpus\n", "\n    exit 3\n", script)
    assert count == 1
    done = subprocess.run(["sh", "-c", broken], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.endswith("#end\n")
    with pytest.raises(SnapshotError, match="complete=1"):
        parse(done.stdout.splitlines())


def test_locale_of_the_login_does_not_matter(fake: FakeHost) -> None:
    fake.environment |= {"LC_ALL": "de_DE.UTF-8", "LANG": "de_DE.UTF-8"}
    fake.program("cmake", 'echo "cmake version 3.25.1 in $LC_ALL"')
    line = next(line for line in fake.lines() if line.startswith(" cmake="))
    assert line.endswith("in C")


def test_bytes_that_are_no_text_do_not_reach_the_reader(fake: FakeHost, shell: str) -> None:
    """pyinfra decodes strictly: one such byte would end the run."""
    fake.shell = shell
    fake.borrow("iconv")
    fake.write(fake.root / "etc/os-release", b'ID=debian\nPRETTY_NAME="Gr\xc3\xbc\xdfe"\n')
    fake.write(fake.state / "results/latest.json", bytes(range(256)) * 50)
    snapshot = fake.snapshot()
    assert snapshot.os_name == "Grüe"
    assert isinstance(snapshot.result, Unreadable)
    (fake.bin / "iconv").unlink()
    fake.borrow("tr")
    assert fake.snapshot().os_name == "Gre"


def test_the_script_writes_nothing(fake: FakeHost) -> None:
    fake.write(fake.state / "build/0123/progress.json", "{}")
    fake.program("nvidia-smi", "echo no")

    def tree() -> list[tuple[Path, int]]:
        return sorted((path, path.lstat().st_mtime_ns) for path in fake.folder.rglob("*"))

    before = tree()
    fake.environment["TMPDIR"] = str(fake.folder)
    fake.lines()
    assert tree() == before


def test_the_script_fits_one_argument_even_quoted_twice() -> None:
    files = tuple(f"/etc/llamafleet/{n}/{'x' * 100}" for n in range(100))
    script = render(Layout.system(), files)
    assert len(shlex.quote(f"sh -c {shlex.quote(script)}")) < 100_000 < ONE_ARGUMENT_MAX


def test_time() -> None:
    """About 0.3 s on an idle machine with two cores; bounded for a busy one."""
    best_s = min(_timed() for _ in range(3))
    assert best_s < 3


def _timed() -> float:
    begin = time.monotonic()
    here("sh", Layout.system())
    return time.monotonic() - begin
