"""What the account plants in its folders gains nothing, with real rights: root reads the host."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamafleet.facts.host import HostSnapshot
from llamafleet.facts.snapshot import NOBODY, parse, render
from llamafleet.layout import Layout
from tests.facts.fakehost import FakeHost
from tests.facts.test_managed import progress
from tests.facts.test_tools import toolkit

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"),
    reason="takes rights away, as root with setpriv",
)

ACCOUNT = "65533"
SECRET = "0123456789-only-root-reads-this"


@pytest.fixture
def host() -> Iterator[FakeHost]:
    """One whose folders others may enter, read by root. It has no account."""
    folder = Path(tempfile.mkdtemp(prefix="llamafleet-rights-"))
    fake = FakeHost(folder)
    fake.real_rights()
    # Whoever builds may write these two.
    for path in (fake.state, fake.prefix):
        path.mkdir()
        path.chmod(0o777)
    yield fake
    shutil.rmtree(folder)


@pytest.fixture
def account(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    """The same with an account, by its number: this machine need not have it."""
    rights = ("--reuid=" + ACCOUNT, "--regid=" + ACCOUNT, "--clear-groups", "--no-new-privs")
    monkeypatch.setattr("llamafleet.facts.snapshot.AS_ACCOUNT", ("setpriv", *rights))
    real = shutil.which("id")
    host.program("id", f'[ "$*" = "-u llamafleet" ] && echo {ACCOUNT} && exit\nexec {real} "$@"')
    return host


def plant(fake: FakeHost, path: Path | str, body: str = "exit 0") -> Path:
    """A program that tells who runs it."""
    return fake.program(path, f"id -u >> {fake.state}/ran\n{body}")


def ran_by(fake: FakeHost) -> set[str]:
    return set((fake.state / "ran").read_text().split())


def everywhere(fake: FakeHost) -> None:
    """Programs in each place where the account can put one."""
    root = toolkit(fake, fake.prefix / "toolkits/cuda-13.0")
    plant(fake, root / "bin/nvcc")
    plant(fake, fake.prefix / "versions/0123/bin/python")
    for name in ("g++", "clang++", "python3", "cmake", "nvcc"):
        plant(fake, name)
    fake.extra = (
        str(plant(fake, fake.home / "python3.12")),
        str(plant(fake, fake.home / "my-g++")),
    )


def test_programs_run_with_the_account_s_rights(account: FakeHost) -> None:
    everywhere(account)
    assert account.snapshot().account
    assert ran_by(account) == {ACCOUNT}


def test_before_there_is_an_account_they_run_as_nobody(host: FakeHost, shell: str) -> None:
    host.shell = shell
    everywhere(host)
    assert not host.snapshot().account
    assert ran_by(host) == {NOBODY}


def test_no_right_comes_along(host: FakeHost) -> None:
    """Neither groups nor capabilities, nor variables of root's."""
    host.environment |= {"LD_PRELOAD": "", "SECRET": SECRET, "PYTHONPATH": "/x"}
    plant(host, "cmake", f"cat /proc/self/status > {host.state}/status; env > {host.state}/env")
    host.snapshot()
    status = dict(line.split(":\t", 1) for line in (host.state / "status").read_text().splitlines())
    assert (status["CapEff"], status["CapPrm"], status["NoNewPrivs"]) == ("0" * 16, "0" * 16, "1")
    assert (status["Groups"].strip(), status["Gid"].split()) == ("", [NOBODY] * 4)
    names = {line.partition("=")[0] for line in (host.state / "env").read_text().splitlines()}
    assert not names & {"LD_PRELOAD", "SECRET", "PYTHONPATH"}


