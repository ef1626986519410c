"""The libraries in memory are those of this build, by place and by content."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llamafleet.onhost.verify.checks.spec import Spec
from llamafleet.onhost.verify.evidence import Evidence
from llamafleet.protocol.result import Check, failed, passed

NAME = "library_origin"


def judge_origin(
    loaded: Mapping[str, str], prefix: str, stamp: Mapping[str, str] | None, stamp_path: str
) -> Check:
    """`loaded` maps real paths to sha256, `stamp` paths relative to `prefix` to sha256."""
    expected = f"every libllama and libggml below {prefix}, sha256 as in {stamp_path}"
    if stamp is None:
        return failed(
            NAME,
            f"no list of libraries in {stamp_path}",
            expected,
            "build again: the build writes the stamp",
        )
    if not loaded:
        return failed(
            NAME,
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
            NAME,
            "loaded from elsewhere: " + ", ".join(foreign),
            expected,
            "remove the folder from LD_LIBRARY_PATH, LLAMA_CPP_LIB_PATH or /etc/ld.so.conf.d; or "
            f"run the verification with {prefix}/bin/python",
        )
    if altered:
        return failed(
            NAME,
            "not what the build made: " + ", ".join(altered),
            expected,
            f"remove {prefix} and build again",
        )
    return passed(NAME, f"{len(loaded)} libraries, all of this build", expected)


def _host(evidence: Evidence) -> Check:
    prefix = str(Path(evidence.config.prefix).resolve())
    made = evidence.product.libraries if evidence.product else None
    return judge_origin(evidence.libraries(), prefix, made, evidence.config.stamp)


SPEC = Spec(NAME, host=_host)
