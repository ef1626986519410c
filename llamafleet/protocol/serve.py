"""The settings of one served model, serve-<profile>.json, and what its service tells of itself."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from llamafleet.protocol.decode import Rule
from llamafleet.protocol.job import start_ticks
from llamafleet.protocol.verify import AbsolutePath, Positive

NAME = r"[a-z0-9][a-z0-9-]{0,31}"
"""Of a profile: it is a unit's instance, a file's name and a metric's label, and needs no quoting
in any of them."""
STATUS = "status.json"
"""In the folder of a service: its Status."""
REDUCED = "reduced.json"
"""In the folder of a service: the Reduction that an out of memory brought."""
CREDENTIAL = "api-key"
"""The name of the key among the unit's credentials, systemd.exec(5) LoadCredential=."""
SHORTEST_KEY = 20
"""Characters of an API key."""

OVERLOADED = "overloaded"
"""The code of a 503 that says: as many requests as it takes are under way."""
GENERATED = "llamafleet_generated_tokens_total"
"""The metric of the tokens that it made."""

KvType = Literal["f16", "q8_0", "q4_0"]
"""What the keys and values of the context are kept in."""
OnOom = Literal["stop", "reduce"]
State = Literal["held", "loading", "ready", "draining", "failed", "stopped"]
"""held: not started, since nothing proves its GPUs. ready: a GPU (or the CPU, where that is
allowed) has answered a token since the last doubt. stopped: a signal ended it."""
LAST: tuple[State, ...] = ("held", "failed", "stopped")
"""Last words of a process: they stay true when it has ended."""

ProfileName = Annotated[
    str, Rule("a name as chat or llama-8b", lambda text: re.fullmatch(NAME, text))
]


def _is_address(text: str) -> bool:
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return False


Address = Annotated[str, Rule("an IP address such as 127.0.0.1", _is_address)]
Port = Annotated[int, Rule("a port from 1 to 65535", lambda port: 0 < port < 65536)]
Layers = Annotated[int, Rule("a whole number, -1 for all", lambda number: number >= -1)]
NotNegative = Annotated[int, Rule("a whole number", lambda number: number >= 0)]


@dataclass(frozen=True)
class Placement:
    """How a model is put onto the GPUs: what an out of memory may reduce."""

    n_gpu_layers: Layers
    """Of the model's layers and its output, counted from the last; -1: all."""
    n_ctx: Positive
    """Tokens."""
    kv_type: KvType = "f16"
    n_batch: Positive = 512
    """Tokens of a prompt that are computed at once."""


@dataclass(frozen=True)
class Limits:
    """What one service bears before it refuses, each with a 4xx or 503 that says so."""

    waiting: Positive = 64
    """Requests at once, the one that is computed among them; another one gets 503."""
    body_mib: Positive = 8
    """Of a request."""
    receive_s: Positive = 30
    """From a request's first byte to its last."""
    send_s: Positive = 60
    """Without one byte taken by a client that gets an answer."""
    drain_s: Positive = 30
    """For the answers that are under way when the service ends."""


@dataclass(frozen=True)
class ServeConfig:
    """What one service serves, on which proof, and to whom."""

    version: Literal[1]
    profile: ProfileName
    host: str
    verify: AbsolutePath
    """verify.json: what must be proven before the model is loaded, and where the proof lies."""
    folder: AbsolutePath
    """Of this service: STATUS and REDUCED."""
    libraries: AbsolutePath
    """Folder of the server's own Python packages."""
    model: AbsolutePath
    """The GGUF; of a split one the first file."""
    alias: str
    """The name that clients call the model by."""
    placement: Placement
    address: Address
    """Of the host."""
    port: Port
    key: bool
    """Clients must send the API key of the unit's credentials."""
    gpus: tuple[str, ...] = ()
    """UUIDs of the GPUs that it uses; empty: those of the verification."""
    flash_attention: bool = True
    mmap: bool = True
    mlock: bool = False
    reserve_mib: NotNegative = 1024
    """What is left free on each GPU."""
    on_oom: OnOom = "stop"
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Reduction:
    """The placement that took the place of one that ran out of memory."""

    at: float
    """Seconds since the epoch."""
    reason: str
    """Which allocation failed, with its numbers."""
    was: Placement
    now: Placement


@dataclass(frozen=True)
class Status:
    """What a service tells of itself; written by rename at each change of state."""

    version: Literal[1]
    profile: ProfileName
    state: State
    at: float
    """Seconds since the epoch."""
    pid: int
    reason: str = ""
    """Why it is held or failed: found, expected, next."""
    fingerprint: str = ""
    """Of the build that it runs."""
    placement: Placement | None = None
    """The one in force."""
    load_s: float | None = None
    """From the start to the first token."""
    start_ticks: int | None = None
    """When the process of that pid started: protocol.job.start_ticks."""


@dataclass(frozen=True)
class Answer:
    """What a service answered when it was asked on its own host."""

    version: Literal[1]
    state: State | None
    """None: there is no process that tells one."""
    ok: bool
    """It named its model and made a token."""
    problem: str = ""
    status: Status | None = None


def status_file(config: ServeConfig) -> Path:
    return Path(config.folder, STATUS)


def told_now(status: Status) -> bool:
    """The process that told it is there still, or these were its last words."""
    started = status.start_ticks
    return status.state in LAST or (started is not None and start_ticks(status.pid) == started)
