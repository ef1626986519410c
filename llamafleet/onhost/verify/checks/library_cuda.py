"""The loaded build has the CUDA backend, and the backend has a device."""

from __future__ import annotations

from collections.abc import Iterable

from llamafleet.onhost.verify import known
from llamafleet.onhost.verify.checks import library_origin
from llamafleet.onhost.verify.checks.spec import Spec
from llamafleet.onhost.verify.evidence import Evidence
from llamafleet.protocol.result import Check, failed, passed, skipped

NAME = "library_cuda"


def judge_cuda(libraries: Iterable[str], system_info: str, supports_offload: bool) -> Check:
    """`libraries`: paths of those in the process; `system_info`: llama.cpp's own line."""
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
            NAME,
            found,
            expected,
            "this is a CPU-only build: build with -DGGML_CUDA=on",
        )
    if not supports_offload:
        return failed(
            NAME,
            found,
            expected,
            "the backend has no device: see gpus_visible and the line `failed to initialize CUDA`",
        )
    return passed(NAME, found, expected)


def _host(evidence: Evidence) -> Check:
    if library_origin.cause(evidence):
        return skipped(NAME, "not tried: see library_origin")
    probe, log = evidence.probe().result, evidence.probe().log
    info = probe["system_info"]
    check = judge_cuda(probe["libraries"], info, probe["supports_gpu_offload"])
    return known.explained(check, info, log)


SPEC = Spec(NAME, host=_host)
