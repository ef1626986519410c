"""Results as the verification writes them: of today, and of version 1."""

from typing import Any

from llamafleet.protocol.result import (
    Benchmark,
    BuildSummary,
    Check,
    GpuRow,
    ModelFile,
    Rates,
    Result,
    System,
)
from llamafleet.protocol.verify import BenchSettings, VerifyInputs

OFFLOAD = Check("offload", "pass", "33 of 33 layers", "33 of 33")
ORIGIN = Check("library_origin", "pass", "4 libraries", "this build")


def benchmark(pp: float = 11536.25, tg: float = 150.5, spread: float = 0.0) -> Benchmark:
    return Benchmark(Rates(512, pp, spread), Rates(128, tg, spread))


def gpu(number: int = 0, name: str = "NVIDIA GeForce RTX 4090", tg: float = 150.5) -> GpuRow:
    return GpuRow(
        uuid=f"GPU-{number}",
        bus_id=f"0000:0{number + 1}:00.0",
        name=name,
        compute_capability="8.9",
        vram_mib=24564,
        verdict="PASS",
        checks=(OFFLOAD,),
        benchmark=benchmark(tg=tg),
        model="synthetic:7b-q4_0",
    )


RESULT = Result(
    host="gpu-a",
    started=1795564900.0,
    finished=1795565000.4,
    verdict="PASS",
    fingerprint="0123456789abcdef",
    key="fedcba9876543210",
    inputs=VerifyInputs(
        fingerprint="0123456789abcdef",
        driver="580.95.05",
        gpus=("NVIDIA GeForce RTX 4090 GPU-0",),
        model="synthetic:7b-q4_0",
        bench=BenchSettings(512, 128, 5),
        context=4096,
    ),
    build=BuildSummary(
        wall_s=333.4,
        cpu_s=4542.0,
        wheel_bytes=131_600_000,
        phases={"resolve": 3.0, "compile": 301.5},
        inputs={"llama_version": "0.3.36", "toolkit": "13.0"},
    ),
    system=System("580.95.05", "13.0", "", {}),
    model=ModelFile("synthetic:7b-q4_0", "/m.gguf", 1, None, 32),
    checks=(ORIGIN,),
    gpus=(gpu(),),
)

_RATES = {"repetitions": 5, "samples_ts": [1.0] * 5, "mean_ts": 1.0, "discarded_ts": []}

VERSION_1: dict[str, Any] = {
    "version": 1,
    "host": "gpu-a",
    "started": 1795564900.0,
    "finished": 1795565000.4,
    "verdict": "PASS",
    "fingerprint": "0123456789abcdef",
    "key": "fedcba9876543210",
    "inputs": {
        "fingerprint": "0123456789abcdef",
        "driver": "580.95.05",
        "gpus": ["NVIDIA GeForce RTX 4090 GPU-0"],
        "model": "synthetic:7b-q4_0",
        "bench": {"prompt": 512, "gen": 128, "repetitions": 5},
        "context": 4096,
    },
    "build": {
        "wall_s": 333.4,
        "cpu_s": 4542.0,
        "wheel_bytes": 131_600_000,
        "phases": {"resolve": 3.0, "compile": 301.5},
        "inputs": {"llama_version": "0.3.36", "toolkit": "13.0"},
        "llama_cpp_python": None,
    },
    "checks": [
        {"name": "library_origin", "status": "pass", "found": "4 libraries",
         "expected": "this build", "next": ""},
        {"name": "offload", "status": "pass", "found": "33 of 33 layers", "expected": "33 of 33",
         "next": ""},
    ],
    "system": {
        "driver": "580.95.05",
        "cuda": "13.0",
        "gpus": [{"index": 0, "name": "NVIDIA GeForce RTX 4090", "uuid": "GPU-0",
                  "compute_capability": "8.9", "vram_mib": 24564}],
        "system_info": "",
        "libraries": {},
    },
    "model": {"name": "synthetic:7b-q4_0", "path": "/m.gguf", "bytes": 1, "sha256": None,
              "layers": 32},
    "benchmark": {
        "pp": {"n": 512, "median_ts": 11536.25, "stdev_ts": 0.0, **_RATES},
        "tg": {"n": 128, "median_ts": 150.5, "stdev_ts": 0.0, **_RATES},
        "threads": 8, "load_s": 0.5, "peak_vram_mib": 4522, "gpu": None,
    },
    "timings": {"load_s": 0.5},
}  # fmt: skip
"""As the verification wrote it before there were rows."""
