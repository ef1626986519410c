"""Wheels that hosts share, on the controller: one folder a fingerprint, beside the results.

A record is written when its wheel is whole. Neither is believed: the record is typed and judged
when it is read, the wheel's sha256 compared each time before it is sent.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from llamafleet.plans.share import unsound
from llamafleet.protocol.job import SharedWheel, start_ticks
from llamafleet.received import received_text
from llamafleet.supplied import small_file

FOLDER = Path("shared-wheels")
RECORD = "wheel.json"
_KEY = re.compile(r"[0-9a-f]{16}")


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

    def wrong(self, key: str, wheel: SharedWheel) -> str:
        """How the file is not that wheel; "": it is."""
        digest = hashlib.sha256()
        try:
            with self.file(key, wheel).open("rb") as opened:
                while part := opened.read(1 << 20):
                    digest.update(part)
        except OSError as error:
            return f"{error.strerror or error}; expected sha256 {wheel.sha256}"
        found = digest.hexdigest()
        return "" if found == wheel.sha256 else f"sha256 {found}; expected {wheel.sha256}"

    @contextmanager
    def incoming(self, key: str, wheel: SharedWheel) -> Iterator[Incoming]:
        """Take a wheel in; it is kept where it is whole when the block ends. Raises OSError."""
        folder = self.folder / key
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
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
        new.replace(record)


def _remove_left(folder: Path) -> None:
    """What runs that were killed have left, each some 50 MB."""
    for left in folder.glob(".*.whl.*"):
        pid = left.suffix[1:]
        if pid.isdecimal() and start_ticks(int(pid)) is None:
            left.unlink(missing_ok=True)
