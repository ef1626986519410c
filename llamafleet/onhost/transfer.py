"""One large file over HTTP: resumed where it was cut off, tried again where that may help.

What has come lies beside its place; a note says of which file it is. A server may ignore what it is
asked for, or have another file meanwhile: then it is begun anew, once the new one is seen to be no
page of words. The caller compares the sha256 of the whole.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic, sleep

from llamafleet.onhost.download import Answer, DownloadError, Limits, Network, fetch
from llamafleet.onhost.job import JobFailed
from llamafleet.onhost.verify.gguffile import MAGIC
from llamafleet.onhost.verify.looks import looks_like
from llamafleet.protocol.decode import DecodeError, decode
from llamafleet.protocol.job import read_json, write_json
from llamafleet.protocol.place import shown

LONGEST_S = 14 * 86400.0
"""Of one connection; a slow one ends far sooner."""
MOST_BYTES = 4 << 40
HEAD_S = 60.0
ATTEMPTS = 6
"""In a row that brought less than GAIN."""
GAIN = 1 << 20
PAUSES_S = (1.0, 4.0, 15.0, 60.0, 120.0)
"""Between them, where the server does not say when."""
LONGEST_PAUSE_S = 900.0
"""That a server may ask for."""
HEAD_BYTES = 512
GIVEN_BACK = 1 << 20
"""Bytes that are taken back from a disk that is full."""
SPEED_S = 15.0
"""Seconds that a speed is the mean of."""

Say = Callable[[int, str], object]
"""Bytes of the part that are there, and what to say of it."""


@dataclass(frozen=True)
class Note:
    """What a server said of the file that has partly come."""

    url: str
    etag: str = ""
    modified: str = ""
    size: int = 0
    """0: not told."""

    @property
    def validator(self) -> str:
        """For If-Range, which takes no weak ETag (RFC 9110, 13.1.5)."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified

    def same(self, other: Note) -> bool:
        """Nothing that both tell differs, and something is told."""
        pairs = [(self.etag, other.etag), (self.size, other.size), (self.modified, other.modified)]
        told = [(a, b) for a, b in pairs if a and b]
        return bool(told) and all(a == b for a, b in told)


class _Anew(Exception):
    """What is there is of another file: it must be fetched from its first byte."""


class Disk:
    """Room for what is to come on the file system of `folder`."""

    def __init__(self, folder: Path, reserve: int) -> None:
        self._folder, self._reserve = folder, reserve

    def need(self, octets: int) -> None:
        """Raises JobFailed where there is less room than these bytes and the reserve."""
        found = os.statvfs(self._folder)
        free = found.f_bavail * found.f_frsize
        if free < octets + self._reserve:
            raise JobFailed(
                f"{self._folder}: found {shown(free)} free; expected {shown(octets)} for what is "
                f"left of the model and {shown(self._reserve)} that stay free; next: df -h "
                f"{self._folder}; make room, and run the same command again"
            )


