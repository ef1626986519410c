"""A job on a host: what the controller asks for, what the job tells, how it ended.

What it is asked for lies in a file that root alone writes. In its own folder progress.json says how
far it is, stamp.json how it ended, well or badly. A stamp is removed when a run begins, so it
always belongs to the last run. A job outlives the connection that started it; whoever asks later
reads the folder.
"""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, get_args

from llamafleet.protocol.decode import DecodeError, Rule, decode
from llamafleet.protocol.place import ModelInputs, ModelPart, ModelProduct
from llamafleet.protocol.result import Backend

VERSION: Final = 1
PROGRESS, STAMP, LOCK = "progress.json", "stamp.json", "lock"
BUILD = "build.json"
"""In a build's own folder, written when all else of it is on the disk: the proof that it is whole.
A stamp with a BuildProduct in the same object."""
WHOLE = "whole.json"
"""In a folder of the server's libraries, written when all else of it is on the disk: a
LibrariesProduct."""
WHEELS = "wheel"
"""Folder of a build, with its wheel where that is for other hosts too."""
PROCESS_NAME = "llamafleet-host"
"""Part of the command line of every process of the zipapp; tells a job from a reused pid."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs are looked for, whatever the caller's environment says."""
NVCC = "CUDACXX"
"""Variable of a build's environment that names its nvcc."""
LIBRARY_PATH = "LD_LIBRARY_PATH"
"""Variable of a build's environment that names the folder of its toolkit's libraries."""
PARALLEL = "CMAKE_BUILD_PARALLEL_LEVEL"
"""The same that says how many compile jobs run at a time."""
LIMIT = 1 << 20
"""Bytes of a file that are read; the snapshot cuts there too."""

Kind = Literal["build", "toolkit", "packages", "libraries", "model", "verify"]
State = Literal["running", "ok", "failed", "dead", "absent"]
"""dead: it ended without a stamp that can be read."""

Method = Literal["wheels", "apt", "dnf", "runfile", "distro"]
METHODS: tuple[Method, ...] = get_args(Method)
"""How a toolkit is installed. Best first, where several have the same version: pinned files in a
folder of our own, then packages, then gigabytes, then the distribution's own mix."""
Manager = Literal["apt", "dnf"]
"""Of a distribution that a toolkit's packages are known for."""
AnyManager = Literal["apt", "dnf", "pacman", "zypper", "apk"]

INSTALL, CHECK = "install", "check"
"""Phases of a toolkit's job: the package manager runs; what is there is tried."""
UNPROVEN = (INSTALL, CHECK)
"""Ended in one of these, a job may have left a toolkit that only looks complete."""

PackageName = Annotated[
    str,
    Rule(
        "the exact name of a package",
        # At its end a minus would stand for a removal.
        lambda name: (
            len(name) <= 200 and re.fullmatch(r"[A-Za-z0-9]([\w+.-]*[\w+])?", name, re.ASCII)
        ),
    ),
]

T = TypeVar("T")


def log_name(kind: Kind) -> str:
    """File of the job's folder with all that its commands said."""
    return f"{kind}.log"


# -- what the controller asks for ------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BuildInputs:
    """Exactly what changes the machine code: the build's key is a hash of it."""

    llama_version: str
    llama_sha256: str
    """Of the published source archive."""
    cmake_options: tuple[str, ...]
    toolkit: str | None
    """major.minor; None: for the CPU."""
    compute_capabilities: tuple[str, ...]
    compiler: str
    """Kind and major version."""
    arch: str
    cpu_flags: str | None
    """Hash of the flags; None: the build does not go by them."""
    glibc: str | None
    backend: Backend
    nvcc_append_flags: str | None


@dataclass(frozen=True, kw_only=True)
class ToolkitInputs:
    """What a toolkit's installation depends on, beside its key."""

    method: Method


@dataclass(frozen=True, kw_only=True)
class PackagesInputs:
    """What an installation of distribution packages is."""

    packages: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LibrariesInputs:
    """What the server's own Python packages are: the job's key is a hash of it."""

    requirements: str
    """sha256 of the lines with hashes."""
    python: str
    """major.minor."""


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """What every job is told."""

    version: Literal[1] = VERSION
    kind: Kind
    key: str
    inputs: BuildInputs | ToolkitInputs | PackagesInputs | LibrariesInputs | ModelInputs
    proxies: dict[str, str] = field(default_factory=dict)
    """http_proxy, https_proxy and no_proxy, by these names."""
    ca_bundle: str | None = None
    """File of the certificates to trust; None: those that a program knows itself."""
    netrc: str | None = None
    """File with the credentials of indexes and mirrors: netrc(5)."""


