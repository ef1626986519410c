"""One release of llama-cpp-python, as far as its sources tell it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from llamafleet.upstream import archive, c, cmake
from llamafleet.upstream.archive import LLAMA_CPP, ArchiveError

_HEADERS = (
    f"{LLAMA_CPP}include/llama.h",
    *(f"{LLAMA_CPP}ggml/include/{name}.h" for name in ("ggml", "ggml-cpu", "ggml-alloc")),
    f"{LLAMA_CPP}ggml/include/ggml-backend.h",
    # It has a structure whose size is counted.
    f"{LLAMA_CPP}ggml/src/ggml.c",
)
BINDINGS = "llama_cpp/llama_cpp.py"
_MAIN = ("CMakeLists.txt", f"{LLAMA_CPP}CMakeLists.txt", f"{LLAMA_CPP}ggml/CMakeLists.txt")
_DEFAULTS = r"^{} = (\[.*?\]$|\"[^\"]*\"$)"


@dataclass(frozen=True)
class Source:
    """What is compared of one release."""

    version: str
    options: dict[str, str]
    """CMake options of llama.cpp's own, with their defaults."""
    needs: dict[str, str]
    """What it needs to be built and to run, by what it is."""
    declared: c.Declared
    """By llama.cpp's headers."""
    functions: dict[str, str]
    """Bound by llama-cpp-python: arguments and result."""
    constants: dict[str, str]
    """Of its bindings."""
    structures: dict[str, dict[str, str]]
    """Of its bindings: fields in their order, with their types."""
    texts: frozenset[str]
    """What it can say, as `c.said` makes it."""


def read(file: Path) -> Source:
    """The release in a source archive. Raises ArchiveError, OSError."""
    return of(archive.read(file), str(file))


def of(files: Mapping[str, str], name: str) -> Source:
    """The same of the texts of its files. Raises ArchiveError."""
    version = re.search(r'^__version__ = "([^"]+)"', files.get("llama_cpp/__init__.py", ""), re.M)
    if version is None:
        raise ArchiveError(f"{name}: found no version in llama_cpp/__init__.py")
    try:
        bindings = ast.parse(files[BINDINGS])
    except SyntaxError as error:
        raise ArchiveError(f"{name}: {BINDINGS} is no Python ({error.msg})") from error
    declared: c.Declared = {}
    for path in _HEADERS:
        declared |= c.declared(files.get(path, ""))
    return Source(
        version=version[1],
        options=cmake.declared({p: text for p, text in files.items() if archive.is_cmake(p)}),
        needs=_needs(files),
        declared=declared,
        functions=dict(_functions(bindings)),
        constants=dict(_constants(bindings)),
        structures=dict(_structures(bindings)),
        texts=frozenset(_texts(files)),
    )


def _needs(files: Mapping[str, str]) -> dict[str, str]:
    project = files["pyproject.toml"]
    found = {
        "build requirements": _setting(project, "requires"),
        "dependencies": _setting(project, "dependencies"),
        "Python": _setting(project, "requires-python"),
        "scikit-build-core": _setting(project, "minimum-version"),
    }
    return found | {f"CMake, by {path}": cmake.minimum(files.get(path, "")) for path in _MAIN}


def _setting(project: str, key: str) -> str:
    """A value of pyproject.toml, as one line; Python 3.10 has no reader of TOML."""
    found = re.search(_DEFAULTS.format(re.escape(key)), project, re.MULTILINE | re.DOTALL)
    return " ".join(found[1].split()) if found else ""


def _functions(bindings: ast.Module) -> Iterator[tuple[str, str]]:
    """By the decorator that binds them: name, arguments, result."""
    for node in bindings.body:
        if not isinstance(node, ast.FunctionDef):
            continue
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call) and len(decorator.args) > 2:
                name, *types = decorator.args
                if isinstance(name, ast.Constant):
                    yield str(name.value), " -> ".join(map(ast.unparse, types))


def _constants(bindings: ast.Module) -> Iterator[tuple[str, str]]:
    for node in bindings.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, ast.unparse(node.value)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            yield node.target.id, ast.unparse(node.value)


def _structures(bindings: ast.Module) -> Iterator[tuple[str, dict[str, str]]]:
    for node in bindings.body:
        if not isinstance(node, ast.ClassDef):
            continue
        for line in node.body:
            if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "_fields_":
                yield node.name, dict(_fields(line.value))


def _fields(value: ast.expr) -> Iterator[tuple[str, str]]:
    for row in value.elts if isinstance(value, ast.List | ast.Tuple) else ():
        if isinstance(row, ast.Tuple) and isinstance(row.elts[0], ast.Constant):
            yield str(row.elts[0].value), ast.unparse(row.elts[1])


def _texts(files: Mapping[str, str]) -> Iterator[str]:
    """Of C, C++, CUDA and CMake files."""
    macros: dict[str, str] = {}
    for text in files.values():
        macros |= c.text_macros(text)
    for path, text in files.items():
        if not path.endswith((".py", ".toml")):
            yield from c.said(text, macros)
