"""Who builds for whom in this run, by what its hosts said, and the wheels that there are."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from llamafleet.modelstore import ModelStore
from llamafleet.plans.share import Offer, gives, maker_of, sharing_lines
from llamafleet.protocol.job import SharedWheel
from llamafleet.settings import Settings
from llamafleet.wheelstore import WheelStore

NO_END = "it came to no end"


@dataclass
class Sharing:
    """Of one run; all its hosts have the same."""

    store: WheelStore = field(default_factory=WheelStore)
    models: ModelStore = field(default_factory=ModelStore)
    wheels: dict[str, SharedWheel] = field(default_factory=dict)
    """That the controller has, by fingerprint."""
    fresh: set[str] = field(default_factory=set)
    """Fingerprints of those that came in this run."""
    offers: dict[str, Offer] = field(default_factory=dict)
    """By host."""
    order: tuple[str, ...] = ()
    """All hosts of the inventory."""
    makers: dict[str, str] = field(default_factory=dict)
    """By a host that waits, the one that it waits for."""
    building: set[str] = field(default_factory=set)
    """Hosts that are at it just now."""
    begun: set[str] = field(default_factory=set)
    """Those, and the ones that were."""
    why: dict[str, str] = field(default_factory=dict)
    """By a host that gave no wheel, the reason: nobody waits for it any more."""
    judged: set[str] = field(default_factory=set)
    """Fingerprints whose stored wheel was compared with its record in this run."""
    getting: set[str] = field(default_factory=set)
    """Hosts that get a served model just now, over the network or from the controller."""
    fetching: set[str] = field(default_factory=set)
    """sha256 of the models that the controller fetches just now."""
    unfetched: dict[str, str] = field(default_factory=dict)
    """By the sha256 of those that did not come in this run, why."""
    refused: set[str] = field(default_factory=set)
    """Those whose stored wheel is not the one that was kept, and lies there still."""

    def for_host(self, settings: Settings) -> Mapping[str, SharedWheel]:
        """The wheels that it may install; one that builds anew takes only what is new."""
        if settings.build_sharing != "wheel":
            return {}
        if not settings.rebuild:
            return self.wheels
        return {key: wheel for key, wheel in self.wheels.items() if key in self.fresh}

    def _at_it(self, failed: Collection[str]) -> list[Offer]:
        known = (self.offers[name] for name in self.order if name in self.offers)
        return [offer for offer in known if offer.host not in {*failed, *self.why}]

    def maker(self, host: str, failed: Collection[str]) -> str | None:
        """See maker_of. `failed`: hosts that are out of this run."""
        return maker_of(host, self._at_it(failed), self.wheels, self.fresh)

    def gives(self, host: str, failed: Collection[str]) -> bool:
        """See gives."""
        return gives(host, self._at_it(failed), self.wheels, self.fresh)

    def lines(self) -> list[str]:
        """Who builds what for whom."""
        return sharing_lines(self._at_it(()), self.wheels, self.fresh)

    def begins(self, host: str) -> None:
        """It is at it from now on."""
        self.building.add(host)
        self.begun.add(host)

    def ends(self, host: str, key: str) -> None:
        """It is at it no longer; one that made no wheel of this run is asked for none any more."""
        self.building.discard(host)
        if key not in self.fresh:
            self.why.setdefault(host, NO_END)

    def refuses(self, key: str) -> None:
        """The wheel that the controller has is not to be used."""
        self.wheels.pop(key, None)
        self.refused.add(key)

    def has(self, key: str, wheel: SharedWheel) -> None:
        """The controller has it from now on."""
        self.wheels[key] = wheel
        self.fresh.add(key)