@dataclass(frozen=True, kw_only=True)
class PipConfig(JobConfig):
    """Of a job that installs with pip."""

    python: str
    pip: str
    """The zipapp that is pip."""
    requirements: str
    """Lines with hashes."""
    index_url: str | None
    """None: PyPI."""
    find_links: str | None
    """Folder that takes the index's place."""


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """The compiler cache of a build; it changes no code that is built."""

    requirements: str
    """The pinned ccache, lines with hashes; "": the wheelhouse has none."""
    folder: str
    """Of the account that builds, and of no other."""
    limit_gb: int
    url: str | None
    """redis:// of a shared one, without user and password: these are in the netrc."""


@dataclass(frozen=True, kw_only=True)
class SharedWheel:
    """A wheel that one host built and others of its fingerprint install."""

    host: str
    """That built it, by its name in the inventory."""
    name: str
    """Of the file."""
    sha256: str
    size: int
    """Bytes."""
    libraries: dict[str, str]
    """sha256 by path below site-packages, as they were on that host."""
    needs: tuple[str, ...]
    """Instruction sets that its compiler used there, by their macros, as AVX512F."""
    nvcc: str = ""
    """Build of the nvcc that compiled it; "": for the CPU."""


@dataclass(frozen=True, kw_only=True)
class BuildConfig(PipConfig):
    """One build of llama-cpp-python; its key is the fingerprint."""

    kind: Literal["build"] = "build"
    inputs: BuildInputs
    prefix: str
    """Of the virtual environment that it is installed into; nothing may be there yet."""
    llama_requirement: str
    cmake_args: tuple[str, ...]
    allowed_unused: tuple[str, ...]
    """Options that CMake may leave unused; any other is a mistyped one."""
    environment: dict[str, str]
    jobs: int
    cache: CacheConfig | None = None
    """None: all is compiled."""
    notes: tuple[str, ...] = ()
    """What is not as usual in it, a line each: the stamp tells them too."""
    keep_wheel: bool = False
    """The wheel is for other hosts of this fingerprint too: it stays in the prefix."""
    wheel: SharedWheel | None = None
    """To be installed in place of a build of one's own."""
    wheel_file: str = ""
    """Where that lies: a file that only root writes."""


@dataclass(frozen=True, kw_only=True)
class LibrariesConfig(PipConfig):
    """The Python packages of the server that serves a build."""

    kind: Literal["libraries"] = "libraries"
    inputs: LibrariesInputs
    root: str
    """Folder that they are installed into."""


@dataclass(frozen=True, kw_only=True)
class ToolkitConfig(JobConfig):
    """One installation of a CUDA Toolkit: what all methods are told."""

    kind: Literal["toolkit"] = "toolkit"
    inputs: ToolkitInputs
    method: Method
    cuda: str
    """major.minor."""
    root: str
    cxx: str
    """The host compiler that it must work with."""
    compute_capabilities: tuple[str, ...] = ()
    """Of the GPUs that it must make right code for."""


@dataclass(frozen=True, kw_only=True)
class WheelsConfig(ToolkitConfig, PipConfig):
    """From NVIDIA's wheels."""

    method: Literal["wheels"] = "wheels"


@dataclass(frozen=True, kw_only=True)
class RunfileConfig(ToolkitConfig):
    """By NVIDIA's installer."""

    method: Literal["runfile"] = "runfile"
    url: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class RepositoryConfig:
    """A package repository to set up."""

    url: str
    source: str
    """Path of the file among `files` that names the repository."""
    keyring: str
    """Path that the key is written to."""
    key_url: str
    fingerprint: str
    """Of the key at `key_url`, 40 hex digits."""
    key: str | None
    """Text of the key to trust; None: the one at `key_url`."""
    credentials: str
    """Path of the file that the package manager reads a user and a password from: one of its own,
    or `source`. Written where there are some."""
    files: dict[str, str] = field(default_factory=dict)
    """Text by path. A plan has none: they are rendered when the job is told."""


@dataclass(frozen=True, kw_only=True)
class ManagerConfig(JobConfig):
    """Of a job that installs with the package manager, as root."""

    manager: AnyManager
    packages: tuple[PackageName, ...]
    record: str
    """File that names what llamafleet installed, a line each."""
    account: str | None
    """User that tries what was installed; None: the one that runs the job."""


@dataclass(frozen=True, kw_only=True)
class PackagesConfig(ToolkitConfig, ManagerConfig):
    """A toolkit by the package manager."""

    method: Literal["apt", "dnf", "distro"]
    manager: Manager
    repository: RepositoryConfig | None
    """None: the repositories that the host has."""


