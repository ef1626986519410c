"""What a hostile or odd host prints: one value less, or that host's error; soon, and printable."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import pytest

from llamafleet.facts.host import HostSnapshot
from llamafleet.facts.lines import MOST_CHARACTERS, MOST_ROWS
from llamafleet.facts.reader import SnapshotError, parse
from tests.facts.test_reader import GOOD

DIGITS = "9" * 40_000
"""As a version they took one minute and more."""
ESCAPE = "\N{ESCAPE}[2J\N{ESCAPE}]0;owned\a"


def with_lines(*lines: str) -> list[str]:
    return [*GOOD[:-2], *lines, *GOOD[-2:]]


def block(name: str, *lines: str) -> list[str]:
    return with_lines(f"@begin {name}", *(f" {line}" for line in lines), "@end")


LONG: dict[str, list[str]] = {
    "glibc": with_lines(f"glibc=glibc {DIGITS}"),
    "cmake": with_lines(f"cmake=/usr/bin/cmake\tcmake version {DIGITS}"),
    "cmake, in parts": with_lines(f"cmake=/usr/bin/cmake\t{'1.' * 20_000}"),
    "compiler": with_lines(f"compiler=/usr/bin/g++\tgcc\t13.{DIGITS}"),
    "python": with_lines(f"python=/usr/bin/python3\t3.{DIGITS}\t1"),
    "toolkit": with_lines(f"toolkit=/a\t/a\t{DIGITS}\t1\t1\t1\t1"),
    "module": with_lines(f"module={DIGITS}"),
    "library": with_lines(f"library=/x\t/x/libnvidia-ml.so.{DIGITS}"),
    "kernel": with_lines(f"kernel_module={DIGITS}-a\t1\t1\t{DIGITS}", f"kernel={DIGITS}"),
    "numbers": with_lines(f"time={DIGITS}", f"cores={DIGITS}", f"disk=tmp\t{DIGITS}"),
    "banner": block("smi_banner", f"CUDA {'Version ' * 5000}{DIGITS}"),
    "query": block("smi_query", f"0, {', GPU-1' * 5000}", f"{DIGITS}, a, GPU-1", "0, " * 9999),
    "packages": block("packages", f"nvidia-driver {DIGITS}.{DIGITS}"),
    "locks": block("versionlock", *(["a-" * 8000] * 1000)),
    "hashes": block("files", *([f"{'0' * 64}  {'/' * 16000}"] * 1000)),
    "release": block("os-release", *([f"ID='{'x ' * 8000}'"] * 300)),
    "log": block("kernel_log", *(["NVRM: Xid " * 1000] * 300)),
    "table": block("smi_banner", *(["|   0 " + "| 00000000:01:00.0 " * 900] * 400)),
    "details": block("smi_details", *(["GPU 00000000:01:00.0", f"  A : ERR! {DIGITS}"] * 300)),
    "instances": block("smi_list", *([f"GPU 0: (UUID: GPU-{DIGITS})", f"  MIG {' ' * 9000}"] * 99)),
    "driver's files": block("driver_gpus", *([f"/gpus/{':' * 16000}"] * 999)),
    "fabric": block("fabric_manager", *([f"{'=' * 16000}"] * 999)),
    "units": block("units", *([f"Id={DIGITS}", f"LastTriggerUSec={'2026-' * 4000}"] * 300)),
    "uptime": with_lines(f"uptime={DIGITS}"),
}


@pytest.mark.parametrize("name", LONG)
def test_no_text_takes_long(name: str) -> None:
    begin = time.process_time()
    parse(LONG[name])
    assert time.process_time() - begin < 2


def test_a_text_that_is_too_long_is_not_read() -> None:
    begin = time.process_time()
    with pytest.raises(SnapshotError, match="found more than 32 MiB"):
        parse(["x" * 1000] * (MOST_CHARACTERS // 1000 + 1) + GOOD)
    assert time.process_time() - begin < 2


def test_rows_are_bounded() -> None:
    many = with_lines(*(f"compiler=/usr/bin/g++-{n}\tgcc\t13.1" for n in range(5000)))
    assert len(parse(many).compilers) == MOST_ROWS


ODD: list[tuple[str, Callable[[HostSnapshot], object], object]] = [
    ("compiler=/usr/bin/g++\tgcc\t13-custom", lambda s: s.compilers, ()),
    ("compiler=/usr/bin/g++\tgcc\t²³", lambda s: s.compilers, ()),
    ("python=/usr/bin/python3\t3.12.1rc\t1", lambda s: s.pythons, ()),
    ("python=relative\t3.12.1\t1", lambda s: s.pythons, ()),
    ("job=build\t../../etc\t1", lambda s: [job.key for job in s.jobs], ["0123"]),
    ("job=shell\tx\t1", lambda s: [job.key for job in s.jobs], ["0123"]),
    ("current=..", lambda s: s.current, None),
    ("current=a/b", lambda s: s.current, None),
    ("built=a b", lambda s: s.versions, ()),
    ("cores=0", lambda s: s.cores, 1),
    ("cores=999999999", lambda s: s.cores, 8192),
    ("module=²³.1", lambda s: s.driver.module, None),
    ("time=²", lambda s: s.time, 0),
]


@pytest.mark.parametrize(("line", "value", "expected"), ODD, ids=[row[0] for row in ODD])
def test_an_odd_value_costs_that_value(
    line: str, value: Callable[[HostSnapshot], object], expected: object
) -> None:
    snapshot = parse(with_lines(line))
    assert value(snapshot) == expected
    assert snapshot.hostname == "gpu-a"


def texts(data: object) -> list[str]:
    """Every text in it."""
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        data = {one.name: getattr(data, one.name) for one in dataclasses.fields(data)}
    if isinstance(data, str):
        return [data]
    if isinstance(data, dict):
        return [text for pair in data.items() for part in pair for text in texts(part)]
    if isinstance(data, (list, tuple)):
        return [text for one in data for text in texts(one)]
    return []


def test_nothing_that_moves_a_cursor_is_told() -> None:
    """Wherever an escape sequence is put."""
    lines = []
    for line in with_lines(
        "user=x", "glibc=glibc 2.36", "compiler=/a\tgcc\t13.1", "cmake=/a\tcmake 3.1", "uptime=1 2"
    ):
        hostile = line.replace("gpu-a", f"gpu{ESCAPE}").replace("GeForce", f"Ge{ESCAPE}Force")
        lines.append(hostile.replace("=x", f"={ESCAPE}x").replace("/a", f"/a{ESCAPE}"))
    lines[-2:-2] = ["@begin kernel_log", f" NVRM{ESCAPE}", "@end", f"pci=1{ESCAPE}\t0x1{ESCAPE}\tx"]
    snapshot = parse(lines)
    assert "Ge [2J ]0;owned Force" in snapshot.gpus[0].name
    assert [text for text in texts(snapshot) if not text.isprintable()] == []


@pytest.mark.parametrize("line", [ESCAPE, f"@begin x\n{ESCAPE}", f"#llamafleet-snapshot {ESCAPE}"])
def test_an_error_shows_nothing_that_moves_a_cursor(line: str) -> None:
    with pytest.raises(SnapshotError) as caught:
        parse([line, *GOOD] if line.startswith("#") else [*GOOD[:3], *line.split("\n"), *GOOD[3:]])
    assert str(caught.value).isprintable()


def test_a_login_that_greets_and_a_terminal_s_line_ends() -> None:
    """`echo hi` in .bashrc, and what a pseudo-terminal makes of line ends."""
    greeted = ["hi", f"{ESCAPE}Welcome", *GOOD]
    assert parse([f"{line}\r" for line in greeted]) == parse(GOOD)


STAMPS: list[Any] = [
    *("null", "[]", "5", '"x"', '{"kind": null}', '{"version": 1, "kind": [], "key": {}}'),
    '{"version": 1, "kind": "build", "key": "0123", "ok": "yes"}',
    '{"version": 1, "kind": "build", "key": "0123", "ok": true, "error": {"phase": 5}}',
    '{"version": 1, "kind": "build", "key": "0123", "ok": true, "finished": 1e999}',
    '{"version": 1, "kind": "build", "key": "0123", "ok": true, "finished": ' + DIGITS + "}",
    '{"a": ' * 50_000,
]


@pytest.mark.parametrize("stamp", STAMPS, ids=range(len(STAMPS)))
@pytest.mark.parametrize(
    "name", ["stamp\tbuild\t0123", "progress\tbuild\t0123", "latest", "build\t0"]
)
def test_files_of_odd_types(stamp: str, name: str) -> None:
    good = [line for line in GOOD if "stamp" not in line]
    del good[good.index("job=build\t0123\t0") + 1 : -2]
    lines = [*good[:-2], f"@begin {name}\t/x", f" {stamp}", "@end", *good[-2:]]
    snapshot = parse(lines)
    assert snapshot.hostname == "gpu-a"
    assert [text for text in texts(snapshot) if not text.isprintable()] == []


def account(*lines: str, rights: str = "1") -> list[str]:
    """A host whose second part printed these."""
    inside = [f" {line}" for line in lines]
    return with_lines(f"setpriv={rights}", "@begin account", *inside, "@end")


def test_the_account_s_part_speaks_of_its_own_alone() -> None:
    honest = parse(account("account_complete=1"))
    lines = ("uid=4", "hostname=x", "pci=1\t2\t3", "module=580.1", "trusted=/p", "setpriv=0")
    forged = parse(
        account(*lines, "@begin packages", " nvidia-driver 580.1", "@end", "account_complete=1")
    )
    assert forged == honest
    assert honest.hostname == "gpu-a"


def test_the_account_s_part_may_be_anything() -> None:
    for junk in ("@begin ", "@begin", "=", "@end", " x", "#end", "", "@begin a\tb", "\0", "a=b"):
        snapshot = parse(account(junk, "cmake=/c\tcmake 3.1", "account_complete=1"))
        assert snapshot.hostname == "gpu-a", junk


def test_a_part_without_its_end_is_said() -> None:
    assert "no end" in parse(account("cmake=/c\tcmake 3.1")).unseen
    assert parse(account("account_complete=1")).unseen == ""


def test_owners_are_believed_of_the_account_s_folders_alone() -> None:
    told = [
        "real=prefix\t/p\t/p",
        "real=state\t/s\t/s",
        "@begin owners",
        " 41ed\troot\troot\t/p",
        "@end",
    ]
    forged = [
        f" 81a4\tevil\tevil\t{path}" for path in ("/p", "/p/made", "/s", "/s/a", "/p/versions/x")
    ]
    lines = account("@begin owners", *forged, "@end", "account_complete=1")
    owners = parse([*lines[:-2], *told, *lines[-2:]]).owners
    assert {path: owner.user for path, owner in owners.items()} == {
        "/p": "root",
        "/s/a": "evil",
        "/p/versions/x": "evil",
    }


def test_where_its_folders_are_not_known_it_is_believed_of_none() -> None:
    lines = account(
        "@begin owners", " 81a4\tevil\tevil\t/etc/llamafleet", "@end", "account_complete=1"
    )
    assert parse([line for line in lines if not line.startswith("real=")]).owners == {}


def test_root_s_jobs_are_root_s_word() -> None:
    mine = ["job=toolkit\t13.0\t0"]
    lines = account("job=toolkit\t13.0\t1", "job=toolkit\t12.8\t1", "account_complete=1")
    jobs = {job.key: job for job in parse([*lines[:-2], *mine, *lines[-2:]]).jobs}
    assert (jobs["13.0"].root, jobs["13.0"].alive) == (True, False)
    assert (jobs["12.8"].root, jobs["12.8"].alive) == (False, True)
