"""Models that this machine gives to its hosts, beside the results: fetched once, sent to many.

Nothing here is believed when it reaches a host, which compares the sha256 of what came. The digest
of a file is computed once for its size, inode and ctime, which only the kernel sets. A model that
no run has sent for KEPT_DAYS goes; files of yours elsewhere are only read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llamafleet.modelsource import ModelSource
from llamafleet.onhost.download import Network
from llamafleet.onhost.job import JobFailed, locked
from llamafleet.onhost.transfer import Disk, Transfer
from llamafleet.plans.supplies import LocalFile
from llamafleet.protocol.job import read_json, write_json
from llamafleet.protocol.place import INCOMING, shown

FOLDER = Path("served-models")
DIGESTS = "digests.json"
LOCK = ".lock"
KEPT_DAYS = 30
"""Since it came, or was last sent."""
RESERVE = 1 << 30
"""Bytes that a model leaves free here."""
CHUNK = 4 << 20
_OURS = re.compile(rf"[0-9a-f]{{64}}\.gguf({re.escape(INCOMING)}(\.json)?|{re.escape(LOCK)})?")

Say = Callable[[str], object]


class ModelStore:
    """The models by their sha256, and the digests of files elsewhere."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder

    def file(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.gguf"

    def supplied(self, source: ModelSource, say: Say = lambda text: None) -> dict[str, LocalFile]:
        """What this machine has of a model, by part. Raises OSError and ValueError."""
        found: dict[str, LocalFile] = {}
        for number, part in enumerate(source.parts):
            stated = source.sha256[number] if source.sha256 else ""
            if source.kind == "file":
                size = _size(Path(part))
                found[part] = LocalFile(size, stated or self.digest(Path(part), say))
            elif source.kind == "url" and self.file(stated).is_file():
                found[part] = LocalFile(_size(self.file(stated)), stated)
        return found

    def digest(self, file: Path, say: Say = lambda text: None) -> str:
        """sha256 of a file, read anew where it has changed. Raises OSError."""
        state = _state(file)
        known = read_json(self.folder / DIGESTS) or {}
        entry = known.get(str(file))
        if isinstance(entry, dict) and entry.get("state") == state:
            told = entry.get("sha256")
            if isinstance(told, str) and re.fullmatch(r"[0-9a-f]{64}", told):
                return told
        say(f"{file}: its sha256 is computed, {shown(_size(file))}")
        found = _sha256(file)
        if _state(file) == state:
            self._note(str(file), {"state": state, "sha256": found})
        return found

    def _note(self, name: str, entry: dict[str, Any]) -> None:
        self.folder.mkdir(mode=0o755, exist_ok=True)
        with locked(self.folder / f"{DIGESTS}{LOCK}", DIGESTS) as other:
            if other:
                return
            known = read_json(self.folder / DIGESTS) or {}
            known = {path: one for path, one in known.items() if Path(path).is_file()}
            write_json(self.folder / DIGESTS, {**known, name: entry}, durable=False)

    def bring(self, url: str, sha256: str, size: int, network: Network, say: Say) -> Path:
        """The file of a URL, fetched unless it is here, and checked. Raises JobFailed, OSError."""
        self.folder.mkdir(mode=0o755, exist_ok=True)
        file = self.file(sha256)
        with locked(file.with_name(f"{file.name}{LOCK}"), f"fetch {url}") as other:
            if other:
                raise JobFailed(
                    f"{url}: found another run that fetches it ({other}); expected one at a time; "
                    "next: run the same command again when it has ended"
                )
            if not (file.is_file() and self.digest(file) == sha256):
                file.unlink(missing_ok=True)
                self._fetch(url, sha256, size, network, say)
        with contextlib.suppress(OSError):
            os.utime(file)  # Its days begin anew.
        return file

    def _fetch(self, url: str, sha256: str, size: int, network: Network, say: Say) -> None:
        file = self.file(sha256)
        incoming = file.with_name(f"{file.name}{INCOMING}")
        transfer = Transfer(url, incoming, network, Disk(self.folder, RESERVE), size)
        transfer.where = "on this machine"
        transfer.say = lambda done, line: say(line)
        for again in (True, False):
            transfer.resumed = False
            transfer.run()
            found = _sha256(incoming)
            if found == sha256:
                break
            transfer.forget()
            if not (again and transfer.doubtful):
                raise JobFailed(
                    f"{url}: found sha256 {found}; expected {sha256}; next: compare the profile's "
                    "sha256 with the publisher's; what came is removed"
                )
        transfer.ended()
        incoming.chmod(0o644)
        incoming.replace(file)

    def prune(self, now: float) -> list[str]:
        """Names of what was removed: not sent for KEPT_DAYS, at `now` (since 1970)."""
        gone = []
        for file in sorted(self.folder.iterdir()) if self.folder.is_dir() else ():
            if not _OURS.fullmatch(file.name) or file.is_dir():
                continue
            if now - file.lstat().st_mtime > KEPT_DAYS * 86400:
                file.unlink()
                gone.append(file.name)
        return gone


def problem(source: ModelSource) -> str:
    """Why files of this machine can't be sent: "found ...; allowed: ..."; "": they can."""
    for part in source.parts if source.kind == "file" else ():
        try:
            size = _size(Path(part))
            with open(part, "rb", opener=_at_once) as opened:
                head = opened.read(4)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            return f"found {part} ({why}); allowed: a GGUF file that you can read"
        if head != b"GGUF":
            return f"found {part}, which does not begin GGUF; allowed: a GGUF file"
        number = source.parts.index(part)
        if source.sizes and size != source.sizes[number]:
            return f"found {part} of {size} bytes; allowed: {source.sizes[number]}, as stated"
    return ""


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _size(file: Path) -> int:
    """Bytes. Raises OSError, and ValueError for what is no file."""
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("no regular file")
    return found.st_size


def _state(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_size, found.st_ino, found.st_ctime_ns]


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while part := opened.read(CHUNK):
            digest.update(part)
            time.sleep(0)  # Other hosts of the run go on meanwhile.
    return digest.hexdigest()
