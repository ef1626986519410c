"""Figures beside what is expected: a band warns, or says why it can't."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llamafleet.cli.bands import expected
from llamafleet.history.bands import band, claims, newest, roofline, tier
from llamafleet.history.record import Record
from llamafleet.history.words import of_bands
from tests.history.made import record

BANDS = expected()
CARD: dict[str, Any] = {
    **{"gpu_info": "NVIDIA GeForce RTX 4090", "vram_mib": 24564, "flash_attn": False},
    **{"power_limit_w": 450.0, "power_default_w": 450.0, "utilisation": 95.0},
}


def of_4090(rate: float = 186.0, test: Any = "tg", **fields: Any) -> Record:
    return record(0, test, median_ts=rate, **{**CARD, **fields})


@pytest.mark.parametrize(
    ("one", "answer", "why"),
    [
        (of_4090(), "within", ""),
        (of_4090(model_filename="", model_type="llama 7B Q4_0"), "within", ""),
        (of_4090(11_992.0, "pp"), "within", ""),
        (of_4090(150.0), "within", ""),
        (of_4090(148.0), "below", "expected at least 80% of it"),
        (of_4090(200.0), "above", ""),
        (of_4090(194.0), "within", ""),  # 4 % above, though 60 spreads
        (of_4090(9400.0, "pp", gpu_info="NVIDIA L40"), "within", ""),  # 6 % above, 1.4 spreads
        (of_4090(9700.0, "pp", gpu_info="NVIDIA L40"), "above", ""),
        (of_4090(flash_attn=True), "not comparable", "flash attention: on, the reference off"),
        (
            of_4090(flash_attn=None),
            "not comparable",
            "flash attention: as llama.cpp chooses, the reference off",
        ),
        (
            of_4090(power_limit_w=300.0),
            "not comparable",
            "the power limit is 300 W, the default 450 W",
        ),
        (of_4090(busy=("x",)), "not comparable", "the figure is no baseline: BUSY"),
        (of_4090(verdict="FAIL"), "not comparable", "the figure is no baseline: FAIL"),
        (
            of_4090(20.0, n_gpu_layers=10),
            "not comparable",
            "n_gpu_layers: 10, so the CPU may have had a part of it",
        ),
        (of_4090(n_gpu_layers=33), "within", ""),
        (of_4090(n_gpu_layers=-1), "within", ""),
        (
            of_4090(150.0, type_k="q8_0", type_v="f16"),
            "not comparable",
            "KV type: q8_0 / f16, the reference as usual",
        ),
        (of_4090(type_k="f16", type_v="f16", n_batch=2048, n_ubatch=512), "within", ""),
        (
            of_4090(9000.0, "pp", n_batch=2048, n_ubatch=128),
            "not comparable",
            "batch: 2048 / 128, the reference as usual",
        ),
        (
            of_4090(120.0, llama_bench={"backends": "Vulkan"}),
            "not comparable",
            "llama-bench's options: backends Vulkan",
        ),
        (
            of_4090(100.0, power_limit_w=None),
            "below",
            "expected at least 80% of it; its power limit: not told",
        ),
        (record(flash_attn=None), "within", ""),
        (
            record(flash_attn=None, median_ts=320.0),
            "below",
            "expected at least 90% of it",
        ),
    ],
)
def test_a_figure_beside_its_reference(one: Record, answer: str, why: str) -> None:
    found = band(one, BANDS)
    assert found
    assert (found.answer, found.why) == (answer, why)
    assert found.ratio == pytest.approx(one.median_ts / found.reference.ts)


@pytest.mark.parametrize(
    "one",
    [
        of_4090(gpu_info="NVIDIA GeForce RTX 4090 Laptop GPU"),
        of_4090(gpu_info="NVIDIA H100 PCIe"),
        of_4090(model_filename="synthetic:160m-q4_0"),
        of_4090(n_gen=64),
        of_4090(n_depth=4096),
        of_4090(gpus=2),
        of_4090(gpu_info="NVIDIA GeForce RTX 3060", vram_mib=8192),
    ],
)
def test_what_is_not_known_has_no_band(one: Record) -> None:
    assert band(one, BANDS) is None


def test_of_several_memories_under_one_name_the_right_one() -> None:
    small = of_4090(70.0, gpu_info="NVIDIA GeForce RTX 3060", vram_mib=8192)
    large = replace(small, vram_mib=12288)
    assert roofline(small, BANDS) is None
    found = roofline(large, BANDS)
    assert found
    assert found.bandwidth.gb_s == 360
    assert band(large, BANDS)


def test_how_true_a_reference_is() -> None:
    assert tier("measured: two H200s") == "measured here"
    assert tier("looked up: a table") == "reported"
    assert tier("UNVERIFIED: recalled") == "recalled"


@pytest.mark.parametrize(
    ("one", "share", "answer", "why"),
    [
        (of_4090(186.21), 0.707, "within", ""),
        (of_4090(40.0), 0.152, "below", "expected 20% or more"),
        (of_4090(40.0, busy=("x",)), 0.152, "not comparable", "the figure is no baseline: BUSY"),
        (
            of_4090(2000.0, model_size=82632704),
            0.164,
            "not comparable",
            "so small a model is launched, not read",
        ),
        (
            of_4090(100.0, model_size=18_600_000_000),
            1.845,
            "not comparable",
            "not all weights are read for a token, as in a mixture of experts",
        ),
        (
            of_4090(40.0, n_gpu_layers=20),
            0.152,
            "not comparable",
            "n_gpu_layers: 20, so the CPU may have had a part of it",
        ),
        (of_4090(186.21, n_gpu_layers=33), 0.707, "within", ""),
        (
            of_4090(100.0, llama_bench={"n_cpu_moe": 4}),
            0.380,
            "not comparable",
            "llama-bench's options: n_cpu_moe 4",
        ),
        (
            of_4090(40.0, n_depth=32768),
            0.152,
            "not comparable",
            "at a depth of 32768 tokens the KV cache is read as well",
        ),
        (of_4090(100.0, n_depth=32768), 0.380, "within", ""),
        (
            record(median_ts=500.0, model_size=1_200_000_000),
            0.125,
            "not comparable",
            "where so many are allowed it is the launching of kernels that is measured",
        ),
        (record(median_ts=361.0), 0.288, "within", ""),
    ],
)
def test_the_share_of_the_bandwidth(one: Record, share: float, answer: str, why: str) -> None:
    found = roofline(one, BANDS)
    assert found
    assert found.share == pytest.approx(share, abs=0.001)
    assert (found.answer, found.why) == (answer, why)


@pytest.mark.parametrize(
    "one",
    [
        of_4090(12_000.0, "pp"),
        of_4090(gpus=2),
        of_4090(model_size=None),
        of_4090(gpu_info="NVIDIA GeForce RTX 9999"),
    ],
)
def test_no_share_where_it_means_nothing(one: Record) -> None:
    assert roofline(one, BANDS) is None


def answers(one: Record) -> list[tuple[str, str]]:
    return [(claim.answer, claim.why) for claim in claims(one, BANDS)]


def test_the_guide_s_claims_of_a_4090() -> None:
    """As it is: 7B, 4.7 GB, loaded in half a second."""
    assert answers(of_4090()) == [
        ("met", "more than it promises"),
        ("not applicable", "it depends on the model: this one has 3.8 GB of weights"),
        ("met", ""),
        ("met", "faster than it promises"),
    ]


@pytest.mark.parametrize(
    ("number", "fields", "answer"),
    [
        (0, {"rate": 100.0}, "met"),
        (0, {"rate": 49.0}, "not met"),
        (0, {"rate": 40.0, "model_size": 21_000_000_000}, "not applicable"),
        (1, {"peak_vram_mib": 19000}, "met"),
        (1, {"peak_vram_mib": 23000}, "not met"),
        (1, {"peak_vram_mib": None}, "not applicable"),
        (2, {"utilisation": 89.0}, "not met"),
        (2, {"utilisation": 85.0, "model_size": 82632704}, "not applicable"),
        (2, {"utilisation": None}, "not applicable"),
        (3, {"load_s": 8.0}, "met"),
        (3, {"load_s": 16.0}, "not met"),
        (3, {"load_s": None}, "not applicable"),
    ],
)
def test_each_claim(number: int, fields: dict[str, Any], answer: str) -> None:
    assert answers(of_4090(**fields))[number][0] == answer


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"gpu_info": "NVIDIA H200"}, "it speaks of the GeForce RTX 4090"),
        ({"busy": ("x",)}, "the GPU was not free and healthy"),
        ({"n_gpu_layers": 10}, "n_gpu_layers: 10, so the CPU may have had a part of it"),
    ],
)
def test_claims_that_do_not_apply_say_why(fields: dict[str, Any], why: str) -> None:
    assert answers(of_4090(**fields)) == [("not applicable", why)] * 4


def test_a_size_that_is_not_told_is_not_called_nothing() -> None:
    told = claims(of_4090(model_size=None), BANDS)[1]
    assert told.why == "it depends on the model: this one has an untold size of weights"


def test_the_newest_figure_of_each_gpu_counts() -> None:
    old, new = record(day=1.0, median_ts=1.0), record(day=2.0)
    assert list(newest([new, old])) == [new]
    assert len(list(newest([new, old, record(1), record(test="pp")]))) == 3


def test_as_text() -> None:
    lines = list(of_bands([of_4090(11_992.0, "pp"), of_4090(140.0)], BANDS))
    assert max(map(len, lines)) <= 100
    assert " ".join(" ".join(lines).split()) == (
        "host-0 GPU-00000000 GeForce RTX 4090, synthetic:7b-q4_0 "
        "pp512 11,992.0 t/s: within: 100% of 11,992.7 ± 108.0 (reported, 2241453) "
        "tg128 140.0 t/s: WARN below: 75% of 186.2 ± 0.1 (reported, 2241453); "
        "expected at least 80% of it "
        "roofline: within: 53% of the 263.5 t/s that 1,008 GB/s allow (reported) "
        "guide: tokens per second 50-150: met: 140.0 "
        "guide: GPU memory 18-22 GB: not applicable: 4.7 GB; it depends on the model: "
        "this one has 3.8 GB of weights "
        "guide: GPU utilisation 90 % and more: met: 95 % "
        "guide: load time 5-15 s: met: 0.5 s; faster than it promises"
    )
    [_, unknown, roof, guide] = of_bands([of_4090(gpu_info="\x1b[31mEvil")], BANDS)
    assert roof == "  roofline: the bandwidth of such a GPU is not known"
    [*_, roof, _] = of_bands([of_4090(gpu_info="Other", model_size=None)], BANDS)
    assert roof == "  roofline: the model's size is not known"
    assert unknown == "  tg128 186.0 t/s: no figure of such a GPU with this model is known"
    assert guide == "  guide: not applicable: it speaks of the GeForce RTX 4090"
    assert not any("\x1b" in one for one in of_bands([of_4090(gpu_info="\x1b[31mEvil")], BANDS))
