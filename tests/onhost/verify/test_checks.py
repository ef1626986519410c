"""The judgements on figures: each passes on good ones and is red on bad ones."""

from __future__ import annotations

import pytest

from llamafleet.onhost.verify import checks
from llamafleet.onhost.verify.checks.benchmark import judge_benchmark
from llamafleet.onhost.verify.checks.busy import judge_busy
from llamafleet.onhost.verify.checks.gpus_visible import judge_gpus
from llamafleet.onhost.verify.checks.library_cuda import judge_cuda
from llamafleet.onhost.verify.checks.library_origin import judge_origin
from llamafleet.onhost.verify.checks.vram import judge_vram
from llamafleet.protocol.result import (
    Benchmark,
    Check,
    Rates,
    failed,
    judge,
    passed,
    skipped,
    worst,
)

GPU = ["NVIDIA GeForce RTX 4090, 8.9"]
PREFIX = "/opt/llamafleet/versions/f00"
LIBRARY = "lib/python3.12/site-packages/llama_cpp/lib/libllama.so"


def everything(status: str = "pass") -> list[Check]:
    return [Check(name, status, "", "") for name in checks.NAMES]  # type: ignore[arg-type]


def test_verdicts() -> None:
    assert judge("cuda", everything(), checks.NAMES) == "PASS"
    dear = Check("gpus_visible", "warn", "", "")
    assert judge("cuda", [*everything()[1:], dear], checks.NAMES) == "PASS"
    assert judge("cpu", everything("skip"), checks.NAMES) == "CPU ONLY"


@pytest.mark.parametrize("name", checks.NAMES)
def test_one_red_check_is_enough(name: str) -> None:
    others = [check for check in everything() if check.name != name]
    assert judge("cuda", [*others, failed(name, "", "", "")], checks.NAMES) == "FAIL"
    assert judge("cpu", [*others, failed(name, "", "", "")], checks.NAMES) == "FAIL"
    assert judge("cuda", [*others, skipped(name, "")], checks.NAMES) == "FAIL"
    assert judge("cuda", others, checks.NAMES) == "FAIL", "a check that is missing proves nothing"


def test_a_red_line_says_what_to_do() -> None:
    line = failed("vram", "1 MiB", "2 MiB", "do this").line()
    assert [word in line for word in ("FAIL", "1 MiB", "2 MiB", "do this")] == [True] * 4
    assert "2 MiB" not in passed("vram", "3 MiB", "2 MiB").line()


@pytest.mark.parametrize(
    ("seen", "status", "said"),
    [
        ((GPU, None, GPU, None), "pass", "NVML: 1"),
        ((GPU * 2, None, GPU, "1"), "fail", "CUDA_VISIBLE_DEVICES='1'"),
        ((GPU, None, [], ""), "fail", "unset CUDA_VISIBLE_DEVICES"),
        ((GPU, None, [], None), "fail", "/dev/nvidia*"),
        ((GPU * 2, None, GPU, None), "fail", "the setting gpus"),
        (([], None, [], None), "fail", "lspci"),
        (([], "NVML does not start", [], None), "fail", "driver"),
    ],
)
def test_gpus(
    seen: tuple[list[str], str | None, list[str], str | None], status: str, said: str
) -> None:
    check = judge_gpus(*seen)
    assert check.status == status
    assert said in check.line()


def test_own_libraries_pass() -> None:
    check = judge_origin({f"{PREFIX}/{LIBRARY}": "aa"}, PREFIX, {LIBRARY: "aa"}, "stamp")
    assert check.status == "pass"


@pytest.mark.parametrize(
    ("loaded", "stamp", "said"),
    [
        ({f"/usr/lib/{LIBRARY}": "aa"}, {LIBRARY: "aa"}, "LD_LIBRARY_PATH"),
        ({f"{PREFIX}0/{LIBRARY}": "aa"}, {LIBRARY: "aa"}, "loaded from elsewhere"),
        ({f"{PREFIX}/{LIBRARY}": "bb"}, {LIBRARY: "aa"}, "not what the build made"),
        ({f"{PREFIX}/{LIBRARY}": "aa"}, {}, "not what the build made"),
        ({f"{PREFIX}/{LIBRARY}": "aa"}, None, "no list of libraries"),
        ({}, {LIBRARY: "aa"}, "no library of llama.cpp"),
    ],
)
def test_other_libraries_are_red(
    loaded: dict[str, str], stamp: dict[str, str] | None, said: str
) -> None:
    check = judge_origin(loaded, PREFIX, stamp, "stamp.json")
    assert check.status == "fail"
    assert said in check.line()


INFO = "CUDA : ARCHS = 890 | USE_GRAPHS = 1 | CPU : AVX = 1 | "


@pytest.mark.parametrize(
    ("libraries", "info", "offload", "status", "said"),
    [
        (["/p/libggml-cuda.so", "/p/libllama.so"], INFO, True, "pass", "ARCHS = 890"),
        (["/p/libllama.so"], "CPU : AVX = 1 | ", False, "fail", "-DGGML_CUDA=on"),
        (["/p/libggml-cuda.so"], "CPU : AVX = 1 | ", True, "fail", "-DGGML_CUDA=on"),
        (["/p/libggml-cuda.so"], INFO, False, "fail", "no device"),
    ],
)
def test_cuda_backend(
    libraries: list[str], info: str, offload: bool, status: str, said: str
) -> None:
    check = judge_cuda(libraries, info, offload)
    assert check.status == status
    assert said in check.line()


@pytest.mark.parametrize(
    ("load", "all_", "status"),
    [(4000, 6000, "pass"), (200, 6000, "fail"), (4000, 4100, "fail"), (0, 0, "fail")],
)
def test_vram(load: float, all_: float, status: str) -> None:
    assert judge_vram(4000, load, 6000, all_).status == status


@pytest.mark.parametrize(
    ("samples", "status"), [([97.0, 99.0], "pass"), ([0.0, 0.0], "fail"), ([], "fail")]
)
def test_busy(samples: list[float], status: str) -> None:
    assert judge_busy(samples).status == status


def report(samples: int) -> Benchmark:
    test = Rates(8, median_ts=2.0, stdev_ts=0.1, samples_ts=(2.0,) * samples)
    return Benchmark(test, test, load_s=1.0)


def test_a_host_s_verdict_is_the_worst_of_its_gpus() -> None:
    assert worst(["PASS", "PASS"]) == "PASS"
    assert worst(["PASS", "CPU ONLY"]) == "CPU ONLY"
    assert worst(["PASS", "NOT VERIFIED", "CPU ONLY"]) == "NOT VERIFIED"
    assert worst(["PASS", "NOT VERIFIED", "FAIL"]) == "FAIL"
    assert worst([]) == "NOT VERIFIED"


def test_benchmark() -> None:
    assert judge_benchmark(report(5), 5).status == "pass"
    assert judge_benchmark(report(4), 5).status == "fail"