@dataclass(frozen=True, kw_only=True)
class CompilerConfig(ManagerConfig):
    """What a source build needs of the distribution: a C++ compiler."""

    kind: Literal["packages"] = "packages"
    inputs: PackagesInputs
    compilers: tuple[str, ...]
    """Commands of which one must tell its version afterwards."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(JobConfig):
    """One model that is served, of one file or of several parts; its key is that of its folder."""

    kind: Literal["model"] = "model"
    inputs: ModelInputs
    folder: str
    """Of its own."""
    parts: tuple[ModelPart, ...]
    """In their order."""
    reserve_mib: int
    """What is left free on the disk."""


_TOOLKIT_CONFIGS: dict[Method, type[ToolkitConfig]] = {
    "wheels": WheelsConfig,
    "runfile": RunfileConfig,
    "apt": PackagesConfig,
    "dnf": PackagesConfig,
    "distro": PackagesConfig,
}


def toolkit_config(data: object) -> ToolkitConfig:
    """The settings of one method. Raises DecodeError."""
    method = decode(ToolkitConfig, data).method
    return decode(_TOOLKIT_CONFIGS[method], data)


# -- what the job tells ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Retry:
    """Why a job was begun once more on its own, and what was changed for it."""

    signature: str
    """Id of the known failure that the first attempt ended in."""
    line: str
    """What its log said."""
    before: int
    jobs: int
    """Parallel compile jobs; before: of the first attempt."""

    def __str__(self) -> str:
        return f"{self.signature} with jobs = {self.before}; once more with jobs = {self.jobs}"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a job is, and which process runs it."""

    version: Literal[1] = VERSION
    kind: Kind
    key: str
    pid: int
    start_ticks: int | None
    """When that process started; see the function of this name."""
    started: float = 0.0
    """Seconds since 1970, as in `updated`."""
    updated: float = 0.0
    phase: str = ""
    step: int = 0
    steps: int = 0
    """0: not known."""
    line: str = ""
    """What it is at, in words."""
    retry: Retry | None = None
    """None: the first attempt."""


@dataclass(frozen=True, kw_only=True)
class JobError:
    """Why a job failed."""

    phase: str
    lines: tuple[str, ...] = ()
    """The ones worth reading; the first says what happened."""
    log: str = ""
    signature: str | None = None
    """Id of the known failure that it looks like."""
    cause: str | None = None
    fix: str | None = None


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """How a job ended. What it made stands beside this, in the same object."""

    version: Literal[1] = VERSION
    kind: Kind
    key: str
    ok: bool
    started: float = 0.0
    finished: float = 0.0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    max_rss_mib: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds by phase, in the order in which the phases began."""
    inputs: dict[str, Any] = field(default_factory=dict)
    """Of the configuration; those of another version of this code may have other names."""
    log: str = ""
    error: JobError | None = None
    retry: Retry | None = None
    """It was tried twice; the rest is of the second attempt, the times are of both."""
    machine_id: str = ""
    """Of the machine that it ended on; "": not known, or written by older code."""
    notes: tuple[str, ...] = ()
    """What to know of it though it ended well, a line each."""


@dataclass(frozen=True, kw_only=True)
class CacheUse:
    """What the compiler cache did in one build."""

    tool: str
    """Name and version; "": it was not used at all."""
    hits: int = 0
    misses: int = 0
    failed: int = 0
    """Files that were compiled without it, as it failed where the compiler did not."""
    remote_hits: int = 0
    """Of the hits, those that came from the shared one."""
    remote_errors: int = 0
    """Questions that the shared one did not answer, or not in time."""
    size_mib: float | None = None
    """Of the local one after the build."""
    problem: str = ""
    """Why it was not used, or not wholly."""


@dataclass(frozen=True, kw_only=True)
class BuildProduct:
    """What a build made."""

    wheel_bytes: int | None
    wheel_sha256: str | None
    libraries: dict[str, str]
    """sha256 by path below the virtual environment."""
    units: int
    """Steps of the compilation."""
    llama_cpp_python: str
    system_info: str
    import_s: float
    nvcc: str = ""
    """Build of the nvcc that compiled it, as 13.2.86; "": for the CPU, or it was not asked."""
    order: str = ""
    """In which order its units were compiled; "": made by older code."""
    packing: float | None = None
    """Share of the jobs that was at work while ninja ran; None: not known."""
    cache: CacheUse | None = None
    """None: none was asked for."""
    wheel: str = ""
    """Name of the wheel that was kept in WHEELS; "": none was."""
    needs: tuple[str, ...] = ()
    """Of a wheel that was kept or taken: see SharedWheel."""
    shared_from: str = ""
    """Host whose wheel this is; "": it was built here."""


@dataclass(frozen=True, kw_only=True)
class ToolkitProduct:
    """What an installation of a toolkit made."""

    nvcc: str = ""
    """Its build, as 13.2.86."""
    download_bytes: int | None = None
    packages: tuple[str, ...] = ()
    """Names and versions."""


@dataclass(frozen=True, kw_only=True)
class PackagesProduct:
    """What an installation of distribution packages made."""

    packages: tuple[str, ...] = ()
    """Names and versions."""


@dataclass(frozen=True, kw_only=True)
class LibrariesProduct:
    """What an installation of the server's packages made."""

    packages: tuple[str, ...] = ()
    """Names and versions, as uvicorn-0.54.0."""


