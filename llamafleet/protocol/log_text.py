"""A log as its programs wrote it: without the prefixes of whoever passed it on, in bounded size."""

from __future__ import annotations

import itertools
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from llamafleet.protocol.locales import Spoken
from llamafleet.protocol.needed import Wanted, Words
from llamafleet.protocol.quoted import Quoted, of_chats

LONGEST_LINE = 1000
"""Characters of a line that are read: a compiler's command line says nothing behind them."""
END = 300
"""Characters at the end of a longer one: of a log in one line, or behind a bar of progress."""
HALF = 2 * 2**20
"""Characters read at either end of a log: the first error and how it ended."""
PART = 150
SIZE = 2**13
"""Lines, or characters, of which it is known together which words they hold: whatever is less, and
more than the lines of a message."""
BETWEEN = 2**18
"""Characters read of the rest at most, in lines that sound like a failure."""
MOST_SOUNDING = 500
"""Of these lines for each word."""
FOLLOWING = 3
"""Lines read with each of these: CMake wraps a message."""
_IN_ANY_CASE = ("error", "fatal", "failed", "killed", "fehler", "erreur")
_SOUNDS = (
    *(form for each in _IN_ANY_CASE for form in (each, each.capitalize(), each.upper())),
    *("undefined reference", "cannot ", "No space left", "not found", "ermission denied", "错误"),
)
_LOOKS_AT_ALL = (r"\s\S", r"\A")
"""Of patterns that may reach over any number of lines."""
DEEPEST = 5
"""Prefixes one after another, as of a container's log in a journal."""

_ANSI = re.compile(r"\x1b\[[0-9;?]{0,20}[A-Za-z]")
_PLAIN = str.maketrans(
    {
        "‘": "'",
        "’": "'",
        "“": '"',
        "”": '"',
        "：": ": ",
        "，": ", ",
        "（": "(",
        "）": ")",
        "«": "'",
        "»": "'",
        "„": '"',
        "！": "! ",
        "。": ". ",
    }
)
"""What locales write for a programs' own signs."""
_FOREIGN = re.compile(r"[^\x00-\x7f\W]")
"""A letter that English has not."""
_TAIL = 2000
"""Lines at the end of a log that tell its language where its letters are English ones."""
_FOR_DEVELOPERS = re.compile(r"cmake (?:warning \(dev\)|deprecation warning)")
"""Its whole text is no news for who builds."""
_TIME = r"\d\d:\d\d:\d\d(?:[.,]\d{1,9})?"
_PREFIX = re.compile(
    "|".join(
        (
            rf"\d{{4}}[-/]\d\d[-/]\d\d[T ]{_TIME}(?:Z|[+-]\d\d:?\d\d)?(?::|,|\s|$)",
            rf"\[\d{{4}}-\d\d-\d\d[T ]{_TIME}[^\]]{{0,10}}\]",
            # The journal, and syslog before it.
            rf"\w{{3}} [ \d]\d {_TIME} \S{{1,80}} [\w./@-]{{1,80}}(?:\[\d{{1,9}}\])?:(?=\s|$)",
            r"\[ {0,10}\d{1,9}\.\d{1,9}\]",  # The kernel.
            r"\d{1,5}\.\d\d\.\d{3}(?:\.\d{3})? [DIWEFT](?= )",  # llama.cpp
            r"#\d{1,4} \d{1,6}\.\d{1,3}(?=\s|$)",  # docker build
            r"\d{1,6}\.\d{1,3}(?=\s{2,}|\s[^\d\s]|$)",  # its summary
            r"[A-Za-z][\w.-]{0,80} {0,40}\|(?=\s|$)",  # docker compose
            r"\[[A-Za-z][\w./-]{0,40}\](?=\s+\d{4}-\d\d-\d\dT)",
            r"\[\d{1,6}\](?=\s+[A-Za-z])",  # a child of llama-server
            r"\[\d{1,6}/\d{1,6}\]",  # ninja
            r"\[ {0,2}\d{1,3}%\]",  # make
            r"[│|>](?=\s)",
            r"\[?(?:INFO|DEBUG|NOTICE)\]?(?=:?\s)",
            r"[IEF]\d{4} " + _TIME + r" {1,8}\d{1,9} \S{1,80}:\d{1,6}\]",  # Kubernetes' programs
            r"stderr:(?=\s)",
            r"\[rank\d{1,5}\]:",  # torchrun's
            r"\(\w[\w .-]{0,60} pid=\d{1,9}(?:, ip=[\d.]{7,15})?\)",  # vLLM's and Ray's processes
            r"(?:ERROR|INFO|DEBUG) \d\d-\d\d " + _TIME + r" \[[\w/]{1,80}\.py:\d{1,6}\]",
        )
    )
)
_GLOG_WARNING = re.compile(r"W \S{1,200}:\d{1,6}\] ")
"""Of a library that goes on; llama.cpp does not write so."""
_ENCODED = re.compile(r"[A-Za-z0-9+/]{60,}={0,2}")
"""A line of a file in base64, as in NVIDIA's bug report."""
_STEP = re.compile(
    r"(?:Building|Linking) (?:C|CXX|CUDA|HIP|ASM|RC)\S* "
    r"(?:object|executable|\w+ (?:library|module)) \S+"
)
"""What a build does, and a name within it is no word of a failure."""
_OF_USERS = re.compile(r"""(?:"(?:content|prompt)" ?: ?|\bprompt: )["'].*""")
"""What a server was asked and answered may speak of failures."""
_WARNS = re.compile(
    r"(?:cmake (?:deprecation |developer )?warning\b|deprecation:|w: "
    r"|-?warn(?:ing)?\b(?!: no usable)"
    r"|(?:\S{1,200}: |-- )warning[: ]|.{0,400}\blevel=warn(?:ing)?\b|\[notice\]"
    r"|.{0,300}: (?:\w{0,40})warning: "
    r"|.{0,200}\bnccl warn "
    r"|.{0,120}(?:\[warn(?:ing)?\]|- warn(?:ing)? -|\| ?warn(?:ing)? *\|)"
    r"|\[?w\d{3,4} \d\d:\d\d:\d\d)"
)


