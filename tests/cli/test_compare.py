"""The commands that judge the history: compare, outliers, bands."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from llamafleet.cli.main import main
from llamafleet.history.record import Record
from llamafleet.history.records import History
from llamafleet.history.words import WARNING
from tests.history.made import START, record, runs

OLD, NEW = "570.86.10", "580.95.05"


def call(folder: Path, records: Iterable[Record], *command: str) -> Result:
    """The command over these records, as if they were measured in the last days."""
    late = datetime.now(timezone.utc) - START - timedelta(days=20)
    folder.mkdir(exist_ok=True)
    History(folder).add([replace(r, test_time=r.test_time + late) for r in records])
    return CliRunner().invoke(main, [*command, "--results", str(folder)])


def updated(factor: float, count: int = 5) -> list[Record]:
    return [
        *runs(1, 1, count, driver=OLD),
        *runs(3, 1, count, driver=NEW, day=9.0, factor=factor),
    ]


@pytest.mark.parametrize(
    ("factor", "code", "said"),
    [
        (0.9, 1, " SLOWER"),
        (1.1, 0, " FASTER"),
        (1.0, 0, " no difference shown"),
    ],
)
@pytest.mark.parametrize("command", [("--by", "driver", "570", NEW), ("--last-update",)])
def test_two_drivers(
    tmp_path: Path, factor: float, code: int, said: str, command: tuple[str, ...]
) -> None:
    found = call(tmp_path, updated(factor), "compare", *command)
    assert found.exit_code == code, found.output
    assert "H200, synthetic:7b-q4_0\n  tg128  36" in found.output
    assert said in found.output
    assert "A: 5 runs on 1 GPU, B: 5 runs on 1 GPU" in found.output
    assert max(map(len, found.output.splitlines())) <= 100
    assert ("driver 570.86.10 -> 580.95.05, first measured 20" in found.output) == (
        command == ("--last-update",)
    )


def test_two_builds_are_two_headlines_with_both_tests_below_each(tmp_path: Path) -> None:
    records = [
        replace(r, fingerprint=build)
        for build in ("06ac349343b29ef4", "84de9d54601af86b")
        for test in ("pp", "tg")
        for side in ({"driver": OLD}, {"driver": NEW, "day": 9.0})
        for r in runs(1, 1, 5, test=test, **side)  # type: ignore[arg-type]
    ]
    found = call(tmp_path, records, "compare", "--by", "driver", OLD, NEW)
    lines = [line.split("  ")[0] or line[:9].strip() for line in found.output.splitlines()]
    one = ["pp512", "", "tg128", ""]
    assert lines == [
        f"A: driver {OLD}, B: driver {NEW}",
        *["H200, synthetic:7b-q4_0, build: 06ac349343b29ef4", *one],
        *["H200, synthetic:7b-q4_0, build: 84de9d54601af86b", *one],
    ]


def test_too_few_runs_are_not_an_answer(tmp_path: Path) -> None:
    found = call(tmp_path, updated(0.5, count=1), "compare", "--last-update")
    assert found.exit_code == 0
    assert "too few runs" in found.output
    assert "expected 4 runs on either side on one GPU" in found.output


def test_what_is_not_comparable_is_refused_and_forced(tmp_path: Path) -> None:
    records = [replace(r, flash_attn=r.driver == OLD) for r in updated(0.9)]
    command = ("compare", "--by", "driver", OLD, NEW)
    found = call(tmp_path, records, *command)
    assert found.exit_code == 2
    assert "not comparable" in found.output
    assert "flash attention: on and off" in found.output
    found = call(tmp_path, [], *command, "--force")
    assert found.exit_code == 1
    assert "SLOWER" in found.output
    assert "forced: flash attention: on and off" in found.output


def test_as_json(tmp_path: Path) -> None:
    found = call(tmp_path, updated(0.9), "compare", "--by", "driver", OLD, NEW, "--json")
    [told] = json.loads(found.output)
    assert told["answer"] == "slower"
    assert told["high"] < 0.95
    found = call(tmp_path, [], "compare", "--last-update", "--json")
    [update] = json.loads(found.output)
    assert (update["before"], update["after"]) == (OLD, NEW)
    assert update["comparisons"] == [told]


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ((), "--by: found nothing; expected what A and B are; next: llamafleet compare --by"),
        (("--by", "driver", OLD), "found 1 values; expected two, A and B; next: "),
        (("--by", "driver", OLD, "5"), "found no record of '5'; expected one of: 5"),
        (("--by", "driver", OLD, "570"), "found runs that are both driver 570.86.10 and 570; "),
        (("--last-update", "--by", "host"), "--last-update: found other arguments beside"),
        (("--by", "host", "host-0", "host"), "--by host: found no record of 'host'; "),
    ],
)
def test_bad_input_says_what_was_expected(
    tmp_path: Path, command: tuple[str, ...], error: str
) -> None:
    found = call(tmp_path, updated(1.0), "compare", *command)
    assert found.exit_code == 2
    assert error in found.output
    assert "; next: " in found.output


def test_without_an_update_there_is_nothing_to_say(tmp_path: Path) -> None:
    found = call(tmp_path, runs(1, 2, 5), "compare", "--last-update")
    assert (found.exit_code, found.output) == (
        2,
        "no GPU has figures before and since a driver update\n",
    )


# -- outliers --------------------------------------------------------------------------------------


def slow(factor: float) -> list[Record]:
    capped = {"power_limit_w": 450.0, "busy": ("capped",), "verdict": "BUSY"}
    ill = [
        replace(r, median_ts=r.median_ts * factor, **capped)  # type: ignore[arg-type]
        for r in runs(1, 8, 2, test="pp")
        if r.gpu_uuid.startswith("GPU-00000005")
    ]
    well = [r for r in runs(1, 8, 2, test="pp") if not r.gpu_uuid.startswith("GPU-00000005")]
    return [*well, *ill, *runs(2, 8, 2)]


def test_a_slow_gpu_with_its_reason(tmp_path: Path) -> None:
    found = call(tmp_path, slow(0.7), "outliers")
    assert found.exit_code == 1
    head, z, likely, more, *rest = found.output.splitlines()
    assert head.startswith("SLOW host-2 GPU-00000005 pp512: 8,")
    assert " below its 7 peers' 12,3" in head
    assert z.endswith(
        "; expected above -12.9, or within 5% of their median; its newest run is BUSY"
    )
    assert " ".join((likely + more).split()) == (
        "likely: its power limit is 450 W, below its default of 700 W "
        "(prompt processing is slow and generation holds, as a power limit does it)"
    )
    assert more.startswith(" " * 13)
    assert max(map(len, found.output.splitlines())) <= 100
    assert [line.rsplit(": ")[-1] for line in rest] == ["1 slow", "none slow"]


def test_generation_alone_is_enough_for_the_exit_code(tmp_path: Path) -> None:
    ill = record(5).gpu_uuid
    records = [
        replace(r, median_ts=r.median_ts * 0.7) if r.gpu_uuid == ill and r.test == "tg" else r
        for r in slow(1.0)
    ]
    found = call(tmp_path, records, "outliers")
    lines = found.output.splitlines()
    assert [line.rsplit(": ")[-1] for line in lines[-2:]] == ["none slow", "1 slow"]
    assert found.exit_code == 1


def test_a_healthy_fleet_has_none(tmp_path: Path) -> None:
    found = call(tmp_path, slow(1.0), "outliers")
    assert found.exit_code == 0
    assert "SLOW" not in found.output
    found = call(tmp_path, [], "outliers", "--json")
    assert [group["outliers"] for group in json.loads(found.output)] == [[], []]


def test_too_few_peers_prove_nothing(tmp_path: Path) -> None:
    found = call(tmp_path, runs(1, 4, 2), "outliers")
    assert found.exit_code == 2
    assert found.output.endswith(
        "tg128: not judged\n"
        "not judged is what has too few peers: expected 4 free and healthy ones\n"
        "next: llamafleet compare --by gpu A B, or llamafleet bands\n"
    )


def test_what_was_measured_long_ago_is_not_judged_unless_asked_for(tmp_path: Path) -> None:
    old = [replace(r, test_time=r.test_time - timedelta(days=100)) for r in slow(0.7)]
    found = call(tmp_path, old, "outliers")
    assert found.exit_code == 2
    assert "found no figure of a single GPU in that time (90 days without --window)" in found.output
    assert call(tmp_path, [], "outliers", "--window", "now-360d:now").exit_code == 1


# -- bands -----------------------------------------------------------------------------------------


def test_bands_warn_and_change_no_exit_code(tmp_path: Path) -> None:
    low = record(flash_attn=None, median_ts=200.0)
    found = call(tmp_path, [low], "bands")
    assert found.exit_code == 0
    assert f"{WARNING} below: 56% of 360.2" in found.output


def test_without_a_figure_bands_are_bad_input(tmp_path: Path) -> None:
    found = call(tmp_path, [], "bands")
    assert found.exit_code == 2
    assert "found no figure of a single GPU; expected some; next: " in found.output


def test_what_hosts_say_does_not_reach_the_terminal(tmp_path: Path) -> None:
    evil = [replace(r, gpu_info="\x1b[2J", host="\x1b]0;x\x07") for r in slow(0.7)]
    for command in (("outliers",), ("bands",), ("compare", "--by", "host", "a", "b")):
        found = call(tmp_path, evil, *command)
        assert "\x1b" not in found.output
        assert "\x07" not in found.output


@pytest.mark.parametrize("command", ["history", "compare", "outliers", "bands"])
def test_help_tells_what_a_pattern_is(command: str) -> None:
    told = " ".join(CliRunner().invoke(main, [command, "--help"]).output.split())
    assert "--host PATTERN" in told
    assert told.count("* stands for any text and ? for any sign") == 1
