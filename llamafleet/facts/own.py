"""What llamafleet itself left on a host, of a snapshot's lines: builds, jobs, results, owners."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass, replace
from typing import TypeVar, get_args

from llamafleet.facts.host import Build, DeployLock, Job, ModelFile, Owner, PlacedModel
from llamafleet.facts.lines import Record, Sorted, number
from llamafleet.protocol.job import BuildProduct, Kind, Progress, Stamp
from llamafleet.protocol.place import ModelProduct
from llamafleet.protocol.result import Result
from llamafleet.protocol.serve import NAME as PROFILE
from llamafleet.protocol.serve import Status
from llamafleet.received import Unreadable, received_json, received_result, received_text

T = TypeVar("T")

JSON_LIMIT = 1 << 20
"""Bytes of a file at which snapshot.sh cuts it."""
NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]{0,199}")
"""Of a folder of ours."""
LIBRARY = re.compile(r"lib/python[0-9.]{1,8}/site-packages/llama_cpp/lib/lib[A-Za-z0-9._+-]{1,200}")
PATH = re.compile(r"/.{0,4000}")
KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}


@dataclass(frozen=True)
class _Lock:
    """The file of a deploy lock."""

    owner: str
    controller: str
    pid: int
    start_ticks: int | None
    started: float


def names(record: Record, key: str) -> tuple[str, ...]:
    """Of folders, each once."""
    return tuple(sorted({row[0] for row in record.rows(key, 1) if NAME.fullmatch(row[0])}))


def owners(told: Sorted) -> dict[str, Owner]:
    """By path. The account is believed about what lies in its own folders."""
    found = dict(_owners(told.main))
    places = {name: path for name, path, _ in told.main.rows("real", 3)}
    prefix, state = places.get("prefix"), places.get("state")
    # Without these rows none is known to be its own: "" would stand for all of the host.
    own = [f"{prefix}/versions/", f"{prefix}/toolkits/"] if prefix else []
    folders = (*own, f"{state}/") if state else tuple(own)
    for path, owner in _owners(told.account):
        if path not in found and (path.startswith(folders) or not told.split):
            found[path] = owner
    return found


def _owners(record: Record) -> list[tuple[str, Owner]]:
    """Rows "mode in hex, user, group, path", as stat(1) prints them."""
    found = []
    for line in record.block("owners"):
        mode, user, group, path = (*line.split("\t", 3), "", "", "")[:4]
        if re.fullmatch(r"[0-9a-f]{1,8}", mode) and PATH.fullmatch(path):
            bits = int(mode, 16)
            kind = KINDS.get(stat.S_IFMT(bits), "other")
            found.append((path, Owner(kind, user, group, stat.S_IMODE(bits))))
    return found


def hashes(lines: list[str]) -> dict[str, str]:
    """Output of sha256sum: path -> hash."""
    found = {}
    for line in lines:
        match = re.fullmatch(r"(\\?)([0-9a-f]{64}) [ *](.+)", line)
        if match:
            # A leading backslash says that the path is escaped.
            path = match[3].replace("\\\\", "\\") if match[1] else match[3]
            found[path] = match[2]
    return found


def builds(record: Record) -> dict[str, Build]:
    """Those that were looked into: each has a block of its libraries, be it empty."""
    runs = set(names(record, "build_runs"))
    looked = [block[1] for block in record.blocks if block[0] == "libraries" and len(block) > 1]
    found = {}
    for name in filter(NAME.fullmatch, looked):
        stamp = _told(record, Stamp, "build", name)
        product = _told(record, BuildProduct, "build", name)
        libraries = _libraries(record.block("libraries", name), product)
        found[name] = Build(
            name,
            stamp if isinstance(stamp, Stamp) else None,
            product if isinstance(product, BuildProduct) else None,
            runs=name in runs,
            libraries=libraries,
        )
    return found


def models(record: Record) -> dict[str, PlacedModel]:
    """By key. Links of ours lead to files of the host; what is odd is left out."""
    files: dict[str, dict[str, ModelFile]] = {name: {} for name in names(record, "model")}
    for key, name, size, changed in record.rows("model_file", 4):
        if key in files and NAME.fullmatch(name):
            files[key][name] = ModelFile(number(size), number(changed))
    return {key: _placed(record, key, found) for key, found in files.items()}


def _placed(record: Record, key: str, files: dict[str, ModelFile]) -> PlacedModel:
    stamp, product = (_told(record, kind, "model", key) for kind in (Stamp, ModelProduct))
    return PlacedModel(
        key,
        stamp if isinstance(stamp, Stamp) else None,
        product if isinstance(product, ModelProduct) else None,
        files,
    )


def _libraries(lines: list[str], product: object) -> dict[str, str]:
    """sha256 by path. Those that nobody has changed since the stamp are as it says."""
    found = hashes(lines)
    stamped = product.libraries if isinstance(product, BuildProduct) else {}
    for line in lines:
        word, _, path = line.partition("  ")
        if word == "stamped":
            found[path] = stamped.get(path, "")
    return {path: digest for path, digest in found.items() if LIBRARY.fullmatch(path)}


def jobs(told: Sorted) -> list[Job]:
    """Root's own first: what the account says of one of these is not heard."""
    found = {}
    for record, root in ((told.main, told.split), (told.account, False)):
        for kind, key, alive in record.rows("job", 3):
            if kind in get_args(Kind) and NAME.fullmatch(key) and (kind, key) not in found:
                found[kind, key] = replace(_job(record, kind, key, alive), root=root)
    return list(found.values())


