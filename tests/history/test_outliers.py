"""A slow GPU among its peers: found with its reason, and no other one."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from llamafleet.history import outliers
from llamafleet.history.outliers import AGE, LEAST, PEERS, Outlier, find_outliers, z_limit
from llamafleet.history.record import Record, Test
from llamafleet.history.words import of_groups
from tests.history.made import record, runs

SLOW = 3
"""The GPU that is changed."""


def fleet(gpus: int = 8, count: int = 3, **fields: Any) -> list[Record]:
    return [*runs(0, gpus, count, test="pp", **fields), *runs(1, gpus, count, **fields)]


def changed(records: list[Record], pp: float = 1.0, tg: float = 1.0, **fields: Any) -> list[Record]:
    factors: dict[Test, float] = {"pp": pp, "tg": tg}
    return [
        replace(r, median_ts=r.median_ts * factors[r.test], **fields)
        if r.gpu_uuid == record(SLOW).gpu_uuid
        else r
        for r in records
    ]


def found(records: list[Record]) -> list[Outlier]:
    return [one for group in find_outliers(records) for one in group.outliers]


CAP = {"power_limit_w": 450.0, "busy": ("capped",), "verdict": "BUSY"}


@pytest.mark.parametrize(
    ("pp", "tg", "fields", "tests", "reason"),
    [
        (0.8, 1.0, CAP, ["pp512"], "below its default of 700 W (prompt processing is slow and"),
        (0.8, 0.9, CAP, ["pp512", "tg128"], "its power limit is 450 W, below its default of 700 W"),
        (0.8, 0.8, {"processes": 2, "busy": ("x",)}, ["pp512", "tg128"], "2 other processes used"),
        (
            0.8,
            0.8,
            {"throttled_s": {"sync boost": 0.9}},
            ["pp512", "tg128"],
            "(sync boost) for 0.9",
        ),
        (
            *(0.7, 0.9),
            {"throttled_s": {"thermal": 2.5}, "temperature_c": 88.0},
            ["pp512", "tg128"],
            "slowed down (thermal) for 2.5 s, at 88 °C where its peers had 45",
        ),
        (1.0, 0.7, {"memory_clock_mhz": 2000.0}, ["tg128"], "memory clock was 2000 MHz"),
        (0.7, 0.9, {"sm_clock_mhz": 1200.0}, ["pp512", "tg128"], "SM clock was 1200 MHz"),
        (0.9, 1.0, {"pcie_width": 4}, ["pp512"], "PCIe x4, its peers x16"),
        (0.9, 1.0, {"pcie_generation": 1}, ["pp512"], "PCIe generation 1, its peers 5"),
        (0.9, 0.9, {"driver": "535.1.2"}, ["pp512", "tg128"], "driver 535.1.2, its peers 580.95"),
        (0.9, 0.9, {"persistence": False}, ["pp512", "tg128"], "persistence mode is off"),
    ],
)
def test_a_planted_slow_gpu_with_its_planted_reason(
    pp: float, tg: float, fields: dict[str, Any], tests: list[str], reason: str
) -> None:
    slow = found(changed(fleet(), pp, tg, **fields))
    assert [one.test for one in slow] == tests
    for one in slow:
        assert one.gpu_uuid == record(SLOW).gpu_uuid
        assert one.host == record(SLOW).host
        assert one.peers == 7
        assert one.z <= z_limit(7)
        assert one.apart <= -LEAST
        assert one.busy == bool(fields.get("busy"))
        assert len(one.likely) == 1
        assert reason in one.likely[0]


def test_generation_that_is_slow_too_is_not_said_to_hold() -> None:
    for one in found(changed(fleet(), 0.8, 0.9, **CAP)):
        assert one.likely == ("its power limit is 450 W, below its default of 700 W",)


@pytest.mark.parametrize(("tg", "holds"), [(1.0, True), (0.96, False), (None, False)])
def test_generation_holds_only_where_it_was_seen_to(tg: float | None, holds: bool) -> None:
    """4 % below is not called slow, and does not hold either; nor does what was not measured."""
    records = changed(fleet(spread=0.0, apart=0.0), 0.8, tg or 1.0, **CAP)
    told = found([r for r in records if tg or r.test == "pp"])
    assert [one.test for one in told] == ["pp512"]
    assert ("generation holds" in told[0].likely[0]) == holds


def test_generation_of_another_model_says_nothing_of_this_one() -> None:
    other = [replace(r, model_filename="other.gguf") for r in changed(fleet(), 0.8, 0.8, **CAP)]
    [one] = [
        o for o in found([*changed(fleet(), 0.8, 1.0, **CAP), *other]) if o.likely[0][-1] == ")"
    ]
    assert one.test == "pp512"


def test_the_reason_is_that_of_the_slow_runs() -> None:
    """Capped since the third of its five runs."""
    capped = changed(fleet(count=5), 0.7, 0.7, **CAP)
    records = [
        after if after.test_time.hour >= 4 else before
        for before, after in zip(fleet(count=5), capped, strict=True)
    ]
    assert [len(one.likely) for one in found(records)] == [1, 1]
    assert [one.median_ts < one.peers_median_ts * 0.8 for one in found(records)] == [True, True]


@pytest.mark.parametrize(("factor", "flagged"), [(0.94, 0), (0.93, 1)])
def test_peers_that_are_all_the_same_are_taken_to_differ(factor: float, flagged: int) -> None:
    """By 0.5 %: 6 % are 12 of these, 7 % 14, and of 7 peers it takes 12.9."""
    records = [record(gpu, median_ts=400.0) for gpu in range(8)]
    assert len(found(changed(records, tg=factor))) == flagged


def test_of_peers_only_free_runs_count() -> None:
    """Each peer has been in use since its one free run: a GPU at 85 % of that is slow."""
    busy = [replace(r, busy=("x",), median_ts=r.median_ts / 2) for r in fleet(day=3.0)]
    peers = [r for r in [*fleet(count=1), *busy] if r.gpu_uuid != record(SLOW).gpu_uuid]
    own = [r for r in changed(fleet(), 0.85, 0.85) if r.gpu_uuid == record(SLOW).gpu_uuid]
    slow = [one for one in found([*peers, *own]) if one.gpu_uuid == record(SLOW).gpu_uuid]
    assert [one.test for one in slow] == ["pp512", "tg128"]


@pytest.mark.parametrize(
    "usual",
    [
        {"throttled_s": {"thermal": 0.09}},
        {"sm_clock_mhz": 1960.0},
        {"memory_clock_mhz": 3150.0},
        {"power_limit_w": 695.0},
        {"temperature_c": 80.0},
        {"pcie_width": 16, "pcie_width_max": 32},
        {"driver": "590.1.1"},  # As one of its peers.
    ],
)
def test_what_is_as_usual_is_no_reason(usual: dict[str, Any]) -> None:
    newer = record(0).gpu_uuid
    records = [
        replace(r, driver="590.1.1") if r.gpu_uuid == newer else r
        for r in changed(fleet(), 0.8, 0.8, **usual)
    ]
    assert [one.likely for one in found(records)] == [(), ()]


def test_a_few_degrees_more_are_not_said_beside_a_slowdown() -> None:
    warm = {"throttled_s": {"thermal": 2.5}, "temperature_c": 50.0}
    assert [one.likely for one in found(changed(fleet(), 0.8, 0.8, **warm))] == [
        ("slowed down (thermal) for 2.5 s",)
    ] * 2


def test_a_newest_run_that_was_well_does_not_hide_the_reason() -> None:
    """Two of three runs were slowed down by heat; the last one was not."""
    hot: dict[str, Any] = {"throttled_s": {"thermal": 2.5}}
    records = [
        replace(r, median_ts=r.median_ts * 0.8, **hot)
        if r.gpu_uuid == record(SLOW).gpu_uuid and r.test_time.hour < 4
        else r
        for r in fleet(count=3)
    ]
    assert [one.likely for one in found(records)] == [("slowed down (thermal) for 2.5 s",)] * 2


def test_a_reason_that_the_record_does_not_hold_is_not_made_up() -> None:
    assert [one.likely for one in found(changed(fleet(), 0.8, 0.8))] == [(), ()]


def test_what_all_peers_have_is_no_reason() -> None:
    """A fleet that is capped throughout, on slow links, with a warm room."""
    common: dict[str, Any] = {
        **{"power_limit_w": 500.0, "pcie_width": 8, "persistence": False},
        **{"throttled_s": {"thermal": 3.0}, "temperature_c": 85.0, "sm_clock_mhz": 1500.0},
        **{"memory_clock_mhz": 2000.0, "pcie_generation": 3, "processes": 1},
    }
    assert [one.likely for one in found(changed(fleet(**common), 0.8, 0.8))] == [(), ()]


def test_a_power_limit_reached_is_no_reason() -> None:
    at_limit = {"throttled_s": {"power": 3.0}}
    assert [one.likely for one in found(changed(fleet(), 0.8, 0.8, **at_limit))] == [(), ()]


@pytest.mark.parametrize(("factor", "flagged"), [(1.0, 0), (0.96, 0), (0.94, 1), (1.3, 0)])
def test_apart_as_statistics_go_is_not_enough(factor: float, flagged: int) -> None:
    """4 % below 30 equal peers is z -8, and too little; faster ones are not flagged."""
    records = [record(gpu, median_ts=400.0) for gpu in range(31)]
    assert z_limit(30) > -5
    assert len(found(changed(records, tg=factor))) == flagged


def test_apart_as_people_feel_it_is_not_enough() -> None:
    """Peers that differ by 5 % among themselves: 8 % below the middle is one of them."""
    rates = (100, 95, 105, 92, 110, 98, 103, 107, 92.5)
    assert not found([record(gpu, median_ts=rate) for gpu, rate in enumerate(rates)])


@pytest.mark.parametrize(("slow", "flagged"), [(2, 2), (3, 3), (5, 0)])
def test_of_several_slow_ones_all_are_found_and_of_most_none(slow: int, flagged: int) -> None:
    """Of eight; and never one that is well."""
    few = {record(gpu).gpu_uuid for gpu in range(slow)}
    records = [
        replace(r, median_ts=r.median_ts * 0.8) if r.gpu_uuid in few else r for r in fleet(8, 1)
    ]
    told = {one.gpu_uuid for one in found(records)}
    assert len(told) == flagged
    assert told <= few


@pytest.mark.parametrize(("gpus", "judged"), [(PEERS, False), (PEERS + 1, True)])
def test_too_few_peers_judge_nothing(gpus: int, judged: bool) -> None:
    groups = find_outliers(changed(fleet(gpus), 0.5, 0.5))
    assert [group.judged for group in groups] == [judged, judged]
    assert [len(group.outliers) for group in groups] == [int(judged)] * 2


def test_busy_gpus_are_no_peers() -> None:
    """Most of a fleet is in use; the few that are free are not slow because of that."""
    busy: dict[str, Any] = {"busy": ("a process",), "verdict": "BUSY", "processes": 1}
    records = [
        replace(r, median_ts=r.median_ts * 0.5, **busy) if r.gpu_uuid > "GPU-00000004" else r
        for r in fleet(9, factor=1.0)
    ]
    slow = found(records)
    assert {one.gpu_uuid for one in slow} == {record(gpu).gpu_uuid for gpu in (4, 5, 6, 7, 8)}
    assert {one.peers for one in slow} == {4}


def test_a_hiccup_in_one_run_is_no_slow_gpu() -> None:
    records = fleet(count=5)
    hiccup = [
        replace(r, median_ts=r.median_ts / 2, busy=("x",))
        if r.gpu_uuid == record(SLOW).gpu_uuid and r.test_time.hour % 24 == 9
        else r
        for r in records
    ]
    assert hiccup != records
    assert not found(hiccup)


def test_only_the_newest_runs_count() -> None:
    """It was slow in 20 runs, and has been repaired."""
    old = changed(fleet(count=20, day=-9.0), 0.5, 0.5)
    assert len(found(old)) == 2
    assert not found([*old, *fleet()])


def test_a_gpu_that_was_replaced_is_slow_no_more() -> None:
    """Its last run is 91 days older than the newest of the others."""
    records = [
        replace(r, test_time=r.test_time - timedelta(days=91))
        if r.gpu_uuid == record(SLOW).gpu_uuid
        else r
        for r in changed(fleet(), 0.5, 0.5)
    ]
    assert not [one for group in find_outliers(records, AGE) for one in group.outliers]
    assert [len(group.outliers) for group in find_outliers(records)] == [1, 1]


def test_a_clock_in_the_future_does_not_make_the_others_old() -> None:
    """Of one host; the command takes the age by the controller's clock."""
    future = record(20, day=9000.0)
    assert [one.test for one in found([*changed(fleet(), 0.5, 0.5), future])] == ["pp512", "tg128"]


