"""The reader by itself: every text is a snapshot or an error that says what was found."""

from __future__ import annotations

import random

import pytest

from llamafleet.facts.host import HostSnapshot
from llamafleet.facts.reader import SnapshotError, parse

GOOD = """\
#llamafleet-snapshot 1
time=1764000000
hostname=gpu-a
kernel=6.1.0-41-amd64
uid=0
@begin meminfo
 MemTotal:       24684084 kB
 MemAvailable:   22000000 kB

@end
disk=prefix\t1048576
pci=0000:01:00.0\t0x2684\tnvidia
smi=/usr/bin/nvidia-smi
smi_query=0
@begin smi_query
 0, NVIDIA GeForce RTX 4090, GPU-1, 00000000:01:00.0, 24564, 580.95.05, 8.9

@end
job=build\t0123\t0
@begin stamp\tbuild\t0123\t/var/lib/llamafleet/build/0123/stamp.json
 {"version": 1, "kind": "build", "key": "0123",
  "ok": true}

@end
complete=1
#end""".splitlines()


def test_good() -> None:
    snapshot = parse(GOOD)
    assert (snapshot.hostname, snapshot.time) == ("gpu-a", 1764000000)
    assert snapshot.memory_available_mib == 21484
    assert snapshot.disk_free_mib == {"prefix": 1024}
    assert snapshot.gpus[0].vram_mib == 24564
    assert snapshot.jobs[0].ok


def test_a_greeting_before_and_noise_after() -> None:
    assert parse(["Welcome to gpu-a", "", *GOOD, "logout"]) == parse(GOOD)


@pytest.mark.parametrize("count", range(1, len(GOOD)))
def test_truncated_after_any_line(count: int) -> None:
    with pytest.raises(SnapshotError, match=r"found a truncated snapshot.*expected.*next:"):
        parse(GOOD[:count])


@pytest.mark.parametrize("count", range(1, len(GOOD) - 1))
def test_cut_short_yet_ended(count: int) -> None:
    with pytest.raises(SnapshotError, match="complete=1"):
        parse([*GOOD[:count], "#end"])


@pytest.mark.parametrize("lines", [[], ["", " "], ["sudo: a password is required"]])
def test_no_header(lines: list[str]) -> None:
    found = next((line for line in lines if line.strip()), "nothing")
    with pytest.raises(SnapshotError, match=f"found '{found}'; expected .*snapshot 1; next: log"):
        parse(lines)


@pytest.mark.parametrize("version", ["", "0", "2", "1.1", "one"])
def test_unknown_version(version: str) -> None:
    with pytest.raises(SnapshotError, match=f"version '{version}'; expected 1; next: reinstall"):
        parse([f"#llamafleet-snapshot {version}".strip(), *GOOD[1:]])


def test_line_that_is_none() -> None:
    with pytest.raises(SnapshotError, match="found 'sh: not found' in line 2; expected key=value"):
        parse([*GOOD[:2], "sh: not found", *GOOD[2:]])


def test_line_in_a_block_that_is_none() -> None:
    where = GOOD.index("@begin meminfo") + 1
    with pytest.raises(SnapshotError, match="found 'oops' inside a block in line 6; expected @end"):
        parse([*GOOD[:where], "oops", *GOOD[where:]])


def test_unknown_keys_and_missing_fields_are_borne() -> None:
    """A field more or less is no reason to refuse a host."""
    lines = ["#llamafleet-snapshot 1", "news=1", "disk=tmp", "pci=", "cores=many", "time=soon"]
    snapshot = parse([*lines, "complete=1", "#end"])
    assert (snapshot.cores, snapshot.time, snapshot.disk_free_mib) == (1, 0, {"tmp": 0})


def test_no_text_ends_in_another_exception() -> None:
    """Any other exception would end the run for every host. The seed makes it repeatable."""
    chance = random.Random(20261125)
    outcomes: set[type] = set()
    for _ in range(3000):
        lines = list(GOOD)
        for _ in range(chance.randint(1, 4)):
            where = chance.randrange(len(lines))
            what = chance.randrange(4)
            if what == 0:
                del lines[where]
            elif what == 1:
                lines[where] = lines[where][: chance.randint(0, len(lines[where]))]
            elif what == 2:
                lines.insert(where, chance.choice(GOOD))
            else:
                lines[where] = lines[where].replace(
                    chance.choice("0=\t{:@"), chance.choice(["", "\t", "=", "é", "\0"])
                )
        try:
            outcomes.add(type(parse(lines)))
        except SnapshotError as error:
            outcomes.add(type(error))
    assert outcomes == {HostSnapshot, SnapshotError}
