"""Whether a log says that something failed, known or not, and in which of its lines."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from functools import cache

from llamafleet.protocol.log_text import Line
from llamafleet.protocol.recovery import Recovery

OWN = (
    r"\berror:(?! subprocess-exited| command )|\berror in \w+: |错误[:：]"
    r"|\b[Ff]atal(?: error)? ?[:：]|\b(?:nvcc|ptxas|nvlink) fatal"
    r"|undefined reference to|cannot find -l|multiple definition of|CUDA error|GGML_ASSERT"
    r"|^\s*(?:\w+\.)*\w*(?:Error|Exception)(?:: |:?$)"
    r"|^(?:[a-z_]\w*\.)+[A-Z]\w+: |No space left on device|Segmentation fault"
    r"|:\d+:\d+: ERROR: "
    r"|\berror [A-Z]{1,5}\d{3,5}: |^E: |error while loading shared|died due to signal|\bKilled\b"
    r"|^(?:\S{0,200}/)?(?:[\w.-]+-)?ld(?:\.\w+)?: "
    r"(?!warning|skipping|note|total|.{0,300}(?:warning: |in function))"
    r"|^make(?:\[\d+\])?: \*\*\* (?!\[)|^panic: |\bFATAL\b"
    r"|NVRM: .{0,60}(?:[Ff]ailed|[Ee]rror)\b|^\[FAILED\]"
)
"""A compiler's, linker's, loader's or interpreter's own words."""
FAILED = (
    r"\berror:|FAILED:|CMake Error|ERROR:|\*\*\* \[|Error response from daemon"
    r"|Installation failed|\bfailed\b.{0,40}\bexit|\b(?:check|build|test|step|command) failed\b"
    r"|^\S.{0,200} failed:$|^collect2: |command not found$|did not execute successfully|^ERROR$"
    r"|^Error: |^(?:.{1,80}: )?(?:line \d+: )?\S+: not found$"
    r"|\bexit(?:ed)? (?:with )?(?:code|status):? [1-9]|\breturned non-zero|\bexit status [1-9]"
)
"""What reports a failure of another program."""
_STEMS = (
    *("error", "fail", "fatal", "exception", "undefined", "cannot", "multiple", "assert"),
    *("no space", "fault", "died", "killed", "panic", "nvrm", "not found", "not execute", "*** ["),
    *(
        "ld: ",
        "make",
        "collect2",
        "traceback",
        "exit",
        "returned",
        "fehler",
        "错误",
        "ошибка",
        "エラー",
    ),
)
_APT = "e: "
FALLS_BACK = r"(?i)warning:.{0,200}(?:\bCPU\b|fall(?:ing)? ?back|will be ignored|no usable GPU)"

ENDS = 4
"""Lines at the end of a log in which a word of failure alone is enough."""
PROSE = 300
"""Characters of a line beyond which such a word is one of a text that a program was given."""
GOES_ON_WITHIN = 3
"""Lines behind a failure in which a program says that it goes on without what failed."""

_WORDS = (
    r"(?i)(?<![\w./=-])(?:errors?|fail(?:s|ed|ures?|ing)?|fatal|cannot|can't|can not|could not"
    r"|couldn't|unable to|refused|denied|forbidden|unauthori[sz]ed|not found|does(?: not|n't) exist"
    r"|no such|invalid|illegal|abort(?:ed|ing)?|crash(?:ed|es)|exceptions?|killed|segfault"
    r"|rejected|(?:is|are) not (?:supported|installed|available|allowed|permitted|recognized)"
    r"|unsupported|unresolved|not permitted|timed out|unreachable|mismatch(?:es)?|incompatible"
    r"|unavailable|corrupt(?:ed)?|insufficient|out of memory|no more mirrors|too many requests"
    r"|rate limit|not ready|(?:is|are) required|fallen off|is too old|core dumped|bad gateway"
    r"|status(?: code)?:? ?\(?[45]\d\d|http(?:/[\d.]+)? ?(?:status )?[45]\d\d|erro[rn]? [45]\d\d"
    r"|[Xx]id \("
    r"|no usable|interrupted|corruption|smashing detected|no matches|unknown (?:shorthand )?flag"
    r"|repeated too quickly|locked by|\bERR!|no longer supported|is not a valid|not enough"
    r"|exceed(?:s|ed)|too (?:many|few|large|long|small|short)|unsatisfiable|in conflict"
    r"|treating as linker"
    r"|fehler|erreur|échec|échoué|impossible d|erro|falha|falló|ошибк\w*|не удалось|отказано"
    r"|fehlgeschlagen|nicht gefunden|introuvable|fallito)(?![\w/(-]|\.\w)"
    r"|\b(?:code|status)[=: ]{1,2}-?(?!0\b|[23]\d\d\b)\d{1,3}\b"
    r"|错误|失败|无法|找不到|未找到|錯誤|失敗|エラー|できません|오류|실패"
)
_HARMLESS = (
    r"(?i)(?:-- |\+* ?echo |get:|hit:|ign:|unpacking |setting up |selecting |preparing to "
    r"|\(reading |downloading "
    r"|.{0,300}(?:\becho >&2|\b(?:no|0|without|zero|any) (?:\w{1,20} )?"
    r"(?:errors?|failures?|problems?|failed|corrupt(?:ed)?|invalid|missing|rejected|exceptions?)\b"
    r"|\berror (?:less|smaller|below|rate|margin|bound|tolerance)\b"
    r"|\b(?:errors?|fail(?:ed|ures?))(?:\(s\))?[:=] ?(?:0|none)\b|\b0 (?:failed|errors?)\b"
    r"|\blevel=(?:info|debug)\b|not a git repository|dubious ownership"
    r"|\bignor(?:ed|ing)\b|\bskipp(?:ed|ing)\b|\bretrying\b|fall(?:ing|s)? ?back to"
    r"|tainting kernel|taints kernel|acpi(?: bios)? error|raise_exception|- kv +\d|if it fails"
    r"|\baudit: type=\d|\btraps: (?!python|llama|nvidia)"
    r"|\"(?:get|post|head|put) \S{1,200} http/|done request:|log_server_r|/health"
    r"|unable to register \w{1,40} factory|\. setting `"
    r"|\bno longer\b.{0,40}\brequired\b|not upgraded|on failure|error.?correct|ecc errors?"
    r"|[\w,] ['\"](?:errors?|fail(?:s|ed|ures?)?)['\"]"
    r"|error: resource\(s\) were provided, but no name"
    r"|pip's dependency resolver|in case of|(?:not found|missing|failed)[,;:.…]* [a-z]+ing\b"
    r"|unable to determine if secure boot|but you have .{1,100}incompatible"
    r"|\brequires .{1,100}which is not installed))"
)
"""Of lines that hold such a word, those of programs that do well."""
_GOES_ON = (
    r"(?i)(?:(?:falling back|fallback|retrying|trying again"
    r"|(?:ignoring|skipping|continuing|using)\b)"
    r"|.{0,300}(?:falling back to|retrying|will be (?:ignored|skipped)|continuing (?:with|anyway)))"
)


_EXCEPTION = r"(?:\w+\.)*[A-Z]\w+(?:: |$)"
_TRACEBACK = "Traceback (most recent call last)"
_STOPPED = ("KeyboardInterrupt", "SystemExit: 0")
LONGEST_TRACEBACK = 200
"""Lines of one that are looked at."""


def fits(pattern: str, text: str) -> bool:
    """One of the patterns above fits somewhere in the line."""
    return bool(_compiled(pattern).search(text))


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """Not when this is imported: that is on the way of each command."""
    return re.compile(pattern)


def failing(lines: Sequence[Line], recovery: Recovery) -> Line | None:
    """The first line that says that something failed and did not end well further down."""
    left = [line for line in lines if not line.warns]
    last = [line for line in left[-ENDS:] if line.number > recovery.well]
    ends = [line for line in last if _complains(line.text)]
    if last and _raised(left):
        ends.append(left[-1])
    lasting = (
        line
        for at, line in enumerate(left)
        if line.number >= recovery.ended
        and tells(line.text)
        and (ends or not _gone_on(left, at))
        and not recovery.ended_well(line)
    )
    firsts = [*itertools.islice(lasting, 1), *ends[:1]]
    return min(firsts, key=lambda line: line.number, default=None)


def _raised(lines: Sequence[Line]) -> bool:
    """The last line is that of an exception, whatever its name."""
    last = lines[-1].text
    if last.startswith(_STOPPED) or not _compiled(_EXCEPTION).match(last):
        return False
    return any(_TRACEBACK in line.text for line in lines[-LONGEST_TRACEBACK:])


def _complains(text: str) -> bool:
    return len(text) <= PROSE and fits(_WORDS, text) and not harmless(text)


def tells(text: str) -> bool:
    """A line's own words say that something failed, wherever it stands."""
    said = may_tell(text) and (fits(OWN, text) or fits(FAILED, text))
    return bool(said) and not harmless(text)


def own(text: str) -> bool:
    """They are a compiler's, linker's, loader's or interpreter's own words."""
    return may_tell(text) and fits(OWN, text)


def may_tell(text: str) -> bool:
    """What all lines have that OWN or FAILED fits: looked for first, for it takes no time."""
    lower = text.lower()
    if any(map(lower.__contains__, _STEMS)) or lower.startswith(_APT):
        return True
    name = text[: max(0, text.find(": "))]
    return "." in name and " " not in name  # an exception's


def harmless(text: str) -> bool:
    """It says so of what does no harm."""
    return bool(_compiled(_HARMLESS).match(text))


def _gone_on(lines: Sequence[Line], at: int) -> bool:
    """The line before counts too: two streams come out of order."""
    about = lines[max(0, at - 1) : at + 1 + GOES_ON_WITHIN]
    return any(_compiled(_GOES_ON).match(line.text) for line in about)
