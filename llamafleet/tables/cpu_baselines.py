"""What a CPU must have for each baseline, and how llama.cpp is built for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Baseline = Literal["x86-64-v2", "x86-64-v3", "x86-64-v4"]

# Flags: the levels of the x86-64 psABI, "Micro-Architecture Levels", by the kernel's names of them
# (arch/x86/include/asm/cpufeatures.h: pni is SSE3, abm is LZCNT). Options: ggml/CMakeLists.txt of
# llama-cpp-python 0.3.36; none of them uses more than its level has.
_V2 = frozenset({"cx16", "lahf_lm", "pni", "popcnt", "sse4_1", "sse4_2", "ssse3"})
_V3 = _V2 | {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"}
_V4 = _V3 | {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}
_OF_V2 = frozenset({"GGML_SSE42"})
_OF_V3 = _OF_V2 | {"GGML_AVX", "GGML_AVX2", "GGML_BMI2", "GGML_F16C", "GGML_FMA"}
_OF_V4 = _OF_V3 | {"GGML_AVX512"}


@dataclass(frozen=True)
class CpuBaseline:
    """One level."""

    flags: frozenset[str]
    """Of /proc/cpuinfo; a host must have all of them."""
    on: frozenset[str]
    """Options of ggml; all others of OPTIONS are off."""


BASELINES: dict[Baseline, CpuBaseline] = {
    "x86-64-v2": CpuBaseline(_V2, _OF_V2),
    "x86-64-v3": CpuBaseline(_V3, _OF_V3),
    "x86-64-v4": CpuBaseline(_V4, _OF_V4),
}
MACHINE = "x86_64"
"""As uname -m names the machines that these levels are of."""

OPTIONS = (
    *("GGML_SSE42", "GGML_AVX", "GGML_AVX2", "GGML_BMI2", "GGML_F16C", "GGML_FMA"),
    *("GGML_AVX_VNNI", "GGML_AVX512", "GGML_AVX512_VBMI", "GGML_AVX512_VNNI"),
    *("GGML_AVX512_BF16", "GGML_AMX_TILE", "GGML_AMX_INT8", "GGML_AMX_BF16"),
)
"""All options of ggml that choose instruction sets of x86."""
NATIVE = "GGML_NATIVE"
"""The option by which the compiler takes what the CPU has that it runs on."""
