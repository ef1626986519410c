"""From the text of a log to cause and fix: signatures of failures, and the lines worth reading."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Literal, get_args

from llamafleet.protocol.failing import FAILED, FALLS_BACK, failing, fits, own
from llamafleet.protocol.log_text import Line, LogText, numbered, without_prefix
from llamafleet.protocol.needed import SPACE, Needs, Wanted, needs_of
from llamafleet.protocol.recovery import Recovery
from llamafleet.protocol.redact import redacted

MAX_LINES = 20
LONGEST_LINE = 400
"""Characters of a line that are kept."""
BEFORE = 2
MOST_PLACES = 50
"""Places of a signature that are looked at: where one is explained away the next may count."""
_OF_A_CARD = re.compile(r"NVRM: Xid \(", re.IGNORECASE)
"""What the kernel quotes there is said of the GPU's own processors."""
_DETECTION = "detection"
_DEPS = "deps"
_LOOKED_FOR = frozenset({_DEPS, "import"})
_LINK = "link"
_APT_WARNS = "W: "
"""Before a text that ends nothing: what does begins with E."""
_ANOTHER_WAY = re.compile(r"falling back to (?!.{0,20}\bCPU\b)", re.IGNORECASE)
"""A warning of a program that does it otherwise, and not without the GPU."""
BELOW = 3
"""Lines that are told of a message behind its exception's name."""
WRAPPED = 4
"""Lines that a re-wrapped message takes at most; what reaches further only looks at the whole."""

Rank = Literal["cause", "consequence", "hint"]
"""What a signature is worth: a cause; what follows from one, or says that something failed; what
may be harmless, as a warning is."""
RANKS: tuple[Rank, ...] = get_args(Rank)


@dataclass(frozen=True)
class Signature:
    """One known failure."""

    id: str
    stage: str
    """Who says it: see the head of tables/failures.yaml."""
    pattern: str
    """Made by `family_of`: searched in LogText.joined. Compiled where a log holds its words."""
    cause: str
    fix: str
    source: str
    """Issue, file and line, or message that the signature was taken from."""
    needs: Needs
    """Of the pattern."""
    rank: Rank = "cause"
    explains: frozenset[str] = frozenset()
    """Signatures of what follows from it: where both are found, it stands first."""
    mended_by: Wanted | None = None
    """Of one in spite of which the program goes on: what alone shows that it no longer holds."""


@dataclass(frozen=True)
class Match:
    id: str
    stage: str
    cause: str
    fix: str
    source: str
    line: str
    """What was said, in one line."""
    number: int = 0
    """Of the line in which that begins, from 1."""
    rank: Rank = "cause"

    def __str__(self) -> str:
        """The part of a sentence that says what it is: the fix stands elsewhere."""
        return f"known as {self.id}: {self.cause.rstrip('.')}"


def signatures_from(rows: Iterable[Mapping[str, str]]) -> tuple[Signature, ...]:
    """The rows of the table; raises KeyError for a malformed one."""
    return tuple(
        Signature(
            id=row["id"],
            stage=row["stage"],
            pattern=family_of(row["pattern"]),
            cause=row["cause"],
            fix=row["fix"],
            source=row["source"],
            needs=needs_of(family_of(row["pattern"])),
            rank=_rank(row.get("rank", "cause")),
            explains=frozenset(row.get("explains", "").split()),
            mended_by=_wanted(row.get("goes_on", "")),
        )
        for row in rows
    )


@cache
def _wanted(pattern: str) -> Wanted | None:
    return Wanted.of(family_of(pattern)) if pattern else None


def _rank(word: str) -> Rank:
    return next(rank for rank in RANKS if rank == word)


def family_of(pattern: str) -> str:
    """The pattern for any case, and for a line end wherever it has a space."""
    made, within, at = [], False, 0
    while at < len(pattern):
        one = pattern[at]
        if one == "\\":
            made.append(pattern[at : at + 2])
            at += 2
            continue
        within = one == "[" or (within and one != "]")
        space = r" \n" if within else SPACE
        made.append(space if one == " " else one.lower())
        at += 1
    return "".join(made)


def causes(
    signatures: Iterable[Signature], text: str, stages: Collection[str] | None = None
) -> tuple[Match, ...]:
    """All that is known of a text, of these stages or of all: what explains the rest stands first.

    A cause stands before its consequence and before a hint, and of two causes the one that was
    said first. What the log itself shows to be mended is left out; and hints, where it ended well
    and everything is asked, but for those that only their own words mend.
    """
    log, recovery = _read(text)
    # The general words of a consequence belong to a cause where one fits them too.
    asked = sorted(
        (one for one in signatures if stages is None or one.stage in stages),
        key=lambda one: RANKS.index(one.rank),
    )
    taken: list[tuple[int, int]] = []
    found = []
    for place, signature in enumerate(asked):
        if not log.words.anywhere(signature.needs):
            continue
        places = log.places(Wanted(signature.pattern, signature.needs))
        match = _first(signature, places, log, recovery, taken)
        if match and _links(signature, match) and _failing(text):
            match = replace(match, rank=signature.rank)
        if match:
            found.append((RANKS.index(match.rank), match.number, place, signature, match))
    if stages is None and recovery.well:
        well = not _failing(text)
        found = [each for each in found if not _of_no_account(*each[-2:], recovery, well=well)]
    ranked = [(one, match) for *_, one, match in sorted(found, key=lambda each: each[:3])]
    return tuple(match for _, match in _roots_first(ranked))


