"""What a check is: a name, and what judges the host or a place where a model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llamafleet.onhost.verify.evidence import Evidence, Kind, Need
from llamafleet.onhost.verify.place import Place
from llamafleet.protocol.result import Check


@dataclass(frozen=True)
class Spec:
    """One check. It takes what it needs from the evidence, which asks for each thing once."""

    name: str
    host: Callable[[Evidence], Check] | None = None
    """Judges the host; None: it says nothing about a host."""
    place: Callable[[Place], Check] | None = None
    """Judges a place where a model is loaded."""
    on: frozenset[Kind] = frozenset()
    """The kinds of places that it judges, beside the CPU."""
    of_hidden: bool = False
    """It needs no CUDA: it judges a GPU that CUDA does not show too."""
    needs: frozenset[Need] = frozenset()
    """Without these it is skipped: the check that is about them is red."""
    alone: bool = False
    """It measures: nothing else of the verification may run beside it."""
