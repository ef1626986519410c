"""Types that settings of a host and of a served profile share: what a value may be, in words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

LONGEST_PATH = 4096
"""Characters, as Linux takes them (PATH_MAX)."""
MOST_GPUS = 64
"""In one list; a host of 8 GPUs with 7 MIG instances each has fewer."""

PATH = r"/[A-Za-z0-9._+@:,=~/-]*"
"""Values reach units, environment files and command lines, where blanks, quotes, $ and % mean
more."""

BOOL = "true or false"
GPUS = 'a list of UUIDs, bus ids or indices such as ["GPU-5f3d...", "0000:01:00.0", "1"], or None'


def one_of(names: tuple[str, ...]) -> str:
    """In words."""
    return f"{', '.join(names[:-1])} or {names[-1]}"


def whole(low: int, high: int, unit: str) -> Any:
    """A whole number of that unit."""
    return Field(ge=low, le=high, description=f"a whole number of {unit} from {low} to {high}")


def _named(value: object) -> object:
    """A list, or one bare value, of which `--data gpus=0` arrives as a number."""
    if value is None:
        return None
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(str(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in values)


def _some(names: tuple[str, ...]) -> tuple[str, ...]:
    """Not min_length, which pydantic says of a wrong item too."""
    if not names:
        raise ValueError(GPUS)
    return names


def _one_line(value: str) -> str:
    if not value.isprintable():
        raise ValueError("printable text on one line")
    return value


def _absolute(value: str) -> str:
    """A path on the controller, made independent of the working directory."""
    if "://" in value:
        raise ValueError("a path on this machine, not a URL")
    try:
        return str(Path(value).expanduser().resolve())
    except (RuntimeError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ValueError(f"a path that can be followed ({reason})") from error


GpuName = Annotated[
    str,
    Field(
        pattern=r"^(GPU-[0-9a-f-]{8,36}|MIG-[0-9A-Za-z/-]{8,80}"
        # As Linux writes it, and as nvidia-smi does.
        r"|([0-9A-Fa-f]{4,8}:)?[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7]|[0-9]{1,2})$"
    ),
]
GpuNames = Annotated[
    Annotated[tuple[GpuName, ...], Field(max_length=MOST_GPUS), AfterValidator(_some)] | None,
    BeforeValidator(_named),
]
LocalPath = Annotated[
    str,
    Field(min_length=1, max_length=LONGEST_PATH),
    AfterValidator(_one_line),
    AfterValidator(_absolute),
]
