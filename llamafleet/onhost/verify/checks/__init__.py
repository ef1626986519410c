"""The record of one check, and the judgements that need no more than figures.

A check says what was found, what was expected and what to type next. Every function here is pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["pass", "warn", "fail", "skip"]

NAMES = (
    "gpus_visible",
    "library_origin",
    "library_cuda",
    "machine_code",
    "offload",
    "vram",
    "busy",
    "logits",
    "control",
    "context",
    "benchmark",
)
"""Every check, in the order in which they run and are reported."""

GPU_ONLY = frozenset(
    {"gpus_visible", "library_cuda", "machine_code", "offload", "vram", "busy", "logits"}
)
"""Checks that say nothing about a CPU build."""

VRAM_SHARE = 0.9
"""Least growth of the GPU's memory, as a share of what must be there. NVML counts in steps of
2 MiB per allocation and other processes may free memory meanwhile; a model of which a tenth or
more stayed on the CPU is below it."""

LOGITS_TOLERANCE = 0.05
"""Largest difference between a GPU's and the CPU's logit, in standard deviations of the CPU's.

Twice the largest measured: 0.0243, on an H100 with CUDA 13.0, by machine code and by PTX alike
(2026-11-25, llama-cpp-python 0.3.36). CPU and GPU add in another order, the GPU's attention works
in 16 bit, activations are rounded to 8 bit. A wrong kernel or layer is off by about one."""


@dataclass(frozen=True)
class Check:
    """One finding. `warn` is a pass with a price that the user should know."""

    name: str
    status: Status
    found: str
    expected: str
    next: str = ""

    def as_json(self) -> dict[str, str]:
        return asdict(self)

    def line(self) -> str:
        """What a person reads: one line, and for a red check two more."""
        mark = {"pass": "ok  ", "warn": "WARN", "fail": "FAIL", "skip": "skip"}[self.status]
        text = f"{mark} {self.name:<14} {self.found}"
        if self.status == "fail":
            text += f"\n     {'expected:':<14} {self.expected}"
        if self.next:
            text += f"\n     {'next:':<14} {self.next}"
        return text


def passed(name: str, found: str, expected: str) -> Check:
    return Check(name, "pass", found, expected)


def failed(name: str, found: str, expected: str, next: str) -> Check:
    return Check(name, "fail", found, expected, next)


def skipped(name: str, reason: str) -> Check:
    return Check(name, "skip", reason, "nothing: not checked")


def verdict(backend: str, checks: Iterable[Check]) -> str:
    """PASS, FAIL or CPU ONLY.

    PASS needs every check of the list there and none red; on a CUDA build a check that was left
    out counts as red, as what was not looked at is not proven.
    """
    status = {check.name: check.status for check in checks}
    complete = set(status) == set(NAMES)
    if not complete or "fail" in status.values():
        return "FAIL"
    if backend == "cpu":
        return "CPU ONLY"
    return "FAIL" if "skip" in status.values() else "PASS"


def judge_gpus(
    nvml_gpus: Sequence[str],
    nvml_problem: str | None,
    cuda_gpus: Sequence[str],
    visible: str | None,
) -> Check:
    """The driver lists GPUs and CUDA, inside llama.cpp, sees them.

    `visible` is CUDA_VISIBLE_DEVICES; where it names some of the GPUs the others may be missing.
    """
    expected = "at least one NVIDIA GPU, the same number through NVML and through CUDA"
    restriction = "" if visible is None else f", CUDA_VISIBLE_DEVICES={visible!r}"
    seen = f"NVML: {nvml_problem or _names(nvml_gpus)}; CUDA: {_names(cuda_gpus)}{restriction}"
    if nvml_problem:
        return failed(
            "gpus_visible",
            seen,
            expected,
            "run `nvidia-smi -L`; if it fails too, install or repair the NVIDIA driver (in a "
            "container: --gpus all)",
        )
    if not nvml_gpus:
        return failed("gpus_visible", seen, expected, "run `lspci -d 10de:` and `nvidia-smi -L`")
    if not cuda_gpus:
        return failed(
            "gpus_visible",
            seen,
            expected,
            "unset CUDA_VISIBLE_DEVICES"
            if visible is not None
            else "check the build (library_cuda), `ls -l /dev/nvidia*` and "
            "`lsmod | grep nvidia_uvm`",
        )
    if len(cuda_gpus) < len(nvml_gpus) and not visible:
        return failed(
            "gpus_visible",
            seen,
            expected,
            "run `nvidia-smi` and look for a GPU in an error state or in MIG mode",
        )
    return passed("gpus_visible", seen, expected)


def judge_origin(
    loaded: Mapping[str, str], prefix: str, stamp: Mapping[str, str] | None, stamp_path: str
) -> Check:
    """The libraries in memory are those of this build, by place and by content.

    `loaded` maps real paths to sha256, `stamp` paths relative to `prefix` to sha256.
    """
    expected = f"every libllama and libggml below {prefix}, sha256 as in {stamp_path}"
    if stamp is None:
        return failed(
            "library_origin",
            f"no list of libraries in {stamp_path}",
            expected,
            "build again: the build writes the stamp",
        )
    if not loaded:
        return failed(
            "library_origin",
            "no library of llama.cpp in the process",
            expected,
            f"run {prefix}/bin/python -c 'import llama_cpp'",
        )
    foreign, altered = [], []
    for path, sha256 in loaded.items():
        relative = path.removeprefix(prefix.rstrip("/") + "/")
        if relative == path:
            foreign.append(path)
        elif stamp.get(relative) != sha256:
            altered.append(f"{path} (sha256 {sha256[:12]}, stamp {str(stamp.get(relative))[:12]})")
    if foreign:
        return failed(
            "library_origin",
            "loaded from elsewhere: " + ", ".join(foreign),
            expected,
            "remove the folder from LD_LIBRARY_PATH, LLAMA_CPP_LIB_PATH or /etc/ld.so.conf.d; or "
            f"run the verification with {prefix}/bin/python",
        )
    if altered:
        return failed(
            "library_origin",
            "not what the build made: " + ", ".join(altered),
            expected,
            f"remove {prefix} and build again",
        )
    return passed("library_origin", f"{len(loaded)} libraries, all of this build", expected)


def judge_cuda(
    libraries: Iterable[str], system_info: str, supports_offload: bool, toolkit_hint: str = ""
) -> Check:
    """The loaded build has the CUDA backend and the backend has a device."""
    expected = 'libggml-cuda loaded, "CUDA : ARCHS" in the system info, GPU offload supported'
    names = sorted(path.rsplit("/", 1)[-1] for path in libraries)
    has_library = any(name.startswith("libggml-cuda") for name in names)
    has_archs = "CUDA : ARCHS" in system_info
    archs = system_info.split("CUDA : ", 1)[-1].split(" |", 1)[0] if has_archs else "no CUDA"
    found = (
        f"libggml-cuda {'loaded' if has_library else 'not loaded'}, system info: {archs}, "
        f"GPU offload {'' if supports_offload else 'not '}supported"
    )
    if not has_library or not has_archs:
        return failed(
            "library_cuda",
            found,
            expected,
            "this is a CPU-only build: build with -DGGML_CUDA=on (FORCE_CMAKE and LLAMA_CUBLAS "
            "have no effect)",
        )
    if not supports_offload:
        return failed(
            "library_cuda",
            found,
            expected,
            "the backend has no device: see gpus_visible and the line `failed to initialize CUDA`",
        )
    return passed("library_cuda", found, expected)


def judge_vram(weights_mib: float, growth_load: float, needed_mib: float, growth: float) -> Check:
    """The GPU's memory, as NVML counts it, grew by the weights and then by the KV cache.

    Both growths start after the CUDA context was made, so that its 0.3 to 0.5 GiB can't hide a
    model that stayed on the CPU. Sizes in MiB; `needed_mib` is weights and KV cache together.
    """
    found = (
        f"{growth_load:.0f} MiB by loading the model, {growth:.0f} MiB with the context "
        f"(weights {weights_mib:.0f}, weights and KV cache {needed_mib:.0f})"
    )
    expected = (
        f"at least {VRAM_SHARE * weights_mib:.0f} and {VRAM_SHARE * needed_mib:.0f} MiB "
        f"({VRAM_SHARE:.0%} of what must be there)"
    )
    if growth_load < VRAM_SHARE * weights_mib or growth < VRAM_SHARE * needed_mib:
        return failed(
            "vram",
            found,
            expected,
            "the model is not, or not all, in the GPU's memory: see offload; unset "
            "GGML_CUDA_ENABLE_UNIFIED_MEMORY",
        )
    return passed("vram", found, expected)


def judge_busy(samples: Sequence[float]) -> Check:
    """The GPU worked while tokens were generated. `samples` are NVML's utilisation in per cent."""
    expected = "utilisation above 0 % while generating"
    if not samples:
        return failed(
            "busy",
            "NVML gave no utilisation",
            expected,
            "run `nvidia-smi --query-gpu=utilization.gpu --format=csv`; a MIG device has none",
        )
    mean = sum(samples) / len(samples)
    found = f"mean {mean:.0f} %, highest {max(samples):.0f} % of {len(samples)} samples"
    if mean <= 0:
        return failed("busy", found, expected, "tokens are made on the CPU: see offload")
    return passed("busy", found, expected)