@dataclass(frozen=True)
class Line:
    number: int
    """Counted from 1 in the whole log."""
    text: str
    """Without prefix; runs of white space are one space."""
    warns: bool
    """It is a warning, or stands in one of CMake's."""


@dataclass(frozen=True)
class LogText:
    lines: tuple[Line, ...]
    """Those that are not empty, nor another library's warnings."""

    @classmethod
    def of(cls, text: str) -> LogText:
        lines = tuple(_lines(text))
        if chats := of_chats(line.text for line in lines):
            lines = tuple(line for at, line in enumerate(lines) if at not in chats)
        spoken = _spoken(lines)
        if spoken:
            lines = tuple(replace(line, text=spoken.english(line.text)) for line in lines)
        return cls(lines)

    @cached_property
    def joined(self) -> str:
        """In lower case, a line end between lines: what patterns are searched in."""
        return "\n".join(self._lower)

    @cached_property
    def _lower(self) -> list[str]:
        return [line.text.lower() for line in self.lines]

    @cached_property
    def parts(self) -> tuple[tuple[int, int], ...]:
        """Places in `joined` where some lines begin and end; the whole in its order."""
        starts = (self._starts[at] for at in self._cuts[:-1])
        return tuple(itertools.pairwise((*starts, len(self.joined) + 1)))

    @cached_property
    def _cuts(self) -> list[int]:
        """Indices of the lines with which parts begin, and how many lines there are."""
        cuts, begin = [0], 0
        for at, start in enumerate(self._starts):
            if at - cuts[-1] == PART or start - begin >= SIZE:
                cuts.append(at)
                begin = start
        return [*cuts, len(self.lines)] if self.lines else [0]

    @cached_property
    def words(self) -> Words:
        """Of the parts."""
        return Words(self.joined[begin:end] for begin, end in self.parts)

    @cached_property
    def _starts(self) -> list[int]:
        starts, at = [], 0
        for lower in self._lower:
            starts.append(at)
            at += len(lower) + 1
        return starts

    def places(self, wanted: Wanted) -> Iterator[re.Match[str]]:
        """Where the pattern fits, searched for only in parts of the log that hold its words."""
        wanted = wanted.narrowed(self.words)
        if not wanted.needs:
            return
        if any(one in wanted.pattern for one in _LOOKS_AT_ALL):
            yield from wanted.compiled.finditer(self.joined)
            return
        within, at = self.words.within(wanted.needs), 0
        while within >> at:
            at += _trailing(within >> at, 0)
            last = at + _trailing(within >> at, 1)
            # With the part behind the last, in which a message of that one may end.
            end = self.parts[min(last, len(self.parts) - 1)][1]
            yield from wanted.compiled.finditer(self.joined, self.parts[at][0], end)
            at = last

    def last(self, wanted: Wanted) -> int:
        """Where in `joined` the pattern fits for the last time; -1: nowhere."""
        known = self._last.get(wanted.pattern)
        if known is None:
            known = max((found.start() for found in self.places(wanted)), default=-1)
            self._last[wanted.pattern] = known
        return known

    @cached_property
    def _last(self) -> dict[str, int]:
        return {}

    def lines_with(self, wanted: Wanted) -> Iterator[tuple[int, re.Match[str]]]:
        """The numbers of the lines that begin so."""
        wanted = wanted.narrowed(self.words)
        fits, within = wanted.compiled.match, self.words.within(wanted.needs)
        for part in range(within.bit_length()):
            if within >> part & 1:
                for at in range(self._cuts[part], self._cuts[part + 1]):
                    if found := fits(self._lower[at]):
                        yield self.lines[at].number, found

    def index_at(self, offset: int) -> int:
        """Of the line that holds this place of `joined`."""
        return bisect_right(self._starts, offset) - 1


