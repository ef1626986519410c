"""What a host's settings name on the controller, as it was read there: an input of its plan."""

from __future__ import annotations

from dataclasses import dataclass

from llamafleet.wheelhouse.manifest import Manifest, Wheelhouse


@dataclass(frozen=True)
class Supplies:
    """The contents of those files; None: the settings name none."""

    wheelhouse: Wheelhouse | None = None
    toolkit_key: str | None = None
    """Text of the public key that a mirror signs with."""

    @property
    def manifest(self) -> Manifest | None:
        return self.wheelhouse.manifest if self.wheelhouse else None


NO_SUPPLIES = Supplies()
