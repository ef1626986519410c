"""What an inventory may say of a host: typed, validated before any host is touched."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pyinfra.api.arguments import all_argument_meta
from pyinfra.api.connectors import get_all_connectors

from llamafleet.layout import Scope
from llamafleet.onhost.toolkit.openpgp import fingerprints
from llamafleet.tables.toolkits import toolkits
from llamafleet.wheelhouse import collect as house

LLAMA_VERSION = "0.3.36"
LLAMA_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
"""sha256 of llama_cpp_python-0.3.36.tar.gz on PyPI (computed from the download, 2026-11-25)."""

Accelerator = Literal["cuda", "cpu", "auto"]
ToolkitMethod = Literal["auto", "present", "wheels", "apt", "dnf", "runfile", "distro"]
Reboot = Literal["never", "allow"]

OWN_PREFIX = "x_"
"""Keys of host data that begin so are the user's own and are not looked at."""

SHAPES = ("tiny", "160m", "1b", "7b", "8b", "13b")
TYPES = ("q4_0", "q8_0", "f16")

# Connectors also set these from a host's name; they are in no connector's data_meta.
CONNECTOR_KEYS = {"chroot_directory", "docker_image"}

# Values reach units, environment files and command lines, where blanks, quotes, $ and % mean more.
_PATH = r"/[A-Za-z0-9._+@:,=~/-]*"

_URL = r"^https?://[^\s/\"'$%\\]+(/[^\s\"'$%\\]*)?$"

_REFUSED_OPTIONS = {
    "LLAMA_CUBLAS": 'accelerator = "cuda" (CMake ends in FATAL_ERROR: it became GGML_CUDA)',
    "LLAMA_CUDA": 'accelerator = "cuda" (deprecated: it became GGML_CUDA)',
    "GGML_CUDA": "the setting accelerator, which decides it",
    "CMAKE_CUDA_ARCHITECTURES": "the setting compute_capabilities, which decides it",
    "CMAKE_CUDA_COMPILER": "the setting toolkit_root, which decides it",
    "CUDATOOLKIT_ROOT": "the setting toolkit_root, which decides it",
    "CMAKE_CUDA_COMPILER_FORCED": "the setting compiler_forced, which decides it",
    "CMAKE_CUDA_HOST_COMPILER": "the setting host_compiler, which decides it",
    "CMAKE_CXX_COMPILER": "the setting host_compiler, which decides it",
    "CMAKE_SHARED_LINKER_FLAGS": "leaving it out (it holds the toolkit's run-time search path)",
    "GGML_BACKEND_DL": "leaving it out (a backend that can't be loaded is a silent CPU fallback)",
}
"""Options that an inventory may not set, by upper-case name, and what to use in their place."""


