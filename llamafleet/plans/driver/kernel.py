"""The kernel's log about the cards: its messages, of which card each one is, and what it means.

A message may have several lines, with a prefix each or with one in front, as dmesg, dmesg -T,
journalctl and syslog write them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Literal

from llamafleet.facts.host import HostSnapshot
from llamafleet.tables.gpus import RECOVERY, xid

LONGEST = 1000
"""Characters of a message that are looked at."""
CLOCKS_DIFFER_S = 300
"""Between the kernel's clock of its log, which stands still while the machine sleeps, and uptime's:
only an earlier boot is further ahead."""
MOST_LINES = 10
"""Of one message: the longest has eight."""

_OPENS = re.compile(r"NVRM:\s{1,4}(?:The NVIDIA (?!probe)|API mismatch|This PCI I/O region)")
"""A message that goes on in the next lines until its sentence ends."""
_GOES_ON = re.compile(
    r"NVRM:\s{1,4}(?!The NVIDIA|API mismatch|This PCI|GPU |Xid|loading|None of|No NVIDIA|Rm)"
)
_XID = re.compile(
    r"NVRM: Xid \((?:PCI:)?(?P<place>[0-9a-f:.]{7,16})[^)]{0,60}\): (?P<code>\d{1,4})",
    re.IGNORECASE,
)
_PLACE = re.compile(r"\b[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}(?:\.[0-7])?\b", re.IGNORECASE)
_ADDRESS = re.compile(
    r"(?:([0-9a-f]{1,8}):)?([0-9a-f]{2}:[0-9a-f]{2})(?:\.[0-7])?$", re.IGNORECASE | re.ASCII
)
_DEVICE = re.compile(r"\(PCI ID: 10de:([0-9a-f]{4})\)", re.IGNORECASE)
_LOST = re.compile(r"fallen off the bus|GPU is lost\b", re.IGNORECASE)
_ACTION = re.compile(r"recovery action changed .{0,60}?to 0x(\d)", re.IGNORECASE)
_RELOADED = re.compile(r"NVRM: loading NVIDIA|\bLinux version \d", re.IGNORECASE)
_SINCE_BOOT = re.compile(r"\[\s{0,12}(\d{1,12})\.\d{1,9}\]")
_STARTS = re.compile(r"Nvlink Core is being initialized", re.IGNORECASE)
_KIND = re.compile(r"NVRM: loading NVIDIA UNIX (Open )?", re.IGNORECASE)
_RESET = re.compile(r"\breset done\b", re.IGNORECASE)
_ASLEEP = re.compile(
    r"(?:unable to|can't|refused to) change power state.{0,80}(?:inaccessible|D3cold)",
    re.IGNORECASE,
)

_DEMANDS = (
    (re.compile(r"requiring os reboot to recover", re.IGNORECASE), "reboot"),
    (re.compile(r"NV_ERR_RESET_REQUIRED"), "reset"),
)
"""What the driver says without the address of a card: scitix/sichek#51."""

OFF_THE_BUS = 79

Reason = Literal[
    "open module required",
    "no GSP",
    "legacy",
    "not supported",
    "guest driver",
    "data centers only",
    "fallen off the bus",
    "no power cable",
    "no memory region",
    "no firmware",
    "firmware hangs",
    "not started",
    "asleep",
]
"""Why the kernel's module could not start a card, the narrow before the wide."""

_REASONS: tuple[tuple[Reason, str], ...] = (
    ("open module required", r"requires use of the NVIDIA open"),
    ("no GSP", r"not supported by open nvidia\.ko"),
    ("legacy", r"supported through the NVIDIA \d"),
    ("guest driver", r"vGPU.{0,80}(?:mismatch|incompatib|not supported)"),
    ("not supported", r"is not supported by the"),
    ("data centers only", r"only ready for use on Data Center"),
    ("fallen off the bus", _LOST.pattern),
    ("no power cable", r"power cables? connected|power connector"),
    ("no memory region", r"I/O region assigned .{0,80}invalid|BAR\d is 0M|64-bit BAR mapped"),
    (
        "no firmware",
        r"firmware load for nvidia/.{1,80} failed|firmware/nvidia/.{1,80} failed"
        r"|No firmware image found",
    ),
    ("firmware hangs", r"wait for GFW|cannot initialize GSP firmware"),
    ("not started", r"RmInitAdapter failed|rm_init_adapter failed"),
    ("asleep", _ASLEEP.pattern),
)


