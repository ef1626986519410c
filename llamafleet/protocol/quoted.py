"""Which lines of a log a program only shows: source, data, advice, names of files, answers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_QUOTED = re.compile(
    r"warnings\.warn\(|.{0,200}llama_model_loader: - kv +\d|.{0,80}\bmodel metadata: \{"
    r"|chat template: "
    r"|.{0,120}tokenizer\.chat_template|(?:\[info\]:? ?)?:? ?(?:installed: |skipping copy)\S*/"
    r"|.{0,200}\"[a-z]{3,8} \S{1,300} http/[\d.]{1,4}\" [45]\d\d\b"
    r"|(?:\d{1,2}\.|[-*]) (?:`[^`]{1,80}`|\*\*[^*]{1,80}\*\*)|\{[{%]"
    r"|.{0,900}\braise_exception\(|exception ignored in: "
    r"|(?:\W{0,4}|in case |note that )(?:if|when) (?:you|it|this|that|your|the) .{0,60}"
    r"\b(?:get|see|encounter|run into|fails?|happens|receive|hit|having|errors?)\b",
    re.IGNORECASE,
)
_STEMS = (
    *("warnings.warn", "- kv ", "model metadata", "chat template", "chat_template", "installed: "),
    *("skipping copy", '" 4', '" 5', "{{", "{%", "raise_exception", "ignored in", "if ", "when "),
    *(". `", "- `", "* `", "**"),
)
"""What all lines have that `_QUOTED` fits: looked for first, for it takes less time."""
_IGNORED = re.compile(r"exception ignored in: ", re.IGNORECASE)
_OF_TRACEBACK = re.compile(r"traceback \(most|(?:\w+\.)*\w*(?:error|exception)\b", re.IGNORECASE)

_CHECK = re.compile(
    r"(?:performing |determining (?:if|whether) )(?!.{0,60}\bcompiler\b).{1,200} failed with the "
    r"following (?:compile )?output",
    re.IGNORECASE,
)
"""CMake asks what a system has by programs that need not compile, and keeps what they said."""
_CHECK_ENDS = re.compile(
    r"(?:(?:compiling|detecting|checking|determining|performing) |cmake (?:error|warning)|-- )",
    re.IGNORECASE,
)
LONGEST_CHECK = 120
"""Lines that it keeps of one at most."""

_BEGINS = "Traceback (most recent call last)"
_FRAME = re.compile(r'File "[^"]{1,400}", line \d+')
_NUMBERED = re.compile(r"(?:-{1,6}> ?|❱ ?|> )?\d{1,6}(?: [│|])?(?: |$)")
"""IPython and rich print the lines about the one that failed, with their numbers."""
_RAISED = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:: |:?$)")
_TELLS = "assert "
"""The source is all that a failed assertion says."""
_CHAT = re.compile(r"== running in interactive mode|<\|(?:channel|start)\|>", re.IGNORECASE)
_OF_PROGRAM = re.compile(
    r"(?:llama_|ggml_|gguf_|common_|main: |cuda error|ggml_assert|terminate called|segmentation"
    r"|aborted|killed|out of memory|\S{1,300}\.(?:cpp|cu|c):\d+: )",
    re.IGNORECASE,
)
"""What llama.cpp itself says amid a chat; the rest is the user's and the model's."""
_ANSWERED = re.compile(r"\[ prompt: ", re.IGNORECASE)
_CHAT_ENDS = re.compile(
    r"(?:llama_perf|llama_print_timings|common_perf|srv |\[\d+\] |.{0,900}\[end of text\]$)",
    re.IGNORECASE,
)
UNSURE = 20
"""Lines at the end of a chat that may be another program's."""
LONGEST = 2000
"""Lines that a traceback takes at most."""


@dataclass
class Quoted:
    """Asked for each line in its order."""

    ignored: bool = False
    """Within an exception that the interpreter goes on in spite of."""
    check: int = 0
    """Lines that may still belong to one of CMake's checks."""
    left: int = 0
    """Lines that may still belong to a traceback."""
    frame: int = -1
    """Indentation of the line before, where it names a place in a file."""

    def has(self, said: str, indent: int) -> bool:
        self.ignored = self.ignored and (indent > 0 or bool(_OF_TRACEBACK.match(said)))
        if self.ignored or (_may_be_quoted(said) and _QUOTED.match(said)):
            self.ignored = self.ignored or bool(_IGNORED.match(said))
            return True
        return self._of_check(said) or self._of_source(said, indent)

    def _of_check(self, said: str) -> bool:
        if _CHECK.match(said):
            self.check = LONGEST_CHECK
        elif self.check:
            self.check = 0 if _CHECK_ENDS.match(said) else self.check - 1
        return self.check > 0

    def _of_source(self, said: str, indent: int) -> bool:
        if _BEGINS in said:
            self.left, self.frame = LONGEST, -1
            return False
        if not self.left:
            return False
        self.left -= 1
        of, self.frame = self.frame, indent if _FRAME.match(said) else -1
        if self.frame >= 0:
            return False
        if _NUMBERED.match(said) or 0 <= of < indent:
            return _TELLS not in said
        if _RAISED.match(said):
            self.left = 0
        return False


def _may_be_quoted(said: str) -> bool:
    lower = said.lower()
    return any(map(lower.__contains__, _STEMS))


def of_chats(said: Iterable[str]) -> set[int]:
    """Which lines are a user's and a model's: those until llama.cpp tells that it has answered.

    Of a chat that ends without, nobody knows who said its last lines: it may have broken off.
    What stands further above was answered.
    """
    hidden: set[int] = set()
    since: list[int] = []
    chat = False
    for at, line in enumerate(said):
        if not chat:
            chat = ("<|" in line or line.startswith("==")) and bool(_CHAT.match(line))
            since = [at] if chat else []
        elif _ANSWERED.match(line) or _CHAT_ENDS.match(line):
            hidden.update(since)
            since, chat = [], bool(_ANSWERED.match(line))
        elif not _OF_PROGRAM.match(line):
            since.append(at)
    hidden.update(since[:-UNSURE])
    return hidden
