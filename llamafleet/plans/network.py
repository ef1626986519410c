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


def network_note(settings: Settings, snapshot: HostSnapshot) -> tuple[str, ...]:
    """Where the host's own proxy asks for a password, which jobs are not given."""
    if settings.proxy or not snapshot.proxy_passwords:
        return ()
    named = " and ".join(snapshot.proxy_passwords)
    return (
        f"{named} of the host names a password, which jobs do not get: the proxy may refuse them; "
        "next: set proxy to one that asks for none, or let the host in there without one",
    )