OTHER_BUILD = "84de9d54601af86b"


def test_one_that_was_slow_under_the_build_before_is_slow_no_more() -> None:
    """Repaired, and all were built anew."""
    new = fleet(day=3.0, fingerprint=OTHER_BUILD)
    groups = find_outliers([*changed(fleet(), 0.5, 0.5), *new])
    assert [(g.build, g.judged, g.outliers) for g in groups] == [(OTHER_BUILD, True, ())] * 2


def test_what_has_no_peers_yet_is_judged_by_its_build_before() -> None:
    """It alone was built anew; and its old figures are peers of the others."""
    slow = changed(fleet(), 0.8, 0.8)
    own = [r for r in slow if r.gpu_uuid == record(SLOW).gpu_uuid]
    new = [
        replace(r, test_time=r.test_time + timedelta(days=3), fingerprint=OTHER_BUILD) for r in own
    ]
    assert [(one.test, one.peers) for one in found([*slow, *new])] == [("pp512", 7), ("tg128", 7)]


def test_one_that_was_built_anew_is_still_a_peer_of_the_others() -> None:
    """Three of eight were: five others alone would leave four peers to each."""
    new = [r for r in fleet(day=3.0, fingerprint=OTHER_BUILD) if r.gpu_uuid > "GPU-00000005"]
    assert {one.peers for one in found([*changed(fleet(), 0.5, 0.5), *new])} == {7}


