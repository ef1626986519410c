"""What an interpreter tells of its own environment, and of the llama_cpp that it would import."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

PACKAGE = "llama-cpp-python"
MODULE = "llama_cpp"
CUDA_LIBRARY = "libggml-cuda"
"""How the name of the CUDA backend's library begins."""

By = Literal["environment", "user site", "PYTHONPATH", "current folder", "other"]
"""What puts a copy on the interpreter's path; other: a .pth file, or a hook."""


@dataclass(frozen=True)
class Distribution:
    """One installed distribution."""

    name: str
    """Normalised, as typing-extensions."""
    version: str
    place: str
    """Folder that holds it."""
    sha256: str
    """Of its RECORD, or else of its METADATA: tells whether anything of it was installed anew."""


@dataclass(frozen=True)
class Copy:
    """One llama_cpp, in the order in which the interpreter looks for it."""

    folder: str
    by: By
    version: str = ""
    """Of the distribution beside it; "": none."""
    libraries: dict[str, int] = field(default_factory=dict)
    """Bytes of each library by its path below `folder`."""
    tag: str = ""
    """Of the wheel that it came in, as py3-none-linux_x86_64."""
    generator: str = ""
    installer: str = ""
    """Who says that it installed it: pip, uv, conda."""
    missing: tuple[str, ...] = ()
    """Files of its RECORD that are not there, as told from its folder: at most 20."""
    requires: tuple[str, ...] = ()
    """Names of the distributions that it needs, normalised, by its own metadata; and of those that
    they need, where they are there."""

    @property
    def cuda(self) -> bool:
        """It has the CUDA backend."""
        return any(CUDA_LIBRARY in name for name in self.libraries)


@dataclass(frozen=True)
class Environment:
    """An interpreter's environment by itself: without PYTHONPATH and the current folder."""

    executable: str
    version: str
    prefix: str
    base_prefix: str
    base_executable: str
    site: str
    """Folder that a package with libraries is installed into."""
    user_site: str
    """The user's own such folder; "": this interpreter does not look there."""
    owner: int
    """uid of `prefix`."""
    externally_managed: str
    """File that says so (PEP 668); "": there is none that counts here."""
    conda: bool
    conda_package: str
    """File by which conda says that it installed llama-cpp-python; "": there is none."""
    uv: str
    """Version of the uv that made it; "": another program did."""
    editable: str
    """Folder of llama-cpp-python's sources that are imported from where they lie; "": none."""
    pip: str
    """Version; "": it has none."""
    distributions: tuple[Distribution, ...]

    @property
    def virtual(self) -> bool:
        return self.prefix != self.base_prefix


@dataclass(frozen=True)
class Look:
    """What `import llama_cpp` would find, started as its user starts it."""

    copies: tuple[Copy, ...]
    found: str
    """Folder of the one that is imported; "": none."""
    folder: str
    """That it was started in."""


@dataclass(frozen=True)
class Trial:
    """What came of `import llama_cpp`."""

    imported: bool
    version: str
    error: str
    """The last line of what it failed with."""
    offload: bool
    """llama.cpp's own answer: there is a GPU that it can use."""
    system_info: str
    libraries: tuple[str, ...]
    """Paths of llama.cpp's and CUDA's libraries in the process."""
