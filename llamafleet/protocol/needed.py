"""The words that a pattern can't be found without: most patterns are not searched for in a log."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

Needs = tuple[tuple["str | Needs", ...], ...]
"""One of these, of which all: a word, or the same again of a group.

With a space at an end where the pattern has the word's end: else it is a part of a word.
"""

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


def vocabulary(text: str) -> str:
    """Each word of a text once, with spaces between, before and behind."""
    return " ".join(["", *set(_WORD.findall(text)), ""])


def holds(needs: Needs, words: str) -> bool:
    """The pattern may be found in the text that this is the vocabulary of."""
    return any(
        all(each in words if isinstance(each, str) else holds(each, words) for each in one)
        for one in needs
    )


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