@dataclass(frozen=True)
class LogitsDifference:
    """GPU against CPU over all positions of the same tokens."""

    max_abs: float
    std: float
    """Standard deviation of the CPU's logits."""
    top1: float
    """Share of positions with the same most likely token."""
    positions: int

    @property
    def relative(self) -> float:
        return self.max_abs / self.std if self.std > 0 else math.inf


def compare_logits(cpu: Sequence[float], gpu: Sequence[float], n_vocab: int) -> LogitsDifference:
    """Compare two runs, position by position. Raises ValueError where they can't be compared."""
    if n_vocab <= 0 or len(cpu) != len(gpu) or not cpu or len(cpu) % n_vocab:
        raise ValueError(f"{len(cpu)} and {len(gpu)} logits with a vocabulary of {n_vocab}")
    if not all(map(math.isfinite, cpu)) or not all(map(math.isfinite, gpu)):
        raise ValueError("a logit is not a finite number")
    mean = math.fsum(cpu) / len(cpu)
    std = math.sqrt(math.fsum((x - mean) ** 2 for x in cpu) / len(cpu))
    positions = len(cpu) // n_vocab
    same = 0
    for start in range(0, len(cpu), n_vocab):
        a, b = cpu[start : start + n_vocab], gpu[start : start + n_vocab]
        same += max(range(n_vocab), key=a.__getitem__) == max(range(n_vocab), key=b.__getitem__)
    worst = max(abs(a - b) for a, b in zip(cpu, gpu, strict=True))
    return LogitsDifference(worst, std, same / positions, positions)


