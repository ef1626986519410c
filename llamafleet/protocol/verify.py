"""The settings of a verification, verify.json: what to verify, and where."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from llamafleet.protocol import models
from llamafleet.protocol.decode import DecodeError, Rule, decode

LATEST = "latest.json"
"""The last verdict: gone while a verification runs."""
STALE = "stale.json"
"""Why there is no verdict."""
PROM = "llamafleet.prom"
"""The verdict and its figures as a text file for Prometheus' node_exporter."""
RECORDED = "metrics "
"""Begins a line of the record of what llamafleet made: where such a file lies that it wrote outside
its own folders."""
INSTANCE = "MIG-"
"""Begins the UUID of an instance of a divided GPU."""
UNIT_S_OWN = ("/tmp", "/var/tmp")
"""Folders that the verification's unit has for itself (PrivateTmp=): a model there is not seen."""


Positive = Annotated[int, Rule("a whole number above 0", lambda number: number > 0)]
AbsolutePath = Annotated[
    str, Rule("an absolute path", lambda path: path.startswith("/") and path.isprintable())
]
Capability = Annotated[str, Rule('one as "8.9"', lambda text: re.fullmatch(r"\d+\.\d+", text))]
ToolkitVersion = Annotated[
    str, Rule('a version as "13.0"', lambda text: re.fullmatch(r"\d+\.\d+", text))
]
DriverVersion = Annotated[
    str,
    Rule('a version as "580.95.05"', lambda text: re.fullmatch(r"\d+\.\d+(\.\d+)?", text)),
]
Model = Annotated[
    str,
    Rule(
        "an absolute path or "
        f"{models.PREFIX}({'|'.join(models.SHAPES)})-({'|'.join(models.TYPES)})",
        lambda name: name.startswith("/") or models.parse(name),
    ),
]


@dataclass(frozen=True)
class BenchSettings:
    """Sizes of the benchmark's tests, in tokens, and how often each is repeated."""

    prompt: Positive
    gen: Positive
    repetitions: Positive


@dataclass(frozen=True)
class VerifyInputs:
    """Everything that a verdict and a benchmark depend on; the verification's key is made of it."""

    fingerprint: str
    """Of the build."""
    driver: DriverVersion | None
    """None: for the CPU, or not known."""
    gpus: tuple[str, ...]
    """Name and UUID of each."""
    model: Model
    bench: BenchSettings
    context: Positive
    """Tokens of context that must fit beside the model."""

    @property
    def uuids(self) -> tuple[str, ...]:
        """Of the GPUs, in their order."""
        return tuple(name.rpartition(" ")[2] for name in self.gpus)


@dataclass(frozen=True)
class VerifyConfig:
    """What to verify, and where."""

    version: Literal[1]
    host: str
    inputs: VerifyInputs
    """What the plan knew; the verification judges what is there now."""
    backend: Literal["cuda", "cpu"]
    toolkit: ToolkitVersion | None
    """Version of the CUDA Toolkit of the build; None for the CPU."""
    prefix: AbsolutePath
    """The build's venv."""
    stamp: AbsolutePath
    """Of the build: a file with its stamp and its product."""
    job: AbsolutePath
    """Folder of progress.json and the workers' logs."""
    results: AbsolutePath
    models: AbsolutePath
    """Folder of synthetic models."""
    compute_capabilities: tuple[Capability, ...]
    allow_cpu_only: bool
    gpus: tuple[str, ...] = ()
    """UUIDs of the GPUs, or of their MIG instances, that the settings choose; empty: all."""
    busy_minutes: Annotated[int, Rule("a whole number", lambda number: number >= 0)] = 5
    """How long a benchmark is tried again until its GPU is free."""
    allow_busy: bool = False
    """A BUSY ends as well as a PASS."""
    timer: bool = True
    """A timer verifies again; none does where something is served, unless that is asked for."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables that llama.cpp gets beside a few fixed ones; none of the caller's."""
    as_account: tuple[str, ...] = ()
    """Command by which root takes the rights of the account that verifies; empty: there is no such
    account, whoever deployed verifies."""

    @property
    def latest(self) -> Path:
        return Path(self.results, LATEST)

    @property
    def stale(self) -> Path:
        return Path(self.results, STALE)

    @property
    def prom(self) -> Path:
        return Path(self.results, PROM)


class ConfigError(Exception):
    """One line per error: key, what was found, what is expected."""

    def __init__(self, path: Path, errors: list[str]) -> None:
        super().__init__("\n".join(f"{path}: {error}" for error in errors))
        self.errors = errors


def load(path: Path) -> VerifyConfig:
    """Read and check a configuration. Raises ConfigError with every error there is."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(path, [f"found no readable JSON ({error}); deploy writes it"]) from error
    return parse(path, data)


def parse(path: Path, data: object) -> VerifyConfig:
    """Check the values of `data`; `path` is for messages only. Raises ConfigError."""
    try:
        return decode(VerifyConfig, data)
    except DecodeError as error:
        raise ConfigError(path, error.errors) from error