def _job(record: Record, kind: str, key: str, alive: str) -> Job:
    progress = _told(record, Progress, "progress", kind, key)
    stamp = _told(record, Stamp, "stamp", kind, key)
    product = _told(record, BuildProduct, "stamp", kind, key) if kind == "build" else None
    job = Job(
        kind=kind,
        key=key,
        alive=alive == "1",
        progress=None if isinstance(progress, Unreadable) else progress,
        stamp=None if isinstance(stamp, Unreadable) else stamp,
        unreadable=stamp.reason if isinstance(stamp, Unreadable) else "",
        product=product if isinstance(product, BuildProduct) else None,
    )
    if kind == "build" and job.ok:
        # Code of before wrote no build.json: this is the proof of what it built.
        product = _told(record, BuildProduct, "stamp", kind, key)
        job = replace(job, product=product if isinstance(product, BuildProduct) else None)
    # Its folder has the same name whatever is verified.
    told = job.progress or job.stamp
    return replace(job, key=told.key) if kind == "verify" and told else job


def _told(record: Record, form: type[T], *name: str) -> T | Unreadable | None:
    """The file that begins so. None: no such file."""
    text = record.file(*name)
    return None if text is None else received_text(form, text)


def result(record: Record) -> Result | Unreadable | None:
    """latest.json; the script cuts what is longer than a result can be."""
    text = record.file("latest")
    if text is None:
        return None
    if len(text) + 1 >= JSON_LIMIT:
        return Unreadable("latest.json has 1 MiB or more: no verification writes such a one")
    data = received_json(text)
    if isinstance(data, Unreadable):
        return Unreadable(f"latest.json is {data.reason}")
    return received_result(data)


def services(record: Record) -> dict[str, Status]:
    """By profile: each is believed about the service of the folder that it lies in alone."""
    found = {}
    for block in list(record.blocks):
        if block[0] == "served" and len(block) > 1 and re.fullmatch(PROFILE, block[1]):
            told = _told(record, Status, "served", block[1])
            if isinstance(told, Status) and told.profile == block[1]:
                found[told.profile] = told
    return found


def deploy_lock(told: Sorted) -> DeployLock | None:
    """Root's file in scope system, of which the account is not heard; else the user's own."""
    for record in (told.main,) if told.split else (told.main, told.account):
        lock = _told(record, _Lock, "deploy_lock")
        if isinstance(lock, _Lock):
            return DeployLock(
                lock.owner,
                lock.controller,
                lock.pid,
                lock.start_ticks,
                lock.started,
                age_s=record.number("deploy_lock_age"),
            )
    return None
