"""`setup.sh` runs this file with the system's Python: makes .venv, as uv.lock says.

Nothing but the standard library is there yet, and of that neither pip nor venv: Debian and Ubuntu
have both in packages of their own, and refuse `pip install` into the system. So uv is taken from
PATH or fetched as a file, pinned by its hash.
"""

from __future__ import annotations

import argparse
import configparser
import hashlib
import html
import http.client
import io
import os
import platform
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from base64 import b64encode
from pathlib import Path, PurePosixPath
from shlex import quote
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PRIVATE = ROOT / ".uv"
PYPI = "https://pypi.org/simple"
OWN_INDEX = "UV_DEFAULT_INDEX"

UV = "0.13.9"
OLDEST_UV = (0, 7, 0)
"""Reads this uv.lock and knows every option below (tried)."""
WHEELS = {
    "x86_64 glibc": (
        f"uv-{UV}-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        "d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19",
    ),
    "x86_64 musl": (
        f"uv-{UV}-py3-none-musllinux_1_1_x86_64.whl",
        "2c45530751517d6c3bbc69a19473f6effe47cce047bede01ffd8af7ea7b36b25",
    ),
    "aarch64": (
        f"uv-{UV}-py3-none-manylinux_2_17_aarch64.manylinux2014_aarch64.musllinux_1_1_aarch64.whl",
        "5435c5ce14a56431208ca0996416d310f1598e8c2c8ba707688985a16bb82dbe",
    ),
}


class Refused(Exception):
    """Why there is no .venv: what was found, what was expected and what to type next."""


