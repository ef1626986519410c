"""From a YAML file to rows that are known to be sound."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from llamafleet import tables

Machine = Literal["x86_64", "aarch64"]
"""As uname -m names it."""

Cuda = Annotated[str, Field(pattern=r"^\d+\.\d+$")]
"""major.minor of a CUDA Toolkit."""

Origin = Annotated[str, Field(pattern=r"^(measured: .|looked up: .|UNVERIFIED\b)")]
"""Where a figure is from."""

MOST_ERRORS = 50
"""Of one table that are told."""


class TableError(Exception):
    """A table that is not as its model says; the message has a line for each error."""


class Row(BaseModel):
    """One row of a table, or a whole table."""

    # Built at the first read: plans are loaded by commands that read no table.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


Form = TypeVar("Form", bound=Row)


def load(name: str, form: type[Form]) -> Form:
    """The table in that file. Raises TableError."""
    loaded: Form = _load(name, tables.text(name), form)
    return loaded


@lru_cache
def _load(name: str, text: str, form: type[Form]) -> Form:
    import yaml  # Only here: a tenth of what the plans take to load.

    # The C loader takes a tenth of the time; PyYAML is built without it on some platforms.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        # YAML has lists only; in JSON pydantic's strict mode takes them for tuples and sets.
        return form.model_validate_json(json.dumps(yaml.load(text, loader)))
    except ValidationError as error:
        lines = [_line(name, detail) for detail in error.errors()[:MOST_ERRORS]]
        raise TableError("\n".join(lines)) from None
    # TypeError: a date without quotes; UnicodeError: half a character.
    except (yaml.YAMLError, TypeError, UnicodeError) as error:
        raise TableError(f"tables/{name}: {error}; next: correct that file") from None


def _line(name: str, error: ErrorDetails) -> str:
    place = ".".join(map(str, error["loc"]))
    place = place if place.isprintable() else ascii(place)
    found = repr(error["input"])
    return f"tables/{name}: {place}: {error['msg']}; found {found:.200}; next: correct that row"
