"""Records out of results, and filters over them."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from datetime import datetime, timezone

import pytest

from llamafleet.history.record import Record
from llamafleet.history.records import Filter, records_of, with_id
from llamafleet.protocol.conditions import Conditions, Process
from llamafleet.protocol.result import Benchmark, BuildSummary, Check, Rates
from tests.history import OFFLOAD, RESULT, benchmark, gpu

WHEN = datetime(2026, 11, 25, 0, 3, 20, 400000, timezone.utc)


def test_a_gpu_has_a_record_of_each_test() -> None:
    pp, tg = records_of(RESULT, "run-1", "gpu-a/latest.json")
    assert (pp.test, pp.n_prompt, pp.n_gen, pp.median_ts) == ("pp", 512, 0, 11536.25)
    assert (tg.test, tg.n_prompt, tg.n_gen, tg.median_ts) == ("tg", 0, 128, 150.5)
    assert tg.avg_ts == 150.5, "a result without a mean has its median"
    for one in (pp, tg):
        assert (one.host, one.gpu_uuid, one.gpus) == ("gpu-a", "GPU-0", 1)
        assert (one.driver, one.toolkit, one.verdict) == ("580.95.05", "13.0", "PASS")
        assert (one.llama_cpp_python, one.fingerprint) == ("0.3.36", "0123456789abcdef")
        assert (one.model_filename, one.model_size) == ("synthetic:7b-q4_0", 1)
        assert (one.run_id, one.source) == ("run-1", "gpu-a/latest.json")
        assert one.test_time == datetime.fromtimestamp(1795565000.4, timezone.utc)
        assert one.flash_attn is None, "a result does not tell"


def test_the_id_is_of_what_was_measured_and_not_of_where_it_is_read() -> None:
    one = records_of(RESULT, "run-1", "a.json")
    assert [r.id for r in one] == [r.id for r in records_of(RESULT)]
    assert len({r.id for r in one}) == 2
    for other in (
        replace(RESULT, host="gpu-b"),
        replace(RESULT, finished=RESULT.finished + 1),
        replace(RESULT, gpus=(gpu(1),)),
        replace(RESULT, gpus=(gpu(tg=151.0),)),
    ):
        assert records_of(other)[1].id != one[1].id


OTHER = {
    "host": "x", "gpu_uuid": "x", "gpu_info": "x", "gpus": 2, "test": "pp", "model_filename": "x",
    "test_time": WHEN.replace(hour=1), "n_prompt": 1, "n_gen": 1, "n_depth": 1, "median_ts": 1.0,
    "samples_ts": (1.0,),
}  # fmt: skip


@pytest.mark.parametrize("name", [one.name for one in fields(Record) if one.name != "id"])
def test_a_measurement_is_another_by_each_of_these_and_by_nothing_else(name: str) -> None:
    one = records_of(RESULT)[1]
    other = with_id(replace(one, **{name: OTHER.get(name, getattr(full(), name))}))
    assert (other.id != one.id) == (name in OTHER)


def full() -> Record:
    """One that tells all there is; its own id is of no use."""
    known = {
        "str": "x",
        "int": 7,
        "float": 7.0,
        "bool": True,
        "tuple": ("x",),
        "Mapping": {"x": 1.0},
    }
    kinds = {one.name: re.split(r"[ \[]", str(one.type))[0] for one in fields(Record)}
    return replace(TG, **{name: known[kind] for name, kind in kinds.items() if kind in known})


def test_what_was_not_measured_has_none() -> None:
    failed = replace(gpu(), benchmark=None, verdict="FAIL")
    assert records_of(replace(RESULT, verdict="FAIL", gpus=(failed,))) == ()


BUSY = Check("conditions", "busy", "pid 7", "none", "kill 7")


def test_of_several_gpus_together_a_condition_is_the_worst() -> None:
    one = Conditions("GPU-0", sm_clock_mhz=1980, temperature_c=46, power_limit_w=700,
                     throttled_s={"power": 0.5}, pcie_width=16, persistence=True)  # fmt: skip
    two = Conditions("GPU-1", sm_clock_mhz=1500, temperature_c=71, throttled_s={"thermal": 2.0},
                     others=(Process(7, "compute"),), others_unnamed=1, pcie_width=8,
                     persistence=False)  # fmt: skip
    both = replace(benchmark(), conditions=(one, two), peak_vram_mib=5280, load_s=0.5)
    slow = replace(gpu(1), checks=(OFFLOAD, BUSY), verdict="BUSY")
    found = records_of(replace(RESULT, benchmark=both, gpus=(gpu(0), slow)))
    assert [(r.test, r.gpu_uuid, r.gpus) for r in found] == [
        ("pp", "", 2), ("tg", "", 2), ("pp", "GPU-0", 1), ("tg", "GPU-0", 1),
        ("pp", "GPU-1", 1), ("tg", "GPU-1", 1),
    ]  # fmt: skip
    pp = found[0]
    assert pp.gpu_info == "NVIDIA GeForce RTX 4090, NVIDIA GeForce RTX 4090"
    assert (pp.sm_clock_mhz, pp.temperature_c, pp.power_limit_w) == (1500, 71, 700)
    assert (pp.pcie_width, pp.persistence, pp.processes) == (8, False, 2)
    assert pp.throttled_s == {"power": 0.5, "thermal": 2.0}
    assert pp.vram_mib == 2 * 24564
    assert (pp.load_s, pp.peak_vram_mib) == (0.5, 5280)
    assert pp.busy == (), "one GPU's check speaks of that GPU"
    assert [len(r.busy) for r in found[2:]] == [0, 0, 1, 1]
    assert found[5].verdict == "BUSY"


def test_a_cpu_has_no_gpu() -> None:
    inputs = {"backend": "cpu", "cmake_options": ["GGML_NATIVE=on"]}
    idle = replace(gpu(), benchmark=None)  # It is there, and had no part in it.
    result = replace(RESULT, verdict="CPU ONLY", gpus=(idle,), benchmark=benchmark(),
                     build=BuildSummary(inputs))  # fmt: skip
    for one in records_of(result):
        assert (one.gpus, one.gpu_info, one.vram_mib, one.processes) == (0, "", None, None)
        assert (one.verdict, one.flags) == ("CPU ONLY", ("GGML_NATIVE=on",))


def test_the_models_hash_is_of_the_model_that_was_measured() -> None:
    other = replace(gpu(), model="synthetic:160m-q4_0")
    pp, _ = records_of(replace(RESULT, gpus=(other,)))
    assert (pp.model_filename, pp.model_size, pp.model_sha256) == ("synthetic:160m-q4_0", None, "")
    assert RESULT.model is not None
    file = replace(RESULT.model, path="/models/7b.gguf", sha256="a" * 64)
    for name in (file.path, file.name):
        _, tg = records_of(replace(RESULT, model=file, gpus=(replace(gpu(), model=name),)))
        assert (tg.model_filename, tg.model_size, tg.model_sha256) == (
            name.rpartition("/")[2], 1, "a" * 64,
        )  # fmt: skip


def test_a_time_that_no_calendar_has_is_no_record() -> None:
    with pytest.raises(ValueError, match="since 1970"):
        records_of(replace(RESULT, finished=1e300))


def test_samples_and_mean_are_kept() -> None:
    rates = Rates(128, 150.0, 1.5, 149.0, 2, (148.0, 150.0), (120.0,))
    row = replace(gpu(), benchmark=Benchmark(rates, rates, threads=8))
    _, tg = records_of(replace(RESULT, gpus=(row,)))
    assert (tg.avg_ts, tg.stddev_ts, tg.samples_ts) == (149.0, 1.5, (148.0, 150.0))
    assert tg.n_threads == 8


def test_the_build_of_nvcc_is_kept() -> None:
    build = replace(RESULT.build, nvcc="13.0.88")
    assert {r.nvcc for r in records_of(replace(RESULT, build=build))} == {"13.0.88"}


PP, TG = (replace(r, run_id="20261125T000000.000000Z-abcd") for r in records_of(RESULT))
BUSY_TG = with_id(replace(TG, host="GPU_B%", busy=("pid 7",), gpu_uuid="GPU-7", verdict="BUSY"))
BOTH = with_id(replace(TG, gpu_uuid="", gpus=2, test_time=WHEN.replace(day=26)))
KNOWN = {"pp": PP, "tg": TG, "busy": BUSY_TG, "both": BOTH}

WANTED = [
    (Filter(), {"pp", "tg", "busy", "both"}),
    (Filter(hosts=("gpu-a",)), {"pp", "tg", "both"}),
    (Filter(hosts=("gpu-*",)), {"pp", "tg", "both"}),
    (Filter(hosts=("GPU-A", "gpu_*")), set()),
    (Filter(hosts=("GPU_B%", "?")), {"busy"}),
    (Filter(hosts=("*_B*",)), {"busy"}),
    (Filter(hosts=("%",)), set()),
    (Filter(hosts=("gpu_?",)), set()),
    (Filter(hosts=("[g]*",)), set()),
    (Filter(gpus=("GPU-7",)), {"busy"}),
    (Filter(gpus=("*RTX 4090*",)), {"pp", "tg", "busy", "both"}),
    (Filter(drivers=("580.*",), toolkits=("13.0",), tests=("pp",)), {"pp"}),
    (Filter(drivers=("570.*",)), set()),
    (Filter(builds=("0123*",), verdicts=("BUSY",)), {"busy"}),
    (Filter(builds=("0.3.36",), busy=False), {"pp", "tg", "both"}),
    (Filter(builds=("9*",)), set()),
    (Filter(busy=True), {"busy"}),
    (Filter(models=("*7b-q4_0",), together=True), {"both"}),
    (Filter(together=False), {"pp", "tg", "busy"}),
    (Filter(runs=("20261125*",), tests=("tg",), together=False), {"tg", "busy"}),
    (Filter(since=PP.test_time), {"pp", "tg", "busy", "both"}),
    (Filter(until=PP.test_time), set()),
    (Filter(since=BOTH.test_time), {"both"}),
    (Filter(until=BOTH.test_time), {"pp", "tg", "busy"}),
]
"""What each filter is to find in a database."""
