"""What a log itself shows to be mended: a step that was begun again and ended well."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from llamafleet.protocol.log_text import Line, LogText
from llamafleet.protocol.needed import Wanted

BUILD = frozenset({"toolkit", "deps", "configure", "compile", "link", "detection"})
MADE = BUILD - {"detection"} | {"import"}
"""Done before a run does its work."""
RUN = frozenset({"import", "runtime"})
OUT_OF_MEMORY = "oom-"
"""How signatures of it begin: llama.cpp itself tries again with less."""

_FETCHES = (
    r"downloading|using cached|requirement already|collecting|obtaining|successfully|"
    r"installing collected|"
    r"get:\d|fetched |\S+ \d{3} ok"
)
_BUILD_BEGINS = (
    r"(?P<cmake>\*\*\* configuring cmake)|(?P<compiler>-- the c compiler identification)"
    r"|(?P<wheel>building wheel for (?P<of>\S+)(?: \(\S+\))?(?:: started| \.\.\. ))"
    r"|(?P<pip>collecting llama|processing \S*llama)"
    r"|(?P<typed>[$+] (?:sudo )?(?P<program>cmake|pip|make|docker|apt(?:-get)?|conda) (?P<rest>.*))"
    r"|(?P<again>attempt [2-9]|(?:retry|try)ing (?:again|with|once)\b)"
)
_BUILD_ENDED = (
    r"successfully (?:installed|built)|\*\*\* created \S+\.whl|built target |"
    r"-- build files have been written|build (?:finished|succeeded)|installed llama"
)
_MAKE_FAILED = r".{0,40}make(?:\[\d+\])?: \*\*\* "
_MAKE_LEFT = r"make(?:\[\d+\])?: leaving directory"
"""It says so at its end whether or not it failed."""
_GOOD_END = (
    r"(?P<apt>0 upgraded, 0 newly installed)"
    r"|(?P<container>status: (?:downloaded newer|image is up to date)|successfully tagged"
    r"|naming to \S{1,200}.{0,20}done|exporting to image)"
    r"|complete!$|nothing to do\.?$|ignoring repositories: |requirement already "
    r"|installed \d+ packages? in|audited \d+ packages?|executing transaction: .{0,20}done"
    r"|# to activate this environment|.{0,40}all requested packages already installed"
    r"|dkms: (?:install|build) completed|dkms autoinstall .{0,80}succeeded"
    r"|.{0,200}installation of the .{1,120}is now complete|(?:all )?done[.!]?$|-- generating done"
    r"|successfully uninstalled"
    r"|.{0,80}\b(?:completed|finished|installed|built|loaded|started|updated) successfully\b"
    r"|.{0,80}\bsuccess(?:ful(?:ly)?)?[.!]*$|test passed$|result = pass$"
)
"""How steps of package managers, container engines and installers end well."""
_VERDICT = (
    r".{0,120}\b(?:\w{0,40}exit[_ ](?:code|status)|exited with(?: code| status)?|rc)"
    r"[^\w\n]{1,3}0[^\w\n]{0,4}$"
    r"|(?!.{0,80}(?:pull|download|extract|verif|shut ?down|startup)).{0,80}"
    r"\b(?:complete|completed|finished)(?: (?:in|for|at|after) .{1,40})?[.!]*$"
    r"|(?:.{0,40}\b)?(?:failed|failures|errors)[:=] ?0(?:/\d+)?$"
    r"|.{0,60}\b0 (?:failed|failures|errors)$"
    r"|ok(?: \(skipped=\d+\))?$|=+ \d+ passed(?!.{0,80}(?:failed|error)).{0,80} in "
)
"""How a whole run tells that it went well, in its last lines."""
LAST = 5
"""Lines at the end of a log that hold it."""
_SAID_BY = re.compile(
    r"(?P<apt>e: |dpkg: error)|(?P<container>error response from daemon|.{0,40}failed to solve)"
    r"|(?P<build>.{0,400}(?:: (?:fatal )?error: |\b(?:nvcc|ptxas|nvlink) (?:fatal|error)"
    r"|undefined reference to|cannot find -l)|cmake error|failed: |.{0,40}\*\*\* \[|collect2: "
    r"|ninja: )"
)
"""Whose failure no other program's good end mends."""
_RUN_BEGINS = (
    r".{0,60}(?:(?P<model>loaded meta data)|(?P<main>main: loading model)"
    r"|(?P<server>starting llama server|started llama)|(?P<runner>starting (?:go )?runner)"
    r"|(?P<devices>found [1-9]\d{0,2} cuda devices))"
)
_RUN_ENDED = (
    r".{0,60}(?:is listening|: listening on|model loaded|output generated in|llama runner started"
    r"|eval time|"
    r"all slots are idle|initializing,? (?:n_)?slots|llama_perf|print_timings?\b|"
    r"\[ prompt: [\d.]+ t/s|\d+ tokens per second"
    r"|loading checkpoint shards: +\d|\{'(?:train_|eval_)?loss': )"
)
_SERVED = (
    r".{0,200}(?:\d - (?:- \[[^\]\n]{1,40}\] )?\"post \S{1,200} http/[\d.]{1,4}\" 20\d\b"
    r"|done request: post \S{1,200} \S{1,80} 20\d\b|\| {0,4}20\d {0,4}\|.{0,80}\bpost\b"
    r"|post \S{1,200}/(?:completions?|generate|chat|embeddings?|responses|messages)"
    r" \"http/[\d.]{1,4} 20\d|generation throughput: (?!0\.0 )[\d.]+ tok"
    r"|eval time =|output generated in)"
)
"""A server has answered, or a run has given its output: what died before was started again."""
_STOPPED = r"keyboardinterrupt\b|\^c$|\^ckeyboardinterrupt"
"""Its user ended a program that did its work until then."""
_AGAIN = "again"
_OF_A_BUILD = "build"
_OURS = "llama"
_STEPS_OF_OURS = frozenset({"cmake", "compiler", "pip", "make"})
_HAVE_VERBS = frozenset({"pip", "docker", "apt", "apt-get", "conda"})

