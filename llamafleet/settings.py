"""What an inventory may say of a host: the model of its settings."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from llamafleet.addresses import LONGEST_URL, URL, WEB_URL, judged
from llamafleet.fields import BOOL, GPUS, LONGEST_PATH, PATH, GpuNames, LocalPath, one_of, whole
from llamafleet.layout import Scope
from llamafleet.oncalendar import is_calendar
from llamafleet.protocol.container import IMAGE
from llamafleet.protocol.job import Method
from llamafleet.protocol.models import SHAPES, TYPES
from llamafleet.protocol.serve import NAME
from llamafleet.serving import Profile
from llamafleet.tables.cpu_baselines import Baseline
from llamafleet.tables.releases import as_released, outdated, release, releases
from llamafleet.tables.toolkits import toolkits

LLAMA_VERSION = "0.3.36"
"""What is built where the inventory names no version; tables/releases.yaml has its sha256."""

Accelerator = Literal["cuda", "cpu", "auto"]
ToolkitMethod = Literal["auto", "present", Method]
Reboot = Literal["never", "allow"]
CompilerCache = Literal["off", "ccache"]
Sharing = Literal["host", "wheel"]
Runtime = Literal["venv", "container"]
ModelOrigin = Literal["host", "controller"]

SECRETIVE = frozenset(
    {
        *("toolkit_url", "index_url", "proxy", "netrc", "cmake_options", "compiler_cache_url"),
        *("serve", "api_key_file"),
    }
)
"""Settings in whose place somebody may write a password: a value that is refused is not shown."""

REDIS_PORT = 6379
"""Redis' own, where an address names none."""
MOST_PROFILES = 32
"""Of one host."""
MOST_CAPABILITIES = 32
"""In one list; each makes a build longer, and there are not as many."""

UNQUOTABLE = '"\\$`\n'
"""What can't stand in a quoted value of a file that systemd and a shell read."""

# In lists of paths and in linker flags : and , separate.
_TOOL = r"/[A-Za-z0-9._+@=~/-]*"


def _listed(value: object) -> object:
    """A list, as inventories and JSON write it, or one bare value, as a tuple."""
    if value is None:
        raise ValueError(_CAPABILITIES)
    if isinstance(value, list):
        return tuple(value)
    return (value,) if isinstance(value, str | float) else value


def _versioned(value: object) -> object:
    """`pyinfra --data toolkit_version=13.0` arrives as a float."""
    return str(value) if isinstance(value, float) else value


def _capability(value: str) -> str:
    if not 5.0 <= float(value) <= 12.9:
        raise ValueError("a compute capability from 5.0 to 12.9")
    return value