def test_the_account_by_its_name_and_with_its_groups(host: FakeHost) -> None:
    """AS_ACCOUNT as it is, in a mount namespace whose passwd and group have the account."""
    for name, line in (
        ("passwd", f"llamafleet:x:{ACCOUNT}:{ACCOUNT}::/var/lib/llamafleet:/usr/sbin/nologin"),
        ("group", f"llamafleet:x:{ACCOUNT}:\ngpus:x:64998:llamafleet"),
    ):
        # This machine may have it too.
        real = [
            one for one in Path("/etc", name).read_text().splitlines() if "llamafleet" not in one
        ]
        host.write(host.folder / name, "\n".join([*real, line, ""]))
    (host.bin / "id").unlink()
    host.borrow("id")
    plant(host, "cmake", f"sed -n 's/^Groups:[^0-9]*//p' /proc/self/status > {host.state}/groups")
    script = f"LF_ROOT={host.root}\n{render(host.layout, ())}"
    mounts = "; ".join(f"mount --bind {host.folder}/{n} /etc/{n}" for n in ("passwd", "group"))
    begin = f'{mounts}; exec env -i PATH={host.bin} HOME=/root sh -c "$1"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", begin, "sh", script],
        capture_output=True,
        text=True,
        check=False,
    )
    if "not permitted" in done.stderr:
        pytest.skip("this machine lets no mount namespace be made")
    snapshot = parse(done.stdout.splitlines())
    assert snapshot.account and snapshot.unseen == ""
    assert snapshot.account_groups == ("llamafleet", "gpus")
    assert ran_by(host) == {ACCOUNT}
    assert set((host.state / "groups").read_text().split()) == {ACCOUNT, "64998"}


LINKED = (
    *("build/0123/stamp.json", "build/0123/progress.json", "results/latest.json", "machine-id"),
    *("verify/run/stamp.json", "toolkit/13.0/stamp.json"),
)


@pytest.mark.parametrize("scope", ["system", "user"])
def test_a_link_tells_nothing_of_what_it_leads_to(account: FakeHost, scope: str) -> None:
    """In scope user nobody's rights are taken away: there the link itself is not followed."""
    secret = account.write(account.folder / "secret.json", json.dumps({"a": SECRET}), mode=0o600)
    if scope == "user":
        account.layout = Layout(**{**vars(account.layout), "scope": "user"})
    for name in LINKED:
        link = account.state / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(secret)
    build = account.prefix / "versions/0123"
    build.mkdir(parents=True)
    (build / "build.json").symlink_to(secret)
    account.write(account.folder / "elsewhere/stamp.json", json.dumps({"a": SECRET}))
    (account.state / "build/4567").symlink_to(account.folder / "elsewhere")
    assert SECRET not in "\n".join(account.lines())
    snapshot = account.snapshot()
    assert [job.key for job in snapshot.jobs] == ["0123", "13.0"]
    assert snapshot.builds["0123"].stamp is None and snapshot.result is None


def test_folders_that_are_not_root_s_alone_are_not_read_by_root(account: FakeHost) -> None:
    """An older deployment's, or a mistake: what lies there may become a link at any moment."""
    for path in ("held-packages", "made", "wheelhouse/manifest.json"):
        account.write(account.prefix / path, "{}")
    account.write(account.prefix / "jobs/toolkit/13.0/stamp.json", "{}")
    account.write(account.prefix / "pip.pyz", "")
    account.files = (str(account.prefix / "pip.pyz"),)
    closed = account.snapshot()
    assert (closed.hold_record, closed.made, closed.files, closed.jobs) == ((), (), {}, ())
    account.prefix.chmod(0o755)
    opened = account.snapshot()
    assert (opened.hold_record, opened.made) == (("{}",), ("{}",))
    assert opened.wheelhouse and opened.files and opened.jobs[0].root


