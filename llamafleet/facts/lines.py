"""Lines printed by snapshot.sh, sorted: values by key and blocks by name, bounded and printable."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from llamafleet.facts.host import SNAPSHOT_VERSION
from llamafleet.received import plain

HEADER = "#llamafleet-snapshot"
END = "#end"

MOST_CHARACTERS = 32 << 20
"""Of a whole text; the script prints a tenth of it where nobody fills its files on purpose."""
MOST_NOISE = 2000
"""Lines in front of the header that are looked through: a shell's greeting."""
MOST_ROWS = 400
"""Of one key; more are left out."""
MOST_LINES = 5000
"""Of one block that is no file of JSON."""
LONGEST_LINE = 16384
"""Characters of a line outside JSON; the flags of a processor are 3,000."""
LONGEST_FIELD = 4096
"""As a path can be."""

ACCOUNT = "account"
"""The block of what was printed with the account's rights."""
ACCOUNT_KEYS = frozenset(
    {
        *("compiler", "toolkit", "python", "cmake", "podman", "nvidia_ctk"),
        *("built", "build_runs", "job", "servers", "model", "model_file"),
        *("unreadable", "state_machine", "account_complete"),
    }
)
"""What that part can speak of: it may be forged, and so tells nothing of the rest."""
JSON_BLOCKS = frozenset({"progress", "stamp", "latest", "build", "model", "deploy_lock", "served"})
"""Files as they are: their lines may be long, and are checked once they are read as JSON."""
ACCOUNT_BLOCKS = (JSON_BLOCKS - {"deploy_lock"}) | {"libraries", "owners"}


class SnapshotError(ValueError):
    """The text is not one whole snapshot; the message says what was found instead."""


@dataclass(frozen=True)
class Record:
    """Values by key, each a list of fields, and blocks by name."""

    values: dict[str, list[list[str]]] = field(default_factory=dict)
    blocks: dict[tuple[str, ...], list[str]] = field(default_factory=dict)

    def rows(self, key: str, width: int) -> list[list[str]]:
        """The rows of that key, each filled up with "" to `width` fields."""
        return [(row + [""] * width)[:width] for row in self.values.get(key, [])]

    def text(self, key: str) -> str:
        """The first field; where the key was repeated, of the last row."""
        return self.rows(key, 1)[-1][0].strip() if key in self.values else ""

    def number(self, key: str, default: int = 0) -> int:
        return number(self.text(key), default)

    def block(self, *name: str) -> list[str]:
        return self.blocks.get(name, [])

    def file(self, *name: str) -> str | None:
        """Text of the block whose name begins so; the file's path ends it. None: no such file."""
        found = (lines for block, lines in self.blocks.items() if block[: len(name)] == name)
        lines = next(found, None)
        return None if lines is None else "\n".join(lines)


@dataclass(frozen=True)
class Sorted:
    """A snapshot in its two parts."""

    main: Record
    account: Record
    """Where nothing was printed with other rights, the same record as `main`."""
    split: bool
    """The account's part was printed with less rights than the rest."""
    unseen: str = ""
    """Why the account's part is not whole; "": it is."""


def number(text: str, default: int = 0) -> int:
    """Of at most 19 digits, as many as version 1 of cgroups has for no limit."""
    return int(text) if re.fullmatch(r"[0-9]{1,19}", text) else default


def sort(lines: list[str]) -> Sorted:
    """Raises SnapshotError on a missing header, another version, a cut or a damaged text."""
    if sum(map(len, lines)) > MOST_CHARACTERS:
        raise SnapshotError(
            f"found more than {MOST_CHARACTERS >> 20} MiB of text; expected a snapshot; next: log "
            "in to the host as that user and see what its login shell prints"
        )
    body = _body(lines)
    main = _main(body)
    if main.text("complete") != "1":
        raise _truncated(body, f"the line complete=1 before {END}")
    told = main.blocks.pop((ACCOUNT,), None)
    split = "setpriv" in main.values
    if told is None:
        unseen = "the account's rights could not be taken" if main.text("setpriv") == "0" else ""
        return Sorted(main, Record() if split else main, split, unseen)
    account = _account(told, split)
    if account.text("account_complete") == "1":
        return Sorted(main, account, split)
    return Sorted(main, account, split, "found no end of what is printed with the account's rights")


