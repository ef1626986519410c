"""Wheels that hosts share, on the controller: one folder a fingerprint, beside the results.

A record is written when its wheel is whole. Neither is believed: the record is typed and judged
when it is read, the wheel's sha256 compared each time before it is sent, and what another account
owns or can write is not used. A wheel that nobody has used for KEPT_DAYS goes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from llamafleet.plans.share import unsound
from llamafleet.protocol.job import SharedWheel, start_ticks
from llamafleet.received import received_text
from llamafleet.supplied import small_file

FOLDER = Path("shared-wheels")
RECORD = "wheel.json"
KEPT_DAYS = 30
"""Since it came, or was last sent. The host that built it has its wheel as long as its build."""
_KEY = re.compile(r"[0-9a-f]{16}")
_OURS = re.compile(rf"{_KEY.pattern}(\.refused-[0-9]+)?")
"""A fingerprint, or a folder that was set aside."""
_OTHERS_WRITE = 0o022


class Incoming:
    """A wheel that comes in parts."""

    def __init__(self, wheel: SharedWheel, file: Path) -> None:
        self.wheel, self._file = wheel, file
        self._digest = hashlib.sha256()
        self.size = 0
        self._opened = file.open("xb")

    def add(self, part: bytes) -> None:
        """Raises OSError."""
        self._digest.update(part)
        self.size += len(part)
        self._opened.write(part)

    @property
    def wrong(self) -> str:
        """How it is not what its host said; "": it is."""
        found = (self.size, self._digest.hexdigest())
        if found == (self.wheel.size, self.wheel.sha256):
            return ""
        return (
            f"found {found[0]} bytes of sha256 {found[1]}; expected {self.wheel.size} of "
            f"{self.wheel.sha256}, as its stamp says"
        )

    def close(self) -> None:
        with self._opened as opened:
            opened.flush()
            os.fsync(opened.fileno())


@dataclass(frozen=True)
class Wrong:
    """How a stored wheel is not the one that was kept."""

    found: str
    expected: str


class WheelStore:
    """The wheels by fingerprint."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder

    def all(self) -> dict[str, SharedWheel]:
        """By fingerprint; a record that can't be read counts as none."""
        try:
            keys = sorted(one.name for one in self.folder.iterdir() if _KEY.fullmatch(one.name))
        except OSError:
            return {}
        found = {key: self._read(key) for key in keys}
        return {key: wheel for key, wheel in found.items() if wheel}

    def _read(self, key: str) -> SharedWheel | None:
        try:
            text = small_file(self.folder / key / RECORD).decode("utf-8")
        except (OSError, ValueError):
            return None
        wheel = received_text(SharedWheel, text)
        sound = isinstance(wheel, SharedWheel) and not unsound(wheel)
        return wheel if sound and isinstance(wheel, SharedWheel) else None

    def file(self, key: str, wheel: SharedWheel) -> Path:
        return self.folder / key / wheel.name

    def used(self, key: str) -> None:
        """It is sent: its days begin anew."""
        with suppress(OSError):
            os.utime(self.folder / key / RECORD)

    def set_aside(self, key: str) -> Path:
        """Where a folder lies from now on that no wheel is taken from. Raises OSError."""
        free = (self.folder / f"{key}.refused-{number}" for number in count(1))
        place = next(path for path in free if not path.exists())
        (self.folder / key).rename(place)
        return place

    def prune(self, now: float) -> list[str]:
        """Names of the folders that were removed: unused for KEPT_DAYS, at `now` (since 1970)."""
        gone = []
        for place in self._places():
            _remove_left(place)
            record = place / RECORD
            seen = (record if record.exists() else place).lstat().st_mtime
            if now - seen > KEPT_DAYS * 86400:
                shutil.rmtree(place)
                gone.append(place.name)
        return gone

    def forget(self, host: str) -> list[str]:
        """Fingerprints of the wheels that a host built: they are removed. Raises OSError."""
        gone = [key for key, wheel in self.all().items() if wheel.host == host]
        for key in gone:
            shutil.rmtree(self.folder / key)
        return gone

    def _places(self) -> list[Path]:
        """Folders of ours: nothing else that somebody put there is touched."""
        try:
            return [one for one in sorted(self.folder.iterdir()) if _OURS.fullmatch(one.name)]
        except OSError:
            return []

    def _foreign(self, key: str, wheel: SharedWheel) -> str:
        """What of a wheel another account can write; "": nothing. Raises OSError."""
        for path in (self.folder, self.folder / key, self.folder / key / RECORD):
            if told := _writers(path):
                return f"{told} ({path})"
        return _writers(self.file(key, wheel))

    def wrong(self, key: str, wheel: SharedWheel) -> Wrong | None:
        """How the file is not that wheel; None: it is."""
        digest, expected = hashlib.sha256(), f"sha256 {wheel.sha256}"
        try:
            if foreign := self._foreign(key, wheel):
                return Wrong(foreign, "one that you alone can write")
            with self.file(key, wheel).open("rb") as opened:
                while part := opened.read(1 << 20):
                    digest.update(part)
        except OSError as error:
            return Wrong(str(error.strerror or error), expected)
        found = f"sha256 {digest.hexdigest()}"
        return None if found == expected else Wrong(found, expected)

    @contextmanager
    def incoming(self, key: str, wheel: SharedWheel) -> Iterator[Incoming]:
        """Take a wheel in; it is kept where it is whole when the block ends. Raises OSError."""
        folder = self.folder / key
        _own(self.folder)
        _own(folder)
        partial = folder / f".{wheel.name}.{os.getpid()}"
        partial.unlink(missing_ok=True)
        _remove_left(folder)
        coming = Incoming(wheel, partial)
        try:
            try:
                yield coming
            finally:
                coming.close()
            if not coming.wrong:
                partial.chmod(0o644)
                self._place(key, wheel, partial)
        finally:
            partial.unlink(missing_ok=True)

    def _place(self, key: str, wheel: SharedWheel, partial: Path) -> None:
        """The record of before is gone before its wheel is, and the new one comes last."""
        record = self.folder / key / RECORD
        record.unlink(missing_ok=True)
        for old in self.folder.joinpath(key).glob("*.whl"):
            old.unlink(missing_ok=True)  # Another run may have been here.
        partial.replace(self.file(key, wheel))
        new = record.with_name(f".{RECORD}.{os.getpid()}")
        new.unlink(missing_ok=True)
        new.write_text(json.dumps(asdict(wheel), indent=1) + "\n", encoding="utf-8")
        new.chmod(0o644)
        new.replace(record)


def _writers(path: Path) -> str:
    """Who but this user, and root, can write it; "": nobody. Raises OSError."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        return "a link"
    if found.st_uid not in (os.geteuid(), 0):
        return f"uid {found.st_uid} as its owner"
    return f"mode {stat.S_IMODE(found.st_mode):o}" if found.st_mode & _OTHERS_WRITE else ""


def _own(folder: Path) -> None:
    """Make a folder that only this user writes, or make it one. Raises OSError."""
    folder.mkdir(mode=0o755, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "it is no folder of this user", str(folder))
    if found.st_mode & _OTHERS_WRITE:
        folder.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS_WRITE)


def _remove_left(folder: Path) -> None:
    """What runs that were killed have left, each some 50 MB."""
    for left in folder.glob(".*.whl.*"):
        pid = left.suffix[1:]
        if pid.isdecimal() and start_ticks(int(pid)) is None:
            left.unlink(missing_ok=True)
