"""The words that a pattern can't be found without: most patterns are not searched for in a log."""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce
from operator import and_, or_

Needs = tuple[tuple["str | Needs", ...], ...]
"""One of these, of which all: a word, or the same again of a group.

With a space at an end where the pattern has the word's end: else it is a part of a word.
"""

SHORT = 3
"""Characters of a part of a word below which nearly all parts of a text hold it."""
_WORD = re.compile(r"\w+")
_LOOKS = ("(?=", "(?!", "(?<")
_NOT_CAPTURED = re.compile(r"\(\?(?:[a-z]*:|P<\w+>)")
_MAY_LACK = re.compile(r"[?*]|\{0?,")
_REPEATS = re.compile(r"(?:[?*+]|\{[\d,]+\})[?+]?")
SPACE = r"[ \n]"
"""What stands for a space in a pattern: a line may end there."""
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]")


def needs_of(pattern: str) -> Needs:
    """Of a pattern in lower case, in the syntax of `re` without its rarer parts."""
    return _Reader(pattern).alternatives()


def alternatives_of(pattern: str) -> tuple[str, ...]:
    """The same that `needs_of` tells of, in its order: the pattern is these with | between."""
    reader = _Reader(pattern)
    ends = [-1]
    reader.alternatives(ends)
    return tuple(pattern[a + 1 : b] for a, b in itertools.pairwise([*ends, len(pattern)]))


class Words:
    """Which of its parts of a text hold a word: a bit for each, the first one's is 1.

    A part holds those of the next one too, where messages end.
    """

    def __init__(self, parts: Iterable[str]) -> None:
        found: dict[str, int] = {}
        everywhere = 0
        for at, part in enumerate(parts):
            everywhere |= 1 << at
            for word in set(_WORD.findall(part)):
                found[word] = found.get(word, 0) | 1 << at
        self._parts = found
        self._all = f" {' '.join(found)} "
        self._everywhere = everywhere
        self._asked: dict[str, int] = {}

    def anywhere(self, needs: Needs) -> bool:
        """A pattern that needs that may be found in the whole."""
        return any(
            all(
                bool(self._of(each)) if isinstance(each, str) else self.anywhere(each)
                for each in one
            )
            for one in needs
        )

    def within(self, needs: Needs) -> int:
        """The parts that a pattern which needs that may be found in."""
        return reduce(or_, map(self._all_of, needs), 0)

    def _all_of(self, needed: tuple[str | Needs, ...]) -> int:
        each = (self._of(one) if isinstance(one, str) else self.within(one) for one in needed)
        return reduce(and_, each, self._everywhere)

    def _of(self, needed: str) -> int:
        known = self._asked.get(needed)
        if known is None:
            found = self._found(needed)
            known = self._asked[needed] = found | found >> 1
        return known

    def _found(self, needed: str) -> int:
        if needed.startswith(" ") and needed.endswith(" "):
            return self._parts.get(needed.strip(), 0)
        if len(needed) < SHORT:
            return self._everywhere
        if needed.startswith(" "):
            return self._all_with(needed[1:], self._forward)
        if needed.endswith(" "):
            return self._all_with(needed[-2::-1], self._backward)
        words, made = self._all, 0
        at = words.find(needed)
        while at >= 0 and made != self._everywhere:
            begin, end = words.rfind(" ", 0, at), words.find(" ", at)
            made |= self._parts[words[begin + 1 : end]]
            at = words.find(needed, end)
        return made

    def _all_with(self, start: str, words: list[tuple[str, int]]) -> int:
        made = 0
        for at in range(bisect_left(words, (start, 0)), len(words)):
            word, parts = words[at]
            if made == self._everywhere or not word.startswith(start):
                break
            made |= parts
        return made

    @cached_property
    def _forward(self) -> list[tuple[str, int]]:
        return sorted(self._parts.items())

    @cached_property
    def _backward(self) -> list[tuple[str, int]]:
        return sorted((word[::-1], parts) for word, parts in self._parts.items())


@dataclass(frozen=True)
class Wanted:
    """A pattern, and the words that each of its alternatives needs."""

    pattern: str
    needs: Needs

    @classmethod
    def of(cls, pattern: str) -> Wanted:
        return cls(pattern, needs_of(pattern))

    @property
    def compiled(self) -> re.Pattern[str]:
        return _compiled(self.pattern)

    def narrowed(self, words: Words) -> Wanted:
        """Without the alternatives whose words are not there."""
        each = alternatives_of(self.pattern)
        if len(each) != len(self.needs):  # asked for without a filter
            return self
        pairs = zip(each, self.needs)  # noqa: B905 - hosts have Pythons without strict
        held = [(one, needs) for one, needs in pairs if words.anywhere((needs,))]
        return Wanted("|".join(one for one, _ in held), tuple(needs for _, needs in held))


@lru_cache(maxsize=2048)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.MULTILINE)


@dataclass
class _Reader:
    pattern: str
    at: int = 0

    def alternatives(self, ends: list[int] | None = None) -> Needs:
        """Up to the end, or to the bracket that closes a group. `ends`: takes where | stands."""
        made = [self._alternative()]
        while self._next() == "|":
            if ends is not None:
                ends.append(self.at)
            self.at += 1
            made.append(self._alternative())
        return tuple(made)

    def _next(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def _alternative(self) -> tuple[str | Needs, ...]:
        needed: list[str | Needs] = []
        run = ""
        while (one := self._next()) not in ("", "|", ")"):
            part = self._part(one)
            lacks, repeats = _MAY_LACK.match(self.pattern, self.at), self._pass(_REPEATS)
            if isinstance(part, str) and not lacks:
                run += part
                if part and not repeats:
                    continue
            elif not isinstance(part, str) and not lacks and all(part):
                needed.append(part)
            needed += _words(run)
            run = ""
        return (*needed, *_words(run))

    def _part(self, one: str) -> str | Needs:
        """A letter, a space for another character, nothing for what may be several."""
        if one == "(":
            return self._group()
        if one == "[":
            begin = self.at
            self._pass(_CLASS)
            return " " if self.pattern[begin : self.at] == SPACE else ""
        if one == "\\":
            self.at += 2
            return "" if self.pattern[self.at - 1].isalnum() else " "
        self.at += 1
        if one in ".^$":
            return ""
        return one if _WORD.match(one) else " "

    def _group(self) -> Needs:
        """Of one that looks ahead or back nothing."""
        looks = self.pattern.startswith(_LOOKS, self.at)
        self._pass(_NOT_CAPTURED) or self._pass(re.compile(r"\(\?<?[=!]|\("))
        inner = self.alternatives()
        self.at += 1
        return ((),) if looks else inner

    def _pass(self, what: re.Pattern[str]) -> bool:
        found = what.match(self.pattern, self.at)
        self.at = found.end() if found else self.at
        return bool(found)


def _words(run: str) -> list[str]:
    first, *others = run.split(" ")
    if not others:
        return [first] if first else []
    *within, last = others
    made = [f"{first} " if first else "", *(f" {each} " for each in within if each)]
    return [each for each in (*made, f" {last}" if last else "") if each]
