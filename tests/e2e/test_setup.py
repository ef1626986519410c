"""setup.sh on minimal Debian systems behind a company's proxy: no pip, no venv module, no compiler.

All that they fetch goes through a proxy on the loopback interface that opens TLS with a certificate
of its own authority, or comes from a mirror there.
"""

from __future__ import annotations

import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.e2e.booted import ADMIN, base_tree, missing_tools
from tests.e2e.runs import checkout
from tests.loopback import Server, company, serve

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(missing_tools()), reason=f"for a Debian: {missing_tools()} missing"),
]
NOWHERE = "http://127.0.0.1:9"
FIRST_COMMAND = "sh setup.sh && .venv/bin/pyinfra --dry inventory deploy.py"
FOLDERS = {"root": "/root/llamafleet", ADMIN: f"/home/{ADMIN}/my fleet"}


@cache
def upstream(url: str) -> bytes | None:
    """A file of PyPI, fetched once for all systems."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError:
        return None


def mirror(path: str) -> bytes | None:
    """PyPI as a mirror serves it: the files are on the same host as the pages."""
    if path.startswith("/packages/"):
        return upstream(f"https://files.pythonhosted.org{path}")
    page = upstream(f"https://pypi.org{path}")
    return page and page.replace(b"https://files.pythonhosted.org/", b"/")


@dataclass
class System:
    """One Debian, not booted; it shares this machine's network."""

    tree: Path
    proxy: Server
    authority: Path

    def run(
        self, command: str, *options: str, user: str, folder: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """A command in the user's checkout; `environment` beside the proxy."""
        base = {"HTTPS_PROXY": f"http://{self.proxy.address}", "PYINFRA_PROGRESS": "off"}
        return subprocess.run(
            [
                *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--pipe"),
                *("-D", self.tree, f"--user={user}", f"--chdir={folder or FOLDERS[user]}"),
                *(f"--setenv={name}={value}" for name, value in {**base, **environment}.items()),
                *(*options, "sh", "-c", command),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=300,
        )

    def programs(self, user: str) -> set[str]:
        """What .venv/bin of the user's checkout has."""
        return {file.name for file in Path(f"{self.tree}{FOLDERS[user]}/.venv/bin").iterdir()}


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def system(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    folder = tmp_path_factory.mktemp(request.param)
    tree = folder / "system"
    tree.mkdir(mode=0o755)
    subprocess.run(
        ["cp", "-a", "--reflink=auto", f"{base_tree(request.param)}/.", tree], check=True
    )
    subprocess.run(["chroot", tree, "useradd", "--create-home", ADMIN], check=True)
    for user, home in FOLDERS.items():
        shutil.move(checkout(folder), f"{tree}{home}")
        subprocess.run(["chroot", tree, "chown", "-R", user, home], check=True)
    authority, tls = company(folder)
    with serve(upstream, tls=tls) as proxy:
        yield System(tree, proxy, authority)
    shutil.rmtree(tree, ignore_errors=True)


@pytest.fixture(scope="module")
def trusting(system: System) -> System:
    """The system after its administrator has added the company's authority."""
    name = "/usr/local/share/ca-certificates/company.crt"
    shutil.copy(system.authority, f"{system.tree}{name}")
    subprocess.run(
        ["chroot", system.tree, "update-ca-certificates"], check=True, capture_output=True
    )
    return system


def test_an_unknown_authority_ends_in_one_line(system: System) -> None:
    done = system.run("sh setup.sh", user=ADMIN)
    assert done.returncode == 1, done.stdout
    assert "CERTIFICATE_VERIFY_FAILED" in done.stdout
    assert "&& update-ca-certificates" in done.stdout and "Traceback" not in done.stdout
    assert not Path(f"{system.tree}{FOLDERS[ADMIN]}/.venv").exists()


def test_a_folder_of_another_user_ends_in_one_line(trusting: System) -> None:
    shared = "/srv/llamafleet"
    shutil.copytree(f"{trusting.tree}{FOLDERS['root']}", f"{trusting.tree}{shared}")
    done = trusting.run("sh setup.sh", user=ADMIN, folder=shared)
    assert done.returncode == 1, done.stdout
    assert f"setup.sh: {shared} can not be written: it belongs to user 0" in done.stdout
    assert f"next: cp -r {shared} ~/llamafleet && " in done.stdout


def test_an_environment_of_root_ends_in_one_line(trusting: System) -> None:
    made = f"{trusting.tree}{FOLDERS[ADMIN]}/.venv"
    Path(made).mkdir()
    done = trusting.run("sh setup.sh", user=ADMIN)
    Path(made).rmdir()
    assert done.returncode == 1, done.stdout
    assert f"next: sudo rm -rf '{FOLDERS[ADMIN]}/.venv' " in done.stdout


def test_a_read_only_file_system_ends_in_one_line(trusting: System) -> None:
    done = trusting.run("sh setup.sh", "--read-only", user="root")
    assert done.returncode == 1, done.stdout
    assert f"setup.sh: {FOLDERS['root']} can not be written: " in done.stdout


@pytest.mark.parametrize("user", [ADMIN, "root"])
def test_the_first_command(trusting: System, user: str) -> None:
    bare = trusting.run("python3 -c 'import pip'; python3 -c 'import ensurepip'", user=user)
    assert bare.stdout.count("ModuleNotFoundError") == 2, bare.stdout
    done = trusting.run(FIRST_COMMAND, user=user)
    # It only plans, and no compiler may be installed without root: a problem is no success.
    assert done.returncode == (0 if user == "root" else 1), done.stdout
    assert (user == "root") == ("PROBLEM compiler" not in done.stdout)
    assert "Build llama-cpp-python from source" in done.stdout
    assert trusting.programs(user) >= {"pyinfra", "llamafleet"}
    assert not trusting.programs(user) & {"mypy", "ruff", "pytest"}


def test_a_second_time_needs_no_network(trusting: System) -> None:
    done = trusting.run(FIRST_COMMAND, user=ADMIN, HTTPS_PROXY=NOWHERE)
    assert done.returncode == 1 and "Build llama-cpp-python from source" in done.stdout
    assert "PROBLEM compiler" in done.stdout, done.stdout


def test_a_mirror_is_all_that_it_needs(trusting: System) -> None:
    for name in (".venv", ".uv"):
        shutil.rmtree(f"{trusting.tree}{FOLDERS['root']}/{name}")
    with serve(mirror) as server:
        index = f"http://{server.address}/simple"
        done = trusting.run(FIRST_COMMAND, user="root", HTTPS_PROXY=NOWHERE, PIP_INDEX_URL=index)
    assert done.returncode == 0, done.stdout
    assert f"from {index}" in done.stdout
