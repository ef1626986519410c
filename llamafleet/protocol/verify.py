"""The settings of a verification, read from verify.json and checked all at once."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamafleet.protocol import models

_MISSING = object()


class ConfigError(Exception):
    """One line per error: key, what was found, what is expected."""

    def __init__(self, path: Path, errors: list[str]) -> None:
        super().__init__("\n".join(f"{path}: {error}" for error in errors))
        self.errors = errors


@dataclass(frozen=True)
class Config:
    """What to verify, and where."""

    host: str
    inputs: dict[str, Any]
    """What the plan knew of everything that the verdict depends on."""
    fingerprint: str
    backend: str
    """cuda or cpu."""
    toolkit: str | None
    """Version of the CUDA Toolkit of the build, as "13.0"; None for the CPU."""
    prefix: Path
    """The build's venv."""
    stamp: Path
    job: Path
    """Folder of progress.json and the workers' logs."""
    results: Path
    models: Path
    model: str
    """synthetic:<shape>-<type>, or an absolute path."""
    compute_capabilities: tuple[str, ...]
    prompt: int
    gen: int
    repetitions: int
    context: int
    allow_cpu_only: bool


def load(path: Path) -> Config:
    """Read and check a configuration. Raises ConfigError with every error there is."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(path, [f"found no readable JSON ({error}); deploy writes it"]) from error
    if not isinstance(data, dict):
        raise ConfigError(path, [f"found {type(data).__name__}, expected an object"])
    return parse(path, data)


def parse(path: Path, data: Mapping[str, Any]) -> Config:
    """Check the values of `data`; `path` is for messages only."""
    errors: list[str] = []

    def get(source: Mapping[str, Any], key: str, kind: type, expected: str, name: str = "") -> Any:
        value = source.get(key, _MISSING)
        # bool is an int in Python; here it is none.
        if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            return value
        found = "nothing" if value is _MISSING else json.dumps(value)
        errors.append(f"{name or key}: found {found}, expected {expected}")
        return kind()

    def positive(source: Mapping[str, Any], key: str, name: str = "") -> int:
        value: int = get(source, key, int, "a whole number above 0", name)
        if value <= 0 and isinstance(source.get(key), int):
            errors.append(f"{name or key}: found {value}, expected a whole number above 0")
        return value

    def folder(key: str) -> Path:
        value: str = get(data, key, str, "an absolute path")
        if value and not value.startswith("/"):
            errors.append(f"{key}: found {json.dumps(value)}, expected an absolute path")
        return Path(value)

    if data.get("version") != 1:
        errors.append(f"version: found {json.dumps(data.get('version'))}, expected 1")
    bench = get(data, "bench", dict, "an object with prompt, gen, repetitions")
    capabilities = get(data, "compute_capabilities", list, 'a list as ["8.9"]')
    for text in capabilities:
        major, _, minor = str(text).partition(".")
        if not (major.isdigit() and minor.isdigit()):
            errors.append(f'compute_capabilities: found {json.dumps(text)}, expected one as "8.9"')
    toolkit = data.get("toolkit", _MISSING)
    version = isinstance(toolkit, str) and re.fullmatch(r"\d+\.\d+", toolkit)
    if toolkit is not None and not version:
        found = "nothing" if toolkit is _MISSING else json.dumps(toolkit)
        errors.append(f'toolkit: found {found}, expected a version as "13.0", or null')
    config = Config(
        host=get(data, "host", str, "a name"),
        inputs=get(data, "inputs", dict, "an object"),
        fingerprint=get(data, "fingerprint", str, "the build's fingerprint"),
        backend=get(data, "backend", str, "cuda or cpu"),
        toolkit=toolkit,
        prefix=folder("prefix"),
        stamp=folder("stamp"),
        job=folder("job"),
        results=folder("results"),
        models=folder("models"),
        model=get(data, "model", str, "synthetic:<shape>-<type> or an absolute path"),
        compute_capabilities=tuple(map(str, capabilities)),
        prompt=positive(bench, "prompt", "bench.prompt"),
        gen=positive(bench, "gen", "bench.gen"),
        repetitions=positive(bench, "repetitions", "bench.repetitions"),
        context=positive(data, "context"),
        allow_cpu_only=get(data, "allow_cpu_only", bool, "true or false"),
    )
    if config.backend and config.backend not in {"cuda", "cpu"}:
        errors.append(f"backend: found {json.dumps(config.backend)}, expected cuda or cpu")
    known = config.model.startswith("/") or models.parse(config.model)
    if config.model and not known:
        shapes, types = "|".join(models.SHAPES), "|".join(models.TYPES)
        errors.append(
            f"model: found {json.dumps(config.model)}, expected an absolute path or "
            f"synthetic:({shapes})-({types})"
        )
    if errors:
        raise ConfigError(path, errors)
    return config
