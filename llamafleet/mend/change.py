"""One change of an environment: the old llama-cpp-python is kept until the new one is proven.

A journal is on the disk before anything is changed, so that also a change that was killed is taken
back: by the next run, from the copy of the old one's files.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import os
import re
import shutil
import stat
import tarfile
import zipfile
from base64 import urlsafe_b64decode
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from llamafleet.mend.machine import Machine, run
from llamafleet.mend.work import Failed, index
from llamafleet.plans.mend.plan import Mending, Scheme
from llamafleet.protocol.decode import DecodeError, decode
from llamafleet.protocol.environment import MODULE, PACKAGE, Distribution, Environment
from llamafleet.protocol.job import PATH, read_json, sync_folder, write_json
from llamafleet.settings import Settings
from llamafleet.tables.pinned import HOST, pins, pip_line

JOURNAL, BACKUP, WHEEL = "journal.json", "old.tar", "wheel"
PIP_S = 900.0
MOST_BYTES = 4 << 30
"""Of a wheel; those of a build for all architectures have some hundred MB."""
INFO = re.compile(r"llama[_.-]cpp[_.-]python-[^/]+\.(dist|egg)-info", re.IGNORECASE)
USER_BASE = "PYTHONUSERBASE"
LEFT = "~"
"""What pip moved away and had no time to remove begins so, as "~lama_cpp" (its temp_dir.py)."""


@dataclass(frozen=True)
class Journal:
    """A change that was begun."""

    version: Literal[1]
    python: str
    site: str
    scheme: Scheme
    old: str
    new: str
    files: dict[str, str]
    """Of the old one: sha256, or "-> TARGET" of a link, by path from `site`."""
    names: tuple[str, ...]
    """Files of the new one, by path from `site`."""
    adds: tuple[str, ...]
    """Packages that are installed beside it, and were not there."""
    there: tuple[str, ...]
    """What was in `site` before."""


class Change:
    """The place of one environment's journal and of its old files."""

    def __init__(self, here: Machine, site: str) -> None:
        self._here = here
        self._site = Path(site)
        self.folder = here.changes / hashlib.sha256(os.fsencode(site)).hexdigest()[:16]

    def unfinished(self) -> Journal | None:
        """A change that came to no end. Raises Failed where its journal can't be read."""
        file = self.folder / JOURNAL
        if not file.exists():
            return None
        try:
            return decode(Journal, read_json(file))
        except DecodeError as error:
            raise Failed(
                f"{file}: found no journal of a change ({error}); expected one; next: see whether "
                f"{self._site} is whole, and remove {self.folder}"
            ) from error

    def take(self, wheel: Path) -> Path:
        """A copy of the wheel where no other account can alter it. Raises Failed, OSError."""
        place = self.folder / WHEEL
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        opened = os.open(wheel, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(opened, "rb") as source, (place / wheel.name).open("xb") as target:
            found = os.fstat(opened)
            if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_BYTES:
                raise Failed(
                    f"{wheel}: found no file of at most {MOST_BYTES} bytes; expected a wheel; "
                    "next: run the same command again"
                )
            shutil.copyfileobj(source, target)
        return place / wheel.name

    def begin(self, environment: Environment, mending: Mending, wheel: Path) -> Journal:
        """Keep the old one's files, then write the journal. Raises Failed, OSError."""
        old = _old_files(self._site, Path(environment.prefix))
        files = {name: _content(self._site / name) for name in old}
        names = _wheel_names(wheel)
        _refuse_others(self._site, [name for name in names if name not in files])
        with (self.folder / BACKUP).open("wb") as opened:
            with tarfile.open(fileobj=opened, mode="w") as tar:
                for name in old:
                    tar.add(self._site / name, arcname=name, recursive=False)
            opened.flush()
            os.fsync(opened.fileno())
        there = os.listdir(self._site) if self._site.is_dir() else []  # noqa: PTH208
        journal = Journal(
            version=1,
            python=environment.executable,
            site=str(self._site),
            scheme=mending.scheme,
            old=mending.old,
            new=mending.new,
            files=files,
            names=names,
            adds=mending.adds or (),
            there=tuple(sorted(there)),
        )
        write_json(self.folder / JOURNAL, asdict(journal))
        return journal

    def install(self, journal: Journal, wheel: Path, settings: Settings) -> None:
        """That very wheel in the old one's place, and what it needs. Raises Failed."""
        own = ["--no-index", "--no-deps", "--force-reinstall", str(wheel)]
        if journal.adds:
            wanted = [p for p in pins(HOST) if p.requirement.name.lower() in journal.adds]
            lines = self.folder / "adds.txt"
            lines.write_text("".join(pip_line(str(p.requirement), p.sha256) for p in wanted))
            more = ["--only-binary", ":all:", "--no-deps", "--require-hashes", "-r", str(lines)]
            env = index(settings, more)
            self._pip(journal, ["install", *more], env)
        self._pip(journal, ["install", *own], {})

    def _pip(self, journal: Journal, words: Sequence[str], env: dict[str, str]) -> None:
        """Our own pip by the environment's interpreter: it may have none."""
        user = journal.scheme == "user site" and words[0] == "install"
        argv = [journal.python, "-E" if journal.scheme == "user site" else "-I"]
        argv += [self._here.layout.pip, "--disable-pip-version-check", "--no-input", *words]
        argv += ["--no-cache-dir", "--root-user-action=ignore"]
        argv += ["--user"] * user
        home = self._here.environ.get("HOME", "/")
        # pip reads no settings of the user's: they may name other places and other indexes.
        clean = {"PATH": PATH, "HOME": home, "LC_ALL": "C.UTF-8", "PIP_CONFIG_FILE": os.devnull}
        if journal.scheme == "user site" and (base := self._here.environ.get(USER_BASE)):
            # The site that was looked at and kept lies there: this variable is Python's, not pip's.
            clean[USER_BASE] = base
        said = run(argv, PIP_S, clean | env)
        if said.status != 0:
            lines = said.error.strip().splitlines() or ["it says nothing"]
            raise Failed(
                f"pip {words[0]}: found status {said.status} ({lines[-1][:300]}); expected 0; "
                "next: run the same command again"
            )

    def mixed(self) -> str:
        """Why what lies there now is no whole installation; "": all is as its RECORD says."""
        try:
            return self._mixed()
        except (OSError, ValueError, csv.Error) as error:
            return f"what can't be read ({error})"

    def _mixed(self) -> str:
        """Raises OSError, ValueError, csv.Error."""
        infos = [one for one in self._site.iterdir() if INFO.fullmatch(one.name)]
        if len(infos) != 1:
            return f"{len(infos)} records of {PACKAGE}"
        hashed = [(row[0], row[1]) for row in _record(infos[0]) if len(row) > 1 and row[1]]
        for name, told in hashed:
            kind, _, digest = told.partition("=")
            if kind != "sha256" or _content(self._site / name) != _hex(digest):
                return f"{name} that is not the one of its RECORD"
        own = any(name.startswith(f"{MODULE}/") for name, _ in hashed)
        return "" if own else f"{infos[0].name} without hashes in a RECORD"

    def commit(self) -> None:
        """The new one stays."""
        self._forget()

    def restore(self, journal: Journal) -> None:
        """The old one as it was. May be cut off and done again. Raises Failed."""
        try:
            self._restore(journal)
        except (OSError, tarfile.TarError) as error:
            raise Failed(
                f"{self._site}: found that the old {PACKAGE} can't be put back ({error}), and may "
                f"be half there; expected to write there; next: df -h {self._site}, then the same "
                f"command with --yes: its files are kept in {self.folder / BACKUP}"
            ) from error

    def _restore(self, journal: Journal) -> None:
        """Raises Failed, OSError, TarError."""
        site = self._site
        _remove_new(site, journal)
        with tarfile.open(self.folder / BACKUP) as tar:
            for member in tar:
                _unpack(tar, member, site)
        wrong = [name for name, told in journal.files.items() if _content(site / name) != told]
        if wrong:
            raise Failed(
                f"{site}: found {len(wrong)} files of the old {PACKAGE} that are not as they were "
                f"({wrong[0]}); expected all of them; next: unpack {self.folder / BACKUP} there"
            )
        if journal.adds:
            self._pip(journal, ["uninstall", "--yes", *journal.adds], {})
        self._forget()

    def _forget(self) -> None:
        (self.folder / JOURNAL).unlink()
        sync_folder(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)


def changed(
    before: Iterable[Distribution], after: Iterable[Distribution], adds: Iterable[str]
) -> list[str]:
    """What else is not as it was, a line for each distribution."""
    ours = {PACKAGE, *adds}
    old = {(d.name, d.place): (d.version, d.sha256) for d in before if d.name not in ours}
    new = {(d.name, d.place): (d.version, d.sha256) for d in after if d.name not in ours}
    lines = []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            was, now = (v[key][0] if key in v else "none" for v in (old, new))
            lines.append(f"{key[0]} {was} -> {now}" + (" (installed anew)" if was == now else ""))
    return lines


def _old_files(site: Path, prefix: Path) -> list[str]:
    """Files of the one that is there, by path from `site`. Raises Failed."""
    names: set[str] = set()
    infos = [one for one in site.iterdir() if INFO.fullmatch(one.name)] if site.is_dir() else []
    for info in infos:
        names |= {row[0] for row in _record(info)}
        names |= _below(site, info)
    names |= _below(site, site / MODULE)
    roots = (prefix.resolve(), site.resolve())
    for name in names:
        place = Path(os.path.normpath(site.resolve() / name))
        if not any(place.is_relative_to(root) for root in roots):
            raise Failed(
                f"{site}: found {name} in the RECORD of {PACKAGE}; expected files of this "
                f"environment alone; next: pip uninstall {PACKAGE}, and llamafleet fix again"
            )
    return sorted(name for name in names if _is_file(site / name))


def _record(info: Path) -> list[list[str]]:
    """Rows of a distribution's list of files: path, hash, size."""
    record = info / "RECORD"
    if not record.is_file():
        return []
    return [row for row in csv.reader(record.read_text(encoding="utf-8").splitlines()) if row]


def _hex(digest: str) -> str:
    """Of a hash as RECORD has it; "": it is none."""
    try:
        return urlsafe_b64decode(digest + "=" * (-len(digest) % 4)).hex()
    except ValueError:
        return ""


def _below(site: Path, folder: Path) -> set[str]:
    return {str(path.relative_to(site)) for path in folder.rglob("*") if _is_file(path)}


def _is_file(path: Path) -> bool:
    return path.is_symlink() or path.is_file()


def _content(path: Path) -> str:
    """What a file holds; "": there is none."""
    if path.is_symlink():
        return f"-> {path.readlink()}"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _wheel_names(wheel: Path) -> tuple[str, ...]:
    with zipfile.ZipFile(wheel) as opened:
        return tuple(sorted(name for name in opened.namelist() if not name.endswith("/")))


def _refuse_others(site: Path, names: Iterable[str]) -> None:
    """Of the wheel's files, one that lies there already is another package's. Raises Failed."""
    if there := next((name for name in names if _is_file(site / name)), None):
        raise Failed(
            f"{site / there}: found a file that the wheel of {PACKAGE} has too, and the old one "
            "has not; expected none of another package's; nothing was changed; next: see whose "
            f"it is, by grep -l {there} {site}/*.dist-info/RECORD"
        )


def _remove_new(site: Path, journal: Journal) -> None:
    """All of any llama-cpp-python that is there, and what pip left."""
    for name in journal.names:
        (site / name).unlink(missing_ok=True)
        for folder in list(Path(name).parents)[:-1]:
            if folder.parts[0] not in journal.there:
                with contextlib.suppress(OSError):
                    (site / folder).rmdir()
    for entry in list(site.iterdir()) if site.is_dir() else []:
        left = entry.name.startswith(LEFT) and entry.name not in journal.there
        if entry.name == MODULE or INFO.fullmatch(entry.name) or left:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def _unpack(tar: tarfile.TarFile, member: tarfile.TarInfo, site: Path) -> None:
    """A file or a link, in place of whatever lies there."""
    path = site / member.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if member.issym():
        path.symlink_to(member.linkname)
        return
    source = tar.extractfile(member)
    assert source is not None, member.name
    with path.open("xb") as target:
        shutil.copyfileobj(source, target)
    path.chmod(member.mode)
    os.utime(path, (member.mtime, member.mtime))
