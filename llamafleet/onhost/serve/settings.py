"""What a service is told, and what of it a restart can't mend."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
from pathlib import Path

from llamafleet.onhost.serve.libraries import whole
from llamafleet.protocol import verify
from llamafleet.protocol.decode import DecodeError, decode
from llamafleet.protocol.serve import CREDENTIAL, SHORTEST_KEY, ServeConfig

CREDENTIALS = "CREDENTIALS_DIRECTORY"
"""Variable that names the folder of a unit's credentials: systemd.exec(5)."""


class Refused(Exception):
    """The service can't start, and no restart helps: found, expected, next."""


def load(path: Path) -> ServeConfig:
    """Read and check a configuration. Raises Refused."""
    try:
        config = decode(ServeConfig, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise Refused(
            f"{path}: found no readable JSON ({error}); expected what deploy writes; "
            "next: llamafleet deploy"
        ) from error
    except DecodeError as error:
        raise Refused(f"{path}: {error}; next: llamafleet deploy") from error
    _check(config)
    return config


def _check(config: ServeConfig) -> None:
    """What no field says by itself. Raises Refused."""
    if config.placement.kv_type != "f16" and not config.flash_attention:
        raise Refused(
            f"kv_type: found {config.placement.kv_type} without flash attention; expected f16, or "
            "flash_attention = true, which llama.cpp needs for it; next: change the profile"
        )
    if not config.key and not is_loopback(config.address):
        raise Refused(
            f"address: found {config.address} without an API key; expected a loopback address, or "
            "a key; next: set the profile's key"
        )
    if not whole(Path(config.libraries)):
        raise Refused(
            f"libraries: found no whole {config.libraries}; expected the server's own Python "
            "packages there; next: llamafleet deploy"
        )


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def read_key(config: ServeConfig) -> str | None:
    """The API key, from the unit's credentials alone. Raises Refused."""
    if not config.key:
        return None
    folder = os.environ.get(CREDENTIALS, "")
    path = Path(folder, CREDENTIAL)
    try:
        key = path.read_text(encoding="ascii").strip() if folder else ""
    except (OSError, ValueError) as error:
        raise Refused(_no_key(f"no readable credential ({error})")) from error
    if len(key) < SHORTEST_KEY or not key.isprintable() or " " in key:
        raise Refused(_no_key("none" if not key else f"one of {len(key)} characters"))
    return key


def _no_key(found: str) -> str:
    return (
        f"API key: found {found}; expected {SHORTEST_KEY} characters or more without blanks in "
        f"the unit's credential {CREDENTIAL}; next: llamafleet deploy"
    )


def read_verify(config: ServeConfig) -> verify.VerifyConfig:
    """What the proof is of. Raises Refused."""
    try:
        return verify.load(Path(config.verify))
    except verify.ConfigError as error:
        raise Refused(f"{error}; next: llamafleet deploy") from error


def listen(config: ServeConfig) -> socket.socket:
    """A socket that takes connections from now on: the process that serves inherits it. Raises
    Refused."""
    try:
        family = socket.AF_INET6 if ":" in config.address else socket.AF_INET
        made = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise Refused(_no_port(config, error)) from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((config.address, config.port))
    except OSError as error:
        made.close()
        raise Refused(_no_port(config, error)) from error
    return made


def _no_port(config: ServeConfig, error: OSError) -> str:
    return (
        f"{config.address} port {config.port}: found {error.strerror or error}; expected to "
        f"listen there; next: ss -ltnp 'sport = :{config.port}'"
    )
