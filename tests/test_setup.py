"""setup.sh without a network: which Python and uv it takes, and each way to end without .venv."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from llamafleet.bootstrap import OLDEST_UV, PYPI, UV, pinned_wheel
from tests.loopback import Get, company, serve

REPOSITORY = Path(__file__).resolve().parents[1]
REAL = Path(sys.executable).resolve()
NOWHERE = "http://127.0.0.1:9/simple"
STUB = f"""#!/bin/sh
[ "$*" = --version ] && echo "uv ${{STUB_VERSION:-{UV}}} (stub)" && exit
echo "$* [index $UV_DEFAULT_INDEX, downloads $UV_PYTHON_DOWNLOADS]" >> "$STUB_LOG"
case "$*" in *--check*) exit "${{STUB_CHECK:-0}}";; esac
echo "$STUB_SAYS" >&2
exit "${{STUB_STATUS:-0}}"
"""
"""Takes uv's place and writes down how it was called."""


def fake_wheel() -> bytes:
    """A wheel with the stub for uv."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr(f"uv-{UV}.data/scripts/uv", STUB)
    return data.getvalue()


def index_of(wheel: bytes) -> Get:
    """An index that has uv's wheel, linked as PyPI and as a mirror does."""
    name, sha256 = pinned_wheel()
    page = f'<a href="other.whl">other</a>\n<a href="../../files/{name}#sha256={sha256}">uv</a>'
    return lambda url: page.encode() if url.endswith("/simple/uv/") else wheel