@dataclass
class Transfer:
    """One file from one URL into `target`."""

    url: str
    target: Path
    network: Network
    disk: Disk
    size: int = 0
    """As it is known beforehand; 0: not."""
    where: str = "on the host"
    """Where this runs, in words."""
    say: Say = lambda done, line: None
    log: Callable[[str], object] = lambda line: None
    notes: list[str] = field(default_factory=list)
    """What to know of it though it came."""
    fetched: int = 0
    """Bytes that came over the network."""
    resumed: bool = False
    """Part of it was there before."""
    measured: bool = False
    """The last server said how many bytes it has: what came is no cut part of that."""

    @property
    def doubtful(self) -> bool:
        """Other bytes may be this machine's doing, or the line's: all of it may be right."""
        return self.resumed or not self.measured

    @property
    def _note_file(self) -> Path:
        return self.target.with_name(f"{self.target.name}.json")

    def run(self) -> None:
        """Bring all of it. Raises JobFailed; what has come stays, for the next time."""
        refuse_odd(self.target)
        failures = 0
        while True:
            before = self.fetched
            try:
                self._once()
                return
            except _Anew as why:
                self.forget()
                error = DownloadError(str(why), f"curl -I {self.url}", again=True)
            except DownloadError as failed:
                error = failed
                if failed.status == 416:  # RFC 9110, 15.5.17: it has no such part.
                    self.forget()
                    error.again = True
            failures = 0 if self.fetched - before >= GAIN else failures + 1
            if not error.again or failures >= ATTEMPTS:
                raise self._failed(error, failures)
            self._pause(error, failures)

    def forget(self) -> None:
        """Remove what has come."""
        self.target.unlink(missing_ok=True)
        self._note_file.unlink(missing_ok=True)

    def ended(self) -> None:
        """The file has its place: nothing is left to resume."""
        self._note_file.unlink(missing_ok=True)

    def ask_size(self) -> int:
        """Of the file, by HEAD; 0: it is not told. What is wrong is seen when it is fetched."""
        if self.size:
            return self.size
        told: list[Answer] = []
        with contextlib.suppress(DownloadError):
            limits = Limits(octets=0, seconds=HEAD_S)
            fetch(self.url, _Nothing(), self.network, limits, on_answer=told.append, method="HEAD")
        return _length(told[0]) if told else 0

    def there(self) -> int:
        """Bytes of it that have come."""
        with contextlib.suppress(FileNotFoundError):
            return self.target.lstat().st_size
        return 0

    # -- one attempt -------------------------------------------------------------------------------

    def _once(self) -> None:
        begin, note = self.there(), self._note()
        size = self.size or note.size
        if begin and begin == size:
            self.resumed = self.resumed or not self.fetched
            return
        if size and begin > size:
            raise _Anew(f"{begin} bytes of a file that has {size}")
        headers = {"Range": f"bytes={begin}-"} if begin else {}
        if begin and note.validator:
            headers["If-Range"] = note.validator
        with _Sink(self, begin, note) as sink:
            fetch(
                self.url,
                sink,
                self.network,
                Limits(octets=MOST_BYTES, seconds=LONGEST_S),
                headers=headers,
                on_answer=sink.answered,
            )
            sink.ended()

    def _note(self) -> Note:
        """Of what is there, if it is of this URL."""
        try:
            note = decode(Note, read_json(self._note_file))
        except DecodeError:
            return Note(self.url)
        return note if note.url == self.url else Note(self.url)

    def keep(self, note: Note) -> None:
        write_json(self._note_file, asdict(note), durable=False)

    # -- between attempts --------------------------------------------------------------------------

    def _pause(self, error: DownloadError, failures: int) -> None:
        own = PAUSES_S[min(max(failures - 1, 0), len(PAUSES_S) - 1)]
        seconds = own if error.after_s is None else error.after_s
        if seconds > LONGEST_PAUSE_S:
            raise self._failed(error, failures)
        said = f"waits {seconds:.0f} s: {error.found}"
        self.say(self.there(), said)
        self.log(f"{self.url}: {said}")
        sleep(seconds)

    def _failed(self, error: DownloadError, failures: int) -> JobFailed:
        tried = f" ({failures} attempts in a row)" if failures > 1 else ""
        asked = error.after_s or 0.0
        if asked > LONGEST_PAUSE_S:
            tried = f" (it asks to come again in {asked / 60:.0f} minutes)"
        kept = self.there()
        goes_on = f", {shown(kept)} of it are kept and it goes on from there" if kept else ""
        return JobFailed(
            f"{self.url}: found {error.found}{tried}; expected the model's file; next: "
            f"{self.where}, {error.next}; then run the same command again{goes_on}"
        )


class _Nothing:
    def write(self, part: bytes, /) -> None:
        """Of an answer that is not wanted."""


def _length(answer: Answer) -> int:
    text = answer.headers.get("content-length", "")
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else 0


def refuse_odd(path: Path) -> None:
    """Raises JobFailed where something else than a file of one name stands in the way."""
    with contextlib.suppress(FileNotFoundError):
        found = path.lstat()
        if not path.is_file() or path.is_symlink() or found.st_nlink != 1:
            raise JobFailed(
                f"{path}: found no plain file in its place; expected one, or none; "
                f"next: ls -ld {path}, and remove it"
            )


