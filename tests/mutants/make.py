"""A copy of the project in which every function of a room carries its mutants."""

from __future__ import annotations

import difflib
import shutil
from dataclasses import dataclass
from pathlib import Path

from mutmut.mutation.file_mutation import MutatedFile, mutate_file_contents
from mutmut.utils.format_utils import get_mutant_name

ROOT = Path(__file__).parents[2]
COPIES = ROOT / "mutants"
COPIED = ("llamafleet", "operations", "templates", "tests", "deploy.py", "pyproject.toml")


@dataclass(frozen=True)
class Mutant:
    """One change of one function."""

    name: str
    """As mutmut's trampolines know it."""
    change: str
    """The lines that differ, with - and +."""

    @property
    def text_alone(self) -> bool:
        """It changes the letters of a text, or puts XX around it, and nothing else."""
        lines = self.change.splitlines()
        old = "".join(line[1:] for line in lines if line.startswith("-"))
        new = "".join(line[1:] for line in lines if line.startswith("+"))
        return old.lower() == new.lower().replace("xx", "")


def copy_project(copy: Path) -> None:
    """A fresh copy, without what earlier runs left."""
    shutil.rmtree(copy, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=ignored)
        else:
            shutil.copy(source, copy / name)


def mutate(copy: Path, folder: str) -> list[Mutant]:
    """Put the mutants into the copies of a folder's modules."""
    made: list[Mutant] = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        module = path.relative_to(ROOT)
        mutated = mutate_file_contents(str(module), path.read_text(encoding="utf-8"))
        (copy / module).write_text(mutated.code, encoding="utf-8")
        made += [
            Mutant(get_mutant_name(module, name), _change(mutated, name))
            for name in mutated.mutant_names
        ]
    return made


def _change(mutated: MutatedFile, name: str) -> str:
    lines = mutated.code.splitlines()

    def body(function: str) -> list[str]:
        """Without its own name, in which all mutants differ."""
        span = mutated.line_span_by_function_name[function]
        return [line.replace(function, "") for line in lines[span.start - 1 : span.end]]

    original = name.rpartition("_")[0] + "_orig"
    differing = difflib.unified_diff(body(original), body(name), n=0, lineterm="")
    return "\n".join(line for line in differing if not line.startswith(("---", "+++", "@@")))