@dataclass
class Checkout:
    """The files that setup.sh needs, in a folder with a blank, and a PATH with one Python."""

    tree: Path
    bin: Path

    def program(self, name: str, text: str) -> None:
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def pin(self, wheel: bytes) -> None:
        """Expect this wheel and no other."""
        file = self.tree / "llamafleet/bootstrap.py"
        digest = hashlib.sha256(wheel).hexdigest()
        text, count = re.subn('"[0-9a-f]{64}"', f'"{digest}"', file.read_text())
        assert count == 3
        file.write_text(text)

    def setup(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        base = {"PATH": str(self.bin), "HOME": str(self.bin), "STUB_LOG": str(self.log)}
        base["PIP_CONFIG_FILE"] = "/dev/null"
        return subprocess.run(
            ["/bin/sh", "my fleet/setup.sh", *arguments],
            cwd=self.tree.parent,
            env={**base, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def refused(self, *arguments: str, **environment: str) -> str:
        """The one line of a run that ends with status 1."""
        done = self.setup(*arguments, **environment)
        assert done.returncode == 1, done.stdout + done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.strip()]
        assert line.startswith("setup.sh: "), line
        assert "next" in line
        return line

    @property
    def log(self) -> Path:
        return self.bin / "log"

    @property
    def calls(self) -> list[str]:
        """How uv was called."""
        return self.log.read_text().splitlines()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    made = Checkout(tmp_path / "my fleet", tmp_path / "bin")
    (made.tree / "llamafleet").mkdir(parents=True)
    made.bin.mkdir()
    for name in ("setup.sh", "llamafleet/bootstrap.py"):
        shutil.copy(REPOSITORY / name, made.tree / name)
    (made.bin / "python3").symlink_to(REAL)
    dirname = shutil.which("dirname")
    assert dirname is not None
    (made.bin / "dirname").symlink_to(dirname)
    return made


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck")
def test_shellcheck_finds_nothing() -> None:
    found = subprocess.run(
        ["shellcheck", REPOSITORY / "setup.sh"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout


# Which Python


def changed_python(change: str) -> str:
    """A Python that is changed before it runs the check of setup.sh."""
    return f"""#!/bin/sh
exec {REAL} -I -c 'import sys; {change}; exec(sys.argv[1])' "$3"
"""


def test_no_python(checkout: Checkout) -> None:
    (checkout.bin / "python3").unlink()
    line = checkout.refused()
    assert "found no python3 in PATH; expected Python 3.10 or newer" in line


def test_a_python_that_is_too_old(checkout: Checkout) -> None:
    checkout.program("python3", changed_python("sys.version_info = (3, 9, 2)"))
    line = checkout.refused()
    assert f"found {checkout.bin}/python3 3.9.2; expected Python 3.10 or newer" in line


def test_a_python_without_ssl(checkout: Checkout) -> None:
    checkout.program("python3", changed_python('sys.modules["ssl"] = None'))
    assert re.search(r"python3 3\.\d+\.\d+ without ssl; expected", checkout.refused())


def test_a_newer_python_beside_one_that_is_too_old(checkout: Checkout) -> None:
    checkout.program("python3", changed_python("sys.version_info = (3, 9, 2)"))
    (checkout.bin / "python3.12").symlink_to(REAL)
    checkout.program("uv", STUB)
    assert checkout.setup().returncode == 0
    assert f"--python {checkout.bin}/python3.12 " in checkout.calls[0]


# Which uv, and how it is called


def test_the_uv_of_path_without_the_tools_of_the_tests(checkout: Checkout) -> None:
    checkout.program("uv", STUB)
    done = checkout.setup(UV_DEFAULT_INDEX=PYPI)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (
        0,
        f"setup.sh: {checkout.tree}/.venv is ready",
    )
    (call,) = checkout.calls
    assert call.startswith("sync --quiet --locked ")
    assert "--no-dev" in call and "downloads never" in call
    assert f"--python {checkout.bin}/python3 " in call
    assert not (checkout.tree / ".uv").exists()


def test_dev_asks_for_the_tools_of_the_tests(checkout: Checkout) -> None:
    checkout.program("uv", STUB)
    assert checkout.setup("--dev").returncode == 0
    (call,) = checkout.calls
    assert "--group dev" in call and "--no-dev" not in call


def test_an_unknown_option_is_refused(checkout: Checkout) -> None:
    done = checkout.setup("--development")
    assert done.returncode == 2 and "unrecognized arguments: --development" in done.stderr


def test_an_old_uv_in_path_is_not_taken(checkout: Checkout) -> None:
    major, minor, _ = OLDEST_UV
    checkout.program("uv", STUB)
    line = checkout.refused(STUB_VERSION=f"{major}.{minor - 1}.99", UV_DEFAULT_INDEX=NOWHERE)
    assert line.startswith(f"setup.sh: {NOWHERE}/uv/: ") and "Connection refused" in line
    assert not checkout.log.exists()


def test_uv_is_fetched_once(checkout: Checkout) -> None:
    checkout.pin(fake_wheel())
    with serve(index_of(fake_wheel())) as server:
        index = f"http://{server.address}/simple"
        assert checkout.setup(UV_DEFAULT_INDEX=index).returncode == 0
        assert checkout.setup(UV_DEFAULT_INDEX=index).returncode == 0
    assert server.asked == ["/simple/uv/", f"/files/{pinned_wheel()[0]}"]
    assert [file.name for file in (checkout.tree / ".uv").iterdir()] == [f"uv-{UV}"]
    assert len(checkout.calls) == 2


def test_another_index_is_asked_by_names(checkout: Checkout) -> None:
    checkout.program("uv", STUB)
    done = checkout.setup(UV_INDEX_URL=f"{NOWHERE}/", STUB_CHECK="1")
    assert done.returncode == 0, done.stderr
    check, export, venv, install = checkout.calls
    assert check.startswith("sync ") and "--check" in check
    assert export.startswith("export --quiet --locked ") and "--no-dev" in export
    assert venv.startswith("venv ") and f"--python {checkout.bin}/python3 " in venv
    assert install.startswith("pip sync ") and f"[index {NOWHERE}," in install


def test_another_index_is_not_asked_for_what_is_there(checkout: Checkout) -> None:
    checkout.program("uv", STUB)
    assert checkout.setup(UV_INDEX_URL=NOWHERE).returncode == 0
    (check,) = checkout.calls
    assert "--check" in check


@pytest.mark.parametrize("moved", [True, False])
def test_programs_that_name_another_place_are_made_again(checkout: Checkout, moved: bool) -> None:
    checkout.program("uv", STUB)
    program = checkout.tree / ".venv/bin/pyinfra"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!{'/elsewhere' if moved else checkout.tree}/.venv/bin/python\n")
    assert checkout.setup().returncode == 0
    assert program.exists() != moved


# Which index


@pytest.mark.parametrize("file", [".config/pip/pip.conf", ".pip/pip.conf"])
def test_the_index_of_pips_settings(checkout: Checkout, file: str) -> None:
    (checkout.bin / file).parent.mkdir(parents=True)
    (checkout.bin / file).write_text(f"[global]\nindex-url = {NOWHERE}\n")
    assert checkout.refused().startswith(f"setup.sh: {NOWHERE}/uv/: ")


def test_pips_settings_that_can_not_be_read(checkout: Checkout) -> None:
    (checkout.bin / "pip.conf").write_text("index-url = x\n")
    line = checkout.refused(PIP_CONFIG_FILE=str(checkout.bin / "pip.conf"))
    assert "pip's settings: " in line and "next: correct that file" in line


def test_a_password_reaches_the_index_and_no_output(checkout: Checkout) -> None:
    checkout.pin(fake_wheel())
    with serve(index_of(fake_wheel()), secret="lab:hush/hush") as server:
        good = f"http://lab:hush%2Fhush@{server.address}/simple"
        done = checkout.setup(PIP_INDEX_URL=good)
        assert done.returncode == 0, done.stderr
        shutil.rmtree(checkout.tree / ".uv")
        line = checkout.refused(PIP_INDEX_URL=f"http://lab:wrong@{server.address}/simple")
    assert f"http://{server.address}/simple/uv/: HTTP Error 401" in line
    assert "hush" not in done.stdout and "wrong" not in line


# Ends without .venv


def test_a_wheel_with_another_hash_is_not_kept(checkout: Checkout) -> None:
    wheel = fake_wheel()
    with serve(index_of(wheel)) as server:
        line = checkout.refused(UV_DEFAULT_INDEX=f"http://{server.address}/simple")
    _, sha256 = pinned_wheel()
    assert f"found sha256 {hashlib.sha256(wheel).hexdigest()}, expected {sha256}; next: " in line
    assert not (checkout.tree / ".uv").exists()


def test_an_index_without_the_wheel(checkout: Checkout) -> None:
    with serve(lambda url: b'<a href="uv-0.1.0.tar.gz">uv-0.1.0.tar.gz</a>') as server:
        line = checkout.refused(UV_DEFAULT_INDEX=f"http://{server.address}/simple")
    assert f"http://{server.address}/simple/uv/ lists no {pinned_wheel()[0]}; expected " in line


def test_an_index_without_uv(checkout: Checkout) -> None:
    with serve(lambda url: None) as server:
        line = checkout.refused(UV_DEFAULT_INDEX=f"http://{server.address}/simple")
    assert "HTTP Error 404" in line


def test_no_network(checkout: Checkout) -> None:
    line = checkout.refused(HTTPS_PROXY="http://127.0.0.1:9")
    assert line.startswith(f"setup.sh: {PYPI}/uv/: ")
    assert "Connection refused" in line and "export HTTPS_PROXY=" in line


def test_an_index_that_is_no_address(checkout: Checkout) -> None:
    line = checkout.refused(UV_DEFAULT_INDEX="pypi.lab.example")
    assert "pypi.lab.example/uv/: unknown url type" in line


def test_an_index_that_can_not_be_read_as_an_address(checkout: Checkout) -> None:
    line = checkout.refused(UV_DEFAULT_INDEX="http://[::1/simple")
    assert "Invalid IPv6 URL; next: correct that" in line


def test_a_file_that_can_not_be_made(checkout: Checkout) -> None:
    checkout.pin(fake_wheel())
    (checkout.tree / ".uv").touch()
    with serve(index_of(fake_wheel())) as server:
        line = checkout.refused(UV_DEFAULT_INDEX=f"http://{server.address}/simple")
    assert f"{checkout.tree}/.uv" in line and "next: correct that" in line


def test_an_authority_that_is_not_trusted_and_one_that_is(
    checkout: Checkout, tmp_path: Path
) -> None:
    authority, tls = company(tmp_path)
    checkout.pin(fake_wheel())
    with serve(index_of(fake_wheel()), tls=tls) as server:
        line = checkout.refused(HTTPS_PROXY=f"http://{server.address}")
        assert f"{PYPI}/uv/: " in line and "CERTIFICATE_VERIFY_FAILED" in line
        assert "next: copy your company's CA certificate to /usr/local/share/ca-cert" in line
        assert server.asked == []
        done = checkout.setup(HTTPS_PROXY=f"http://{server.address}", SSL_CERT_FILE=str(authority))
    assert done.returncode == 0, done.stderr
    assert server.asked[0] == f"{PYPI}/uv/"


def test_uv_that_does_not_trust_the_authority(checkout: Checkout) -> None:
    checkout.program("uv", STUB)
    done = checkout.setup(STUB_STATUS="2", STUB_SAYS="invalid peer certificate: UnknownIssuer")
    assert done.returncode == 1
    said, line = done.stderr.splitlines()
    assert said == "invalid peer certificate: UnknownIssuer"
    assert "uv does not trust its certificate, see above; expected" in line


def test_uv_that_fails(checkout: Checkout) -> None:
    checkout.program("uv", STUB)
    done = checkout.setup(STUB_STATUS="2", STUB_SAYS="no space")
    assert (done.returncode, "is ready" in done.stdout) == (1, False)
    said, line = done.stderr.splitlines()
    assert said == "no space"
    assert "`uv sync` ended with status 2, see above; expected the packages of uv.lock" in line


def test_uv_that_can_not_be_run(checkout: Checkout) -> None:
    (checkout.tree / ".uv").mkdir()
    (checkout.tree / f".uv/uv-{UV}").touch(mode=0o644)
    line = checkout.refused()
    assert f".uv/uv-{UV}: Permission denied; expected a program that runs here" in line


def test_a_machine_that_no_uv_is_pinned_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafleet import bootstrap

    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(bootstrap.Refused, match=r"found Linux on riscv64, .* next: install uv"):
        bootstrap.pinned_wheel()


@pytest.mark.parametrize(
    ("machine", "libc", "tag"),
    [
        ("x86_64", "glibc", "manylinux2014_x86_64.whl"),
        ("x86_64", "", "musllinux_1_1_x86_64.whl"),
        ("aarch64", "glibc", "musllinux_1_1_aarch64.whl"),
        ("aarch64", "", "musllinux_1_1_aarch64.whl"),
    ],
)
def test_the_wheel_of_a_machine(
    machine: str, libc: str, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("platform.libc_ver", lambda: (libc, ""))
    assert pinned_wheel()[0].endswith(tag)
