"""Secrets on a real host: nothing but the one file that is for them has any, at any time.

The package index is one that asks for a password; what is built is an archive of the test's own
that takes a while and then fails, so that a failed build's words and files are looked at too.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.booted import BootedHost, missing_tools
from tests.e2e.runs import Run, llamafleet, pyinfra, write_inventory
from tests.e2e.test_setup import mirror
from tests.loopback import Server, serve

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(missing_tools()), reason=f"to boot a host: {missing_tools()} missing"),
]
HOST = "gpu-secret"
SECRET = "Zq7-unsaid-Xw4"
NAME = "llama_cpp_python-0.3.36"
PLANTED = "planted: the build ends here"
BACKEND = f"""
import os, sys, time
def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    print(sorted(os.environ.items()), flush=True)
    time.sleep(5)
    sys.exit({PLANTED!r})
"""
FILES = {
    "PKG-INFO": "Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: 0.3.36\n",
    "pyproject.toml": (
        '[project]\nname = "llama-cpp-python"\nversion = "0.3.36"\n'
        '[build-system]\nrequires = []\nbuild-backend = "planted"\nbackend-path = ["."]\n'
    ),
    "planted.py": BACKEND,
}
COMPILER = "#!/bin/sh\necho 12.2.0\n"
"""Enough to be found: nothing is compiled."""


def archive() -> bytes:
    """The source archive of a package whose build fails."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as tar:
        for name, text in FILES.items():
            entry = tarfile.TarInfo(f"{NAME}/{name}")
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return whole.getvalue()


SOURCE = archive()


def index(path: str) -> bytes | None:
    """PyPI, with the test's own llama-cpp-python."""
    if path == f"/planted/{NAME}.tar.gz":
        return SOURCE
    if path == "/simple/llama-cpp-python/":
        return f'<a href="/planted/{NAME}.tar.gz">{NAME}.tar.gz</a>'.encode()
    return mirror(path)


@contextmanager
def watched(seen: set[str]) -> Iterator[None]:
    """Collect every command line that has the secret: those of the host are this machine's too."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.02):
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    text = file.read_bytes()
                except OSError:
                    continue
                if SECRET.encode() in text:
                    seen.add(text.replace(b"\0", b" ").decode(errors="replace"))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.fixture(scope="module")
def index_server() -> Iterator[Server]:
    with serve(index, secret=f"me:{SECRET}") as server:
        yield server


@pytest.fixture(scope="module")
def fleet(
    booted: BootedHost, folder: Path, index_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., str]:
    """An inventory with a secret in each place that takes one, and a host that knows one."""
    netrc = tmp_path_factory.mktemp("secret") / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login me password {SECRET}\n")
    netrc.chmod(0o600)
    proxy = f"http://me:{SECRET}@127.0.0.1:9"
    lines = [f"{name}={proxy}" for name in ("http_proxy", "https_proxy", "HTTPS_PROXY")]
    environment = "\n".join([*lines, "no_proxy=127.0.0.1", ""])
    (booted.tree / "etc/environment").write_text(environment)
    for name in ("g++", "gcc", "c++"):
        compiler = booted.tree / "usr/bin" / name
        compiler.write_text(COMPILER)
        compiler.chmod(0o755)
    data = booted.data(
        accelerator="cpu",
        index_url=f"http://{index_server.address}/simple",
        llama_sha256=hashlib.sha256(SOURCE).hexdigest(),
        ssh_password=f"{SECRET}1",
        x_token=f"{SECRET}2",
    )

    def written(**more: Any) -> str:
        return write_inventory(folder, {HOST: {**data, **more}})

    written.with_netrc = lambda: written(netrc=str(netrc))  # type: ignore[attr-defined]
    return written


@pytest.fixture(scope="module")
def deployed(folder: Path, fleet: Any) -> tuple[Run, set[str]]:
    """A run whose build fails, and the command lines that had the secret meanwhile."""
    seen: set[str] = set()
    inventory = fleet.with_netrc()
    with watched(seen):
        time.sleep(0.1)
        run = pyinfra(folder, "-y", "--data", f"x_key={SECRET}3", inventory, "deploy.py")
    return run, {line for line in seen if f"x_key={SECRET}3" not in line}


def having(host: BootedHost, *places: str) -> list[str]:
    """Files of the host that have the secret."""
    done = host.run(f"grep -rlaF --devices=skip {SECRET} {' '.join(places)} 2>/dev/null")
    return sorted(done.stdout.split())


def test_the_index_is_reached_with_the_password(
    deployed: tuple[Run, set[str]], index_server: Server
) -> None:
    run, _ = deployed
    assert run.returncode == 1 and "Traceback" not in run.output, run.output
    assert PLANTED in run.output, run.output
    assert any(path.endswith(".tar.gz") for path in index_server.asked)


def test_nothing_that_is_said_has_it(deployed: tuple[Run, set[str]], folder: Path) -> None:
    run, seen = deployed
    assert SECRET not in run.output
    assert seen == set()
    said = ""
    for command in (("plan", HOST), ("plan", HOST, "--json"), ("snapshot", HOST)):
        done = llamafleet(folder, *command, "--inventory", "fleet")
        assert done.returncode in (0, 1), done.stderr
        said += done.stdout + done.stderr
    said += pyinfra(folder, "--dry", "fleet", "deploy.py").output
    said += llamafleet(folder, "report", "--json").stdout
    assert PLANTED in said and SECRET not in said
    for path in folder.rglob("*"):
        if path.is_file() and path.name not in ("fleet", "test_secrets.py"):
            assert SECRET.encode() not in path.read_bytes(), path


def test_on_the_host_one_file_has_it(deployed: tuple[Run, set[str]], booted: BootedHost) -> None:
    places = ("/etc", "/opt", "/var", "/root", "/home", "/tmp", "/run", "/srv")
    assert having(booted, *places) == ["/etc/environment", "/etc/llamafleet/netrc"]
    access = booted.run("stat -c '%a %U %G' /etc/llamafleet/netrc").stdout.strip()
    assert access == "640 root llamafleet"
    assert booted.run("su nobody -s /bin/sh -c 'cat /etc/llamafleet/netrc'").returncode != 0
    assert SECRET not in booted.run("journalctl --no-pager --quiet -o json").stdout
    log = booted.run("cat /var/lib/llamafleet/build/*/build.log").stdout
    assert "'NETRC', '/etc/llamafleet/netrc'" in log and PLANTED in log


def test_it_goes_with_its_setting(
    deployed: tuple[Run, set[str]], booted: BootedHost, folder: Path, fleet: Callable[..., str]
) -> None:
    run = pyinfra(folder, "-y", fleet(), "deploy.py")
    assert run.returncode == 1 and SECRET not in run.output
    assert having(booted, "/etc", "/opt", "/var", "/tmp") == ["/etc/environment"]
    # Not a word of the package: what the index said is the cause.
    assert "401" in run.output, run.output
