"""What a log itself shows to be mended: a step that was begun again and ended well."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from llamafleet.protocol.log_text import Line, LogText

BUILD = frozenset({"toolkit", "deps", "configure", "compile", "link", "detection"})
RUN = frozenset({"import", "runtime"})
OUT_OF_MEMORY = "oom-"
"""How signatures of it begin: llama.cpp itself tries again with less."""

_FETCHES = re.compile(
    r"(?:downloading|using cached|collecting|obtaining|installing collected|successfully|"
    r"get:\d|fetched |\S+ \d{3} ok)"
)
_BUILD_BEGINS = re.compile(
    r"(?:\*\*\* configuring cmake|building wheel for \S+(?: \(\S+\))?(?:: started| \.\.\. )"
    r"|running command building wheel|collecting llama|processing \S*llama"
    r"|-- the c(?:xx)? compiler identification|attempt \d|retrying|[$+] (?:cmake|pip|make|sudo) )"
)
_BUILD_ENDED = re.compile(
    r"(?:successfully (?:installed|built)|\*\*\* created \S+\.whl|built target |"
    r"-- build files have been written|build (?:finished|succeeded)|installed llama)"
)
_RUN_BEGINS = re.compile(
    r".{0,60}(?:loaded meta data|loading model\b|starting (?:llama server|go runner|runner)|"
    r"started llama|found [1-9]\d{0,2} cuda devices)"
)
_RUN_ENDED = re.compile(
    r".{0,60}(?:is listening|: listening on|model loaded|llama runner started|eval time|"
    r"all slots are idle|llama_perf|print_timings?\b|\d+ tokens per second)"
)


@dataclass(frozen=True)
class Recovery:
    """Line numbers; 0: nowhere."""

    fetched: int
    """The last line at which something was downloaded or installed."""
    build: int
    """The last beginning of a build that ended well."""
    run: int
    """The last beginning of a run that ended well."""
    ended: int
    """The last line that says that a run does its work."""
    succeeded: int
    """The last line that says that a build ended well."""

    @classmethod
    def of(cls, log: LogText) -> Recovery:
        lines = [(line.number, line.text.lower()) for line in log.lines]
        succeeded, ended = _last(lines, _BUILD_ENDED), _last(lines, _RUN_ENDED)
        return cls(
            fetched=_last(lines, _FETCHES),
            build=_last([each for each in lines if each[0] < succeeded], _BUILD_BEGINS),
            run=_last([each for each in lines if each[0] < ended], _RUN_BEGINS),
            ended=ended,
            succeeded=succeeded,
        )

    def mended(self, stage: str, id: str, line: Line) -> bool:
        """What that line says of that stage is of no more account."""
        if stage in BUILD:
            again = line.number < self.build
            warned = line.warns and line.number < max(self.succeeded, self.fetched)
            return again or warned
        if stage in RUN:
            less = id.startswith(OUT_OF_MEMORY) and line.number < self.ended
            return line.number < self.run or less
        return False


def _last(lines: Iterable[tuple[int, str]], pattern: re.Pattern[str]) -> int:
    return max((number for number, text in lines if pattern.match(text)), default=0)