@dataclass(frozen=True)
class Message:
    """One message of the log, its lines joined."""

    text: str
    """From NVRM: on, or without the prefix."""
    line: str
    """Its first line as it stands in the log."""
    place: str = ""
    """Of the card, as 0000:01:00; "": it names none."""

    number: int = 0
    """Its place in the log."""

    @cached_property
    def reason(self) -> Reason | None:
        """Why a card was not started; None: it tells of no such thing."""
        # Compiled at the first use, and kept by re: most hosts have no such line.
        found = (name for name, said in _REASONS if re.search(said, self.text, re.IGNORECASE))
        return next(found, None)

    @cached_property
    def code(self) -> int:
        """Of an Xid; 0: it is none."""
        found = _XID.search(self.text)
        return int(found["code"]) if found else 0

    @cached_property
    def asked(self) -> str:
        """What Xid 154 asks for; "": nothing."""
        action = _ACTION.search(self.text)
        if not action or action[1] == "0":
            return ""
        return "reboot" if action[1] == "2" else "reset"

    @cached_property
    def heals(self) -> bool:
        """The card was reset, or needs no recovery any more."""
        action = _ACTION.search(self.text)
        return bool(_RESET.search(self.text) or (action and action[1] == "0"))

    @cached_property
    def fatal(self) -> Fatal | None:
        if not self.code:
            return _without_xid(self)
        if self.code == RECOVERY:
            return Fatal(self.code, self.asked, self) if self.asked else None
        row = xid(self.code)
        if row is None or row.action == "watch":
            return None
        if row.only and not re.search(rf"\b{re.escape(row.only)}\b", self.text):
            return None
        return Fatal(self.code, row.action, self)

    @property
    def shown(self) -> str:
        """For people: whole, and as the log has it where that is one line."""
        return self.line if self.line.endswith(self.text) else self.text


@dataclass(frozen=True)
class Fatal:
    """An error after which a card is not to be trusted."""

    code: int
    """0: it is no Xid."""
    action: str
    """reset or reboot."""
    message: Message


@dataclass(frozen=True)
class Log:
    """All messages of this boot that were read, in their order."""

    messages: tuple[Message, ...]

    @cached_property
    def _by_place(self) -> dict[str, tuple[Message, ...]]:
        found: dict[str, list[Message]] = {}
        for message in self.messages:
            found.setdefault(message.place, []).append(message)
        return {place: tuple(of) for place, of in found.items()}

    @cached_property
    def _last_start(self) -> int:
        """Number of the message with which the driver was last started anew; -1: none."""
        found = [one.number for one in self.messages if _RELOADED.search(one.text)]
        return max(found, default=-1)

    @cached_property
    def _last_search(self) -> int:
        """Number of the message with which the module last began to look for cards; -1: none."""
        found = [one.number for one in self.messages if _STARTS.search(one.text)]
        return max(found, default=-1)

    def of(self, place: str) -> tuple[Message, ...]:
        return self._by_place.get(place, ())

    @property
    def places(self) -> tuple[str, ...]:
        """Of cards that the log speaks of."""
        return tuple(place for place in self._by_place if place)

    def fatal(self, place: str) -> Fatal | None:
        """The first error of that card which no reset and no new start of the driver followed."""
        found: Fatal | None = None
        for message in self.of(place):
            if message.number < self._last_start:
                continue
            if message.heals:
                found = None
                continue
            found = found or message.fatal
            # The driver's own word on what it takes goes before the table's.
            if found and message.asked == "reboot":
                found = Fatal(found.code, message.asked, found.message)
        return found

    def past(self, place: str) -> tuple[Fatal, ...]:
        """All of them, whatever has followed."""
        return tuple(one.fatal for one in self.of(place) if one.fatal)

    def passed_on(self, place: str) -> bool:
        """Another driver has said something of it last: it was given to a virtual machine."""
        return bool(self.of(place)) and "vfio-pci" in self.of(place)[-1].text

    def device_id(self, place: str) -> str:
        """As 2684, where a message names it; "": none does."""
        found = (_DEVICE.search(one.text) for one in self.of(place))
        return next((one[1].lower() for one in found if one), "")

    def asked(self, place: str) -> bool:
        """The driver itself said that the card needs something (Xid 154)."""
        return any(one.asked for one in self.of(place))

    def watched(self, place: str) -> tuple[Message, ...]:
        """Errors that leave the card at work, one of each code."""
        found: dict[int, Message] = {}
        for message in self.of(place):
            row = xid(message.code) if message.code else None
            if row and row.action == "watch":
                found.setdefault(message.code, message)
        return tuple(found.values())

    def why_not_started(self, place: str, alone: bool) -> tuple[Reason, Message] | None:
        """The narrowest reason since the module last began to look for cards.

        `alone`: it is the only card that lacks, so that what names no card is about this one.
        """
        found = _narrowest(one for one in self.of(place) if one.number > self._last_search)
        if found and found[0] != "not started":
            return found
        nameless = [one for one in self.of("") if one.number > self._last_search]
        if found is None:
            return _narrowest(one for one in nameless if alone or one.reason == "legacy")
        # What the firmware says on the way names no card.
        return _narrowest([*nameless, found[1]])

    @cached_property
    def open_module(self) -> bool | None:
        """The module that was loaded last is the open one; None: the log does not tell."""
        kinds = [found for one in self.messages if (found := _KIND.search(one.text))]
        return bool(kinds[-1][1]) if kinds else None