def test_four_that_were_built_anew_are_three_peers_to_each() -> None:
    new = fleet(4, day=3.0, fingerprint=OTHER_BUILD)
    slow = found([*changed(fleet(), 0.5, 0.5), *changed(new, 0.5, 0.5)])
    assert [(one.test, one.peers) for one in slow] == [("pp512", 7), ("tg128", 7)]


def test_a_driver_that_renames_gpus_leaves_no_slow_one_behind() -> None:
    """Repaired meanwhile."""
    new = fleet(day=3.0, gpu_info="NVIDIA H200 SXM")
    assert not found([*changed(fleet(), 0.5, 0.5), *new])


@pytest.mark.parametrize("gpus", [0, 2])
def test_what_is_no_single_gpu_is_not_judged(gpus: int) -> None:
    several = [
        record(gpu_uuid="", host=f"h{n}", gpus=gpus, median_ts=100.0 if n else 10.0)
        for n in range(9)
    ]
    assert find_outliers(several) == []


def test_a_gpu_that_moved_to_another_host_is_no_peer_of_itself() -> None:
    """It was slow there, and is not here."""
    there = [r for r in changed(fleet(), 0.5, 0.5) if r.gpu_uuid == record(SLOW).gpu_uuid]
    there = [replace(r, host="host-9") for r in there]
    groups = find_outliers([*there, *fleet(day=2.0, count=5)])
    assert [(group.gpus, group.outliers) for group in groups] == [(8, ())] * 2
    assert not find_outliers([*there, *fleet(4, day=2.0, count=5)])[0].judged