Steps = tuple[tuple[int, str], ...]
"""Line numbers, and what was begun or ended there."""


@dataclass(frozen=True)
class Recovery:
    """Line numbers; 0: nowhere."""

    fetched: int
    """The last line at which something was downloaded or installed."""
    begun: Steps
    """Before the last good end."""
    builds: Steps
    """Of builds that ended well, or before one did."""
    runs: Steps
    ended: int
    """The last line that says that a run does its work."""
    served: int
    """The last line that says that a request was answered."""
    succeeded: int
    """The last line that says that a build ended well."""
    ends: Steps
    """Where steps ended well, and who says it; empty: any program."""

    @classmethod
    def of(cls, log: LogText) -> Recovery:
        ends, begun = tuple(_ends(log)), _begins(log, _BUILD_BEGINS)
        succeeded = max((at for at, who in ends if who == _OF_A_BUILD), default=0)
        served, last = _last(log, _SERVED), max((at for at, _ in ends), default=0)
        ended = max(served, _last(log, _RUN_ENDED))
        ended = ended and max(ended, _last(log, _STOPPED))
        return cls(
            fetched=_last(log, _FETCHES),
            begun=tuple(each for each in begun if each[0] < last),
            builds=tuple(each for each in begun if each[0] < succeeded),
            runs=tuple(each for each in _begins(log, _RUN_BEGINS) if each[0] < ended),
            ended=ended,
            served=served,
            succeeded=succeeded,
            ends=ends,
        )

    @property
    def well(self) -> int:
        """The last line that says that all went well."""
        return max([self.ended, *(at for at, _ in self.ends[-1:])])

    def ended_well(self, line: Line) -> bool:
        """What that line tells of ended well further down, and not only something else did."""
        number = line.number
        if number < self.ended:
            return True
        said = _SAID_BY.match(line.text.lower())
        by = {said.lastgroup, _OF_A_BUILD} if said else None
        ends = (at for at, who in self.ends if at > number and (by is None or who in by))
        end = next(ends, 0)
        if not end:
            return False
        before = {what for at, what in self.begun if at < number} | {_AGAIN}
        behind = [(at, what) for at, what in self.begun if at > number]
        alone = not any(at < end for at, _ in behind)
        return alone or any(what in before or _of_ours(what) for _, what in behind)

    def mended(self, stage: str, id: str, line: Line) -> bool:
        """What that line says of that stage is of no more account."""
        if stage in MADE and line.number < self.ended:
            return True
        if stage in BUILD:
            warned = line.warns and line.number < max(self.succeeded, self.fetched)
            return warned or _begun_again(self.builds, line.number)
        if stage in RUN:
            less = id.startswith(OUT_OF_MEMORY) and line.number < self.ended
            return line.number < self.served or less or _begun_again(self.runs, line.number)
        return False


def _begun_again(begins: Steps, number: int) -> bool:
    """The same step was begun before that line and behind it."""
    before = {what for at, what in begins if at < number} | {_AGAIN}
    return any(at > number and what in before for at, what in begins)


@cache
def _wanted(pattern: str) -> Wanted:
    """Not when this is imported: that is on the way of each command."""
    return Wanted.of(pattern)


def _last(log: LogText, pattern: str) -> int:
    return max((number for number, _ in log.lines_with(_wanted(pattern))), default=0)


def _ends(log: LogText) -> list[tuple[int, str]]:
    broken = min((at for at, _ in log.lines_with(_wanted(_MAKE_FAILED))), default=sys.maxsize)
    left = {at for at, _ in log.lines_with(_wanted(_MAKE_LEFT)) if at < broken}
    build = left | {at for at, _ in log.lines_with(_wanted(_BUILD_ENDED))}
    verdict = _wanted(_VERDICT).compiled
    told = {line.number: "" for line in log.lines[-LAST:] if verdict.match(line.text.lower())}
    told.update((at, good.lastgroup or "") for at, good in log.lines_with(_wanted(_GOOD_END)))
    return sorted({**told, **dict.fromkeys(build, _OF_A_BUILD)}.items())


def _begins(log: LogText, pattern: str) -> Steps:
    return tuple((number, _what(match)) for number, match in log.lines_with(_wanted(pattern)))


def _what(begun: re.Match[str]) -> str:
    """Of two steps the same where one is the other made again: with other options, or versions."""
    said = begun.groupdict()
    if said.get("of"):
        return f"wheel {_target([said['of']])}"
    if said.get("program") in _HAVE_VERBS:
        verb, *words = said["rest"].split() or [""]
        return f"{said['program']} {verb} {_target(words)}"
    return said.get("program") or begun.lastgroup or ""


def _of_ours(what: str) -> bool:
    return what in _STEPS_OF_OURS or what.endswith(_OURS)


def _target(words: Iterable[str]) -> str:
    """What is built or installed; whatever is named beside it."""
    names = [word for word in words if not word.startswith("-")]
    if any(_OURS in name for name in names):
        return _OURS
    return next((re.split(r"[=<>~!\[]", name)[0] for name in names), "")
