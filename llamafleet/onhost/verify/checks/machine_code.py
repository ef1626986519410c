"""The CUDA library holds code for the GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llamafleet.onhost import nvcc
from llamafleet.onhost.verify import fatbin, llama_log
from llamafleet.onhost.verify.checks.spec import Spec
from llamafleet.onhost.verify.evidence import Evidence
from llamafleet.onhost.verify.fatbin import MachineCode, parse_capability
from llamafleet.onhost.verify.place import Place
from llamafleet.protocol.result import Check, failed, passed

NAME = "machine_code"
BUILD = "deploy again: it builds with another toolkit"


def judge_machine_code(code: MachineCode, capabilities: Sequence[str]) -> Check:
    """Every translation unit has code for every GPU; `capabilities` as ("8.9",).

    SASS for all of them is a pass. PTX alone is a warning of its own: it works, but the driver
    compiles each kernel on first use, and a driver older than the toolkit can't.
    """
    listed = ", ".join(map(str, code.codes)) or "none"
    wanted = sorted(set(capabilities), key=parse_capability)
    options = ";".join(text.replace(".", "") for text in wanted)
    expected = f"machine code (SASS) that runs on compute capability {', '.join(wanted)}"
    cure = f"build with -DCMAKE_CUDA_ARCHITECTURES={options}"
    if not code.units or not wanted:
        return failed(NAME, f"code: {listed}; GPUs: {', '.join(wanted) or 'none'}", expected, cure)
    jit = []
    for text in wanted:
        gpu = parse_capability(text)
        runnable = [[c for c in unit if c.runs_on(gpu)] for unit in code.units]
        missing = sum(1 for codes in runnable if not codes)
        if missing:
            found = (
                f"machine code for this GPU ({text}): no; {missing} of {len(code.units)} "
                f"translation units have none that runs there; the library holds {listed}"
            )
            return failed(NAME, found, expected, cure)
        if any(all(c.ptx for c in codes) for codes in runnable):
            jit.append(text)
    if jit:
        return Check(
            NAME,
            "warn",
            f"machine code for this GPU ({', '.join(jit)}): no, PTX only; the first start compiles "
            f"for about a minute; the library holds {listed}",
            expected,
            cure,
        )
    found = f"machine code for this GPU ({', '.join(wanted)}): yes; the library holds {listed}"
    return passed(NAME, found, expected)


def _place(place: Place) -> Check:
    """The library that was loaded, or the one that should have been."""
    evidence = place.evidence
    prefix = Path(evidence.config.prefix)
    loaded = [path for path in evidence.probed_libraries() if "/libggml-cuda" in path]
    there = sorted(map(str, prefix.rglob("libggml-cuda*.so*")))
    capabilities = _capabilities(place)
    expected = f"machine code that runs on compute capability {', '.join(capabilities)}"
    cure = "build with -DGGML_CUDA=on"
    if not loaded and not there:
        return failed(NAME, f"no libggml-cuda.so below {prefix}", expected, cure)
    try:
        code = fatbin.read(Path((loaded or there)[0]))
    except fatbin.FatbinError as error:
        return failed(NAME, str(error), expected, cure)
    check = judge_machine_code(code, capabilities)
    wrong = _miscompiled(place.evidence, code, capabilities)
    if wrong and check.status != "fail":
        return failed(NAME, f"compiled by {wrong}", "code of a compiler that makes it right", BUILD)
    return check


def _miscompiled(evidence: Evidence, code: MachineCode, capabilities: Sequence[str]) -> str:
    """What is known against the nvcc of this build, if its proof tells which it was: a small model
    may look right by luck. It is the code that runs on a GPU that is wrong, as PTX of an older
    capability is not."""
    build = evidence.product.nvcc if evidence.product else ""
    runs = [c for c in code.codes if any(c.runs_on(parse_capability(gpu)) for gpu in capabilities)]
    of = [f"{c.major}.{c.minor}" for c in runs]
    return nvcc.miscompiles(build, evidence.config.toolkit or "", of) if build else ""


def _capabilities(place: Place) -> tuple[str, ...]:
    """As NVML tells them; else of the GPUs that CUDA shows; else as configured."""
    told = tuple(gpu.compute_capability for gpu in place.gpus if gpu.compute_capability)
    shown = llama_log.parse(place.evidence.probe().log).capabilities
    return told or shown or place.evidence.config.compute_capabilities


SPEC = Spec(NAME, place=_place, on=frozenset({"gpu", "unnamed"}), of_hidden=True)