def diagnose(
    signatures: Iterable[Signature], *texts: str, stages: Collection[str] | None = None
) -> Match | None:
    """The first cause that one of the texts holds, or else the first of what follows from one."""
    signatures = tuple(signatures)
    first = [known[0] for text in texts if (known := causes(signatures, text, stages))]
    return min(first, key=lambda match: RANKS.index(match.rank), default=None)


def _of_no_account(one: Signature, match: Match, recovery: Recovery, *, well: bool) -> bool:
    """Of a log that ended well: a hint; a package or library that was missed, and done without."""
    if match.rank == "consequence" and one.stage in _LOOKED_FOR:
        return well and match.number < recovery.well
    return match.rank == "hint" and not one.mended_by


def _links(signature: Signature, match: Match) -> bool:
    """The linker warned of it: of a library that is missing it says no more where that ends it."""
    return signature.stage == _LINK and match.rank != signature.rank


def _first(
    signature: Signature,
    places: Iterable[re.Match[str]],
    log: LogText,
    recovery: Recovery,
    taken: list[tuple[int, int]],
) -> Match | None:
    """Its best place: no warning where there is another, no line that an earlier signature has."""
    best: Match | None = None
    for count, found in enumerate(places):
        if count == MOST_PLACES:
            break
        span = _span(found, log)
        first, last = log.index_at(span[0]), log.index_at(span[1] - 1)
        line = log.lines[first]
        if any(first <= end and start <= last for start, end in taken):
            continue
        if _OF_A_CARD.search(line.text) and signature.stage != _DETECTION:
            continue
        if signature.mended_by:
            tried = signature.stage == _DEPS and line.warns and line.number < recovery.well
            mended = tried or log.last(signature.mended_by) >= span[1]
        else:
            mended = recovery.mended(signature.stage, signature.id, line)
        if mended:
            continue
        taken.append((first, last))
        said = _shown(" ".join(each.text for each in log.lines[first : last + 1]))
        warns = line.warns and (
            not signature.mended_by
            or line.text.startswith(_APT_WARNS)
            or bool(_ANOTHER_WAY.search(said))
        )
        rank: Rank = "hint" if warns else signature.rank
        match = Match(
            signature.id,
            signature.stage,
            signature.cause,
            signature.fix,
            signature.source,
            said,
            line.number,
            rank,
        )
        if not warns:
            return match
        best = best or match
    return best


def _span(found: re.Match[str], log: LogText) -> tuple[int, int]:
    """Where it is said; of a pattern that looks at the whole log, its last line."""
    start, end = found.start(), max(found.end(), found.start() + 1)
    if log.index_at(end - 1) - log.index_at(start) >= WRAPPED:
        start = log.joined.rfind("\n", 0, end - 1) + 1
    return min(start, end - 1), end


def _roots_first(ranked: Sequence[tuple[Signature, Match]]) -> list[tuple[Signature, Match]]:
    """The order kept, but for what explains the next one: that goes before it."""
    left, made = list(ranked), []
    while left:
        one, passed = left[0], set[str]()
        while root := next((each for each in left if _explains(each, one, passed)), None):
            passed.add(one[1].id)
            one = root
        made.append(one)
        left.remove(one)
    return made


def _explains(
    each: tuple[Signature, Match], one: tuple[Signature, Match], passed: Collection[str]
) -> bool:
    return one[1].id in each[0].explains and each[1].id not in {*passed, one[1].id}


def _shown(line: str) -> str:
    """A line cut where it is long, at a blank: nobody recognises half a secret as one."""
    line = redacted(line)
    if len(line) <= LONGEST_LINE:
        return line
    return (
        line[: line.rfind(" ", 0, LONGEST_LINE + 1)]
        if " " in line[:LONGEST_LINE]
        else line[:LONGEST_LINE]
    )


def fails(text: str) -> bool:
    """Something says that it failed, and nothing behind it that all is well."""
    return _failing(text) is not None


@lru_cache(maxsize=1)
def _failing(text: str) -> Line | None:
    log, recovery = _read(text)
    return failing(log.lines, recovery)


@lru_cache(maxsize=1)
def _read(text: str) -> tuple[LogText, Recovery]:
    log = LogText.of(text)
    return log, Recovery.of(log)


def error_lines(text: str, limit: int = MAX_LINES) -> list[str]:
    """The lines around the first error of a log; its last lines where none looks like one.

    A compiler's, linker's or interpreter's own words stand before those of who called it, and what
    it says further down is kept.
    """
    numbers, lines = _ends(text)
    bare = [without_prefix(line).strip() for line in lines]
    owned = [at for at, line in enumerate(bare) if own(line)]
    start = next(iter(owned), None)
    for asked in (FAILED, FALLS_BACK):
        if start is None:
            start = next((at for at, line in enumerate(bare) if fits(asked, line)), None)
    if start is None:
        first = _failing(text)
        start = numbers.index(first.number) if first else None
    if start is None:
        return list(map(_shown, lines[-limit:]))
    begin = max(0, start - BEFORE)
    further = _further(lines, owned, begin + limit, limit // 2)
    return [_shown(line) for line in (*lines[begin : begin + limit - len(further)], *further)]


def _ends(text: str) -> tuple[list[int], list[str]]:
    """The lines that are read of a log, with their numbers."""
    each = list(numbered(text.rstrip("\n"))) if text.strip() else []
    return [at for at, _ in each], [line.rstrip() for _, line in each]


def _further(lines: Sequence[str], own: Iterable[int], end: int, most: int) -> list[str]:
    """Different ones of the lines behind `end`, each with a message that begins below it."""
    told = (
        lines[at]
        for number in own
        for at in range(number, number + 1 + BELOW * lines[number].endswith(":"))
        if end <= at < len(lines)
    )
    return list(dict.fromkeys(told))[:most]
