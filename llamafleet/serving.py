"""What an inventory may say of one served profile: the model of its settings."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from llamafleet.fields import BOOL, GPUS, PATH, GpuNames, LocalPath, one_of, whole
from llamafleet.protocol import serve
from llamafleet.protocol.serve import KvType, OnOom

DEFAULT_PORT = 8000
LOOPBACK = "127.0.0.1"
SHORTEST_KEY = 20
"""Characters of an API key."""
LONGEST_KEY = 512
_MODEL = "the absolute path of a .gguf file on the host (no blanks, quotes, $ or %)"

_LIMITS = "limits by name such as {'waiting': 64}"


def _address(value: str) -> str:
    try:
        found = ipaddress.ip_address(value)
    except ValueError:
        raise ValueError(_ADDRESS) from None
    if found.is_multicast or "%" in value:
        raise ValueError(_ADDRESS)
    return str(found)


_ADDRESS = f"an IP address of the host such as {LOOPBACK}, or 0.0.0.0 for all"


class Bounds(BaseModel):
    """What the service bears: protocol.serve.Limits."""

    # Built where the first inventory is read: see tables/rows.py.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)

    waiting: Annotated[int, whole(1, 10000, "requests")] = serve.Limits.waiting
    body_mib: Annotated[int, whole(1, 1024, "MiB")] = serve.Limits.body_mib
    receive_s: Annotated[int, whole(1, 3600, "seconds")] = serve.Limits.receive_s
    send_s: Annotated[int, whole(1, 3600, "seconds")] = serve.Limits.send_s
    drain_s: Annotated[int, whole(1, 600, "seconds")] = serve.Limits.drain_s


class Profile(BaseModel):
    """One service; every key but `model` is optional."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)

    model: Annotated[str, Field(pattern=rf"^{PATH}\.gguf$", description=_MODEL)]
    """The GGUF that is served."""
    alias: Annotated[
        str | None,
        Field(pattern=r"^[!#$&(-\[\]-~]{1,100}$", description="a name without blanks and quotes"),
    ] = None
    """What clients call the model; None: by the profile's name."""
    n_gpu_layers: Annotated[int, whole(-1, 10000, "layers, -1 for all,")] = -1
    n_ctx: Annotated[int, whole(256, 1048576, "tokens")] = 4096
    kv_type: Annotated[KvType, Field(description=one_of(get_args(KvType)))] = "f16"
    n_batch: Annotated[int, whole(32, 65536, "tokens")] = 512
    flash_attention: Annotated[bool, Field(description=BOOL)] = True
    mmap: Annotated[bool, Field(description=BOOL)] = True
    mlock: Annotated[bool, Field(description=BOOL)] = False
    reserve_mib: Annotated[int, whole(0, 1048576, "MiB")] = 1024
    """What is left free on each GPU."""
    on_oom: Annotated[OnOom, Field(description=one_of(get_args(OnOom)))] = "stop"
    gpus: Annotated[GpuNames, Field(description=GPUS)] = None
    """Of those that are verified; None: all of them."""
    address: Annotated[str, AfterValidator(_address), Field(description=_ADDRESS)] = LOOPBACK
    port: Annotated[int, whole(1024, 65535, "a port")] = DEFAULT_PORT
    api_key_file: Annotated[
        LocalPath | None,
        Field(description="a file on the controller that only you can read, with one line"),
    ] = None
    limits: Annotated[Bounds, Field(description=_LIMITS)] = Bounds()

    @property
    def public(self) -> bool:
        """Other hosts reach it, as far as it listens."""
        return not ipaddress.ip_address(self.address).is_loopback

    def bounds(self) -> dict[str, Any]:
        """Its limits, by the names of protocol.serve.Limits."""
        return self.limits.model_dump()


def clash(one: Profile, other: Profile) -> bool:
    """Both can't listen at once."""
    if one.port != other.port:
        return False
    return same_place(one.address, other.address)


def same_place(one: str, other: str) -> bool:
    """A listener on one of these addresses keeps others from the other one, for the same port."""
    both = ipaddress.ip_address(one), ipaddress.ip_address(other)
    return both[0] == both[1] or any(address.is_unspecified for address in both)