class _Sink:
    """Takes one answer in, from byte `begin` of the file on or from its first one."""

    def __init__(self, transfer: Transfer, begin: int, note: Note) -> None:
        self._of, self._begin, self._note = transfer, begin, note
        self._head = b""
        self._looked = begin > 0
        self._at = begin
        self._size = 0
        self._new = note
        self._speed: deque[tuple[float, int]] = deque()
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.open(transfer.target, flags, 0o600)

    def __enter__(self) -> _Sink:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def answered(self, answer: Answer) -> None:
        """Raises DownloadError, JobFailed, and _Anew."""
        if answer.status == 206 and self._begin:
            self._goes_on(answer)
        elif answer.status == 200:
            self._from_first(answer)
        else:
            raise DownloadError(f"HTTP {answer.status}", f"curl -I {self._of.url}")
        wanted = self._of.size
        self._of.measured = self._size > 0
        if wanted and self._size not in (0, wanted):
            raise JobFailed(
                f"{self._of.url}: found {self._size} bytes; expected {wanted}, the size that was "
                "stated; next: compare the profile's size with the publisher's"
            )
        self._of.disk.need(max(0, (self._size or wanted) - self._at))

    def _goes_on(self, answer: Answer) -> None:
        said = answer.headers.get("content-range", "")
        match = re.fullmatch(r"bytes ([0-9]{1,15})-[0-9]{1,15}/([0-9]{1,15}|\*)", said)
        if match is None or int(match[1]) != self._begin:
            raise _Anew(f"a part that was not asked for ({said[:80]!a})")
        self._size = 0 if match[2] == "*" else int(match[2])
        self._of.resumed = True
        told = self._told(answer)
        if not self._note.validator and self._note.size and not self._note.same(told):
            raise _Anew(f"another file than the one that was begun ({said[:80]!a})")
        with self._writing():
            os.lseek(self._file, self._begin, os.SEEK_SET)
            self._of.keep(told)

    def _from_first(self, answer: Answer) -> None:
        """All of the file, be it asked for or not."""
        self._size = _length(answer)
        self._looked, self._at = False, 0
        self._new = self._told(answer)

    def _told(self, answer: Answer) -> Note:
        etag, modified = (answer.headers.get(name, "") for name in ("etag", "last-modified"))
        return Note(self._of.url, etag[:1000], modified[:100], self._size)

    def write(self, part: bytes, /) -> None:
        """Raises JobFailed."""
        if not self._looked:
            self._head += part
            if len(self._head) < HEAD_BYTES:
                return
            part = self._look()
        self._put(part)

    def ended(self) -> None:
        """The answer is over: a file that is shorter than what is looked at is none."""
        if not self._looked:
            self._put(self._look())

    def _look(self) -> bytes:
        """What has come of a new file, which now takes the place of what was there."""
        head, self._head, self._looked = self._head, b"", True
        if head[:4] != MAGIC:
            raise self._other(head[:HEAD_BYTES])
        if self._begin:
            self._of.notes.append(
                f"{self._of.target.name}: begun anew after {shown(self._begin)}, as the server "
                "sent all of it again: it gives no parts, or has another file by now"
            )
            self._of.resumed = False
        with self._writing():
            os.ftruncate(self._file, 0)
            os.lseek(self._file, 0, os.SEEK_SET)
            self._of.keep(self._new)
        return head

    def _other(self, head: bytes) -> JobFailed:
        kind, _ = looks_like(head, self._of.target)
        advice = f"curl -L {self._of.url} | head -c 200"
        if "Git LFS" in kind:
            advice = "name the address of the file itself, at Hugging Face with /resolve/ for /raw/"
        return JobFailed(
            f"{self._of.url}: found {kind}; expected a GGUF file, which begins {MAGIC.decode()}; "
            f"next: {advice}"
        )

    def _put(self, part: bytes) -> None:
        left = memoryview(part)
        with self._writing():
            while left:
                written = os.write(self._file, left)
                left = left[written:]
                self._at += written
                self._of.fetched += written
            self._of.say(self._at, self._line())

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Raises JobFailed where the disk does not take it, be it full by others' files."""
        try:
            yield
        except OSError as error:
            # The job has yet to write how it ended.
            size = os.fstat(self._file).st_size
            os.ftruncate(self._file, max(0, size - GIVEN_BACK))
            raise JobFailed(
                f"{self._of.target}: found that it can't be written ({error.strerror}) after "
                f"{shown(self._at)}; expected room for all of it; next: df -h "
                f"{self._of.target.parent}; then run the same command again, it goes on from there"
            ) from error

    def _line(self) -> str:
        """As "1.2 GiB of 4.5 GiB, 88.0 MiB/s, 40 s left"."""
        now = monotonic()
        if not self._speed or now - self._speed[-1][0] >= 0.5:
            self._speed.append((now, self._at))
        while len(self._speed) > 2 and now - self._speed[0][0] > SPEED_S:
            self._speed.popleft()
        since, before = self._speed[0]
        size = self._size or self._of.size
        whole = f"{shown(self._at)} of {shown(size)}" if size else shown(self._at)
        if now - since < 0.5 or self._at <= before:
            return whole
        speed = (self._at - before) / (now - since)
        left = f", {(size - self._at) / speed:.0f} s left" if size else ""
        return f"{whole}, {shown(int(speed))}/s{left}"