def _trailing(bits: int, bit: int) -> int:
    """How many of its lowest are that one, in a row."""
    return ((bits + 1 if bit else bits) & -(bits + 1 if bit else bits)).bit_length() - 1


def _spoken(lines: tuple[Line, ...]) -> Spoken | None:
    foreign = {
        line.text for line in lines if not line.text.isascii() and _FOREIGN.search(line.text)
    }
    return Spoken.of("\n".join((*foreign, *(line.text for line in lines[-_TAIL:]))).lower())


def without_prefix(line: str) -> str:
    """Its indentation is kept where it has no prefix."""
    for _ in range(DEEPEST):
        found = _PREFIX.match(line.lstrip())
        if not found:
            return line
        line = line.lstrip()[found.end() :]
    return line


def _lines(text: str) -> Iterator[Line]:
    warned_at, passed, quoted = -1, False, Quoted()
    for number, raw in numbered(text):
        if " " not in raw and _ENCODED.fullmatch(raw):
            continue
        bare = without_prefix(_plain(raw))
        said = " ".join(bare.split())
        if '"content"' in said or "prompt" in said:
            said = _OF_USERS.sub("", said)
        if not said or _says_nothing(said):
            continue
        indent = len(bare) - len(bare.lstrip())
        if quoted.has(said, indent):
            continue
        lower = said.lower()
        if warned_at >= 0 and indent <= warned_at:
            warned_at = -1
        warns = warned_at >= 0 or (_may_warn(lower) and bool(_WARNS.match(lower)))
        if lower.startswith("cmake") and warns:
            warned_at, passed = indent, bool(_FOR_DEVELOPERS.match(lower))
        if warned_at >= 0 and passed:
            continue
        yield Line(number, said, warns)


def _says_nothing(said: str) -> bool:
    first = said[0]
    return (first == "W" and bool(_GLOG_WARNING.match(said))) or (
        first in "BL" and bool(_STEP.fullmatch(said))
    )


def _plain(line: str) -> str:
    if "\x1b" in line:
        line = _ANSI.sub("", line)
    return line if line.isascii() else line.translate(_PLAIN)


def _may_warn(lower: str) -> bool:
    """What all that `_WARNS` fits has."""
    return "warn" in lower or lower[0] in "wdc["


def numbered(text: str) -> Iterator[tuple[int, str]]:
    """Lines, each in bounded size, with the numbers that they have in the whole.

    What a carriage return parts are lines of one number, as of a bar of progress. Of a long log
    both ends, and of what is between them the lines that sound like a failure.
    """
    for number, line in _read(text):
        for part in line.rstrip("\r").split("\r"):
            long = len(part) > LONGEST_LINE + END
            yield number, f"{part[:LONGEST_LINE]} ... {part[-END:]}" if long else part


def _read(text: str) -> Iterator[tuple[int, str]]:
    if len(text) <= 2 * HALF:
        yield from enumerate(text.split("\n"), 1)
        return
    head = text.rfind("\n", 0, HALF) + 1 or HALF
    tail = text.find("\n", len(text) - HALF) + 1 or len(text) - HALF
    yield from enumerate(text[:head].removesuffix("\n").split("\n"), 1)
    yield from _between(text, head, tail)
    yield from enumerate(text[tail:].split("\n"), text.count("\n", 0, tail) + 1)


def _between(text: str, head: int, tail: int) -> Iterator[tuple[int, str]]:
    at, number, left = head, text.count("\n", 0, head) + 1, BETWEEN
    for begin in sorted(_sounding(text, head, tail)):
        if begin < at:
            continue
        number += text.count("\n", at, begin)
        at = begin
        for _ in range(1 + FOLLOWING):
            end = text.find("\n", at, tail) + 1 or tail
            left -= min(end - at, LONGEST_LINE)
            if left < 0 or at == tail:
                return
            yield number, text[at:end].removesuffix("\n")
            at, number = end, number + 1


def _sounding(text: str, head: int, tail: int) -> set[int]:
    """Where lines begin that sound like a failure; a build's own steps do not."""
    found = set[int]()
    for word in _SOUNDS:
        at, count = text.find(word, head, tail), 0
        while at >= 0 and count < MOST_SOUNDING:
            begin = text.rfind("\n", head, at) + 1 or head
            end = text.find("\n", at, tail)
            end = tail if end < 0 else end
            line = text[begin : min(end, begin + LONGEST_LINE)]
            if not _STEP.fullmatch(without_prefix(line).strip()):
                found.add(begin)
                count += 1
            at = text.find(word, end, tail)
    return found