def _narrowest(messages: Iterable[Message]) -> tuple[Reason, Message] | None:
    order = [name for name, _ in _REASONS]
    found = [(one.reason, one) for one in messages]
    known = [(reason, one) for reason, one in found if reason]
    return min(known, key=lambda pair: order.index(pair[0]), default=None)


def _without_xid(message: Message) -> Fatal | None:
    if message.place:
        lost = _LOST.search(message.text)
        return Fatal(OFF_THE_BUS, "reboot", message) if lost else None
    asked = next((word for pattern, word in _DEMANDS if pattern.search(message.text)), "")
    return Fatal(0, asked, message) if asked else None


def read_log(snapshot: HostSnapshot) -> Log:
    return _log(snapshot.driver.kernel_log or (), snapshot.uptime_s)


@lru_cache(maxsize=8)
def _log(lines: tuple[str, ...], uptime_s: int | None) -> Log:
    """Asked for once for each card. Lines of an earlier boot are left out."""
    lines = tuple(line for line in lines if not _of_before(line, uptime_s))
    found = (replace(one, number=number) for number, one in enumerate(_messages(lines)))
    return Log(tuple(found))


def _of_before(line: str, uptime_s: int | None) -> bool:
    """It is later than now by the seconds since the kernel started: another one's clock."""
    stamp = _SINCE_BOOT.match(line)
    if stamp is None or uptime_s is None:
        return False
    return int(stamp[1]) > uptime_s + CLOCKS_DIFFER_S


def _messages(lines: tuple[str, ...]) -> Iterator[Message]:
    whole = ""
    first = ""
    count = 0
    for line in lines:
        text, indented = _bare(line[:LONGEST])
        # dmesg indents the lines of one message; syslog and a second dmesg write a prefix on each.
        open_end = bool(_OPENS.match(whole)) and not whole.endswith((".", "...", ". Please"))
        if whole and count < MOST_LINES and (indented or (open_end and _GOES_ON.match(text))):
            whole += " " + text.removeprefix("NVRM:").strip()
            count += 1
            continue
        if whole:
            yield _message(whole, first)
        whole, first, count = text, line.strip(), 1
    if whole:
        yield _message(whole, first)


def _bare(line: str) -> tuple[str, bool]:
    """From NVRM: on; and whether only blanks stood before it, as in further lines of a message."""
    start = line.find("NVRM:")
    if start >= 0:
        return line[start:].rstrip(), start > 0 and not line[:start].strip()
    return line.strip(), False


def _message(text: str, line: str) -> Message:
    text = " ".join(text.split())[:LONGEST]
    found = _XID.search(text)
    place = found["place"] if found else ""
    if not place and (other := _PLACE.search(text)):
        place = other[0]
    return Message(text, line, place_of(place) if place else "")


def place_of(address: str) -> str:
    """As the kernel's log names a card: 0000:01:00 of 00000000:01:00.0; else the text itself."""
    found = _ADDRESS.match(address)
    return f"{int(found[1] or '0', 16):04x}:{found[2].lower()}" if found else address