class SettingsError(Exception):
    """Inventory data that can't be used; `lines` has one line for each error of each host."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def _listed(value: object) -> object:
    """A list, as inventories and JSON write it, or one bare value, as a tuple."""
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


def _toolkit(value: str) -> str:
    released = [row.version for row in reversed(toolkits())]
    if value not in released:
        raise ValueError(f"one of {', '.join(released)} (impossible version: never released)")
    return value


def _model(value: str) -> str:
    if re.fullmatch(
        rf"auto|{_PATH}\.gguf|synthetic:({'|'.join(SHAPES)})-({'|'.join(TYPES)})", value
    ):
        return value
    raise ValueError(
        "auto, the absolute path of a .gguf file on the host (no blanks, quotes, $ or %), or "
        f"synthetic:<shape>-<type> with a shape of {', '.join(SHAPES)} "
        f"and a type of {', '.join(TYPES)}"
    )


def _absolute(value: str) -> str:
    """A path on the controller, made independent of the working directory."""
    return str(Path(value).expanduser().resolve())


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
HostPath = Annotated[str, Field(pattern=f"^{_PATH}$")]

_HOST_PATH = "an absolute path on the host without blanks, quotes, $ or %"
_BOOL = "true or false"


def _whole(low: int, high: int, unit: str) -> Any:
    return Field(ge=low, le=high, description=f"a whole number of {unit} from {low} to {high}")


class Settings(BaseModel):
    """Settings of one host; every key is optional in the inventory.

    A field's description says what is allowed: it ends the line of each error. What several
    fields or the controller's files decide together is checked by `validate_fleet` alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    scope: Scope = Field(default="system", description="system or user")
    accelerator: Accelerator = Field(default="cuda", description="cuda, cpu or auto")
    compute_capabilities: Annotated[
        tuple[Capability, ...] | None, BeforeValidator(_listed), Field(min_length=1)
    ] = Field(default=None, description='a list of compute capabilities such as ["8.9"], or no key')
    """As ("8.9",); None: those of the GPUs found."""
    toolkit_version: ToolkitVersion | None = Field(
        default=None, description='major.minor such as "13.0"'
    )
    """major.minor, as "13.0"; None: the newest that driver, GPUs and compiler allow."""
    toolkit_method: ToolkitMethod = Field(
        default="auto", description="auto, present, wheels, apt, dnf, runfile or distro"
    )
    toolkit_url: Annotated[str, Field(pattern=_URL)] | None = Field(
        default=None, description="an http:// or https:// URL"
    )
    """Mirror of NVIDIA's downloads: what stands for developer.download.nvidia.com/compute/cuda."""
    toolkit_key: Annotated[str, Field(min_length=1), AfterValidator(_absolute)] | None = Field(
        default=None, description="a file on the controller with a public OpenPGP key"
    )
    """Key of a mirror that signs itself, in place of NVIDIA's pinned one."""
    toolkit_root: HostPath | None = Field(default=None, description=_HOST_PATH)
    """Use the toolkit below this path on the host and no other."""
    host_compiler: HostPath | None = Field(default=None, description=_HOST_PATH)
    """Path of the C++ compiler on the host; None: the newest fitting one."""
    allow_unsupported_compiler: bool = Field(default=False, description=_BOOL)
    compiler_forced: bool = Field(default=False, description=_BOOL)
    llama_version: Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+(\.post[0-9]+)?$")] = (
        Field(default=LLAMA_VERSION, description=f'a released version such as "{LLAMA_VERSION}"')
    )
    llama_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(
        default=LLAMA_SHA256, description="64 hex digits in lower case"
    )
    cmake_options: dict[str, str] = Field(
        default={}, description='names and texts such as {"LLAVA_BUILD": "ON"}'
    )
    """Extra -D options, as {"LLAVA_BUILD": "ON"}."""
    jobs: Annotated[int | None, _whole(1, 1024, "jobs")] = None
    """Parallel compile jobs; None: bounded by cores and memory."""
    python: HostPath | None = Field(default=None, description=_HOST_PATH)
    """Interpreter on the host; None: the newest supported one found."""
    install_packages: bool = Field(default=True, description=_BOOL)
    """May install missing distribution packages (a C++ compiler) in scope system."""
    hold_driver: bool = Field(default=False, description=_BOOL)
    """Hold all packages of the driver: its updates then come only when somebody asks for them."""
    reboot: Reboot = Field(default="never", description="never or allow")
    """allow: a host whose updated driver needs a reboot is rebooted, one host after the other."""
    model: Annotated[str, AfterValidator(_model)] = Field(
        default="auto", description="auto, the path of a .gguf file, or synthetic:<shape>-<type>"
    )
    """Path of a GGUF file on the host, synthetic:<shape>-<type>, or auto."""
    bench_prompt: Annotated[int, _whole(1, 65536, "tokens")] = 512
    bench_gen: Annotated[int, _whole(1, 65536, "tokens")] = 128
    bench_repetitions: Annotated[int, _whole(2, 100, "repetitions")] = 5
    """At least 2: one has no spread."""
    context: Annotated[int, _whole(256, 1048576, "tokens")] = 4096
    """Tokens of context that the verification loads the model with."""
    verify_schedule: (
        Annotated[str, Field(pattern=r"^[A-Za-z0-9*][A-Za-z0-9 .,:*/~+_-]*$")] | None
    ) = Field(
        default="weekly", description='a time as of systemd\'s OnCalendar such as "weekly", or None'
    )
    """When the timer verifies again; None: no timer."""
    wheelhouse: Annotated[str, Field(min_length=1), AfterValidator(_absolute)] | None = Field(
        default=None, description="a folder on the controller made by `llamafleet wheelhouse build`"
    )
    """Folder on the controller made by `llamafleet wheelhouse build`; then no registry is used."""
    index_url: (
        Annotated[str, Field(pattern=r"^(https?://[^\s/\"'$%\\]+|file:///)[^\s\"'$\\]*$")] | None
    ) = Field(default=None, description="an http://, https:// or file:/// URL")
    """Python package index to use in place of PyPI."""
    build_timeout_minutes: Annotated[int, _whole(1, 1440, "minutes")] = 180
    verify_timeout_minutes: Annotated[int, _whole(1, 1440, "minutes")] = 30


Finding = tuple[str, str, str]
"""(key, what was found, what is allowed)."""


def validate_fleet(data_by_host: Mapping[str, Mapping[str, object]]) -> dict[str, Settings]:
    """The settings of every host from pyinfra's flat host data.

    Raises SettingsError with all errors of all hosts, in the order of the hosts.
    """
    fleet: dict[str, Settings] = {}
    lines: list[str] = []
    # One wheelhouse serves many hosts; its files are read once for all of them.
    problems: dict[str, list[str]] = {}
    for host, data in data_by_host.items():
        settings, findings = _validate(data)
        findings += [*_option_findings(settings), *_contradictions(settings)]
        if settings.wheelhouse is not None:
            if settings.wheelhouse not in problems:
                problems[settings.wheelhouse] = house.verify(Path(settings.wheelhouse))
            findings += _wheelhouse_findings(
                settings, Path(settings.wheelhouse), problems[settings.wheelhouse]
            )
        lines += [f"host {host}: {k}: found {found}, allowed: {ok}" for k, found, ok in findings]
        fleet[host] = settings
    if lines:
        raise SettingsError(lines)
    return fleet


