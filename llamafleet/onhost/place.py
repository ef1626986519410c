"""The job that brings a served model: fetched or taken as it was brought, checked, put in place.

A part gets its name when its sha256 and its header are right, and the proof is written when all
parts are there and belong together: what is half has no proof.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from llamafleet.onhost.download import Network
from llamafleet.onhost.job import Job, JobFailed
from llamafleet.onhost.transfer import Disk, Transfer, refuse_odd
from llamafleet.onhost.verify import gguffile, modelfile
from llamafleet.onhost.verify.shape import shape_of
from llamafleet.onhost.verify.synth import ModelError
from llamafleet.protocol.decode import DecodeError, decode
from llamafleet.protocol.job import ModelConfig, read_json, sync_folder, write_json
from llamafleet.protocol.place import (
    INCOMING,
    PROOF,
    ModelPart,
    ModelProduct,
    PlacedFile,
    part_name,
    shown,
)

ASK, FETCH, CHECK, READ = "ask", "download", "check", "read"
"""Phases."""
CHUNK = 4 << 20
READ_ONLY = 0o444


def work(job: Job, config: ModelConfig) -> ModelProduct:
    """Bring all parts. Raises JobFailed."""
    folder = Path(config.folder)
    _own(folder)
    (folder / PROOF).unlink(missing_ok=True)
    placing = _Placing(job, config, folder)
    placing.ask()
    files = [placing.part(number) for number in range(len(config.parts))]
    job.phase(READ)
    product = placing.product(files)
    for note in placing.notes:
        job.notes.append(note)
    write_json(folder / PROOF, asdict(job.stamp(asdict(config.inputs))) | asdict(product))
    return product


def done(config: ModelConfig) -> bool:
    """It is there as it was proven."""
    return not changed(Path(config.folder))


def changed(folder: Path) -> str:
    """How the model in `folder` is not the one that was proven; "": it is, by size and ctime."""
    try:
        product = decode(ModelProduct, read_json(folder / PROOF))
    except DecodeError as error:
        return f"{folder / PROOF}: {error}"
    for file in product.files:
        try:
            found = (folder / file.name).stat()
        except OSError as error:
            return f"{folder / file.name}: {error.strerror}"
        if (found.st_size, found.st_ctime_ns) != (file.size, file.changed_ns):
            return f"{folder / file.name}: changed since it was checked"
    return "" if product.files else f"{folder / PROOF}: no files"


def _own(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise JobFailed(
            f"{folder}: found that it can't be made ({error.strerror}); expected a folder; "
            f"next: ls -ld {folder.parent}"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise JobFailed(
            f"{folder}: found what is no folder of uid {os.geteuid()}; expected one; "
            f"next: ls -ld {folder}, and move it away"
        )


class _Placing:
    """The parts of one model on their way into its folder."""

    def __init__(self, job: Job, config: ModelConfig, folder: Path) -> None:
        self._job, self._config, self._folder = job, config, folder
        self._count = len(config.parts)
        self._network = Network.of(config)
        self._disk = Disk(folder, config.reserve_mib << 20)
        self.notes: list[str] = []
        self.fetched = 0

    def _place(self, number: int) -> Path:
        return self._folder / part_name(number, self._count)

    def _incoming(self, number: int) -> Path:
        place = self._place(number)
        return place.with_name(f"{place.name}{INCOMING}")

    def _transfer(self, number: int) -> Transfer:
        part = self._config.parts[number]
        made = Transfer(part.url, self._incoming(number), self._network, self._disk, part.size)
        made.say = self._told(number, lambda: made.size)
        made.log = self._job.log
        return made

    def _told(self, number: int, size: Callable[[], int]) -> Callable[[int, str], object]:
        of = f"part {number + 1} of {self._count}: " if self._count > 1 else ""

        def say(done: int, line: str) -> None:
            self._job.progress.step(done >> 20, max(size(), done) >> 20, f"{of}{line}")

        return say

    def ask(self) -> None:
        """See that there is room for all that is to come, before the first byte of it."""
        self._job.phase(ASK)
        wanted = 0
        for number, part in enumerate(self._config.parts):
            if part.url and not self._place(number).exists():
                transfer = self._transfer(number)
                size = transfer.ask_size()
                wanted += max(0, size - transfer.there())
        if wanted:
            self._disk.need(wanted)

    def part(self, number: int) -> PlacedFile:
        """Bring one part. Raises JobFailed."""
        part, place = self._config.parts[number], self._place(number)
        if part.path:
            return self._linked(part, place)
        refuse_odd(place)
        if place.exists() and self._sha256(place, number) == part.sha256:
            return self._placed(place, part.sha256)
        place.unlink(missing_ok=True)
        if part.url:
            self._fetch(number)
        else:
            self._brought(number)
        return self._settle(number)

    def _fetch(self, number: int) -> None:
        """Until its sha256 is right; once more from its first byte where that may mend it."""
        part = self._config.parts[number]
        for again in (True, False):
            self._job.phase(FETCH, f"{part.url}")
            transfer = self._transfer(number)
            try:
                transfer.run()
            finally:
                self.fetched += transfer.fetched
                self.notes += transfer.notes
            found = self._sha256(transfer.target, number)
            if found == part.sha256:
                transfer.ended()
                return
            size = transfer.there()
            transfer.forget()
            if not (again and transfer.doubtful):
                raise JobFailed(
                    f"{part.url}: found sha256 {found} over {size} bytes; expected {part.sha256}; "
                    "next: compare the profile's sha256 with the publisher's; what came is removed"
                )
            self.notes.append(
                f"{transfer.target.name}: fetched anew, as what had come was of sha256 {found}"
            )

    def _brought(self, number: int) -> None:
        """What the controller has sent."""
        part, file = self._config.parts[number], self._incoming(number)
        refuse_odd(file)
        if not file.exists():
            raise JobFailed(
                f"{file}: found no such file; expected the one that the controller sends; "
                "next: run the same command again"
            )
        if (found := self._sha256(file, number)) != part.sha256:
            size = file.stat().st_size
            file.unlink()
            raise JobFailed(
                f"{file}: found sha256 {found} over {size} bytes; expected {part.sha256}, as the "
                "controller sent it; it is removed; next: run the same command again"
            )

    def _settle(self, number: int) -> PlacedFile:
        """Give a part its name, now that its bytes are right."""
        file, place = self._incoming(number), self._place(number)
        self._header(file)
        opened = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchmod(opened, READ_ONLY)
            os.fsync(opened)
        finally:
            os.close(opened)
        file.replace(place)
        sync_folder(self._folder)
        return self._placed(place, self._config.parts[number].sha256)

    def _header(self, file: Path) -> None:
        """Raises JobFailed where the bytes that were asked for are no whole GGUF file."""
        try:
            made = gguffile.read(file)
        except (ModelError, OSError) as error:
            raise _no_model(error) from error
        if made.end and (rest := file.stat().st_size - made.end) > 0:
            self.notes.append(f"{self._folder.name}: {rest} bytes behind its last tensor")

    def _linked(self, part: ModelPart, place: Path) -> PlacedFile:
        """A file that the host has: it stays where it is, and is looked at."""
        try:
            gguffile.regular_file(Path(part.path))
        except ModelError as error:
            raise _no_model(error) from error
        if part.sha256 and (found := self._sha256(Path(part.path), 0)) != part.sha256:
            raise JobFailed(
                f"{part.path}: found sha256 {found}; expected {part.sha256}, as the profile says; "
                "next: compare both with the publisher's"
            )
        if place.is_symlink() or place.exists():
            place.unlink()
        place.symlink_to(part.path)
        return self._placed(place, part.sha256)

    def _placed(self, place: Path, sha256: str) -> PlacedFile:
        found = place.stat()
        return PlacedFile(
            name=place.name, sha256=sha256, size=found.st_size, changed_ns=found.st_ctime_ns
        )

    def _sha256(self, file: Path, number: int) -> str:
        self._job.phase(CHECK)
        say = self._told(number, lambda: size)
        digest, done = hashlib.sha256(), 0
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            while part := opened.read(CHUNK):
                digest.update(part)
                done += len(part)
                say(done, f"{shown(done)} of {shown(size)} compared")
        return digest.hexdigest()

    def product(self, files: list[PlacedFile]) -> ModelProduct:
        """What all parts together are. Raises JobFailed."""
        own = self._config.parts[0].path
        try:
            made = modelfile.read(Path(own) if own else self._place(0))
        except (ModelError, OSError) as error:
            raise _no_model(error) from error
        if len(made) != self._count:
            raise JobFailed(
                f"{self._folder}: found a model of {len(made)} parts by its header; expected "
                f"{self._count}, as the profile says; next: name the first part of all, as "
                "...-00001-of-00003.gguf"
            )
        self._tidy(files)
        return ModelProduct(
            files=tuple(files),
            fetched_bytes=self.fetched,
            shape=shape_of(made),
        )

    def _tidy(self, files: list[PlacedFile]) -> None:
        """Nothing else is left in the folder."""
        ours = {file.name for file in files}
        for left in self._folder.iterdir():
            if left.name not in ours and not left.is_dir():
                with contextlib.suppress(OSError):
                    left.unlink()


def _no_model(error: ModelError | OSError) -> JobFailed:
    if isinstance(error, OSError):
        return JobFailed(
            f"{error.filename}: found that it can't be read ({error.strerror}); expected a model; "
            "next: dmesg on the host"
        )
    return JobFailed(f"found {error}; expected {error.expected}; next: {error.next}")
