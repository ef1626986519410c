"""A folder with everything a host needs from the registries, checked by a manifest."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from llamafleet import tables
from llamafleet.tables.toolkits import wheel_toolkits

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
CMAKE_FLOOR = "3.24"
"""CMake before 3.24 knows no architecture lists as llama.cpp's CUDA backend uses them."""
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
ARCHES = ("x86_64", "aarch64")

# Wheels for these need glibc 2.28 or less, so that they fit every host with a supported Python.
# pip does not derive the older manylinux_2_* tags from a newer one.
_MANYLINUX = ("2_28", "2_27", "2_26", "2_24", "2_17", "2014", "2_12", "2010", "2_5", "1")

_LLAMA_CPP = "vendor/llama.cpp/"
_KEPT_FILES = frozenset(
    {
        *("CMakeLists.txt", "LICENSE.md", "PKG-INFO", "README.md", "pyproject.toml"),
        *(_LLAMA_CPP + name for name in ("CMakeLists.txt", "LICENSE")),
    }
)
# tools: mtmd is built where LLAVA_BUILD is on, and llama-bench measures what was built.
_KEPT_FOLDERS = (
    "llama_cpp/",
    *(
        f"{_LLAMA_CPP}{name}/"
        for name in ("cmake", "common", "ggml", "include", "licenses", "src", "tools", "vendor")
    ),
)
_OTHER_BACKENDS = (
    *("cann", "et", "hexagon", "hip", "metal", "musa", "opencl", "openvino", "sycl"),
    *("virtgpu", "vulkan", "webgpu", "zdnn", "zendnn"),
)
_DROPPED_FOLDERS = (
    *(f"{_LLAMA_CPP}ggml/src/ggml-{name}/" for name in _OTHER_BACKENDS),
    *(f"{_LLAMA_CPP}tools/{name}/" for name in ("ui", "server", "mtmd/tests")),
)
_DROPPED_SUFFIXES = (".mp4", ".mp3", ".jpeg", ".png", ".gguf")


class WheelhouseError(Exception):
    """A wheelhouse can't be made or read; the text is one line."""


@dataclass(frozen=True)
class File:
    sha256: str
    bytes: int
    source_sha256: str | None = None
    """sha256 of the published file that this one was cut from."""


@dataclass(frozen=True)
class Llama:
    """The source archive of llama-cpp-python."""

    version: str
    sha256: str
    """Of the file in the wheelhouse; another one than `source_sha256` where it was cut."""
    source_sha256: str
    """Of the published file."""


@dataclass(frozen=True)
class Manifest:
    """What is in a wheelhouse."""

    created: int
    """Seconds since 1970."""
    files: dict[str, File]
    pythons: tuple[str, ...]
    arches: tuple[str, ...]
    toolkits: tuple[str, ...]
    slim: bool
    llama: Llama


def build(
    directory: Path,
    *,
    version: str,
    sha256: str,
    pythons: Sequence[str] = PYTHONS,
    arches: Sequence[str] = ("x86_64",),
    toolkits: Sequence[str] = (),
    slim: bool = True,
    cmake: bool = True,
) -> Manifest:
    """Collect a wheelhouse into `directory` with this Python's pip and its configured index.

    `version` and `sha256` are those of llama-cpp-python's published source archive; `cmake`
    False leaves CMake out, for hosts that have 3.24 or newer. An older wheelhouse in
    `directory` is replaced when the new one is complete. Raises WheelhouseError.
    """
    if directory.exists() and any(directory.iterdir()) and not (directory / MANIFEST).is_file():
        raise WheelhouseError(f"{directory} is not empty and no wheelhouse: name another folder")
    wanted = [_table("host-requirements.txt")]
    wanted += [_table(f"toolkit-wheels-{toolkit}.txt") for toolkit in toolkits]
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as name:
        stage = Path(name) / "wheelhouse"
        stage.mkdir()
        for python in pythons:
            for arch in arches:
                _download_wheels(wanted, stage, python, arch, cmake)
        llama = _download_llama(stage, version, sha256, slim)
        files = {
            path.name: File(
                sha256_of(path),
                path.stat().st_size,
                sha256 if slim and path.name == sdist_name(version) else None,
            )
            for path in sorted(stage.iterdir())
        }
        manifest = Manifest(
            created=int(time.time()),
            files=files,
            pythons=tuple(pythons),
            arches=tuple(arches),
            toolkits=tuple(toolkits),
            slim=slim,
            llama=llama,
        )
        text = json.dumps({"version": MANIFEST_VERSION, **asdict(manifest)}, indent=1)
        (stage / MANIFEST).write_text(text + "\n", encoding="utf-8")
        # mkdtemp's 0700 is no use to the accounts that read the folder.
        stage.chmod(0o755)
        shutil.rmtree(directory, ignore_errors=True)
        stage.rename(directory)
    return manifest