def pyinfra_keys() -> set[str]:
    """Keys of host data that pyinfra and its connectors read."""
    keys = {key for key in all_argument_meta if key.startswith("_")} | CONNECTOR_KEYS
    for connector in get_all_connectors().values():  # type: ignore[no-untyped-call]
        keys |= set(connector.data_meta) | set(getattr(connector.data_cls, "__annotations__", {}))
    return keys


def _validate(data: Mapping[str, object]) -> tuple[Settings, list[Finding]]:
    """Settings from the keys that are sound, and what is wrong with the others."""
    theirs = pyinfra_keys()
    known = theirs | set(Settings.model_fields)
    # Not the value: a mistyped ssh_password holds one.
    findings = [
        (key, "an unknown key", _nearest(key, known))
        for key in data
        if key not in known and not key.startswith(OWN_PREFIX)
    ]
    ours = {key: value for key, value in data.items() if key in Settings.model_fields}
    try:
        return Settings.model_validate(ours), findings
    except ValidationError as error:
        wrong = {str(detail["loc"][0]) for detail in error.errors()}
        findings += [_field_finding(dict(detail)) for detail in error.errors()]
    sound = {key: value for key, value in ours.items() if key not in wrong}
    return Settings.model_validate(sound), findings


def _nearest(key: str, known: set[str]) -> str:
    near = difflib.get_close_matches(key, sorted(known), n=1)
    hint = f" (nearest: {near[0]})" if near else ""
    return f"a known key{hint}, or one of your own that begins with {OWN_PREFIX}"


def _field_finding(error: dict[str, Any]) -> Finding:
    """One pydantic error in this project's words."""
    field, *inner = error["loc"]
    key = str(field) + "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in inner
    )
    found = repr(error["input"])
    if error["type"].endswith("_type"):
        found += f" ({type(error['input']).__name__})"
    if error["type"] == "value_error":
        return key, found, str(error["ctx"]["error"])
    return key, found, Settings.model_fields[field].description or error["msg"]


def _option_findings(settings: Settings) -> Iterator[Finding]:
    for name, value in settings.cmake_options.items():
        key = f"cmake_options.{name}"
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            yield key, repr(name), "the option's bare name such as LLAVA_BUILD, without -D"
        elif name.upper() in _REFUSED_OPTIONS:
            yield key, repr(value), _REFUSED_OPTIONS[name.upper()]
        elif value.strip().lower() == "native":
            yield key, repr(value), "a named architecture (native is silently wrong without a GPU)"
        elif not value.isprintable():
            yield key, repr(value), "printable text on one line"


def _contradictions(settings: Settings) -> Iterator[Finding]:
    if settings.accelerator == "cpu":
        for key in ("compute_capabilities", "toolkit_version", "toolkit_root"):
            value = getattr(settings, key)
            if value is not None:
                yield key, repr(value), 'no such key beside accelerator = "cpu"'
    if settings.toolkit_root is not None and settings.toolkit_method not in ("auto", "present"):
        yield (
            "toolkit_root",
            repr(settings.toolkit_root),
            f'toolkit_method = "present" beside it, not "{settings.toolkit_method}"',
        )
    if settings.toolkit_key is not None and settings.toolkit_url is None:
        yield "toolkit_key", repr(settings.toolkit_key), "toolkit_url beside it, the mirror's URL"
    if settings.toolkit_key is not None:
        yield from _key_findings(Path(settings.toolkit_key))
    if settings.scope == "user":
        for key, off in (("reboot", "never"), ("hold_driver", False)):
            if getattr(settings, key) != off:
                yield key, repr(getattr(settings, key)), 'scope = "system" beside it (root)'
    if settings.llama_version != LLAMA_VERSION and settings.llama_sha256 == LLAMA_SHA256:
        yield (
            "llama_sha256",
            f"the sha256 of {LLAMA_VERSION}",
            f"the sha256 of llama_cpp_python-{settings.llama_version}.tar.gz",
        )
    if settings.wheelhouse is not None and settings.index_url is not None:
        yield "index_url", repr(settings.index_url), "no index_url beside wheelhouse"


def _key_findings(file: Path) -> Iterator[Finding]:
    try:
        key = file.read_bytes()
        fingerprints(key)
    except (OSError, ValueError) as error:
        yield "toolkit_key", f"{file} ({error})", "a file with a public OpenPGP key"
        return
    # apt and rpm read it by the name of an armored one; config.json carries text.
    if not key.isascii():
        yield "toolkit_key", f"{file} (not armored)", "what gpg --armor --export writes"


def _wheelhouse_findings(
    settings: Settings, folder: Path, problems: list[str]
) -> Iterator[Finding]:
    for problem in problems:
        yield (
            "wheelhouse",
            problem,
            f"a complete wheelhouse; next: llamafleet wheelhouse build {folder}",
        )
    if problems:
        return
    llama = house.load(folder).llama
    if (llama.version, llama.source_sha256) != (settings.llama_version, settings.llama_sha256):
        yield (
            "wheelhouse",
            f"llama-cpp-python {llama.version} of source sha256 {llama.source_sha256}",
            f"{settings.llama_version} of {settings.llama_sha256}, as the settings say",
        )
