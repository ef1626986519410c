"""What an inventory may say of one served profile: the model of its settings."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
)

from llamafleet.fields import BOOL, GPUS, GpuNames, LocalPath, one_of, whole
from llamafleet.modelsource import (
    ALLOWED,
    ModelSource,
    digests_of,
    parts_of,
    sizes_of,
    source_of,
)
from llamafleet.protocol import serve
from llamafleet.protocol.serve import KvType, OnOom, Placement
from llamafleet.tables.profiles import profile, profiles

DEFAULT_PORT = 8000
LOOPBACK = "127.0.0.1"
LONGEST_KEY = 512

FIT = "fit"
_LIKE = "the name of a row of tables/profiles.yaml"
_LAYERS = 'a whole number of layers, -1 for all, or "fit"'
_ALIAS = "up to 100 letters, digits, ., _, :, / and -"
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


def _like(value: str | None) -> str | None:
    if value is not None and profile(value) is None:
        raise ValueError(f"one of {', '.join(row.name for row in profiles())}, or no key")
    return value


def _several(value: object) -> object:
    """A list, as inventories write it, or one bare value, as a tuple."""
    if isinstance(value, list):
        return tuple(value)
    return (value,) if isinstance(value, str | int) else value


def _placed(value: str) -> str:
    parts_of(value)
    return value


def _digests(value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    """Of a model that is sound."""
    model = info.data.get("model")
    return value if model is None else digests_of(model, value)


def _sizes(value: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
    model = info.data.get("model")
    return value if model is None else sizes_of(model, value)


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

    model: Annotated[str, AfterValidator(_placed), Field(description=ALLOWED)]
    """The GGUF that is served; of a split one the first part."""
    sha256: Annotated[
        tuple[str, ...],
        BeforeValidator(_several),
        AfterValidator(_digests),
        Field(validate_default=True, description="64 hex digits in lower case for each part"),
    ] = ()
    """Of each part; a URL needs it."""
    size: Annotated[
        tuple[int, ...],
        BeforeValidator(_several),
        AfterValidator(_sizes),
        Field(description="a number of bytes for each part, or no key"),
    ] = ()
    """Bytes of each part: with it the plan knows how much will come."""
    alias: Annotated[
        str | None,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,99}$", description=_ALIAS),
    ] = None
    """What clients call the model; None: by the profile's name."""
    like: Annotated[str | None, AfterValidator(_like), Field(description=_LIKE)] = None
    """Row of tables/profiles.yaml, which gives n_gpu_layers, n_ctx, mmap and mlock where this
    profile says nothing of them."""
    n_gpu_layers: Annotated[
        Annotated[int, Field(ge=-1, le=10000)] | Literal["fit"], Field(description=_LAYERS)
    ] = -1
    """Of the model's layers and its output; fit: as many as the GPUs have room for."""
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
    # Made where it is read: pydantic's models are built late.
    limits: Annotated[Bounds, Field(description=_LIMITS, default_factory=Bounds)]

    def value(self, name: str) -> Any:
        """Of a field: the profile's own, else that of the row that it is like, else the default."""
        row = profile(self.like) if self.like else None
        own = name in self.model_fields_set or row is None or not hasattr(row, name)
        return getattr(self if own else row, name)

    @property
    def fitted(self) -> bool:
        """How many layers go onto the GPUs follows from their memory."""
        return bool(self.value("n_gpu_layers") == FIT)

    @property
    def placement(self) -> Placement:
        """As it is wanted; -1 layers where it is to be fitted."""
        layers = -1 if self.fitted else self.value("n_gpu_layers")
        return Placement(layers, self.value("n_ctx"), self.kv_type, self.n_batch)

    @property
    def source(self) -> ModelSource:
        """Where its model comes from."""
        return source_of(self.model, self.sha256, self.size)

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
