"""How jobs reach indexes and mirrors, and what is said where they may not."""

from __future__ import annotations

from dataclasses import replace

from llamafleet.layout import Layout
from llamafleet.plans.network import Network, network_note, plan_network
from llamafleet.settings import Settings
from tests.plans.hosts import GPU_HOST

HOST = replace(
    GPU_HOST,
    proxies={"https_proxy": "http://proxy.example:3128"},
    proxy_passwords=("https_proxy",),
    ca_bundle="/etc/ssl/certs/ca-certificates.crt",
)


def test_a_proxy_of_the_settings_wins_over_the_host_s_own() -> None:
    own = plan_network(Settings(), HOST, Layout.system())
    assert own == Network(HOST.proxies, HOST.ca_bundle, None)
    chosen = plan_network(Settings(proxy="http://other.example:1"), HOST, Layout.system())
    assert set(chosen.proxies.values()) == {"http://other.example:1"}


def test_a_password_that_jobs_do_not_get_is_said() -> None:
    (note,) = network_note(Settings(), HOST)
    assert note.startswith("https_proxy of the host names a password") and "next: set proxy" in note
    assert network_note(Settings(proxy="http://other.example:1"), HOST) == ()
    assert network_note(Settings(), replace(HOST, proxy_passwords=())) == ()
