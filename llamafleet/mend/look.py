"""What there is: the environment, its llama_cpp, the code in it, cached wheels. Changes nothing."""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from llamafleet.facts.environment import LOOK_S, Said, attempt, look
from llamafleet.facts.host import HostSnapshot
from llamafleet.mend.machine import Machine, run
from llamafleet.onhost.verify import fatbin
from llamafleet.plans.gpus import chosen
from llamafleet.plans.mend.judge import Cached, Code, Facts
from llamafleet.plans.plan import Plan
from llamafleet.protocol.environment import CUDA_LIBRARY, PACKAGE, Copy, Environment
from llamafleet.settings import Settings

MOST_CACHED = 20


def read_facts(
    here: Machine,
    environment: Environment,
    settings: Settings,
    snapshot: HostSnapshot,
    plan: Plan,
) -> Facts:
    """All that can be found without a verification. Raises NoAnswer."""
    python = environment.executable
    seen = look(python, here.ask)
    facts = Facts(
        environment=environment,
        look=seen,
        trial=attempt(python, here.ask) if seen.found else None,
        machine=snapshot,
        plan=plan,
        writable=writable(Path(environment.site)),
        variables=here.environ,
        cached=tuple(cached(here)),
        code=Code(),
    )
    copy = facts.imported or facts.own
    gpus = [gpu.compute_capability for gpu in chosen(settings, snapshot).gpus]
    code = read_code(copy, [gpu for gpu in gpus if gpu]) if copy and facts.gpus else Code()
    return replace(facts, code=code)


def writable(folder: Path) -> bool:
    """This process can write it, or make it where it is not there."""
    there = next(place for place in (folder, *folder.parents) if place.is_dir())
    return os.access(there, os.W_OK | os.X_OK)


def read_code(copy: Copy, capabilities: Sequence[str]) -> Code:
    """Of the CUDA library of a copy; nothing where it has none."""
    found = [name for name in copy.libraries if CUDA_LIBRARY in name]
    if not found:
        return Code()
    try:
        code = fatbin.read(Path(copy.folder, found[0]))
    except (fatbin.FatbinError, OSError) as error:
        return Code(error=str(error))
    unserved, compiled = [], []
    for text in sorted(set(capabilities)):
        gpu = fatbin.parse_capability(text)
        runs = [[c for c in unit if c.runs_on(gpu)] for unit in code.units]
        if not runs or not all(runs):
            unserved.append(text)
        elif any(all(c.ptx for c in codes) for codes in runs):
            compiled.append(text)
    return Code(tuple(map(str, code.codes)), tuple(unserved), tuple(compiled))


def cached(here: Machine) -> Iterator[Cached]:
    """Wheels that pip and uv built before and would take again."""
    pip = [sys.executable, "-I", here.layout.pip, "cache", "list", "llama_cpp_python"]
    said = run([*pip, "--format=abspath"], LOOK_S, here.environ)
    lines = said.output.splitlines() if said.status == 0 else []
    for line in [line for line in lines if line.endswith(".whl")][:MOST_CACHED]:
        yield Cached(line.strip(), "pip", _has_cuda(Path(line.strip())))
    for path in _of_uv(lambda argv: run(argv, LOOK_S, here.environ), here.environ.get("PATH", "")):
        yield Cached(str(path), "uv", _has_cuda(path))


def _of_uv(ask: Callable[[Sequence[str]], Said], path: str) -> list[Path]:
    """Of source archives that uv built: its cache, "sdists-v*"."""
    uv = next((f"{place}/uv" for place in path.split(os.pathsep) if _runs(f"{place}/uv")), None)
    said = ask([uv, "cache", "dir"]) if uv else None
    if said is None or said.status != 0 or not said.output.strip():
        return []
    # A wheel is kept as a file, and unpacked too in "archive-v*".
    wheels = Path(said.output.strip()).glob(f"sdists-v*/*/**/{PACKAGE.replace('-', '_')}-*.whl")
    return sorted(wheels)[:MOST_CACHED]


def _runs(path: str) -> bool:
    return os.access(path, os.X_OK) and Path(path).is_file()


def _has_cuda(wheel: Path) -> bool | None:
    """None: it can't be read."""
    try:
        if wheel.is_dir():
            return any(wheel.rglob(f"{CUDA_LIBRARY}*"))
        with zipfile.ZipFile(wheel) as opened:
            return any(CUDA_LIBRARY in name for name in opened.namelist())
    except (OSError, zipfile.BadZipFile, NotImplementedError):
        return None
