"""The libraries in memory are those of this build, by place and by content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from llamafleet.onhost import elf
from llamafleet.onhost.verify.checks.spec import Spec
from llamafleet.onhost.verify.evidence import NO_LIBRARY, Evidence, task_failed
from llamafleet.onhost.verify.imported import LIBRARY_PATH, PACKAGE, PYTHON_PATH, Imported
from llamafleet.protocol.result import Check, failed, passed, skipped

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
            "remove the folder from LD_LIBRARY_PATH, LD_PRELOAD, LLAMA_CPP_LIB_PATH or "
            f"/etc/ld.so.conf.d; or run the verification with {prefix}/bin/python",
        )
    if altered:
        return failed(
            NAME,
            "not what the build made: " + ", ".join(altered),
            expected,
            f"remove {prefix} and build again",
        )
    return passed(NAME, f"{len(loaded)} libraries, all of this build", expected)


def judge_package(imported: Imported, folder: Path) -> Check:
    """A llama_cpp that is not the build's own, in `folder`: who put it in front."""
    found = f"{PACKAGE} is imported from {imported.file}"
    if imported.entry:
        found += f", by {imported.entry} of sys.path"
    if imported.by == PYTHON_PATH:
        value = imported.variables.get(PYTHON_PATH, "")
        found += f", which {PYTHON_PATH}={value} of the settings' environment puts there"
    elif imported.by:
        found += f", which {imported.by} puts there"
    return failed(NAME, found, f"{PACKAGE} of the build, below {folder}", _cure(imported))


def _cure(imported: Imported) -> str:
    if imported.by == PYTHON_PATH:
        return f"deploy again: it writes the settings without {PYTHON_PATH}"
    if imported.by.endswith("/pyvenv.cfg"):
        return f"set include-system-site-packages = false in {imported.by}"
    file = Path(imported.file)
    package = file.parent if file.name == "__init__.py" else file
    return f"remove {imported.by or package}, or move it away"


def cause(evidence: Evidence) -> Check | None:
    """Why what is loaded is another package, or can't be loaded, where this check tells it.

    None: it is the build's own, or what keeps it from being loaded is nothing of ours.
    """
    if evidence.foreign():
        red = judge_package(evidence.imported(), evidence.package())
        problem = evidence.probe().problem
        return replace(red, found=f"{red.found}; {problem}") if problem else red
    if evidence.probe().reply is not None:
        return None
    path = evidence.variables().get(LIBRARY_PATH)
    if path is not None:
        found = f"{evidence.probe().problem}; {LIBRARY_PATH}={path} in its environment"
        expected = "the libraries of the build, which lie beside its Python code"
        advice = f"unset {LIBRARY_PATH}, and deploy again: it writes the settings without it"
        return failed(NAME, found, expected, advice)
    there = judge_origin(evidence.made_libraries(), *_made(evidence))
    if there.status == "fail":
        return there
    return task_failed(NAME, evidence.probe()) if evidence.config.backend == "cpu" else None


def _made(evidence: Evidence) -> tuple[str, dict[str, str] | None, str]:
    prefix = str(Path(evidence.config.prefix).resolve())
    made = evidence.product.libraries if evidence.product else None
    return prefix, made, evidence.config.stamp


def _host(evidence: Evidence) -> Check:
    if red := cause(evidence):
        return red
    if evidence.probe().reply is None:
        return skipped(NAME, f"{NO_LIBRARY}, see library_cuda")
    check = judge_origin(evidence.libraries(), *_made(evidence))
    if check.status != "pass" or evidence.config.backend == "cpu":
        return check
    try:
        return judge_toolkit(check, evidence.strays(), evidence.cuda_folders())
    except (elf.ElfError, OSError) as error:
        advice = f"remove {evidence.config.prefix} and build again"
        return failed(NAME, str(error), "a library that can be read", advice)


def judge_toolkit(check: Check, strays: Sequence[str], folders: Sequence[Path]) -> Check:
    """`check`, which is good, unless CUDA's libraries are those of another toolkit, or stubs."""
    if not strays:
        return check
    toolkit = ", ".join(map(str, folders)) or "the build's toolkit"
    return failed(
        NAME,
        "loaded from elsewhere: " + ", ".join(strays),
        f"CUDA's libraries in {toolkit}, and the driver's own libcuda",
        "remove their folder from LD_LIBRARY_PATH and LD_PRELOAD; or set rebuild = True: what is "
        "built by now looks into its own toolkit first",
    )


SPEC = Spec(NAME, host=_host)
