"""A result as the verification writes it."""

from typing import Any

GPU = {"index": 0, "name": "NVIDIA GeForce RTX 4090", "uuid": "GPU-0",
       "compute_capability": "8.9", "vram_mib": 24564}  # fmt: skip

RESULT: dict[str, Any] = {
    "version": 1,
    "host": "gpu-a",
    "started": 1795564900.0,
    "finished": 1795565000.4,
    "verdict": "PASS",
    "fingerprint": "0123456789abcdef",
    "key": "fedcba9876543210",
    "inputs": {"fingerprint": "0123456789abcdef", "driver": "580.95.05"},
    "build": {
        "wall_s": 333.4,
        "cpu_s": 4542.0,
        "wheel_bytes": 131_600_000,
        "phases": {"resolve": 3.0, "compile": 301.5},
        "inputs": {"llama_version": "0.3.36", "toolkit": "13.0"},
    },
    "checks": [
        {"name": "offload", "status": "pass", "found": "33 of 33 layers", "expected": "33 of 33",
         "next": ""},
        {"name": "logits", "status": "skip", "found": "", "expected": "", "next": ""},
    ],
    "system": {
        "driver": "580.95.05",
        "cuda": "13.0",
        "gpus": [GPU, {**GPU, "index": 1}, {**GPU, "index": 2, "name": "NVIDIA A100-PCIE-40GB"}],
        "system_info": "",
        "libraries": {},
    },
    "model": {"name": "7b-q4_0", "path": "/m.gguf", "bytes": 1, "sha256": None, "layers": 32},
    "benchmark": {"pp": {"median_ts": 11536.25}, "tg": {"median_ts": 150.5}},
}  # fmt: skip
