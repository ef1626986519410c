"""How the jobs of a host reach indexes and mirrors."""

from __future__ import annotations

from dataclasses import dataclass

from llamafleet.facts.host import HostSnapshot
from llamafleet.layout import Layout
from llamafleet.settings import Settings


@dataclass(frozen=True)
class Network:
    """The fields of a job's configuration of these names."""

    proxies: dict[str, str]
    ca_bundle: str | None
    netrc: str | None


def plan_network(settings: Settings, snapshot: HostSnapshot, layout: Layout) -> Network:
    """The settings' proxy for all, else what the host itself names; the host's certificates."""
    proxies = dict(snapshot.proxies)
    if settings.proxy:
        proxies |= {"http_proxy": settings.proxy, "https_proxy": settings.proxy}
    return Network(proxies, snapshot.ca_bundle, layout.netrc if settings.netrc else None)