def judge_logits(difference: LogitsDifference) -> Check:
    """GPU and CPU compute the same; agreement of the top token is told, not judged.

    With random weights the two best tokens are often closer than the tolerance.
    """
    found = (
        f"largest difference {difference.relative:.4f} standard deviations "
        f"({difference.max_abs:.4g} at {difference.std:.4g}), top token agrees at "
        f"{difference.top1:.1%} of {difference.positions} positions"
    )
    expected = f"at most {LOGITS_TOLERANCE} standard deviations"
    if not difference.relative <= LOGITS_TOLERANCE:
        return failed(
            "logits",
            found,
            expected,
            "the GPU computes something else than the CPU: rebuild with another toolkit version, "
            "and run `nvidia-smi -q -d ECC` for memory errors",
        )
    return passed("logits", found, expected)


def judge_benchmark(report: Mapping[str, Any], wanted: int) -> Check:
    """Both tests gave all their samples."""
    pp, tg = report["pp"], report["tg"]
    found = (
        f"pp{pp['n']} {pp['median_ts']:.2f} ± {pp['stdev_ts']:.2f} t/s, "
        f"tg{tg['n']} {tg['median_ts']:.2f} ± {tg['stdev_ts']:.2f} t/s, load {report['load_s']} s"
    )
    expected = f"{wanted} samples of each test"
    if min(len(pp["samples_ts"]), len(tg["samples_ts"])) < wanted:
        return failed("benchmark", found, expected, "run the verification again")
    return passed("benchmark", found, expected)


def _names(gpus: Sequence[str]) -> str:
    return f"{len(gpus)} ({', '.join(gpus)})" if gpus else "none"