Product = BuildProduct | ToolkitProduct | PackagesProduct | LibrariesProduct | ModelProduct


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """What a job's folder says."""

    state: State
    progress: Progress | None = None
    stamp: Stamp | None = None
    unreadable: str = ""
    """Why the stamp that is there can't be read."""


# -- the folder ------------------------------------------------------------------------------------


def write_json(path: Path, data: dict[str, Any], *, durable: bool = True) -> None:
    """Write `data` with "version" so that a reader sees the old file or the new one, whole.

    `durable`: it also outlives a loss of power from now on.
    """
    text = json.dumps({"version": VERSION} | data, indent=1) + "\n"
    write_whole(path, text.encode(), durable=durable)


def write_whole(path: Path, content: bytes, *, durable: bool = True, public: bool = False) -> None:
    """The same of any content; `public`: any account may read it, whatever the umask is."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    # Made anew: nothing that lies there under that name is written to.
    made = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        with os.fdopen(made, "wb") as file:
            if public:
                os.fchmod(made, 0o644)
            file.write(content)
            file.flush()
            if durable:
                os.fsync(made)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def remove_partial(folder: Path) -> None:
    """Remove what writers left there that were killed; no other may be at work just now."""
    for left in folder.glob(".*.json.*"):
        left.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Have the names in `folder` on the disk."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in `path`; None where no file of at most LIMIT bytes has one. Follows no link."""
    try:
        # A pipe would keep a blocking open waiting for ever.
        opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        regular = stat.S_ISREG(os.fstat(opened).st_mode)
        text = _read_whole(opened, LIMIT + 1) if regular else b""
        data = json.loads(text) if len(text) <= LIMIT else None
    except (OSError, ValueError, RecursionError):
        return None
    finally:
        os.close(opened)
    return data if isinstance(data, dict) else None


def _read_whole(opened: int, most: int) -> bytes:
    """The first `most` bytes of a file. Raises OSError."""
    parts: list[bytes] = []
    while most > 0 and (part := os.read(opened, most)):
        parts.append(part)
        most -= len(part)
    return b"".join(parts)


def machine_id() -> str:
    """Of this machine; "": it has none."""
    try:
        text = Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
    return text if re.fullmatch(r"[0-9a-f]{32}", text) else ""


def read_progress(folder: Path) -> Progress | None:
    """What the job in `folder` tells; None where it tells nothing that can be read."""
    try:
        return _read(Progress, folder / PROGRESS)
    except DecodeError:
        return None


def _read(kind: type[T], path: Path) -> T | None:
    """None where there is no file. Raises DecodeError."""
    data = read_json(path)
    if data is None and os.path.lexists(path):
        raise DecodeError([f"found no JSON object of at most {LIMIT} bytes"])
    return None if data is None else decode(kind, data)


def status(folder: Path) -> JobStatus:
    """State of the job in `folder`."""
    progress, stamp, unreadable = read_progress(folder), None, ""
    try:
        stamp = _read(Stamp, folder / STAMP)
    except DecodeError as error:
        unreadable = str(error)
    state: State
    if stamp:
        state = "ok" if stamp.ok else "failed"
    elif progress and alive(progress):
        state = "running"
    else:
        state = "dead" if progress or unreadable else "absent"
    return JobStatus(state=state, progress=progress, stamp=stamp, unreadable=unreadable)


def write_stamp(folder: Path, stamp: Stamp, product: Product | None) -> None:
    """`product` None: it made nothing."""
    write_json(folder / STAMP, asdict(stamp) | (asdict(product) if product else {}))


DEAD = ("Z", "X")
"""States of a process in field 3 of its stat."""


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot (field 22 of its stat, proc(5)); None: it
    has ended, also where its parent has not asked for its status yet.

    Tells a process from a later one of the same pid, also after a reboot. The boot id would not:
    in a container it can read differently inside a sandboxed unit (measured, systemd-nspawn).
    """
    try:
        # The second field may hold blanks and brackets.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2].split()
        return None if fields[0] in DEAD else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def alive(progress: Progress) -> bool:
    """The process that tells it runs still: same pid, same start, a process of ours."""
    if progress.start_ticks is None or start_ticks(progress.pid) != progress.start_ticks:
        return False
    try:
        cmdline = Path(f"/proc/{progress.pid}/cmdline").read_bytes()
    except OSError:
        return False
    return PROCESS_NAME.encode() in cmdline
