"""What a host's settings name on the controller, as it was read there: an input of its plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llamafleet.wheelhouse.manifest import Manifest, Wheelhouse


@dataclass(frozen=True)
class LocalFile:
    """A part of a model on the controller."""

    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True)
class Supplies:
    """The contents of those files; None: the settings name none."""

    wheelhouse: Wheelhouse | None = None
    toolkit_key: str | None = None
    """Text of the public key that a mirror signs with."""
    netrc: str | None = field(default=None, repr=False)
    """Users and passwords: text of a file as of netrc(5)."""

    models: Mapping[str, LocalFile] = field(default_factory=dict)
    """Parts of models that the controller has, by path or URL."""
    serve_keys: dict[str, str] = field(default_factory=dict, repr=False)
    """API keys by profile."""

    @property
    def manifest(self) -> Manifest | None:
        return self.wheelhouse.manifest if self.wheelhouse else None


NO_SUPPLIES = Supplies()
