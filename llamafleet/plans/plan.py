"""The decision for one host, as data. Plans make it, operations carry it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llamafleet.layout import Layout, serve_unit
from llamafleet.protocol.job import (
    BuildConfig,
    BuildInputs,
    CompilerConfig,
    Kind,
    LibrariesConfig,
    Manager,
    Method,
    ModelConfig,
    ToolkitConfig,
)
from llamafleet.protocol.place import ModelProduct
from llamafleet.protocol.result import Backend
from llamafleet.protocol.serve import ServeConfig
from llamafleet.protocol.verify import VerifyConfig


@dataclass(frozen=True)
class Problem:
    """Why a host can't be provisioned as asked; it stops the host before anything is built."""

    check: str
    """Short stable name, as "driver" or "disk"."""
    found: str
    expected: str
    next: str
    """The command to type, or the setting to change."""

    def __str__(self) -> str:
        return f"{self.check}: found {self.found}; expected {self.expected}; next: {self.next}"


@dataclass(frozen=True)
class RebootPlan:
    """A reboot that makes the updated driver work: what builds on that is planned after it."""

    reason: str


@dataclass(frozen=True)
class HoldPlan:
    """The hold on the driver's packages, against updates that nobody asked for."""

    reason: str
    hold: tuple[str, ...] = ()
    release: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    """Shell commands that hold or release, in order."""
    record: tuple[str, ...] = ()
    """What llamafleet, and nobody else, holds after that; empty: no record is kept."""


@dataclass(frozen=True)
class PackagesPlan:
    """Distribution packages that must be there before the rest can be planned."""

    names: tuple[str, ...] = ()
    """None: nothing to install."""
    reason: str = "all there"
    config: CompilerConfig | None = None
    job: JobPlan | None = None
    """Installs them. None, as `config`: nothing to install, or no plan is made of this host."""


@dataclass(frozen=True)
class WheelhousePlan:
    """The host's copy of a wheelhouse, from which a build or a toolkit is made."""

    source: str
    """Folder on the controller."""
    target: str
    files: tuple[str, ...]
    """In the order in which they are brought."""
    bring: bool
    reason: str


@dataclass(frozen=True)
class JobPlan:
    """How a job is run on the host; what it does, its configuration says."""

    kind: Kind
    key: str
    folder: str
    config: str
    """Path of its configuration, which root writes and the job reads."""
    python: str
    """Interpreter on the host that runs it."""
    minutes: int
    """How long a run waits for it; it goes on after that."""
    start: bool
    """False: it runs already, and is attached to."""
    root: bool = False
    """It keeps root's rights."""


def account_job(
    kind: Kind, key: str, layout: Layout, *, python: str, minutes: int, start: bool
) -> JobPlan:
    """A job with the account's rights, where the layout has its folder and its configuration."""
    return JobPlan(
        kind=kind,
        key=key,
        folder=layout.job(kind, key),
        config=layout.config(kind, key),
        python=python,
        minutes=minutes,
        start=start,
    )


@dataclass(frozen=True)
class Repository:
    """A package repository with CUDA Toolkits, NVIDIA's own or a mirror of it."""

    url: str
    key_url: str
    fingerprint: str
    """Of the key, 40 hex digits."""
    allowed: tuple[str, ...]
    """Patterns of the names that it may give: the toolkit's, none of the driver's."""
    machine: str
    """As uname -m names it."""


@dataclass(frozen=True)
class Source:
    """What a toolkit is installed from, other than wheels."""

    manager: Manager | None = None
    """None: it is no packages."""
    packages: tuple[str, ...] = ()
    repository: Repository | None = None
    """None: the repositories that the host has."""
    url: str = ""
    """Of a runfile."""
    sha256: str = ""


@dataclass(frozen=True)
class ToolkitPlan:
    """The CUDA Toolkit to build with."""

    version: str
    """major.minor."""
    root: str
    libdir: str
    method: Method | Literal["present"]
    install: bool
    reason: str
    key: str = ""
    """Of the job that installs it; "": nothing is to be installed."""
    source: Source | None = None
    """None: wheels, or nothing is to be installed."""
    compiler: str | None = None
    """Package to install first: no compiler on the host is one that this toolkit accepts."""
    ruled_out: tuple[tuple[str, str], ...] = ()
    """(version, why not) for each version that was not chosen."""
    config: ToolkitConfig | None = None
    """None: nothing is to be installed, or a compiler must be there first."""
    job: JobPlan | None = None
    """With `config`."""