def main() -> int:
    """Exit code 0: .venv is as uv.lock says; 1: it is not; 2: no such option."""
    parser = argparse.ArgumentParser(prog="setup.sh", description="Make .venv as uv.lock says.")
    parser.add_argument("--dev", action="store_true", help="with the tools of the tests")
    options = parser.parse_args()
    try:
        check_writable()
        drop_moved()
        index = package_index()
        uv = uv_of_path() or fetched_uv(index)
        make_environment(uv, index, ["--group", "dev"] if options.dev else ["--no-dev"])
    except Refused as error:
        print(f"setup.sh: {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:  # A full disk, an address that can not be read.
        print(f"setup.sh: {error}; next: correct that and run it again", file=sys.stderr)
        return 1
    say(f"{VENV} is ready")
    return 0


def say(line: str) -> None:
    print(f"setup.sh: {line}", flush=True)


def check_writable() -> None:
    """Files of another user, or a read-only file system, before anything is fetched."""
    for path in (ROOT, VENV, PRIVATE):
        if path.exists() and not os.access(path, os.W_OK):
            copy = f"cp -r {quote(str(ROOT))} ~/llamafleet && rm -rf ~/llamafleet/.venv"
            fresh = f"sudo rm -rf {quote(str(VENV))} {quote(str(PRIVATE))}"
            raise Refused(
                f"{path} can not be written: it belongs to user {path.stat().st_uid}, this is "
                f"user {os.geteuid()}, or its file system is read-only; expected a folder of your "
                f"own; next: {copy if path == ROOT else fresh}"
            )


def drop_moved() -> None:
    """The programs in .venv name its place: where the folder was moved they start no more."""
    program = VENV / "bin/pyinfra"
    if program.exists() and os.fsencode(VENV) not in program.read_bytes():
        shutil.rmtree(VENV)


def package_index() -> str:
    """The package index that uv or pip is set to use here, else PyPI."""
    for name in (OWN_INDEX, "UV_INDEX_URL", "PIP_INDEX_URL"):
        if os.environ.get(name):
            return os.environ[name].rstrip("/")
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read(pip_files())
    except (configparser.Error, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise Refused(f"pip's settings: {reason}; next: correct that file") from error
    own = parser.get("global", "index-url", fallback=PYPI)
    return parser.get("install", "index-url", fallback=own).rstrip("/")


def pip_files() -> list[Path]:
    """Where pip reads its settings; a later file goes before an earlier one."""
    home = Path(os.environ.get("HOME") or "/")
    system = os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg"
    user = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    files = [Path(folder, "pip/pip.conf") for folder in system.split(":")]
    files += [Path("/etc/pip.conf"), home / ".pip/pip.conf", user / "pip/pip.conf"]
    named = os.environ.get("PIP_CONFIG_FILE")
    return [*files, Path(named)] if named else files


def uv_of_path() -> Path | None:
    """The uv that is installed already, if it is new enough."""
    found = shutil.which("uv")
    if found is None:
        return None
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
    version = re.match(r"uv (\d+)\.(\d+)\.(\d+)", said.stdout)
    fits = version is not None and tuple(map(int, version.groups())) >= OLDEST_UV
    return Path(found) if fits else None


def fetched_uv(index: str) -> Path:
    """The pinned uv in .uv, fetched once."""
    uv = PRIVATE / f"uv-{UV}"
    if uv.exists():
        return uv
    wheel, sha256 = pinned_wheel()
    say(f"fetching uv {UV} from {shown(index)}")
    page, address = fetch(f"{index}/uv/")
    data, address = fetch(link(page.decode(errors="replace"), address, wheel))
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise Refused(
            f"{shown(address)}: found sha256 {found}, expected {sha256}; next: run it again; if "
            f"that stays so, its server alters files: export {OWN_INDEX}={PYPI}"
        )
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        binary = archive.read(f"uv-{UV}.data/scripts/uv")
    PRIVATE.mkdir(exist_ok=True)
    # Renamed when whole: a run that is cut off leaves no half of a program.
    with tempfile.TemporaryDirectory(dir=PRIVATE) as folder:
        part = Path(folder, "uv")
        part.write_bytes(binary)
        part.chmod(0o755)
        part.replace(uv)
    return uv


def pinned_wheel() -> tuple[str, str]:
    """Name and sha256 of the uv for this machine."""
    machine = platform.machine()
    libc = "glibc" if platform.libc_ver()[0] == "glibc" else "musl"
    wheel = WHEELS.get(machine) or WHEELS.get(f"{machine} {libc}")
    if platform.system() != "Linux" or wheel is None:
        raise Refused(
            f"found {platform.system()} on {machine}, and no uv {dotted(OLDEST_UV)} or newer in "
            "PATH; expected one, or Linux on x86_64 or aarch64; "
            "next: install uv, see https://docs.astral.sh/uv"
        )
    return wheel


def link(page: str, address: str, wheel: str) -> str:
    """The address of `wheel`, by an index's page (PEP 503) that was found at `address`."""
    for target in re.findall(r"href\s*=\s*[\"']([^\"']+)", page):
        url = urldefrag(urljoin(address, html.unescape(target))).url
        if PurePosixPath(unquote(urlsplit(url).path)).name == wheel:
            return url
    raise Refused(
        f"{shown(address)} lists no {wheel}; expected an index that has all of PyPI; next: "
        f"export {OWN_INDEX}={PYPI}, or install uv {dotted(OLDEST_UV)} or newer by other means"
    )


def fetch(url: str) -> tuple[bytes, str]:
    """A file and the address of its links; proxies are those of the environment."""
    trust = ssl.create_default_context()
    # Python 3.13 asks more of a company's certificates than uv, curl and apt do.
    trust.verify_flags &= ~ssl.VERIFY_X509_STRICT
    try:
        asked = request(url)
        with urllib.request.urlopen(asked, timeout=60, context=trust) as answer:
            # Links without a host are for the same user; what a redirection led to is not.
            return answer.read(), url if answer.url == asked.full_url else answer.url
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Refused(unreachable(shown(url), str(error))) from error


def request(url: str) -> urllib.request.Request:
    """A request for an address that may hold a user and a password, as pip and uv take it."""
    parts = urlsplit(url)
    if parts.username is None:
        return urllib.request.Request(url)
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
    made = urllib.request.Request(bare.geturl())
    # Not added to what a redirection leads to.
    made.add_unredirected_header("Authorization", f"Basic {b64encode(secret).decode()}")
    return made


def shown(url: str) -> str:
    """An address without its user and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def unreachable(index: str, reason: str) -> str:
    """What to do about an index that gives no answer, or one that is not trusted."""
    if "certificate" in reason.lower():
        return (
            f"{index}: {reason}; expected a certificate of an authority that this system trusts; "
            "next: copy your company's CA certificate to /usr/local/share/ca-certificates/NAME.crt,"
            " then as root: apt-get install ca-certificates && update-ca-certificates"
        )
    return (
        f"{index}: {reason}; expected a package index; next, behind a proxy: "
        f"export HTTPS_PROXY=http://HOST:PORT; with an index of your own: export {OWN_INDEX}=URL"
    )


def make_environment(uv: Path, index: str, groups: list[str]) -> None:
    """.venv with exactly the packages of uv.lock, each checked by its hash."""
    if not VENV.exists():
        say(f"installing the packages of uv.lock from {shown(index)}")
    # The lock names PyPI, wherever the files come from.
    locked = ["--quiet", "--locked", "--default-index", PYPI, *groups]
    sync = ["sync", *locked, "--python", sys.executable]
    if index == PYPI:
        run(uv, index, *sync)
    elif call(uv, index, *sync, "--check").returncode != 0:
        # `uv sync` takes files from the addresses in the lock alone: another index goes by names.
        names = PRIVATE / "requirements.txt"
        PRIVATE.mkdir(exist_ok=True)
        run(uv, index, "export", *locked, "--output-file", names)
        run(uv, index, "venv", "--quiet", "--allow-existing", "--python", sys.executable, VENV)
        run(uv, index, "pip", "sync", "--quiet", "--python", VENV / "bin/python", names)


def run(uv: Path, index: str, *arguments: str | Path) -> None:
    """A command of uv that must succeed; what it says is shown."""
    done = call(uv, index, *arguments)
    sys.stderr.write(done.stderr)
    if done.returncode == 0:
        return
    if "certificate" in done.stderr.lower():
        raise Refused(unreachable(shown(index), "uv does not trust its certificate, see above"))
    raise Refused(
        f"`uv {arguments[0]}` ended with status {done.returncode}, see above; expected the "
        f"packages of uv.lock from {shown(index)}; next: correct that and run it again"
    )


def call(uv: Path, index: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A command of uv with this system's Python and trust store, and a cache in this folder."""
    defaults = {
        "UV_CACHE_DIR": str(PRIVATE / "cache"),
        "UV_SYSTEM_CERTS": "true",
        "UV_NATIVE_TLS": "true",  # its name before uv 0.11
    }
    fixed = {"UV_PYTHON_DOWNLOADS": "never", "UV_PROJECT_ENVIRONMENT": str(VENV)}
    if index != PYPI:
        fixed[OWN_INDEX] = index
    try:
        return subprocess.run(
            [uv, *arguments],
            cwd=ROOT,
            env={**defaults, **os.environ, **fixed},
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    except OSError as error:
        raise Refused(
            f"{uv}: {error.strerror}; expected a program that runs here, on a file system that is "
            "not mounted noexec; next: run it in another folder"
        ) from error


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


if __name__ == "__main__":
    sys.exit(main())
