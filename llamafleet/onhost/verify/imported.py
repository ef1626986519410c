"""Which llama_cpp a worker imports, what put it there, and which variables steer it.

The worker looks before it imports: an import that fails or kills it has told its place by then.
"""

from __future__ import annotations

import importlib.util
import os
import site
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = "llama_cpp"
PYTHON_PATH, LIBRARY_PATH = "PYTHONPATH", "LLAMA_CPP_LIB_PATH"
UNIFIED_MEMORY = "GGML_CUDA_ENABLE_UNIFIED_MEMORY"
"""Set to whatever, memory that does not fit on the GPU is the host's (ggml-cuda.cu)."""
STEERING = ("GGML_", "LLAMA_", "CUDA_", "PYTHON")
"""How the names of variables begin that llama.cpp, CUDA or the interpreter obeys."""
HOOKS = ("sitecustomize", "usercustomize")
"""Modules that Python imports before anything else."""
LONGEST = 200
"""Characters of a variable's value that are told."""


@dataclass(frozen=True)
class Imported:
    """What a worker says of itself before it imports llama_cpp. "": not found, or not known."""

    file: str = ""
    """Of the package, links resolved."""
    entry: str = ""
    """The entry of sys.path that it is found by."""
    by: str = ""
    """What put that entry there: PYTHONPATH, or a file."""
    variables: dict[str, str] = field(default_factory=dict)


def look() -> Imported:
    """Ask this very interpreter."""
    file = _file()
    entry = next((one for one in sys.path if one and _below(file, one)), "") if file else ""
    return Imported(
        file=_text(os.path.realpath(file)) if file else "",
        entry=_text(entry),
        by=_text(_put_by(entry)),
        variables={
            _text(name): _text(value)[:LONGEST]
            for name, value in os.environ.items()
            if name.startswith(STEERING)
        },
    )


def _text(name: str) -> str:
    """Of a name in the file system, which may be no text: what can be written anywhere."""
    return os.fsencode(name).decode("utf-8", errors="replace")


def _file() -> str:
    """The package's own file, or its folder where it has none; "": there is none."""
    try:
        spec = importlib.util.find_spec(PACKAGE)
    except Exception:  # One that something imported already may have no spec.
        return str(getattr(sys.modules.get(PACKAGE), "__file__", None) or "")
    if spec is None:
        return ""
    return spec.origin or next(iter(spec.submodule_search_locations or ()), "")


def _below(file: str, folder: str) -> bool:
    return Path(file).is_relative_to(folder) or Path(os.path.realpath(file)).is_relative_to(
        os.path.realpath(folder)
    )


def _put_by(entry: str) -> str:
    """Who put an entry into sys.path; "": the interpreter itself, as far as can be told."""
    if not entry:
        return ""
    if entry in os.environ.get(PYTHON_PATH, "").split(os.pathsep):
        return PYTHON_PATH
    packages = site.getsitepackages()
    if entry in packages:
        return "" if _below(entry, sys.prefix) else f"{sys.prefix}/pyvenv.cfg"
    files = [file for folder in packages for file in sorted(Path(folder).glob("*.pth"))]
    named = [file for file in files if _names(file, entry)]
    hooks = [module.__file__ for name in HOOKS if (module := sys.modules.get(name))]
    return str(next(iter([*named, *filter(None, hooks)]), ""))


def _names(file: Path, entry: str) -> bool:
    """A line of a .pth file is a folder, or code that mentions it."""
    folder = os.path.realpath(entry)
    return any(
        entry in line or os.path.realpath(file.parent / line) == folder for line in _lines(file)
    )


def _lines(file: Path) -> Iterator[str]:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    yield from (line.strip() for line in text.splitlines() if line.strip() and "\0" not in line)


# -- for the parent --------------------------------------------------------------------------------


def own_folder(prefix: Path, libraries: Iterable[str]) -> Path:
    """Where the build's package lies; `libraries`: those that it made, relative to `prefix`."""
    inside = f"/{PACKAGE}/"
    folders = sorted({path.partition(inside)[0] + inside for path in libraries if inside in path})
    return (prefix / "".join(folders[:1])).resolve()


def is_foreign(imported: Imported, folder: Path) -> bool:
    """Another package takes the place of the build's, in `folder`; not where nothing is known."""
    return bool(imported.file) and not Path(imported.file).is_relative_to(folder)
