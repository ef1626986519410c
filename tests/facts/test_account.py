"""The account, the folders, the builds and who deploys: what proves, and whose it is."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from llamafleet.facts.host import Build, DeployLock, Owner, Unit
from llamafleet.facts.snapshot import render
from llamafleet.layout import Layout
from llamafleet.protocol.job import BuildProduct, Stamp
from tests.facts.fakehost import FakeHost
from tests.facts.test_managed import booted
from tests.facts.test_tools import GIB, toolkit

STAMP = Stamp(kind="build", key="0123", ok=True, finished=5.0)
PRODUCT = BuildProduct(
    wheel_bytes=1,
    wheel_sha256="ab",
    libraries={"lib/x": "cd"},
    units=3,
    llama_cpp_python="0.3.1",
    system_info="",
    import_s=0.1,
)
LIBRARIES = "lib/python3.12/site-packages/llama_cpp/lib"


def build(fake: FakeHost, name: str, content: str | None = None) -> Path:
    """A whole one."""
    root = fake.prefix / "versions" / name
    fake.program(root / "bin/python", "exit 0")
    fake.write(root / LIBRARIES / "libllama.so", name)
    told = asdict(STAMP) | asdict(PRODUCT)
    fake.write(root / "build.json", json.dumps(told) if content is None else content)
    return root


def test_a_build(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    build(fake, "0123-2")
    digest = hashlib.sha256(b"0123-2").hexdigest()
    libraries = {f"{LIBRARIES}/libllama.so": digest}
    snapshot = fake.snapshot()
    assert snapshot.builds == {"0123-2": Build("0123-2", STAMP, PRODUCT, True, libraries)}
    assert snapshot.builds["0123-2"].fingerprint == "0123" and snapshot.versions == ("0123-2",)


def test_a_damaged_build(fake: FakeHost) -> None:
    """Each part that proves is looked at."""
    for name in ("gone", "mute", "linked"):
        build(fake, name)
    (fake.prefix / "versions/gone" / LIBRARIES / "libllama.so").unlink()
    fake.program(fake.prefix / "versions/mute/bin/python", "exit 127")
    library = fake.prefix / "versions/linked" / LIBRARIES / "libllama.so"
    library.rename(library.with_name("other.so"))
    library.symlink_to("other.so")
    (fake.prefix / "versions/empty").mkdir()
    found = fake.snapshot().builds
    assert found["gone"].libraries == {} and found["gone"].runs
    assert not found["mute"].runs and found["mute"].libraries
    assert found["linked"].libraries == {}
    assert found["empty"] == Build("empty")


BAD_STAMPS = ["", "[]", '{"ok": 1}', '{"kind": 5}', "[" * 99_999, "\N{CONTROL SEQUENCE INTRODUCER}"]


@pytest.mark.parametrize("content", BAD_STAMPS, ids=range(len(BAD_STAMPS)))
def test_a_build_without_a_stamp_that_can_be_read(fake: FakeHost, content: str) -> None:
    build(fake, "0123", content)
    found = fake.snapshot().builds["0123"]
    assert (found.stamp, found.product, found.runs) == (None, None, True)


def test_the_build_in_use_and_the_ten_newest(fake: FakeHost) -> None:
    for number in range(15):
        folder = fake.prefix / f"versions/{number:04}"
        folder.mkdir(parents=True)
        os.utime(folder, (1000 + number, 1000 + number))
    (fake.prefix / "current").symlink_to("versions/0002")
    snapshot = fake.snapshot()
    assert list(snapshot.builds) == ["0002"] + [f"{number:04}" for number in range(14, 4, -1)]
    assert len(snapshot.versions) == 15


def test_versions_are_bounded(fake: FakeHost) -> None:
    for number in range(300):
        (fake.prefix / f"versions/{number:04}").mkdir(parents=True)
    (fake.prefix / "versions/linked").symlink_to("0001")
    assert len(fake.snapshot().versions) == 200


def test_owners(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    file = fake.write(fake.folder / "etc/verify.json", "{}", mode=0o640)
    own = fake.write(fake.state / "machine-id", "x", mode=0o600)
    (fake.folder / "link").symlink_to(file)
    fake.files = (str(file), str(fake.folder / "missing"))
    fake.folders = (str(fake.folder / "etc"), str(fake.folder / "link"), str(own))
    me = fake.snapshot().user
    group = subprocess.run(["id", "-gn"], capture_output=True, text=True, check=True).stdout.strip()
    assert fake.snapshot().owners == {
        str(file): Owner("file", me, group, 0o640),
        str(fake.folder / "etc"): Owner("folder", me, group, 0o755),
        str(fake.folder / "link"): Owner("link", me, group, 0o777),
        str(own): Owner("file", me, group, 0o600),
    }


def test_a_file_that_is_a_link_has_no_hash(fake: FakeHost) -> None:
    file = fake.write(fake.folder / "elsewhere", "{}")
    (fake.folder / "etc").mkdir()
    (fake.folder / "etc/verify.json").symlink_to(file)
    fake.files = (str(fake.folder / "etc/verify.json"),)
    snapshot = fake.snapshot()
    assert snapshot.files == {} and snapshot.owners[fake.files[0]].kind == "link"


def test_the_account_s_groups_and_home(fake: FakeHost) -> None:
    fake.program(
        "id",
        'case "$*" in "-u llamafleet") echo 998 ;; "-Gn llamafleet") echo llamafleet video ;; '
        "*) echo 0 ;; esac",
    )
    fake.write(fake.root / "etc/passwd", "a:x:1:1::/a:/b\nllamafleet:x:998:998:x:/var/lib/l:/no\n")
    snapshot = fake.snapshot()
    assert snapshot.account_groups == ("llamafleet", "video")
    assert snapshot.account_home == "/var/lib/l"


def test_records_of_a_deployment(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    fake.write(fake.root / "etc/machine-id", "0" * 31 + "a\n")
    fake.write(fake.state / "machine-id", "b" * 32 + "\n")
    fake.write(fake.prefix / "made", "/opt/llamafleet\naccount\n")
    snapshot = fake.snapshot()
    assert snapshot.machine_id == "0" * 31 + "a"
    assert snapshot.state_machine == "b" * 32
    assert snapshot.made == ("/opt/llamafleet", "account")


@pytest.mark.parametrize("told", ["uninitialized", "", "x" * 32, "0" * 33])
def test_a_machine_without_an_id(fake: FakeHost, told: str) -> None:
    fake.write(fake.root / "etc/machine-id", told)
    assert fake.snapshot().machine_id == ""


LOCK: dict[str, Any] = {
    "owner": "ann@desk",
    "controller": "c" * 32,
    "pid": 12,
    "start_ticks": 34,
    "started": 5.5,
}


def locked(fake: FakeHost, content: str) -> Path:
    fake.layout = Layout.user("$HOME")
    return fake.write(fake.home / ".local/state/llamafleet/deploy.json", content)


def test_who_deploys(fake: FakeHost) -> None:
    path = locked(fake, json.dumps(LOCK | {"newer": 1}))
    os.utime(path, (fake.snapshot().time - 60,) * 2)
    found = fake.snapshot().deploy_lock
    assert found is not None and 60 <= found.age_s < 90
    assert found == DeployLock(**LOCK, age_s=found.age_s)


@pytest.mark.parametrize("content", ["", "{}", "[]", json.dumps(LOCK | {"pid": "12"})])
def test_a_lock_that_can_not_be_read(fake: FakeHost, content: str) -> None:
    locked(fake, content)
    assert fake.snapshot().deploy_lock is None


def test_how_a_unit_ended_and_when_a_timer_fired(fake: FakeHost) -> None:
    told = "LoadState=loaded\nActiveState=failed\nSubState=failed\nUnitFileState=static\n"
    booted(
        fake,
        f'[ "$TZ" = UTC ] || exit 0\ncat <<END\nId=a.service\n{told}Result=exit-code\n'
        f"ExecMainStatus=203\n\nId=b.timer\n{told}"
        "LastTriggerUSec=Thu 2026-11-26 04:20:22 UTC\nResult=success\n\n"
        f"Id=c.timer\n{told}LastTriggerUSec=n/a\nExecMainStatus=x\nEND",
    )
    units = fake.snapshot().units
    state = ("loaded", "failed", "failed", "static")
    assert units["a.service"] == Unit(*state, result="exit-code", status=203)
    assert units["b.timer"] == Unit(*state, result="success", triggered=1795666822)
    assert units["c.timer"] == Unit(*state)


PROXY = "http://proxy.lab:3128"


def test_proxies_of_the_environment(fake: FakeHost) -> None:
    fake.environment |= {"https_proxy": PROXY, "HTTP_PROXY": f"{PROXY}/", "no_proxy": "a.lab, .b"}
    found = {"https_proxy": PROXY, "http_proxy": PROXY, "no_proxy": "a.lab,.b"}
    assert fake.snapshot().proxies == found


def test_proxies_of_every_login(fake: FakeHost) -> None:
    lines = f'A=b\nhttps_proxy="{PROXY}"\nexport http_proxy=p.lab:80\n'
    fake.write(fake.root / "etc/environment", lines)
    assert fake.snapshot().proxies == {"https_proxy": PROXY, "http_proxy": "http://p.lab:80"}


def test_a_proxy_s_password_is_not_told(fake: FakeHost) -> None:
    fake.environment |= {
        "https_proxy": "http://ann:top@secret@proxy.lab:3128",
        "http_proxy": "ann:top@proxy.lab",
    }
    assert "top" not in "\n".join(fake.lines())
    snapshot = fake.snapshot()
    assert snapshot.proxies == {"https_proxy": PROXY, "http_proxy": "http://proxy.lab"}
    assert snapshot.proxy_passwords == ("http_proxy", "https_proxy")


@pytest.mark.parametrize("value", ["socks5://x:1", "http://a b", "http://x/'$(id)", "http://x\t"])
def test_a_proxy_that_is_none(fake: FakeHost, value: str) -> None:
    fake.environment["https_proxy"] = value
    assert "https_proxy" not in fake.snapshot().proxies or value.endswith("\t")


def test_sudo_takes_the_proxies_away_and_its_parents_have_them(fake: FakeHost) -> None:
    fake.borrow("tr")
    shell = shutil.which("sh")
    # The shell of the login, and what sudo starts.
    fake.write(
        fake.folder / "login.sh",
        f'env -u https_proxy SUDO_UID=1000 {shell} "{fake.folder}/it"\n:\n',
    )
    fake.write(fake.folder / "it", f"LF_ROOT='{fake.root}'\n" + render(fake.layout, ()))
    done = subprocess.run(
        [str(shell), str(fake.folder / "login.sh")],
        env={"PATH": str(fake.bin), "HOME": str(fake.home), "https_proxy": PROXY},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"proxy=https_proxy\t{PROXY}" in done.stdout.splitlines()


@pytest.mark.parametrize(
    "path",
    [
        *("etc/ssl/certs/ca-certificates.crt", "etc/pki/tls/certs/ca-bundle.crt"),
        "etc/ssl/ca-bundle.pem",
    ],
)
def test_the_trust_store(fake: FakeHost, path: str) -> None:
    assert fake.snapshot().ca_bundle is None
    fake.write(fake.root / path, "x")
    assert fake.snapshot().ca_bundle == f"/{path}"


def test_an_interpreter_that_lacks_modules(fake: FakeHost) -> None:
    """As python3-minimal does."""
    fake.write(
        fake.folder / "shim.py",
        "import importlib.util as util, sys\nreal = util.find_spec\n"
        "util.find_spec = lambda name: None if name in ('venv', '_ssl', 'ssl') else real(name)\n"
        "program = sys.argv.pop(1)\nexec(program)",
    )
    fake.program("python3", f'shift 3; exec {sys.executable} {fake.folder}/shim.py "$@"')
    (found,) = fake.snapshot().pythons
    assert found.lacks == ("ssl", "venv")


def test_a_whole_interpreter_lacks_nothing(fake: FakeHost) -> None:
    (fake.bin / "python3").symlink_to(sys.executable)
    assert fake.snapshot().pythons[0].lacks == ()


@pytest.mark.skipif(os.geteuid() != 0, reason="makes folders of others")
@pytest.mark.parametrize(
    ("mode", "owner", "trusted"),
    [(0o755, 0, True), (0o775, 0, False), (0o757, 0, False), (0o1777, 0, False), (0o755, 1, False)],
)
def test_an_interpreter_that_others_can_replace(
    fake: FakeHost, mode: int, owner: int, trusted: bool
) -> None:
    folder = fake.folder / "python"
    folder.mkdir()
    python = fake.program(folder / "python3.11", "exit 1")
    if mode & 0o1000:
        python.chmod(0o777)
    folder.chmod(mode)
    os.chown(folder, owner, 0)
    fake.extra = (str(python),)
    assert (f"trusted={python}" in fake.lines()) is trusted


def test_what_the_settings_name_and_this_user_sees(fake: FakeHost) -> None:
    hidden = fake.write(fake.folder / "hidden/python3", "", mode=0o600)
    fake.extra = (str(hidden), "/missing/python3")
    snapshot = fake.snapshot()
    assert snapshot.extra_there == (str(hidden),) and snapshot.pythons == ()


def test_a_prefix_behind_a_link(fake: FakeHost) -> None:
    """What is ours keeps the name by which we know it."""
    real = fake.folder / "data/opt"
    real.mkdir(parents=True)
    fake.prefix.symlink_to(real)
    toolkit(fake, fake.prefix / "toolkits/cuda-13.0")
    (found,) = fake.snapshot().toolkits
    assert found.root == str(fake.prefix / "toolkits/cuda-13.0") and found.missing == ()
    assert found.libdir.startswith(str(fake.prefix))
    assert fake.snapshot().real_paths == {"prefix": str(real), "state": str(fake.state)}


@pytest.mark.parametrize("line", ["9:memory:/a/b", "3:cpu,memory:/a/b", "3:memory,cpu:/a/b"])
def test_memory_of_the_older_cgroups(fake: FakeHost, line: str) -> None:
    fake.write(
        fake.root / "proc/meminfo", f"MemTotal: {8 * 2**20} kB\nMemAvailable: {6 * 2**20} kB\n"
    )
    fake.write(fake.root / "proc/self/cgroup", f"12:cpuset:/x\n{line}\n1:name=systemd:/y\n")
    unlimited = 9223372036854771712
    for group, limit in (("a/b", unlimited), ("a", 3 * GIB), ("", unlimited)):
        folder = fake.root / "sys/fs/cgroup/memory" / group
        fake.write(folder / "memory.limit_in_bytes", f"{limit}\n")
        fake.write(folder / "memory.usage_in_bytes", f"{2 * GIB}\n")
        fake.write(folder / "memory.stat", f"cache 5\ntotal_inactive_file {GIB}\n")
    assert fake.snapshot().memory_available_mib == 2 * 1024