def sdist_name(version: str) -> str:
    return f"llama_cpp_python-{version}.tar.gz"


def load(directory: Path) -> Manifest:
    """The manifest of a wheelhouse. Raises WheelhouseError."""
    path = directory / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WheelhouseError(f"{path} can't be read ({error.strerror})") from error
    except ValueError as error:
        raise WheelhouseError(f"{path} is not JSON ({error})") from error
    if not isinstance(data, dict) or data.get("version") != MANIFEST_VERSION:
        raise WheelhouseError(f"{path} is not a manifest of version {MANIFEST_VERSION}")
    try:
        return Manifest(
            created=int(data["created"]),
            files={str(name): File(**entry) for name, entry in data["files"].items()},
            pythons=tuple(data["pythons"]),
            arches=tuple(data["arches"]),
            toolkits=tuple(data["toolkits"]),
            slim=bool(data["slim"]),
            llama=Llama(**data["llama"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WheelhouseError(f"{path} is damaged ({error!r})") from error


def verify(directory: Path) -> list[str]:
    """What is wrong with a wheelhouse, one line for each file; none: all is as listed."""
    if not directory.is_dir():
        return [f"no folder {directory}"]
    try:
        listed = load(directory).files
    except WheelhouseError as error:
        return [str(error)]
    present = {path.name for path in directory.iterdir()} - {MANIFEST}
    problems = [f"{name} is missing" for name in sorted(listed.keys() - present)]
    problems += [f"{name} is not in {MANIFEST}" for name in sorted(present - listed.keys())]
    for name in sorted(listed.keys() & present):
        path = directory / name
        if not path.is_file():
            problems.append(f"{name} is no file")
        elif (found := sha256_of(path)) != listed[name].sha256:
            problems.append(
                f"{name} is altered: its sha256 is {found}, listed is {listed[name].sha256}"
            )
    return problems


def files(directory: Path) -> tuple[str, ...]:
    """Names of the files in a wheelhouse, without the manifest. Raises WheelhouseError."""
    return tuple(load(directory).files)


def manifest_sha256(directory: Path) -> str:
    """sha256 of the manifest, which stands for the whole wheelhouse."""
    return sha256_of(directory / MANIFEST)


def requirements(manifest: Manifest) -> str:
    """The lines of tables/host-requirements.txt that this wheelhouse can serve, for pip.

    Hashes and packages that are not in it are left out.
    """
    there = {file.sha256 for file in manifest.files.values()}
    lines = []
    for requirement, hashes in _table("host-requirements.txt"):
        served = [value for value in hashes if value in there]
        if served:
            lines.append(_line(str(requirement), served))
    return "".join(lines)


def llama_requirement(manifest: Manifest) -> str:
    """The requirement of llama-cpp-python with the hash of the archive in the wheelhouse."""
    llama = manifest.llama
    return f"llama-cpp-python=={llama.version} --hash=sha256:{llama.sha256}"


def misfits(
    manifest: Manifest, *, python: str, arch: str, host_cmake: str | None, toolkit: str | None
) -> list[str]:
    """Why a host can't build from this wheelhouse alone, one line each; empty: it can.

    `python` is the version of the host's interpreter, `arch` as of uname -m, `host_cmake` the
    version of its CMake, `toolkit` that of the CUDA Toolkit that wheels have to bring.
    """
    lines = []
    minor = ".".join(python.split(".")[:2])
    if minor not in manifest.pythons:
        lines.append(f"Python {minor}: the wheelhouse is for {', '.join(manifest.pythons)}")
    if arch not in manifest.arches:
        lines.append(f"machine {arch}: the wheelhouse is for {', '.join(manifest.arches)}")
    if not any(name.startswith("cmake-") for name in manifest.files):
        known = Version(host_cmake) if host_cmake else None
        if known is None or known < Version(CMAKE_FLOOR):
            lines.append(
                f"CMake {host_cmake or 'none'} on the host and none in the wheelhouse: "
                f"{CMAKE_FLOOR} or newer is needed"
            )
    if toolkit is not None and toolkit not in manifest.toolkits:
        lines.append(
            f"CUDA {toolkit}: the wheelhouse has {', '.join(manifest.toolkits) or 'no toolkit'} "
            f"(add --toolkit {toolkit}, or set toolkit_version to one that it has)"
        )
    return lines


def slim_sdist(source: Path, target: Path) -> None:
    """Write `source` again without what a CPU or CUDA build does not read.

    Left out: llama.cpp's history, docs, sample models, tests, web front ends and the backends
    of other makers. The same source gives the same bytes on the same zlib.

    Measured with 0.3.36 on gcc 12.2, 2026-11-25: libggml-cpu comes out the same byte for byte,
    libggml-base but for ggml's commit, which is "unknown" in place of "0c1e570-dirty". With
    -DGIT_EXE=OFF, or on a host without git, that is the same too.
    """
    with (
        tarfile.open(source) as old,
        target.open("wb") as raw,
        gzip.GzipFile("", "wb", 9, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old, key=lambda m: m.name):
            if member.isdir() or not _needed(member.name.partition("/")[2]):
                continue
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)


def _needed(path: str) -> bool:
    """Whether a build reads this path of the source archive."""
    kept = path in _KEPT_FILES or path.startswith(_KEPT_FOLDERS)
    return kept and not path.startswith(_DROPPED_FOLDERS) and not path.endswith(_DROPPED_SUFFIXES)


Table = list[tuple[Requirement, list[str]]]


def _table(name: str) -> Table:
    """(requirement, its sha256 hashes) of a table of pinned wheels. Raises WheelhouseError."""
    try:
        text = tables.text(name).replace("\\\n", " ")
    except FileNotFoundError as error:
        have = ", ".join(sorted({row.cuda for row in wheel_toolkits()}))
        raise WheelhouseError(
            f"no pinned wheels {name}; toolkits that have some: {have}"
        ) from error
    rows = (line.split("--hash=sha256:") for line in text.splitlines())
    return [
        (Requirement(first.strip()), [value.strip() for value in hashes])
        for first, *hashes in rows
        if first.strip() and not first.startswith("#")
    ]


def _line(requirement: str, hashes: Iterable[str]) -> str:
    return "".join((requirement, *(f" --hash=sha256:{value}" for value in hashes), "\n"))


def _for_host(wanted: Iterable[Table], python: str, arch: str, cmake: bool) -> str:
    """Requirement lines without markers for one kind of host.

    `pip download` evaluates markers for the Python that runs it and not for the one asked for.
    """
    host = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "platform_machine": arch,
        "platform_system": "Linux",
        "sys_platform": "linux",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }
    return "".join(
        _line(f"{requirement.name}{requirement.specifier}", hashes)
        for table in wanted
        for requirement, hashes in table
        if (requirement.marker is None or requirement.marker.evaluate(host))
        and (cmake or requirement.name != "cmake")
    )


def _download_wheels(
    wanted: Iterable[Table], stage: Path, python: str, arch: str, cmake: bool
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        lines = Path(scratch) / "requirements.txt"
        lines.write_text(_for_host(wanted, python, arch, cmake), encoding="utf-8")
        options = ["--only-binary", ":all:", "--implementation", "cp", "--python-version", python]
        for tag in _MANYLINUX:
            options += ["--platform", f"manylinux{'_' if '_' in tag else ''}{tag}_{arch}"]
        _pip_download(lines, stage, f"wheels for Python {python} on {arch}", *options)


def _download_llama(stage: Path, version: str, sha256: str, slim: bool) -> Llama:
    """Put llama-cpp-python's source archive into `stage`."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        wanted = folder / "requirements.txt"
        wanted.write_text(_line(f"llama-cpp-python=={version}", [sha256]), encoding="utf-8")
        # pip runs the build backend for the archive's metadata: the pinned one, not the newest.
        pinned = folder / "build.txt"
        pinned.write_text(
            "".join(
                f"{r.name}{r.specifier}\n"
                for r, _ in _table("host-requirements.txt")
                if r.marker is None
            ),
            encoding="utf-8",
        )
        _pip_download(
            *(wanted, folder, f"source archive of llama-cpp-python {version}"),
            *("--no-binary", "llama-cpp-python", "--build-constraint", str(pinned)),
        )
        source, target = folder / sdist_name(version), stage / sdist_name(version)
        if slim:
            slim_sdist(source, target)
        else:
            shutil.move(source, target)
    return Llama(version=version, sha256=sha256_of(target), source_sha256=sha256)


def _pip_download(wanted: Path, target: Path, what: str, *options: str) -> None:
    """Download exactly what `wanted` lists. Raises WheelhouseError with pip's last error."""
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet"]
    command += ["--no-deps", "--require-hashes", "--dest", str(target), "-r", str(wanted)]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        last = (errors or done.stderr.splitlines() or ["no output"])[-1]
        raise WheelhouseError(f"no {what}: {last}; next: try the same with pip download -v")


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
