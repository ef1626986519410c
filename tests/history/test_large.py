"""A history that is larger than the memory: what is read of it, and how much is held at a time."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner

from llamafleet.cli.main import main
from llamafleet.history import comparable
from llamafleet.history.compare import AXES, compare, select
from llamafleet.history.lastupdate import last_updates, last_updates_of
from llamafleet.history.outliers import find_outliers
from llamafleet.history.record import Record
from llamafleet.history.records import Filter, History, with_id
from llamafleet.history.words import of_updates
from tests.history.made import START, record, runs

DRIVERS = ("570.86.10", "580.95.05", "590.10.01")
BUSY: dict[str, Any] = {"busy": ("x",), "verdict": "BUSY"}
MANY = 12_000
A_RECORD = 1000
"""Bytes that each may add to what is held at a time, in the mean; whole, it has thousands."""


def some(chance: random.Random) -> Iterator[Record]:
    """Of a fleet what may come: several drivers in any order, other builds, models and limits, GPUs
    together, without a UUID, renamed or in use. All GPUs of a host are measured at one time."""
    turns, gpus = chance.randrange(4, 14), chance.randrange(3, 9)
    for turn in range(turns):
        for gpu in range(gpus):
            for test in comparable.HIGH:
                odd: dict[str, Any] = {
                    "driver": DRIVERS[turn * 3 // turns],
                    "fingerprint": chance.choice(("06ac349343b29ef4",) * 3 + ("84de9d54601af86b",)),
                    "toolkit": chance.choice(("13.0",) * 4 + ("12.9",)),
                }
                if chance.random() < 0.05:
                    odd["driver"] = chance.choice(DRIVERS)
                if chance.random() < 0.1:
                    odd |= chance.choice(ODD)
                rate = chance.gauss(300.0, 2.0) * (0.9 if odd["driver"] == DRIVERS[2] else 1.0)
                one = record(gpu, test, median_ts=rate, avg_ts=rate, **odd)
                yield with_id(replace(one, test_time=START + timedelta(days=turn)))


ODD: tuple[dict[str, Any], ...] = (
    BUSY,
    {"verdict": "FAIL"},
    {"driver": ""},
    {"gpus": 0, "gpu_uuid": "", "gpu_info": ""},
    {"gpus": 2, "gpu_uuid": "", "gpu_info": "NVIDIA H200, NVIDIA H200"},
    {"gpu_uuid": "", "gpu_info": "Tesla V100"},
    {"gpu_info": "H200 SXM"},
    {"model_filename": "other.gguf"},
    {"power_limit_w": 500.0},
    {"flash_attn": None},
    {"llama_bench": {"no_kv_offload": True, "backends": "BLAS"}},
    {"fingerprint": "", "build_commit": "b1234"},
)


@pytest.mark.parametrize("seed", range(6))
def test_answers_are_those_of_all_records_at_once(history: History, seed: int) -> None:
    history.add(some(random.Random(seed)))
    records = list(history.records())
    found = last_updates_of(history.by_gpu())
    assert found == last_updates(records)
    assert list(of_updates(found)) == list(of_updates(last_updates(records)))
    for by in AXES:
        values = sorted({AXES[by].of(one) for one in records} - {""})[:2]
        a, b = (select(history.figures(), by, value) for value in values)
        of_a, of_b = ([one for one in records if AXES[by].of(one) == value] for value in values)
        for force in (False, True):
            assert compare(a, b, by, force=force) == compare(of_a, of_b, by, force=force)


def test_some_of_these_fleets_were_updated() -> None:
    """Else they would prove nothing."""
    found = [last_updates(list(some(random.Random(seed)))) for seed in range(6)]
    answers = {one.answer for updates in found for update in updates for one in update.comparisons}
    assert answers >= {"not comparable", "too few runs", "slower"}


@pytest.mark.parametrize(
    "wanted", [Filter(), Filter(hosts=("host-0",), tests=("tg",)), Filter(busy=False)]
)
def test_a_figure_tells_what_its_record_does(history: History, wanted: Filter) -> None:
    history.add(some(random.Random(1)))
    records = list(history.records(wanted))
    assert len(records) > 5

    def told(one: Any) -> list[object]:
        fields = [getattr(one.of, name) for name in comparable.ASKED]
        return [one.test_time, one.median_ts, comparable.flaw(one.of), *fields]

    assert list(map(told, history.figures(wanted))) == list(map(told, records))
    by_gpu = [one for some in history.by_gpu(wanted) for one in some]
    assert sorted(map(repr, map(told, by_gpu))) == sorted(map(repr, map(told, records)))
    assert all(len({one.of.gpu_uuid for one in some}) == 1 for some in history.by_gpu(wanted))


class Asked:
    """A record that keeps what it is asked."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> object:
        self.names.add(name)
        return getattr(self.record, name)


def test_what_is_asked_of_a_record_is_read_and_nothing_else() -> None:
    names: set[str] = set()
    # Of the second one what is told first is empty, and the rest is asked.
    for one in (record(), record(gpu_uuid="", fingerprint="", model_filename="", busy=())):
        asked = Asked(one)
        told = cast("Record", asked)
        for axis in AXES.values():
            axis.of(told)
            comparable.key(told, axis.same)
        for tell in (comparable.place, comparable.cards, comparable.flaw, comparable.TOOLKIT.of):
            tell(told)
        names |= asked.names
    pp = Asked(record(test="pp"))
    comparable.test_name(cast("Record", pp))
    assert names | pp.names == {*comparable.ASKED, "median_ts"}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of twenty GPUs, half of them under each of two drivers."""
    folder = tmp_path_factory.mktemp("large")
    count = MANY // 20 // 2
    records = [
        one
        for number, driver in enumerate(DRIVERS[:2])
        for one in runs(number, 20, count, driver=driver, day=100.0 * number)
    ]
    assert History(folder).add(records) == MANY
    return folder


COMMANDS = (
    ("compare", "--last-update"),
    ("compare", "--by", "driver", *DRIVERS[:2]),
    ("outliers", "--window", "2020-01-01"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[1])
def test_a_history_is_not_held_whole(large: Path, command: tuple[str, ...]) -> None:
    words = [*command, "--results", str(large)]
    CliRunner().invoke(main, [*words, "--host", "none"])  # What is loaded is not what is held.
    tracemalloc.start()
    try:
        found = CliRunner().invoke(main, words)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.exit_code == 0, found.output
    assert peak < MANY * A_RECORD, f"{peak / MANY:.0f} bytes a record"


def test_gpus_are_told_by_their_newest_runs_whatever_order_they_come_in() -> None:
    records = [
        *runs(1, 8, 12),
        *(replace(one, median_ts=one.median_ts * 0.8) for one in runs(2, 1, 5, day=9.0)),
    ]
    found = find_outliers(records)
    assert [len(group.outliers) for group in found] == [1]
    shuffled = random.Random(3).sample(records, len(records))
    assert find_outliers(shuffled) == found