def _once(values: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if values is not None and len(set(values)) < len(values):
        raise ValueError("each compute capability once")
    return values


def _redis(value: str) -> str:
    """Its password would be readable on the host and in logs: those are in the file netrc names."""
    found = re.fullmatch(
        r"redis://[A-Za-z0-9][A-Za-z0-9.-]{0,252}(?::([0-9]{1,5}))?(/[0-9]{1,5})?", value
    )
    if not found or not 0 < int(found[1] or REDIS_PORT) < 65536:
        raise ValueError(_REDIS_URL)
    return value


def _schedule(value: str) -> str:
    if not is_calendar(value):
        raise ValueError(_SCHEDULE)
    return value


def _toolkit(value: str) -> str:
    released = [row.version for row in reversed(toolkits())]
    if value not in released:
        raise ValueError(f"one of {', '.join(released)} (impossible version: never released)")
    return value


def _llama(value: str) -> str:
    named = as_released(value)
    if named != value:
        # As another text it would pass for a version that nobody knows.
        raise ValueError(f"{named}, as that release is named")
    if outdated(value):
        known = ", ".join(one.version for one in releases())
        raise ValueError(f"one of {known}, or a newer release")
    return value


def _pinned(data: dict[str, Any]) -> str:
    """The hash of a known release, by the fields before it."""
    known = release(data.get("llama_version", LLAMA_VERSION))
    return known.sha256 if known else ""


def _model(value: str) -> str:
    if re.fullmatch(
        rf"auto|{PATH}\.gguf|synthetic:({'|'.join(SHAPES)})-({'|'.join(TYPES)})", value
    ):
        return value
    raise ValueError(
        "auto, the absolute path of a .gguf file on the host (no blanks, quotes, $ or %), or "
        f"synthetic:<shape>-<type> with a shape of {', '.join(SHAPES)} "
        f"and a type of {', '.join(TYPES)}"
    )


Capability = Annotated[
    str,
    BeforeValidator(_versioned),
    Field(pattern=r"^[0-9]{1,2}\.[0-9]$"),
    AfterValidator(_capability),
]
ToolkitVersion = Annotated[
    str,
    BeforeValidator(_versioned),
    Field(pattern=r"^[0-9]{1,2}\.[0-9]{1,2}$"),
    AfterValidator(_toolkit),
]
HostPath = Annotated[str, Field(pattern=f"^{_TOOL}$", max_length=LONGEST_PATH)]
Url = Annotated[str, Field(pattern=URL, max_length=LONGEST_URL), AfterValidator(judged)]

_HOST_PATH = "an absolute path on the host without blanks, quotes, $, %, : and commas"
_CAPABILITIES = 'a list of compute capabilities such as ["8.9"], or no key'
_SCHEDULE = 'a time as of systemd\'s OnCalendar such as "weekly", or None'
_REDIS_URL = (
    "redis://HOST, redis://HOST:PORT or redis://HOST:PORT/DATABASE, without user and password: the "
    "setting netrc takes them"
)


class Settings(BaseModel):
    """Settings of one host; every key is optional in the inventory.

    A field's description says what is allowed: it ends the line of each error. What several
    fields or the controller's files decide together is checked by `validate_fleet` alone.
    """

    # Built where the first inventory is read: see tables/rows.py.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)

    scope: Scope = Field(default="system", description="system or user")
    accelerator: Accelerator = Field(default="cuda", description="cuda, cpu or auto")
    compute_capabilities: Annotated[
        tuple[Capability, ...] | None,
        BeforeValidator(_listed),
        Field(min_length=1, max_length=MOST_CAPABILITIES),
        AfterValidator(_once),
    ] = Field(default=None, description=_CAPABILITIES)
    """As ("8.9",); None: those of the GPUs found."""
    toolkit_version: ToolkitVersion | None = Field(
        default=None, description='major.minor such as "13.0"'
    )
    """major.minor, as "13.0"; None: the newest that driver, GPUs and compiler allow."""
    toolkit_method: ToolkitMethod = Field(
        default="auto", description=one_of(get_args(ToolkitMethod))
    )
    toolkit_url: Url | None = Field(default=None, description=WEB_URL)
    """Mirror of NVIDIA's downloads: what stands for developer.download.nvidia.com/compute/cuda."""
    toolkit_key: LocalPath | None = Field(
        default=None, description="a file on the controller with a public OpenPGP key"
    )
    """Key of a mirror that signs itself, in place of NVIDIA's pinned one."""
    toolkit_root: HostPath | None = Field(default=None, description=_HOST_PATH)
    """Use the toolkit below this path on the host and no other."""
    host_compiler: HostPath | None = Field(default=None, description=_HOST_PATH)
    """Path of the C++ compiler on the host; None: the newest fitting one."""
    allow_unsupported_compiler: bool = Field(default=False, description=BOOL)
    compiler_forced: bool = Field(default=False, description=BOOL)
    llama_version: Annotated[
        str,
        Field(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+(\.post[0-9]+)?$", max_length=32),
        AfterValidator(_llama),
    ] = Field(default=LLAMA_VERSION, description=f'a released version such as "{LLAMA_VERSION}"')
    llama_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(
        default_factory=_pinned, description="64 hex digits in lower case"
    )
    """Of its source archive: that of tables/releases.yaml, if no other is given. "": the version
    is not in it, and `inventory.looked_up` asks the index."""
    cmake_options: dict[str, str] = Field(
        default={}, description='names and texts such as {"LLAVA_BUILD": "ON"}'
    )
    """Extra -D options, as {"LLAVA_BUILD": "ON"}."""
    jobs: Annotated[int | None, whole(1, 1024, "jobs")] = None
    """Parallel compile jobs; None: bounded by cores and memory."""
    build_sharing: Sharing = Field(default="host", description=one_of(get_args(Sharing)))
    """host: each builds for itself; wheel: hosts of one fingerprint take the wheel of the first."""
    cpu_baseline: Baseline | None = Field(
        default=None, description=f"{one_of(get_args(Baseline))}, or None"
    )
    """Instruction sets that llama.cpp is built for; None: those of the host's own CPU."""
    python: HostPath | None = Field(default=None, description=_HOST_PATH)
    """Interpreter on the host; None: the newest supported one found."""
    install_packages: bool = Field(default=True, description=BOOL)
    """May install missing distribution packages (a C++ compiler) in scope system."""
    hold_driver: bool = Field(default=False, description=BOOL)
    """Hold all packages of the driver: its updates then come only when somebody asks for them."""
    rebuild: bool = Field(default=False, description=BOOL)
    """Build anew, whatever is there; the build in use stays until the new one is proven."""
    reboot: Reboot = Field(default="never", description="never or allow")
    """allow: a host whose updated driver needs a reboot is rebooted, one host after the other."""
    model: Annotated[str, AfterValidator(_model)] = Field(
        default="auto", description="auto, the path of a .gguf file, or synthetic:<shape>-<type>"
    )
    """Path of a GGUF file on the host, synthetic:<shape>-<type>, or auto."""
    bench_prompt: Annotated[int, whole(1, 65536, "tokens")] = 512
    bench_gen: Annotated[int, whole(1, 65536, "tokens")] = 128
    bench_repetitions: Annotated[int, whole(2, 100, "repetitions")] = 5
    """At least 2: one has no spread."""
    context: Annotated[int, whole(256, 1048576, "tokens")] = 4096
    """Tokens of context that the verification loads the model with."""
    gpus: GpuNames = Field(default=None, description=GPUS)
    """The GPUs to prove and to use, each by UUID, bus id or index; None: all there are."""
    busy_minutes: Annotated[int, whole(0, 120, "minutes")] = 5
    """How long a benchmark is tried again until its GPU is free."""
    allow_busy: bool = Field(default=False, description=BOOL)
    """BUSY ends a run as well as PASS."""
    verify_schedule: Annotated[str, AfterValidator(_schedule)] | None = Field(
        default="weekly", description=_SCHEDULE
    )
    """When the timer verifies again; None: no timer."""
    serve: dict[Annotated[str, Field(pattern=f"^{NAME}$")], Profile] = Field(
        default={},
        max_length=MOST_PROFILES,
        description='profiles by name such as {"chat": {"model": "/srv/chat.gguf"}}; a name has '
        "small letters, digits and -",
    )
    """What is served once the build is proven: a service for each profile."""
    runtime: Runtime = Field(default="venv", description=one_of(get_args(Runtime)))
    """venv: what is served is built on the host; container: it comes in an image."""
    image: Annotated[str, Field(pattern=IMAGE, max_length=LONGEST_URL)] | None = Field(
        default=None,
        description='a name with its digest such as "registry.lab/llama-rtx4090@sha256:9f86..."',
    )
    """What a container is made of: an image of Dockerfile.rtx4090. A tag could become another."""
    verify_pauses_serving: bool = Field(default=False, description=BOOL)
    """Where something is served, the timer verifies too: the services are stopped meanwhile."""
    metrics_folder: HostPath | None = Field(default=None, description=_HOST_PATH)
    """Folder on the host that Prometheus' node_exporter reads: the verdict and its figures are
    written there."""
    wheelhouse: LocalPath | None = Field(
        default=None, description="a folder on the controller made by `llamafleet wheelhouse build`"
    )
    """Folder on the controller made by `llamafleet wheelhouse build`; then no registry is used."""
    index_url: (
        Annotated[
            str,
            Field(pattern="^(https?://|file:///)[!-~]+$", max_length=LONGEST_URL),
            AfterValidator(judged),
        ]
        | None
    ) = Field(default=None, description="an http://, https:// or file:/// URL")
    """Python package index to use in place of PyPI."""
    proxy: Url | None = Field(default=None, description=WEB_URL)
    """Proxy for all downloads of the host's jobs; None: the one that the host itself names."""
    netrc: LocalPath | None = Field(
        default=None, description="a file on the controller, as of netrc(5), that only you can read"
    )
    """Users and passwords of the index and of the mirror, by the names of their machines."""
    compiler_cache: CompilerCache = Field(
        default="off", description=one_of(get_args(CompilerCache))
    )
    """Of what was compiled before; off: a first build gains nothing by it, and it is one more
    program in the build."""
    compiler_cache_gb: Annotated[int, whole(1, 1000, "GB")] = 5
    """How large it may become on a host."""
    compiler_cache_url: (
        Annotated[str, Field(max_length=LONGEST_URL), AfterValidator(_redis)] | None
    ) = Field(default=None, description=_REDIS_URL)
    """A Redis server that all hosts share beside their own."""
    model_source: ModelOrigin = Field(default="host", description=one_of(get_args(ModelOrigin)))
    """Who fetches a served model that has a URL: host: each for itself; controller: this machine,
    once for all, and each host gets it from here."""
    model_downloads: Annotated[int, whole(1, 1000, "hosts")] = 4
    """How many hosts get a served model at a time."""
    models_kept: Annotated[int, whole(0, 100, "models")] = 1
    """How many models stay on a host that no profile names any more, while there is room."""
    model_timeout_minutes: Annotated[int, whole(1, 10080, "minutes")] = 720
    build_timeout_minutes: Annotated[int, whole(1, 1440, "minutes")] = 180
    verify_timeout_minutes: Annotated[int, whole(1, 1440, "minutes")] = 30

    @property
    def schedule(self) -> str | None:
        """When a timer verifies: never where that would interrupt what is served, unasked."""
        quiet = self.serve and not self.verify_pauses_serving
        return None if quiet else self.verify_schedule

    @property
    def verify_minutes(self) -> int:
        """How long a verification may take: its own time, and what it may wait for free GPUs."""
        return self.verify_timeout_minutes + self.busy_minutes
