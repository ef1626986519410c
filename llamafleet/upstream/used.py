"""What this project uses of llama-cpp-python, as its own code names it: nothing is listed twice."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from llamafleet import onhost
from llamafleet.onhost.verify import evidence, llama_log
from llamafleet.plans import build
from llamafleet.protocol.options import OWN
from llamafleet.tables.failures import failures

_NAME = re.compile(r"\b(?:ggml|llama|GGML|LLAMA)_\w+")


@dataclass(frozen=True)
class Used:
    """What a release must have as it was."""

    names: frozenset[str]
    """Of functions, structures, enumerations, constants; and words that are none of these."""
    attributes: frozenset[str]
    """Among them those of llama.cpp's parameters."""
    options: frozenset[str]
    """CMake options that a plan sets."""


@lru_cache
def used() -> Used:
    """Read from the code that runs on a host, where it says the name in code or in its texts."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(_folder().rglob("*.py"))]
    nodes = [node for text in texts for node in ast.walk(ast.parse(text))]
    return Used(
        names=frozenset(name for text in texts for name in _NAME.findall(text)),
        attributes=frozenset(node.attr for node in nodes if isinstance(node, ast.Attribute)),
        options=frozenset(
            name for name in (*build.CPU_OPTIONS, *build.MAY_LACK) if OWN.fullmatch(name)
        ),
    )


def _folder() -> Path:
    return Path(str(onhost.__file__)).parent / "verify"


def patterns() -> dict[str, re.Pattern[str]]:
    """What is looked for in the words of a build or a run, by its name."""
    found = {
        f"llama_log.{name.strip('_').lower()}": value
        for name, value in vars(llama_log).items()
        if isinstance(value, re.Pattern)
    }
    found["evidence.cuda_error"] = re.compile(re.escape(evidence.CUDA_ERROR))
    for row in failures():
        found[f"failures.yaml: {row.id}"] = re.compile(row.pattern, re.MULTILINE)
    return found


def recognised(texts: Iterable[str]) -> dict[str, dict[tuple[str, ...], str]]:
    """Of each pattern the different things that it finds in these texts, each with one of them."""
    found: dict[str, dict[tuple[str, ...], str]] = {}
    rows = list(patterns().items())
    for text in sorted(texts):
        for name, pattern in rows:
            for groups in _groups(pattern, text):
                found.setdefault(name, {}).setdefault(groups, text)
    return found


def _groups(pattern: re.Pattern[str], text: str) -> Iterator[tuple[str, ...]]:
    for match in pattern.finditer(text):
        # Which of the alternatives it was; not the numbers, nor a text that is quoted in full.
        yield tuple(one for one in match.groups() if one and re.fullmatch(r"[A-Za-z_]+", one))