@dataclass(frozen=True)
class BuildPlan:
    """One build of llama-cpp-python."""

    config: BuildConfig
    action: Literal["build", "attach", "none"]
    """attach: it runs already; none: it is there, whole and running."""
    reason: str
    proof: str
    """Path of the file with its stamp and its product."""
    job: JobPlan | None = None
    """None: it is built."""
    clears: bool = False
    """The folder of a wheel that another host built goes: one comes there, or was left there."""
    instead: str = ""
    """Fingerprint of the build that failed and in whose place this one is tried, once."""

    @property
    def name(self) -> str:
        """Of its folder: the fingerprint, or that and "-2", "-3" and so on."""
        return self.config.prefix.rpartition("/")[2]

    @property
    def fingerprint(self) -> str:
        """16 hex digits over `inputs`."""
        return self.config.key

    @property
    def inputs(self) -> BuildInputs:
        return self.config.inputs

    @property
    def python(self) -> str:
        return self.config.python


@dataclass(frozen=True)
class FilesPlan:
    """What brings llamafleet's files and units into the wanted state, in the order it is done."""

    write: tuple[str, ...] = ()
    """Paths."""
    stop: tuple[str, ...] = ()
    """Units, as those that follow."""
    disable: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    """Paths."""
    reload: bool = False
    """systemd is to read all units again."""
    enable: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    """One for each file or unit that is not as it should be; none on a first run."""

    @property
    def needed(self) -> bool:
        return self != FilesPlan(reasons=self.reasons)


@dataclass(frozen=True)
class VerifyPlan:
    """The verification and benchmark."""

    key: str
    """16 hex digits over the configuration's `inputs`."""
    config: VerifyConfig
    job: JobPlan
    needed: bool
    reason: str
    proven: bool = False
    """The result that is there proves the planned build, though it may be verified again."""
    stop: int | None = None
    """Process of a verification of something else that must end first."""


@dataclass(frozen=True)
class SentPart:
    """A part of a model that the controller sends."""

    name: str
    """Of the file that it becomes in the model's folder."""
    origin: str
    """A path here, or a URL that this machine fetches."""
    sha256: str
    size: int
    """Bytes; 0: not known before it is fetched."""


@dataclass(frozen=True)
class ModelPlan:
    """One model that is served, be it by several profiles."""

    profiles: tuple[str, ...]
    path: str
    """What a service loads: the file, of a split model the first one."""
    origin: str
    """Where it comes from: a path or a URL, of a split model that of the first part."""
    action: Literal["bring", "attach", "none"]
    """attach: a job is at it already; none: it is there as it was proven."""
    reason: str
    config: ModelConfig
    job: JobPlan | None = None
    """None: it is there."""
    send: tuple[SentPart, ...] = ()
    """What the controller sends before the job checks it."""
    coming: int | None = None
    """Bytes that are still to come; None: not known."""
    product: ModelProduct | None = None
    """What it is, once it is there."""

    @property
    def key(self) -> str:
        """16 hex digits: the name of its folder."""
        return self.config.key


@dataclass(frozen=True)
class ModelsPlan:
    """The models that a host serves, and those that it has and no profile names."""

    python: str
    """Interpreter on the host that removes some."""
    models: tuple[ModelPlan, ...] = ()
    room: tuple[str, ...] = ()
    """Keys of models that are removed before others come, as there is no room beside them."""
    discard: tuple[str, ...] = ()
    """Those that are removed at the end of a run."""
    stay: tuple[str, ...] = ()
    """Those that no profile names, and that are kept."""
    told: tuple[str, ...] = ()
    """What is removed or kept, and why, a line each."""

    @property
    def paths(self) -> dict[str, str]:
        """What a service loads, by profile."""
        return {name: model.path for model in self.models for name in model.profiles}

    @property
    def needed(self) -> bool:
        """Something is to be brought or waited for."""
        return any(model.job for model in self.models)


@dataclass(frozen=True)
class SwitchPlan:
    """`current` is to point to the planned build, once that is proven."""

    name: str
    reason: str
    proven: bool
    """By the result that is there; else the verification comes first."""
    keep: str = ""
    """The build that `previous` points to from then on; "": none serves that could be gone back
    to."""


