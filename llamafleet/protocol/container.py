"""What an image knows of itself, container.json: read by what starts in a container of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llamafleet.protocol.serve import ServeConfig
from llamafleet.protocol.verify import AbsolutePath, VerifyConfig

IMAGE = r"^[a-z0-9][a-z0-9.-]*(:[0-9]{1,5})?(/[a-z0-9][a-z0-9._-]*)+@sha256:[0-9a-f]{64}$"
"""A regular expression of an image's name: by its digest, as a tag may move."""


def verify_file(folder: str) -> str:
    """Of a service in a container: the settings of the verification, for the GPUs it was given."""
    return f"{folder}/verify.json"


@dataclass(frozen=True)
class ContainerConfig:
    """What is built in, and what is served where nothing else is asked for."""

    version: Literal[1]
    verify: VerifyConfig
    """Of no driver and no GPU: those that a container is given are only known when it starts."""
    serve: ServeConfig
    """Its model is the one of the verification, until another one is named."""
    models: AbsolutePath
    """Where a volume with models is expected."""
