"""A and B of one trait: found where planted, refused where something else differs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llamafleet.history.comparable import card
from llamafleet.history.compare import AXES, By, NotFound, compare, select
from llamafleet.history.comparison import ALPHA, ENOUGH, MOST_RUNS, Comparison
from llamafleet.history.ranks import smallest_p
from llamafleet.history.record import Record
from tests.history.made import record, runs

OLD, NEW = "570.86.10", "580.95.05"


def before(gpus: int = 1, count: int = 5, **fields: Any) -> list[Record]:
    return list(runs(1, gpus, count, driver=OLD, **fields))


def after(gpus: int = 1, count: int = 5, **fields: Any) -> list[Record]:
    return list(runs(3, gpus, count, **{"driver": NEW, "day": 9.0, **fields}))


def only(found: list[Comparison]) -> Comparison:
    [one] = found
    return one


@pytest.mark.parametrize(
    ("factor", "answer"),
    [
        (0.95, "slower"),
        (1.05, "faster"),
        (1.0, "no difference shown"),
        (0.993, "no difference shown"),
    ],
)
@pytest.mark.parametrize(("gpus", "count"), [(1, 5), (8, 1), (20, 3)])
def test_a_planted_difference(factor: float, answer: str, gpus: int, count: int) -> None:
    """0.7 % is there, and too little to speak of."""
    found = only(compare(before(gpus, count), after(gpus, count, factor=factor), "driver"))
    assert found.answer == answer
    assert found.a
    assert found.b
    assert (found.a.runs, found.a.gpus) == (gpus * count, gpus)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= factor <= found.high
    assert found.ratio == pytest.approx(factor, abs=0.006)


def test_too_few_runs_say_how_many_would_do() -> None:
    for gpus, count, few in ((1, 3, True), (1, 4, False), (5, 1, True), (6, 1, False)):
        found = only(compare(before(gpus, count), after(gpus, count, factor=0.5), "driver"))
        assert (found.answer == "too few runs") == few
        assert found.ratio == pytest.approx(0.5, abs=0.01)
        assert (found.low is None) == few
        levels = [([0.0] * count, [0.0] * count)] * gpus
        assert (smallest_p(levels) > ALPHA) == few
    assert "4 runs on either side on one GPU" in ENOUGH
    assert "1 on either side on 6 GPUs" in ENOUGH


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"flash_attn": False}, "flash attention: on and off"),
        ({"model_filename": "llama.gguf"}, "model: synthetic:7b-q4_0 and llama.gguf"),
        ({"gpu_info": "NVIDIA H100 PCIe"}, "GPU model: H200 and H100 PCIe"),
        ({"vram_mib": 81559}, "GPU memory: 140 GiB and 80 GiB"),
        ({"power_limit_w": 400.0}, "power limit: 700 W and 400 W"),
        ({"power_limit_w": None}, "power limit: 700 W and not told"),
        ({"n_gen": 256}, "test: tg128 and tg256"),
        (
            {"llama_bench": {"no_kv_offload": True, "load_mode": "mmap"}},
            "llama-bench's options: as usual and no_kv_offload True",
        ),
        ({"llama_bench": {"n_cpu_moe": 9}}, "llama-bench's options: as usual and n_cpu_moe 9"),
        (
            {"llama_bench": {"backends": "Vulkan"}},
            "llama-bench's options: as usual and backends Vulkan",
        ),
        ({"n_gpu_layers": 20}, "n_gpu_layers: not told and 20"),
        (
            {"llama_bench": {"embeddings": True}},
            "llama-bench's options: as usual and embeddings True",
        ),
        ({"model_size": 4081004224}, "model's size: 3825872896 and 4081004224"),
        ({"type_k": "q8_0", "type_v": "q8_0"}, "KV type: not told / not told and q8_0 / q8_0"),
        ({"n_batch": 2048, "n_ubatch": 512}, "n_batch: not told / not told and 2048 / 512"),
        ({"fingerprint": "84de9d54601af86b"}, "build: 06ac349343b29ef4 and 84de9d54601af86b"),
        (
            {"busy": ("another process",), "verdict": "BUSY"},
            "B has no tg of a free and healthy GPU",
        ),
        ({"verdict": "FAIL"}, "B has no tg of a free and healthy GPU"),
    ],
)
def test_what_is_not_comparable_is_refused_unless_forced(other: dict[str, Any], said: str) -> None:
    a, b = before(), after(factor=0.9, **other)
    found = only(compare(a, b, "driver"))
    assert found.answer == "not comparable"
    assert found.why == (said,)
    forced = only(compare(a, b, "driver", force=True))
    assert forced.answer == "slower"
    assert all(one.startswith("forced: ") for one in forced.why)
    assert len(forced.why) == ("test:" not in said)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"n_gpu_layers": 99}, {"n_gpu_layers": -1}),
        (
            {},
            {"llama_bench": {"no_kv_offload": 0, "n_cpu_moe": 0, "tensor_buft_overrides": "none"}},
        ),
        ({}, {"llama_bench": {"split_mode": "none", "main_gpu": 3}}),
        ({"gpus": 2}, {"gpus": 2, "llama_bench": {"split_mode": "layer", "tensor_split": "0.00"}}),
    ],
)
def test_what_versions_of_llama_bench_call_otherwise_is_the_same(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    found = only(compare(before(**one), after(**other), "driver"))
    assert found.answer == "no difference shown"


def test_how_gpus_share_the_work_counts() -> None:
    split = {"split_mode": "row"}
    found = only(compare(before(gpus=2), after(gpus=2, llama_bench=split), "driver"))
    assert found.answer == "no difference shown"  # A GPU alone has nothing to share.
    a, b = ([replace(r, gpus=2) for r in side] for side in (before(), after(llama_bench=split)))
    assert only(compare(a, b, "driver")).why == (
        "llama-bench's options: as usual and split_mode row",
    )


def test_llama_bench_s_commit_is_its_build() -> None:
    """It tells no fingerprint."""
    a = before(fingerprint="", build_commit="8cf6b42")
    b = after(fingerprint="", build_commit="79c1160")
    assert only(compare(a, b, "driver")).why == ("build: 8cf6b42 and 79c1160",)
    b = [replace(r, driver=OLD) for r in b]
    assert only(compare(select(a, "build", "8cf6"), select(b, "build", "79"), "build")).a


def test_comparisons_that_look_alike_are_told_apart() -> None:
    """Of two builds, each under both drivers."""
    other = {"fingerprint": "84de9d54601af86b"}
    found = compare(
        [*before(), *before(**other)], [*after(), *after(factor=0.9, **other)], "driver"
    )
    assert [(one.answer, one.under) for one in found] == [
        ("no difference shown", ("build: 06ac349343b29ef4",)),
        ("slower", ("build: 84de9d54601af86b",)),
    ]


def test_a_difference_that_is_too_little_says_so() -> None:
    """Its interval leaves 0 out: without a word it would look like a mistake."""
    a = [record(driver=OLD, day=n, median_ts=360.0 + n / 10) for n in range(6)]
    b = [replace(r, driver=NEW, median_ts=r.median_ts * 0.993) for r in a]
    found = only(compare(a, b, "driver"))
    assert found.high is not None
    assert found.high < 1
    assert (found.answer, found.why) == (
        "no difference shown",
        ("less than 1%, by which two runs of one GPU may differ",),
    )
    a, b = ([replace(r, median_ts=r.median_ts * f) for r in a] for f in (4.0, 4.4))
    b = [replace(r, driver=NEW) for r in b]
    assert only(compare(a, b, "driver")).why == (
        "less than 20%: above 1,000 t/s it is the launching of kernels that is measured",
    )


def test_what_differs_by_nothing_or_by_chance_has_no_such_word() -> None:
    assert only(compare(before(), after(), "driver")).why == ()


def test_an_interval_that_ends_at_no_difference_shows_none() -> None:
    """Equal figures: p is 0.03, as the test has them half above, and 0 % is in the interval."""
    a = [record(driver=OLD, median_ts=rate) for rate in (100.0, 101.0, 102.0, 103.0, 104.0)]
    b = [record(driver=NEW, median_ts=rate) for rate in (99.0, 100.0, 100.0, 100.0, 100.0)]
    found = only(compare(a, b, "driver"))
    assert found.p is not None
    assert found.p <= ALPHA
    assert (found.high, found.answer, found.why) == (1.0, "no difference shown", ())


def test_busy_runs_are_left_out_and_counted() -> None:
    busy = [replace(r, busy=("x",), verdict="BUSY", median_ts=1.0) for r in after(count=3)]
    found = only(compare(before(), [*after(), *busy], "driver"))
    assert found.answer == "no difference shown"
    assert found.left_out == {"BUSY": 3}


def test_of_many_runs_the_newest_count() -> None:
    """It was slow in 50 runs, long ago; and 150 are no more than 100."""
    old = [record(driver=NEW, day=n / 100, median_ts=100.0) for n in range(50)]
    new = [record(driver=NEW, day=9.0 + n / 100, median_ts=361.0) for n in range(MOST_RUNS)]
    found = only(compare(before(), [*new, *old], "driver"))
    assert found.b
    assert (found.b.runs, found.low and found.low > 0.9) == (MOST_RUNS, True)


def test_a_gpu_that_has_runs_of_one_side_alone_is_no_evidence() -> None:
    """The slow one came with the new driver; no other has changed."""
    slow = [record(50, driver=NEW, median_ts=100.0) for _ in range(9)]
    found = only(compare(before(6), [*after(6), *slow], "driver"))
    assert found.answer == "no difference shown"
    found = only(compare(before(6), slow, "driver"))
    assert found.answer == "not comparable"
    assert found.why == ("no GPU has runs of both A and B",)


def test_pp_and_tg_are_judged_apart() -> None:
    a = [*before(), *before(test="pp")]
    b = [*after(), *after(test="pp", factor=0.8)]
    assert [(c.test, c.answer) for c in compare(a, b, "driver")] == [
        ("pp512", "slower"),
        ("tg128", "no difference shown"),
    ]


def test_a_gpu_of_another_model_does_not_hide_the_rest() -> None:
    other = [replace(r, gpu_uuid="GPU-x", gpu_info="NVIDIA L40") for r in before()]
    found = only(compare([*before(), *other], after(), "driver"))
    assert (found.card, found.answer) == ("H200", "no difference shown")


def test_hosts_are_compared_over_their_gpus() -> None:
    some = list(runs(1, 4, 5))
    slow = [replace(r, median_ts=r.median_ts * 0.9) if r.host == "host-1" else r for r in some]
    a, b = select(slow, "host", "host-0"), select(slow, "host", "host-1")
    assert only(compare(a, b, "host")).answer == "slower"
    a, b = select(slow, "gpu", "00000002"), select(slow, "gpu", "GPU-00000000")
    assert only(compare(a, b, "gpu")).answer == "faster"


@pytest.mark.parametrize(
    ("by", "other", "said"),
    [
        ("host", {"gpus": 2}, "number of GPUs: 1 and 2"),
        ("host", {"driver": OLD}, "driver: 580.95.05 and 570.86.10"),
        ("host", {"fingerprint": "84de9d54"}, "build: 06ac349343b29ef4 and 84de9d54"),
        ("host", {"power_limit_w": 500.0}, "power limit: 700 W and 500 W"),
        ("gpu", {"power_limit_w": 500.0}, "power limit: 700 W and 500 W"),
        ("toolkit", {"driver": OLD}, "driver: 580.95.05 and 570.86.10"),
        (
            "toolkit",
            {"llama_cpp_python": "0.3.37"},
            "llama-cpp-python: 0.3.36 and 0.3.37",
        ),
        ("build", {"driver": OLD}, "driver: 580.95.05 and 570.86.10"),
    ],
)
def test_what_must_be_the_same_beside(by: By, other: dict[str, Any], said: str) -> None:
    a, b = list(runs(1, 1, 5)), [replace(r, **other) for r in runs(2, 1, 5)]
    assert only(compare(a, b, by)).why == (said,)
    assert only(compare(a, list(runs(2, 1, 5)), by)).answer == "no difference shown"


def test_a_build_and_a_toolkit_may_bring_one_another() -> None:
    a, b = list(runs(1, 1, 5)), list(runs(2, 1, 5, toolkit="13.1", fingerprint="84de9d54"))
    for by in ("build", "toolkit"):
        assert only(compare(a, b, by)).answer == "no difference shown"


@pytest.mark.parametrize("name", ["P40", "Tesla P40", "NVIDIA P40", "NVIDIA Tesla P40", " P40 "])
def test_a_card_has_one_name_whatever_the_driver_puts_before_it(name: str) -> None:
    assert card(record(gpu_info=name)) == "P40"


def test_what_launches_kernels_must_differ_by_more() -> None:
    """One H200 gave 106,114 and 122,110 t/s with the 160M model."""
    a = [replace(r, median_ts=106_114.0 + n) for n, r in enumerate(before(test="pp"))]
    b = [replace(r, median_ts=122_110.0 + n) for n, r in enumerate(after(test="pp"))]
    assert only(compare(a, b, "driver")).answer == "no difference shown"
    a = [replace(r, median_ts=49_000.0 + n) for n, r in enumerate(a)]
    b = [replace(r, median_ts=52_000.0 + n) for n, r in enumerate(b)]  # One side is enough.
    assert only(compare(a, b, "driver")).answer == "no difference shown"
    b = [replace(r, median_ts=140_000.0 + n) for n, r in enumerate(b)]
    assert only(compare(a, b, "driver")).answer == "faster"


@pytest.mark.parametrize(
    ("by", "value", "found"),
    [
        ("driver", "580", True),
        ("driver", "580.95.05", True),
        ("driver", "58", False),
        ("driver", "", False),
        ("toolkit", "13", True),
        ("toolkit", "1", False),
        ("build", "06ac", True),
        ("build", "6ac", False),
        ("host", "host-0", True),
        ("host", "host", False),
        ("gpu", "GPU-00000000", True),
        ("gpu", "00000000", True),
        ("gpu", "H200", False),
    ],
)
def test_values_as_people_write_them(by: By, value: str, found: bool) -> None:
    if found:
        assert select([record()], by, value)
        return
    with pytest.raises(NotFound) as caught:
        select([record()], by, value)
    assert f"found no record of {value!r}; expected one of: " in str(caught.value)
    assert AXES[by].of(record()) in str(caught.value)


def test_without_any_record_there_is_nothing_to_name() -> None:
    with pytest.raises(NotFound, match="expected one of: none at all"):
        select([], "driver", "580")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("rate", [0.0, -1.0, 1e-300, 1e300, float("inf"), float("nan")])
def test_figures_that_no_gpu_has_are_left_out(rate: float, force: bool) -> None:
    odd = [record(driver=driver, median_ts=rate) for driver in (OLD, NEW)]
    a, b = [*before(), odd[0]], [*after(factor=0.9), odd[1]]
    found = only(compare(a, b, "driver", force=force))
    assert found.answer == "slower"
    assert found.a
    assert found.a.runs == 5
    assert found.left_out == ({} if force else {"no figure": 2})
    assert only(compare(odd[:1], b, "driver", force=force)).answer == "not comparable"


def test_a_large_difference_that_runs_do_not_bear_out_is_not_shown() -> None:
    a = [record(driver=OLD, median_ts=rate) for rate in (300.0, 330.0, 360.0, 390.0)]
    b = [record(driver=NEW, median_ts=rate) for rate in (315.0, 348.0, 381.0, 420.0)]
    found = only(compare(a, b, "driver"))
    assert found.answer == "no difference shown"
    assert found.ratio == pytest.approx(1.06, abs=0.01)
    assert found.p is not None
    assert found.p > ALPHA


def test_forced_too_each_gpu_is_compared_with_itself() -> None:
    """GPUs that are far apart, of which each became 5 % slower."""
    a = [record(gpu, driver=OLD, median_ts=100.0 * (gpu + 1)) for gpu in range(6)]
    b = [replace(r, driver=NEW, median_ts=r.median_ts * 0.95, flash_attn=False) for r in a]
    found = only(compare(a, b, "driver", force=True))
    assert found.answer == "slower"
    assert found.ratio == pytest.approx(0.95)