def _body(lines: list[str]) -> list[str]:
    """The lines after the header, without the line ends that a terminal adds."""
    head = (line.strip() for line in lines[:MOST_NOISE])
    start = next((n for n, line in enumerate(head) if line.startswith(HEADER)), None)
    if start is None:
        found = next((line for line in lines[:MOST_NOISE] if line.strip()), "nothing")
        raise SnapshotError(
            f"found {plain(found, 200)!r}; expected a line {HEADER} {SNAPSHOT_VERSION}; "
            "next: log in to the host as that user and see whether `sh -c 'echo ok'` prints ok"
        )
    version = plain(lines[start].strip().removeprefix(HEADER).strip(), 200)
    if version != str(SNAPSHOT_VERSION):
        raise SnapshotError(
            f"found a snapshot of version {version!r}; expected {SNAPSHOT_VERSION}; "
            "next: reinstall llamafleet on the controller, its script and reader differ"
        )
    return [line.rstrip("\r\n") for line in lines[start + 1 :]]


def _main(lines: list[str]) -> Record:
    """Raises SnapshotError where the text has no end or no form."""
    record = Record()
    block: list[str] | None = None
    kind = ""
    for at, line in enumerate(lines, start=1):
        if block is not None and line != END:
            if line == "@end":
                block = None
            elif line.startswith(" "):
                _add(block, kind, line[1:])
            elif line:
                raise SnapshotError(
                    f"found {plain(line, 200)!r} inside a block in line {at}; expected @end; "
                    "next: run it again"
                )
            continue
        if line == END:
            # Not the end of a block that was cut.
            return record if block is None else Record()
        if line.startswith("@begin "):
            kind, block = _begin(record, line)
            continue
        if not _value(record, line):
            raise SnapshotError(
                f"found {plain(line, 200)!r} in line {at}; expected key=value; next: run it again"
            )
    raise _truncated(lines, f"the line {END}")


def _account(lines: list[str], split: bool) -> Record:
    """What that part may tell, of lines that may be anything."""
    record = Record()
    blocks = ACCOUNT_BLOCKS if split else ACCOUNT_BLOCKS | {"deploy_lock"}
    keys = ACCOUNT_KEYS if split else ACCOUNT_KEYS | {"deploy_lock_age"}
    rest = iter(lines)
    for line in rest:
        if line.startswith("@begin "):
            kind, block = _begin(record, line)
            for inner in _until_end(rest):
                _add(block, kind, inner)
        else:
            _value(record, line)
    return Record(
        {key: rows for key, rows in record.values.items() if key in keys},
        {name: block for name, block in record.blocks.items() if name[0] in blocks},
    )


def _until_end(rest: Iterator[str]) -> Iterable[str]:
    for line in rest:
        if line == "@end":
            return
        if line.startswith(" "):
            yield line[1:]


def _begin(record: Record, line: str) -> tuple[str, list[str]]:
    """A new block; a later one of the same name takes the place of the first."""
    name = tuple(
        plain(part, LONGEST_FIELD) for part in line.removeprefix("@begin ").split("\t")[:8]
    )
    block: list[str] = []
    if len(record.blocks) < MOST_ROWS or name in record.blocks:
        record.blocks[name] = block
    return name[0], block


def _add(block: list[str], kind: str, line: str) -> None:
    if kind == ACCOUNT or kind in JSON_BLOCKS:
        block.append(line)
    elif len(block) < MOST_LINES:
        # Tabs divide the fields of some.
        parts = line[:LONGEST_LINE].split("\t")
        block.append("\t".join(plain(part, LONGEST_LINE) for part in parts))


def _value(record: Record, line: str) -> bool:
    """False: it is no value."""
    key, equals, rest = line.partition("=")
    rows = record.values.setdefault(plain(key, 100), []) if equals else []
    if equals and len(rows) < MOST_ROWS:
        rows.append([plain(part, LONGEST_FIELD) for part in rest.split("\t")[:20]])
    return bool(equals)


def _truncated(lines: list[str], expected: str) -> SnapshotError:
    last = next((line for line in reversed(lines) if line.strip() and line != END), "")
    return SnapshotError(
        f"found a truncated snapshot, {len(lines) + 1} lines, the last one {plain(last, 200)!r}; "
        f"expected {expected}; next: run it again"
    )
