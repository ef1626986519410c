"""The example fleet: the recorded part is as it was written, the rest is named so."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llamafleet.history.example import BROKEN, CAPPED, HERE, MADE_UP, RECORDED, SHARED, example
from llamafleet.history.record import Record, Test
from llamafleet.history.store import read_result

RATES = {
    "recorded-h100-pair": [(12627.336, 347.058), (12547.223, 345.936)],
    "recorded-h100-160m": [(130311.299, 2022.444)],
    "recorded-h200-pair": [(12267.076, 361.898), (12287.749, 358.581)],
}
"""pp and tg of each GPU as the verification wrote them on those machines."""


def figures(host: str, test: Test) -> list[Record]:
    return [r for r in example().records if r.host == host and r.test == test and r.gpu_uuid]


def test_recorded_hosts_have_the_figures_that_were_measured() -> None:
    for host, rates in RATES.items():
        pp, tg = figures(host, "pp"), figures(host, "tg")
        assert [(a.median_ts, b.median_ts) for a, b in zip(pp, tg, strict=True)] == rates


@pytest.mark.parametrize("name", RECORDED)
def test_of_a_recorded_result_only_the_host_s_name_is_changed(name: str) -> None:
    stored = read_result(HERE / f"{name}.json")
    shown = example().results[f"recorded-{name}"]
    assert replace(shown, host="@local") == stored


def test_every_host_says_by_its_name_whether_it_is_made_up() -> None:
    hosts = {row.host for row in example().run.rows}
    assert {record.host for record in example().records} == hosts
    assert all(host.startswith(("recorded-", "synthetic-")) for host in hosts)
    assert len(hosts) == len(RECORDED) + len(MADE_UP)


def test_made_up_gpus_are_no_real_ones() -> None:
    uuids = {r.gpu_uuid for host in MADE_UP for r in figures(host, "tg")}
    assert len(uuids) == len(MADE_UP)
    assert all(uuid.startswith("GPU-5e5e") for uuid in uuids)


def test_what_was_planted_is_there() -> None:
    peers = figures("synthetic-h100-1", "pp")[-1].median_ts
    capped = figures(CAPPED, "pp")[-1]
    assert capped.median_ts < 0.8 * peers
    assert capped.power_limit_w == 350.0
    assert (capped.verdict, capped.busy) == (
        "BUSY",
        ("benchmark: the power limit of GPU 0 is 350 W, below its default of 700 W",),
    ), "as a verification judges a limit below the card's own"
    assert [bool(r.busy) for r in figures(SHARED, "tg")].count(True) == 1
    broken = next(row for row in example().run.rows if row.host == BROKEN)
    assert broken.verdict == "FAIL"
    assert "17 of 33 layers" in broken.reason[0]
    before, after = (figures("synthetic-h100-1", "tg")[n].median_ts for n in (0, -1))
    assert after == pytest.approx(0.96 * before, rel=0.02)


def test_it_is_the_same_each_time() -> None:
    assert example() == example()
