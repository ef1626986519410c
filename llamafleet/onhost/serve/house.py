"""What the parts of a serving process know of each other: its state, its model, its queue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from llamafleet.onhost.serve.ask import Ask, Line
from llamafleet.onhost.serve.errors import App
from llamafleet.onhost.serve.fields import Body, Route
from llamafleet.protocol.serve import State


@dataclass
class Model:
    """The loaded model as the door asks it."""

    app: App
    """llama_cpp.server's own."""
    validate: Callable[[Route, Body], None]
    """Whether that would take a body. Raises Refusal."""


@dataclass
class House:
    """Changed in the event loop alone."""

    state: State = "loading"
    model: Model | None = None
    line: Line = field(default_factory=Line)
    asks: set[Ask] = field(default_factory=set)
    """The requests that are under way, from their body to the last byte of their answer."""
    suspect: Callable[[str], None] = lambda why: None
    """Told when the model raised what no request can be blamed for."""

    @property
    def draining(self) -> bool:
        return self.state == "draining"
