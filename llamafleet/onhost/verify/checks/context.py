"""The model fits with the context that is asked for; else: the largest that does."""

from __future__ import annotations

from collections.abc import Callable

from llamafleet.onhost.verify import known, llama_log
from llamafleet.onhost.verify.checks.spec import Spec
from llamafleet.onhost.verify.evidence import task_failed
from llamafleet.onhost.verify.place import Place
from llamafleet.protocol.diagnose import Match
from llamafleet.protocol.result import Check, failed, passed, skipped

NAME = "context"
CONTEXT_STEP = 256
"""llama.cpp rounds a context up to a multiple of this (src/llama-context.cpp)."""
CONTEXT_TRIES = 6


def largest_context(fits: Callable[[int], bool], limit: int, guess: int) -> int:
    """The largest multiple of CONTEXT_STEP below `limit` that fits; 0 if none was found.

    Starts at `guess`, goes on in steps of an eighth until one fits and one does not, then halves
    the gap; CONTEXT_TRIES calls of `fits` at most, so the answer is a size that did fit.
    """
    low, high = 0, limit
    candidate = guess
    for _ in range(CONTEXT_TRIES):
        top = (high - 1) // CONTEXT_STEP * CONTEXT_STEP
        candidate = min(max(candidate // CONTEXT_STEP * CONTEXT_STEP, CONTEXT_STEP), top)
        if candidate <= low:
            break
        if fits(candidate):
            low = candidate
            step = max(low // 8, CONTEXT_STEP)
            candidate = low + step if high == limit else (low + high) // 2
        else:
            high = candidate
            candidate = (low + high) // 2 if low else high * 7 // 8
    return low


def _place(place: Place) -> Check:
    if not place.offloaded:
        return skipped(NAME, "not tried: offload is red")
    wanted = place.evidence.config.inputs.context
    expected = f"the model and a context of {wanted} tokens fit"
    first = place.context(wanted)
    if first.reply:
        made = first.reply["n_ctx"]
        if made < wanted:
            found = f"llama.cpp made a context of {made} tokens"
            return failed(NAME, found, expected, f"set context = {made}")
        check = passed(NAME, f"{made} tokens fit", expected)
        # A synthetic model was trained for no length at all.
        return check if place.model().synthetic else known.priced(check, first.log)
    match = known.of_task(first)
    if match is None or match.id not in known.OUT_OF_MEMORY:
        return task_failed(NAME, first)
    found, advice = _smaller(place, wanted, match)
    words = llama_log.last_words(first.log, 2)
    return failed(NAME, f"out of memory: {found}: {words}; {match}", expected, advice)


def _smaller(place: Place, wanted: int, match: Match) -> tuple[str, str]:
    """What fits and what does not, and the context to set."""
    guess = int(place.tokens_that_fit()) // CONTEXT_STEP * CONTEXT_STEP
    if not place.evidence.cuda_devices():
        # No search on a CPU: it would fill the host's memory several times.
        found = f"{wanted} tokens do not fit into memory"
        return found, f"set context = {guess} or less (an estimate)"
    fits = largest_context(lambda n: place.context(n).reply is not None, wanted, guess)
    if not fits:
        return f"not even {CONTEXT_STEP} tokens fit into the GPU's memory", match.fix
    found = f"{wanted} tokens do not fit into the GPU's memory, {fits} do"
    return found, f"set context = {fits}"


SPEC = Spec(NAME, place=_place, on=frozenset({"gpu", "all", "unnamed"}), needs=frozenset({"model"}))
