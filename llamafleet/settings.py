"""What an inventory may say of a host: the model of its settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from llamafleet.layout import Scope
from llamafleet.protocol.job import Method
from llamafleet.protocol.models import SHAPES, TYPES
from llamafleet.tables.toolkits import toolkits

LLAMA_VERSION = "0.3.36"
LLAMA_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
"""sha256 of llama_cpp_python-0.3.36.tar.gz on PyPI (computed from the download, 2026-11-25)."""

Accelerator = Literal["cuda", "cpu", "auto"]
ToolkitMethod = Literal["auto", "present", Method]
Reboot = Literal["never", "allow"]

# Values reach units, environment files and command lines, where blanks, quotes, $ and % mean more.
_PATH = r"/[A-Za-z0-9._+@:,=~/-]*"

_URL = r"^https?://[^\s/\"'$%\\]+(/[^\s\"'$%\\]*)?$"


def _one_of(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


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
    try:
        return str(Path(value).expanduser().resolve())
    except (RuntimeError, OSError) as error:
        raise ValueError(f"a path that can be followed ({error})") from error


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
        default="auto", description=_one_of(get_args(ToolkitMethod))
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
    rebuild: bool = Field(default=False, description=_BOOL)
    """Build anew, whatever is there; the build in use stays until the new one is proven."""
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
    proxy: Annotated[str, Field(pattern=_URL)] | None = Field(
        default=None, description="an http:// or https:// URL"
    )
    """Proxy for all downloads of the host's jobs; None: the one that the host itself names."""
    netrc: Annotated[str, Field(min_length=1), AfterValidator(_absolute)] | None = Field(
        default=None, description="a file on the controller, mode 0600, in the form of netrc(5)"
    )
    """Credentials of indexes and mirrors; URLs hold none."""
    build_timeout_minutes: Annotated[int, _whole(1, 1440, "minutes")] = 180
    verify_timeout_minutes: Annotated[int, _whole(1, 1440, "minutes")] = 30