@pytest.mark.parametrize(
    "other",
    [
        {"gpu_info": "NVIDIA H100 PCIe"},
        {"fingerprint": "84de9d54601af86b"},
        {"model_filename": "another.gguf"},
        {"flash_attn": False},
        {"n_gen": 64, "n_prompt": 64},
    ],
)
def test_what_is_another_thing_is_no_peer(other: dict[str, Any]) -> None:
    groups = find_outliers(changed(fleet(), 0.5, 0.5, **other))
    assert sorted((g.gpus, g.judged) for g in groups) == [(1, False)] * 2 + [(7, True)] * 2
    assert not any(group.outliers for group in groups)


def test_figures_that_no_gpu_has_judge_nothing() -> None:
    odd = [record(20 + n, median_ts=rate) for n, rate in enumerate((0.0, -1.0, 1e300))]
    [group] = [one for one in find_outliers([*fleet(), *odd]) if one.test == "tg128"]
    assert group.gpus == 8


def test_no_record_no_group() -> None:
    assert find_outliers([]) == []


@pytest.mark.parametrize(
    ("peers", "limit"), [(4, -25.3), (5, -25.6), (8, -9.2), (12, -6.7), (20, -5.3), (96, -4.2)]
)
def test_few_peers_must_be_further_away(peers: int, limit: float) -> None:
    """As simulated: one in 50 healthy fleets has a GPU beyond, on either test together."""
    assert z_limit(peers) == pytest.approx(limit, rel=0.03)


def test_healthy_fleets_raise_no_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 fleets whose GPUs are 2 % apart, five times what is measured."""

    def alarms() -> int:
        return sum(bool(found([*runs(seed, 8, 1, apart=0, spread=0.02)])) for seed in range(100))

    assert alarms() == 0
    monkeypatch.setattr(outliers, "z_limit", lambda peers: -2.0)
    assert alarms() > 5


@pytest.mark.parametrize(("rate", "least"), [(361.0, "5%"), (2000.0, "20%")])
def test_the_limit_that_is_told_is_the_one_that_counts(rate: float, least: str) -> None:
    groups = find_outliers(changed([record(gpu, median_ts=rate) for gpu in range(20)], tg=0.7))
    assert f"or within {least} of their median" in " ".join(" ".join(of_groups(groups)).split())