def sparse(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(3 << 30)


def test_what_is_endless_is_cut(account: FakeHost) -> None:
    for name in LINKED:
        sparse(account.state / name)
    sparse(account.prefix / "versions/0123/build.json")
    begin = time.monotonic()
    snapshot = account.snapshot()
    assert time.monotonic() - begin < 30
    assert isinstance(snapshot, HostSnapshot) and snapshot.versions == ("0123",)


def test_pipes_are_not_read(account: FakeHost) -> None:
    for name in LINKED:
        (account.state / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(account.state / name)
    build = account.prefix / "versions/0123"
    (build / "lib/python3.12/site-packages/llama_cpp/lib").mkdir(parents=True)
    os.mkfifo(build / "build.json")
    os.mkfifo(build / "lib/python3.12/site-packages/llama_cpp/lib/libllama.so")
    snapshot = account.snapshot()
    assert snapshot.unseen == "" and snapshot.builds["0123"].libraries == {}


def test_a_program_that_hangs_costs_the_account_s_part_alone(account: FakeHost) -> None:
    account.parameters = "LF_LIMIT=2\n"
    plant(account, "g++", f"echo $$ > {account.state}/pid; exec sleep 600")
    account.write(account.root / "etc/os-release", "ID=debian\n")
    real = shutil.which("setpriv")
    # An echo may take what is written as \\377 in the script for a byte.
    account.program("setpriv", f'printf "%s\\n" "$*" >> {account.folder}/rights; exec {real} "$@"')
    begin = time.monotonic()
    snapshot = account.snapshot()
    assert time.monotonic() - begin < 60
    assert "no end" in snapshot.unseen and snapshot.os_id == "debian"
    # Its number may be another process's by then: root ends nothing that the account couldn't.
    assert "kill -9" in (account.folder / "rights").read_text().splitlines()[-1]
    pid = (account.state / "pid").read_text().strip()
    deadline = time.monotonic() + 5
    while Path("/proc", pid).exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path("/proc", pid).exists() or "Z" in Path("/proc", pid, "stat").read_text()


TAKE_OUTPUT = """
import ctypes, os, sys
libc, pid = ctypes.CDLL(None, use_errno=True), os.getppid()
while pid > 1:
    status = dict(line.split(":", 1) for line in open(f"/proc/{pid}/status"))
    if int(status["Uid"].split()[0]) != os.getuid():
        break
    above, pid = pid, int(status["PPid"])
# pidfd_getfd(2): the pipe itself is root's, and can't be opened by its name below /proc.
output = libc.syscall(438, os.pidfd_open(above), 1, 0)
if output < 0:
    sys.exit(os.strerror(ctypes.get_errno()))
text = open(sys.argv[1], "rb").read()
while True:
    os.write(output, text)
    if len(sys.argv) < 3:
        break
"""
"""Writes a file's text, once or for ever, into what the second part prints."""


def forge(fake: FakeHost, text: str, *endless: str) -> None:
    """A planted program takes over the output of the shell that started it, as its user may."""
    file = fake.write(fake.folder / "forged", text)
    code = fake.write(fake.folder / "take.py", TAKE_OUTPUT)
    python = next(p for p in ("/usr/bin/python3", "/usr/local/bin/python3") if Path(p).exists())
    words = " ".join(map(str, (python, "-I", code, file, *endless)))
    plant(fake, "cmake", f"{words} 2> {fake.state}/refused")


def assert_forged(fake: FakeHost) -> None:
    refused = (fake.state / "refused").read_text()
    if "not permitted" in refused:
        pytest.skip("this machine lets no process take another's files (Yama)")
    assert refused == ""


@pytest.mark.parametrize("theirs", ["nobody's", "the link", "a hop", "the place"])
def test_a_folder_behind_root_s_links_is_read_as_well(
    host: FakeHost, theirs: str, shell: str
) -> None:
    """As /opt may be one; and not where another may lead it elsewhere."""
    host.shell = shell
    place, hop = host.folder / "srv" / "deep", host.folder / "hop"
    host.prefix.chmod(0o755)
    host.write(host.prefix / "made", "/opt\n")
    place.parent.mkdir()
    host.prefix.rename(place)
    hop.symlink_to("srv/./deep")
    host.prefix.symlink_to(hop)
    changed = {"the link": host.prefix, "a hop": hop, "the place": place}.get(theirs)
    if changed:
        os.chown(changed, int(ACCOUNT), int(ACCOUNT), follow_symlinks=False)
    assert host.snapshot().made == (("/opt",) if changed is None else ())


FORGED = """
@end
uid=4
user=evil
account=0
setpriv=1
pci=0000:01:00.0\t0x2684\tnvidia
smi=/usr/bin/nvidia-smi
smi_query=0
@begin smi_query
 0, Forged, GPU-1, 00000000:01:00.0, 24564, 580.95.05, 8.9
@end
@begin packages
 nvidia-driver-580 580.1
@end
@begin deploy_lock\t/run/x
 {"owner": "evil", "controller": "x", "pid": 1, "start_ticks": 1, "started": 1.0}
@end
@begin owners
 41ed\troot\troot\t/etc/llamafleet
@end
@begin files
 HASH  /etc/llamafleet/verify.json
@end
trusted=/tmp/python3
python=/tmp/python3\t3.12.1\t1\t
job=packages\tx\t1
#end
@begin account
complete=1
account_complete=1
#end
""".replace("HASH", "0" * 64)


def test_a_forged_output_speaks_of_the_account_s_own_alone(account: FakeHost) -> None:
    """Any process of the account may write into what the second part prints."""
    honest = account.snapshot()
    forge(account, FORGED)
    snapshot = account.snapshot()
    assert_forged(account)
    assert (snapshot.uid, snapshot.user, snapshot.account) == (0, "root", True)
    assert (snapshot.pci_gpus, snapshot.gpus, snapshot.driver) == ((), (), honest.driver)
    assert (snapshot.files, snapshot.owners) == ({}, {})
    holders = {lock.owner for lock in (snapshot.deploy_lock, honest.deploy_lock) if lock}
    assert len(holders) <= 1 and (honest.deploy_lock is None) == (snapshot.deploy_lock is None)
    forged_python = next(tool for tool in snapshot.pythons if tool.path == "/tmp/python3")
    assert not forged_python.trusted
    assert not any(job.root for job in snapshot.jobs)


@pytest.mark.parametrize("cut", [True, False])
def test_a_flood_is_cut(account: FakeHost, cut: bool) -> None:
    """Of the whole part, or of one program's answer."""
    account.borrow("yes")
    if cut:
        forge(account, "0123456789\n" * 1000, "for ever")
    else:
        plant(account, "cmake", "yes 0123456789")
    begin = time.monotonic()
    lines = account.lines()
    assert sum(map(len, lines)) < 12 << 20 and time.monotonic() - begin < 60
    assert bool(parse(lines).unseen) is cut


def test_the_account_can_not_type_into_root_s_terminal(account: FakeHost) -> None:
    plant(account, "cmake", f"if : </dev/tty; then : > {account.state}/typed; fi")
    script = f"LF_ROOT={account.root}\n" + render(account.layout, ())
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve("/bin/sh", ["sh", "-c", script], {"PATH": str(account.bin), "HOME": "/root"})
    try:
        while os.read(terminal, 65536):
            pass
    except OSError:  # The other end is closed.
        pass
    os.waitpid(pid, 0)
    os.close(terminal)
    assert ran_by(account) == {ACCOUNT} and not (account.state / "typed").exists()


def test_without_setpriv_nothing_of_others_is_run_or_read(account: FakeHost) -> None:
    (account.bin / "setpriv").unlink()
    everywhere(account)
    account.write(account.state / "build/0123/progress.json", json.dumps(progress()))
    snapshot = account.snapshot()
    assert not (account.state / "ran").exists()
    assert not snapshot.setpriv and snapshot.unseen and snapshot.jobs == ()


def test_what_does_not_run_as_root_keeps_its_rights() -> None:
    """As an ordinary user in scope system too: there are none to take."""
    script = render(Layout.system(), ())
    command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    done = subprocess.run(
        [*command, "sh", "-c", script], capture_output=True, text=True, check=True, cwd="/"
    )
    snapshot = parse(done.stdout.splitlines())
    assert snapshot.uid == int(NOBODY) and snapshot.unseen == "" and snapshot.setpriv
