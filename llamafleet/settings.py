"""What an inventory may say of a host: typed, validated before any host is touched."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from llamafleet.layout import Scope

LLAMA_VERSION = "0.3.36"
LLAMA_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
"""sha256 of llama_cpp_python-0.3.36.tar.gz on PyPI (computed from the download, 2026-11-25)."""

Accelerator = Literal["cuda", "cpu", "auto"]
ToolkitMethod = Literal["auto", "present", "wheels", "apt", "dnf", "runfile", "distro"]


class Settings(BaseModel):
    """Settings of one host; every key is optional in the inventory."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    scope: Scope = "system"
    accelerator: Accelerator = "cuda"
    compute_capabilities: tuple[str, ...] | None = None
    """As ("8.9",); None: those of the GPUs found."""
    toolkit_version: str | None = None
    """major.minor, as "13.0"; None: the newest that driver, GPUs and compiler allow."""
    toolkit_method: ToolkitMethod = "auto"
    toolkit_root: str | None = None
    """Use the toolkit below this path on the host and no other."""
    host_compiler: str | None = None
    """Path of the C++ compiler on the host; None: the newest fitting one."""
    allow_unsupported_compiler: bool = False
    compiler_forced: bool = False
    llama_version: str = LLAMA_VERSION
    llama_sha256: str = LLAMA_SHA256
    cmake_options: dict[str, str] = {}
    """Extra -D options, as {"LLAVA_BUILD": "on"}."""
    jobs: int | None = None
    """Parallel compile jobs; None: bounded by cores and memory."""
    python: str | None = None
    """Interpreter on the host; None: the newest supported one found."""
    install_packages: bool = True
    """May install missing distribution packages (a C++ compiler) in scope system."""
    model: str = "auto"
    """Path of a GGUF file on the host, synthetic:<shape>-<type>, or auto."""
    bench_prompt: int = 512
    bench_gen: int = 128
    bench_repetitions: int = 5
    context: int = 4096
    """Tokens of context that the verification loads the model with."""
    wheelhouse: str | None = None
    """Folder on the controller made by `llamafleet wheelhouse build`; then no registry is used."""
    index_url: str | None = None
    """Python package index to use in place of PyPI."""
    build_timeout_minutes: int = 180
    verify_timeout_minutes: int = 30
