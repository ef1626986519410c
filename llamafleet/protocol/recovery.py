"""What a log itself shows to be mended: a step that was begun again and ended well."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from llamafleet.protocol.log_text import Line, LogText

BUILD = frozenset({"toolkit", "deps", "configure", "compile", "link", "detection"})
MADE = BUILD - {"detection"} | {"import"}
"""Done before a run does its work."""
RUN = frozenset({"import", "runtime"})
OUT_OF_MEMORY = "oom-"
"""How signatures of it begin: llama.cpp itself tries again with less."""

_FETCHES = re.compile(
    r"(?:downloading|using cached|requirement already|collecting|obtaining|successfully|"
    r"installing collected|"
    r"get:\d|fetched |\S+ \d{3} ok)"
)
_BUILD_BEGINS = re.compile(
    r"(?P<cmake>\*\*\* configuring cmake)|(?P<compiler>-- the c compiler identification)"
    r"|(?P<wheel>building wheel for (?P<of>\S+)(?: \(\S+\))?(?:: started| \.\.\. ))"
    r"|(?P<pip>collecting llama|processing \S*llama)"
    r"|(?P<typed>[$+] (?:sudo )?(?P<program>cmake|pip|make|docker|apt(?:-get)?|conda) (?P<rest>.*))"
    r"|(?P<again>attempt [2-9]|(?:retry|try)ing (?:again|with|once)\b)"
)
_BUILD_ENDED = re.compile(
    r"(?:successfully (?:installed|built)|\*\*\* created \S+\.whl|built target |"
    r"-- build files have been written|build (?:finished|succeeded)|installed llama)"
)
_MAKE_FAILED = re.compile(r".{0,40}make(?:\[\d+\])?: \*\*\* ")
_MAKE_LEFT = re.compile(r"make(?:\[\d+\])?: leaving directory")
"""It says so at its end whether or not it failed."""
_GOOD_END = re.compile(
    r"(?:(?P<apt>0 upgraded, 0 newly installed)"
    r"|(?P<container>status: (?:downloaded newer|image is up to date)|successfully tagged"
    r"|naming to \S{1,200}.{0,20}done|exporting to image)"
    r"|complete!$|nothing to do\.?$|ignoring repositories: |requirement already "
    r"|installed \d+ packages? in|audited \d+ packages?|executing transaction: .{0,20}done"
    r"|# to activate this environment|.{0,40}all requested packages already installed"
    r"|dkms: (?:install|build) completed|dkms autoinstall .{0,80}succeeded"
    r"|.{0,200}installation of the .{1,120}is now complete|(?:all )?done[.!]?$|-- generating done"
    r"|successfully uninstalled"
    r"|.{0,80}\b(?:completed|finished|installed|built|loaded|started|updated) successfully\b"
    r"|.{0,80}\bsuccess(?:ful(?:ly)?)?[.!]*$|test passed$|result = pass$)"
)
"""How steps of package managers, container engines and installers end well."""
_VERDICT = re.compile(
    r"(?:.{0,120}\b(?:\w{0,40}exit[_ ](?:code|status)|exited with(?: code| status)?|rc)"
    r"\W{1,3}0\W{0,4}$"
    r"|(?!.{0,80}(?:pull|download|extract|verif|shut ?down|startup)).{0,80}"
    r"\b(?:complete|completed|finished)(?: (?:in|for|at|after) .{1,40})?[.!]*$"
    r"|ok(?: \(skipped=\d+\))?$|=+ \d+ passed(?!.{0,80}(?:failed|error)).{0,80} in )"
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
_RUN_BEGINS = re.compile(
    r".{0,60}(?:(?P<model>loaded meta data)|(?P<main>main: loading model)"
    r"|(?P<server>starting llama server|started llama)|(?P<runner>starting (?:go )?runner)"
    r"|(?P<devices>found [1-9]\d{0,2} cuda devices))"
)
_RUN_ENDED = re.compile(
    r".{0,60}(?:is listening|: listening on|model loaded|output generated in|llama runner started"
    r"|eval time|"
    r"all slots are idle|initializing,? (?:n_)?slots|llama_perf|print_timings?\b|"
    r"\[ prompt: [\d.]+ t/s|\d+ tokens per second)"
)
_SERVED = re.compile(
    r".{0,200}(?:\d - (?:- \[[^\]]{1,40}\] )?\"post \S{1,200} http/[\d.]{1,4}\" 20\d\b"
    r"|done request: post \S{1,200} \S{1,80} 20\d\b|\| {0,4}20\d {0,4}\|.{0,80}\bpost\b"
    r"|post \S{1,200}/(?:completions?|generate|chat|embeddings?|responses|messages)"
    r" \"http/[\d.]{1,4} 20\d|generation throughput: (?!0\.0 )[\d.]+ tok"
    r"|eval time =|output generated in)"
)
"""A server has answered, or a run has given its output: what died before was started again."""
_STOPPED = re.compile(r"keyboardinterrupt\b|\^c$|\^ckeyboardinterrupt")
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
        lines = [(line.number, line.text.lower()) for line in log.lines]
        ends, begun = tuple(_ends(lines)), _begins(lines, _BUILD_BEGINS)
        succeeded = max((at for at, who in ends if who == _OF_A_BUILD), default=0)
        served, last = _last(lines, _SERVED), max((at for at, _ in ends), default=0)
        ended = max(served, _last(lines, _RUN_ENDED))
        ended = ended and max(ended, _last(lines, _STOPPED))
        return cls(
            fetched=_last(lines, _FETCHES),
            begun=tuple(each for each in begun if each[0] < last),
            builds=tuple(each for each in begun if each[0] < succeeded),
            runs=_begins([each for each in lines if each[0] < ended], _RUN_BEGINS),
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


def _last(lines: Sequence[tuple[int, str]], pattern: re.Pattern[str]) -> int:
    return next((number for number, text in reversed(lines) if pattern.match(text)), 0)


def _ends(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    lines = list(lines)
    broken, verdict = False, lines[-LAST:][0][0] if lines else 0
    for number, text in lines:
        broken = broken or bool(_MAKE_FAILED.match(text))
        if _BUILD_ENDED.match(text) or (not broken and _MAKE_LEFT.match(text)):
            yield number, _OF_A_BUILD
        elif good := _GOOD_END.match(text):
            yield number, good.lastgroup or ""
        elif number >= verdict and _VERDICT.match(text):
            yield number, ""


def _begins(lines: Iterable[tuple[int, str]], pattern: re.Pattern[str]) -> Steps:
    found = ((number, pattern.match(text)) for number, text in lines)
    return tuple((number, _what(match)) for number, match in found if match)


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