@dataclass(frozen=True)
class Served:
    """One profile, and what its service needs."""

    config: ServeConfig
    path: str
    """Of the file that tells the service."""
    public: bool
    """Other hosts may reach it."""
    action: Literal["start", "restart", "leave"] = "leave"
    reason: str = ""
    ready: bool = False
    """By its own word it serves now, and nothing is to be changed."""
    load_minutes: int = 30
    """How long it may take until it is ready."""
    backs_off: bool = True
    """systemd can wait longer and longer between its attempts to start it."""
    container: str = ""
    """podman's name of the container that it runs in; "": on the host itself."""

    @property
    def unit(self) -> str:
        return serve_unit(self.config.profile)


@dataclass(frozen=True)
class LibrariesPlan:
    """The Python packages of the server itself."""

    config: LibrariesConfig
    reason: str
    job: JobPlan | None = None
    """None: they are there."""


@dataclass(frozen=True)
class Former:
    """The container that was the last to be known to serve."""

    files: tuple[tuple[str, str], ...]
    """Where each of its files lies, and where a copy is kept until another one has answered."""
    kept: bool
    """The copies are there: since they were made no run has seen its successor answer."""
    image: str
    """"": there is none, or it is the planned one."""


@dataclass(frozen=True)
class ServePlan:
    """The services of a host."""

    services: tuple[Served, ...] = ()
    libraries: LibrariesPlan | None = None
    """None: nothing is served any more."""
    outdated: tuple[str, ...] = ()
    """Folders of packages that no service needs once these ones run."""
    files: FilesPlan = FilesPlan()
    """Configurations, keys and units; those of profiles that are not wanted go."""
    gone: tuple[str, ...] = ()
    """Profiles that are no longer wanted."""
    back: str = ""
    """The build or the image that served before the planned one: gone back to where a service does
    not answer. "": there is none, or the planned one is known to serve."""
    doubt: bool = False
    """`previous` is there, or what is kept of a container: since the last switch no run has seen
    all services answer."""
    former: Former | None = None
    """None: nothing is served from a container."""

    @property
    def needed(self) -> bool:
        ready = all(one.ready for one in self.services)
        return self.files.needed or not ready or self.doubt or bool(self.gone or self.outdated)

    @property
    def keep(self) -> bool:
        """The files of the container of before are to be copied before they are changed."""
        return self.former is not None and bool(self.former.image) and not self.former.kept

    @property
    def changed(self) -> tuple[Served, ...]:
        """Those that are started or restarted."""
        return tuple(one for one in self.services if one.action != "leave")


@dataclass(frozen=True)
class ContainerPlan:
    """The container that serves, in place of a build on the host."""

    image: str
    name: str
    """podman's, and that of its secret."""
    user: int
    group: int
    """Of the account: 0 until there is one."""
    devices: tuple[str, ...]
    """GPUs by the names of the CDI; none: for the CPU."""
    models: str
    """Folder of the model."""
    state: str
    """Folder that it writes to, on the host and in the container."""
    minutes: int
    """How long its verification may take."""
    nvidia_ctk: str
    """Path of the command that describes the GPUs; "": for the CPU."""


@dataclass(frozen=True)
class Plan:
    """What to do on one host, with the reason of each part.

    A part is None where an earlier one must be carried out first (the compiler's version is
    unknown until its package is installed, the driver's until the host has rebooted) or where a
    problem stops the host.
    """

    host: str
    backend: Backend
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    """Findings that do not stop the host."""
    hold: HoldPlan | None = None
    """Carried out with problems too: a host that is stopped is to be protected all the same."""
    reboot: RebootPlan | None = None
    packages: PackagesPlan = PackagesPlan()
    toolkit: ToolkitPlan | None = None
    build: BuildPlan | None = None
    verify: VerifyPlan | None = None
    switch: SwitchPlan | None = None
    """None: `current` is the planned build, or none is planned."""
    discard: tuple[str, ...] = ()
    """Builds of the same fingerprint that are not needed once `current` is the planned one."""
    files: FilesPlan | None = None
    """Of the group "settings": environment, verification settings, units."""
    wheelhouse: WheelhousePlan | None = None
    """None: nothing is taken from one."""
    container: ContainerPlan | None = None
    """None: what is served is built on the host."""
    models: ModelsPlan | None = None
    """None: no profile names one, and none is there."""
    pauses: tuple[str, ...] = ()
    """Profiles that are served now, and not while it is verified."""
    serve: ServePlan | None = None
    """None: nothing is served, and nothing is left of what was."""
