"""What is wrong with the llama-cpp-python of an environment, and why: pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

from llamafleet.facts.host import HostSnapshot
from llamafleet.plans.plan import Plan, Problem
from llamafleet.protocol.diagnose import Signature, diagnose, signatures_from
from llamafleet.protocol.environment import MODULE, PACKAGE, Copy, Environment, Look, Trial
from llamafleet.protocol.result import Result
from llamafleet.tables import failures

Kind = Literal[
    "interrupted",
    "absent",
    "shadowed",
    "incomplete",
    "cuda_version",
    "library",
    "import",
    "cpu_only",
    "architecture",
    "no_device",
    "verification",
    "unproven",
    "variables",
    "cache",
    "duplicate",
    "machine",
]

MENDABLE: frozenset[Kind] = frozenset(
    {
        *("absent", "incomplete", "cuda_version", "library", "import", "cpu_only"),
        *("architecture", "no_device", "verification"),
    }
)
"""What a build from source, in the place of what is there, takes away."""

RENAMED = {"LLAMA_CUBLAS": "GGML_CUDA", "LLAMA_CUDA": "GGML_CUDA"}
"""Options of old, and their names now: the CMakeLists.txt of 0.3.36 stops at the first, and takes
the second with a warning."""

WANTS_CUDA = re.compile(r"-D\s*(GGML_CUDA|LLAMA_CUDA|LLAMA_CUBLAS)(:\w+)?=(on|1|true|yes)", re.I)
OPENED = re.compile(r"(lib[\w+.-]*?\.so[\w.]*): cannot open shared object file")
OF_TOOLKIT = re.compile(r"lib(?:cudart|cublas|cublasLt)\.so\.(\d+)")
OF_IMPORTS = ("import", "deps", "runtime")
"""Stages of the catalogue of failures whose words an import can end with."""
OTHER_SYSTEM = frozenset({"glibc-version", "glibcxx"})
"""Those of them that say that a library of this system is of another age."""


@dataclass(frozen=True)
class Cached:
    """A wheel of llama-cpp-python that pip or uv built once, and takes again."""

    path: str
    by: Literal["pip", "uv"]
    cuda: bool | None
    """None: it can't be read."""


@dataclass(frozen=True)
class Code:
    """What the CUDA library of the copy that is imported holds."""

    held: tuple[str, ...] = ()
    """As sm_89 (machine code) or compute_89 (PTX)."""
    unserved: tuple[str, ...] = ()
    """Compute capabilities of this machine's GPUs that none of it runs on."""
    compiled_at_start: tuple[str, ...] = ()
    """Those that it runs on through PTX alone."""
    error: str = ""
    """Why it can't be read."""


@dataclass(frozen=True)
class Facts:
    """All that was found."""

    environment: Environment
    look: Look
    trial: Trial | None
    """None: nothing is there to be imported."""
    machine: HostSnapshot
    plan: Plan
    """What a build on this machine would be."""
    writable: bool = True
    """The environment's folder can be written, or made, by whoever asks."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """The caller's."""
    cached: tuple[Cached, ...] = ()
    code: Code = Code()
    result: Result | None = None
    """Of the verification of what is there."""
    unproven: str = ""
    """Why it was not verified; "": it was, or what was found before is enough."""

    @property
    def imported(self) -> Copy | None:
        """The copy that `import llama_cpp` finds."""
        return next((c for c in self.look.copies if c.folder == self.look.found), None)

    @property
    def own(self) -> Copy | None:
        """The copy that is this environment's."""
        sources = self.environment.editable
        return next(
            (
                c
                for c in self.look.copies
                if c.by in self.places or (sources and c.folder.startswith(f"{sources}/"))
            ),
            None,
        )

    @property
    def places(self) -> tuple[str, ...]:
        """Where a copy is this environment's own: a user's site is no part of another one."""
        alone = self.environment.virtual or self.environment.conda
        return ("environment",) if alone else ("user site", "environment")

    @property
    def gpus(self) -> bool:
        return self.plan.backend == "cuda"


@dataclass(frozen=True)
class Finding:
    """One thing that was found, in plain words."""

    kind: Kind
    red: bool
    """It is wrong; else it is worth knowing."""
    found: str
    why: str
    next: str = ""
    """What to type, where fix itself does not do it."""

    def __str__(self) -> str:
        text = f"{self.found}. {self.why}" if self.why else self.found
        return f"{text}; next: {self.next}" if self.next else text


def judge(facts: Facts) -> tuple[Finding, ...]:
    """What is wrong, the root of it first; then what is worth knowing."""
    found = [*_missing(facts), *_of_import(facts), *_of_code(facts), *_proof(facts)]
    red = any(finding.red for finding in found)
    machine = [
        Finding("machine", red, _told(problem), "", problem.next) for problem in facts.plan.problems
    ]
    found = [*machine, *found, *_duplicates(facts), *_cache(facts), *_variables(facts)]
    return tuple(sorted(found, key=lambda finding: not finding.red))


def _told(problem: Problem) -> str:
    return f"{problem.check}: found {problem.found}; expected {problem.expected}"


def _missing(facts: Facts) -> Iterator[Finding]:
    """What is not where it should be."""
    imported, own = facts.imported, facts.own
    if imported is None and own is None:
        where = facts.environment.prefix
        yield Finding("absent", True, f"{PACKAGE} is not installed in {where}", _no_import(facts))
        return
    if imported and imported is not own:
        yield _shadow(facts, imported, own)
    if own and own.missing:
        names = ", ".join(own.missing[:3])
        more = f" and {len(own.missing) - 3} more" if len(own.missing) > 3 else ""
        why = "Its own list of files (RECORD) names them, so they were removed, or never written"
        yield Finding("incomplete", True, f"{own.folder} lacks {names}{more}", why)
    if own and not own.libraries:
        why = "It is Python code alone, as of an installation that was cut off"
        yield Finding("incomplete", True, f"{own.folder} holds no library of llama.cpp", why)


def _no_import(facts: Facts) -> str:
    found = facts.look.found
    return f"{MODULE} would be imported from {found}" if found else f"No {MODULE} is on its path"


def _shadow(facts: Facts, imported: Copy, own: Copy | None) -> Finding:
    what = f"{imported.folder} {imported.version}".strip()
    instead = f"in place of {own.folder}" if own else f"and {facts.environment.prefix} has none"
    words = {
        "PYTHONPATH": ("PYTHONPATH puts it there", "unset PYTHONPATH"),
        "current folder": (
            "Python looks into the folder that it is started in first",
            "start Python in another folder",
        ),
        "user site": (
            "Python looks into the user's own site-packages before those of this environment",
            f"export PYTHONNOUSERSITE=1, or remove {imported.folder}",
        ),
    }
    why, cure = words.get(
        imported.by,
        (
            "Another folder on the interpreter's path, by a .pth file say",
            f"remove {imported.folder}",
        ),
    )
    return Finding("shadowed", True, f"{MODULE} is imported from {what}, {instead}", why, cure)


def _of_import(facts: Facts) -> Iterator[Finding]:
    """Why it can't be imported."""
    trial = facts.trial
    if trial is None or trial.imported:
        return
    opened = OPENED.search(trial.error)
    found = f"import {MODULE} fails: {trial.error}"
    if opened and (of := OF_TOOLKIT.match(opened[1])):
        yield _no_toolkit_library(facts, found, opened[1], of[1])
    elif opened and opened[1].startswith("libcuda.so"):
        why = "It is a CUDA build, and this library is the NVIDIA driver's"
        if not facts.gpus:
            why += ": without an NVIDIA GPU a build for the CPU is right here"
        yield Finding("library", True, found, why)
    elif opened:
        yield Finding("library", True, found, f"The loader finds no {opened[1]} on this machine")
    elif known := diagnose(_signatures(), trial.error, stages=OF_IMPORTS):
        kind: Kind = "library" if known.id in OTHER_SYSTEM else "import"
        yield Finding(kind, True, found, known.cause)
    else:
        yield Finding("import", True, found, "What is there can't be used as it is")


@cache
def _signatures() -> tuple[Signature, ...]:
    return signatures_from(failures.rows())


def _no_toolkit_library(facts: Facts, found: str, library: str, major: str) -> Finding:
    there = sorted({tk.version for tk in facts.machine.toolkits if tk.version})
    if any(version.split(".")[0] == major for version in there):
        why = (
            f"It is a build for CUDA {major}, which is on this machine ({', '.join(there)}), but "
            f"the loader is not told where {library} lies"
        )
        return Finding("library", True, found, why)
    has = f"CUDA {', '.join(there)}" if there else "no CUDA toolkit"
    why = f"It was built for CUDA {major}; this machine has {has}"
    return Finding("cuda_version", True, found, why)


def _of_code(facts: Facts) -> Iterator[Finding]:
    """Why what can be imported does not use the GPU."""
    copy, trial = facts.imported or facts.own, facts.trial
    if copy is None or not copy.libraries or not facts.gpus:
        return
    if not copy.cuda:
        found = f"{copy.folder} {copy.version} is a build for the CPU alone: it has no libggml-cuda"
        yield Finding("cpu_only", True, found, _why_cpu(facts, copy))
        return
    if facts.code.error:
        why = "Its machine code can't be told"
        yield Finding("architecture", True, facts.code.error, why)
    held = ", ".join(facts.code.held) or "none"
    if facts.code.unserved:
        gpus = ", ".join(facts.code.unserved)
        found = (
            f"libggml-cuda holds code for {held}, and none that runs on compute capability {gpus}"
        )
        why = "It was built for another GPU: each kernel fails with `no kernel image is available`"
        yield Finding("architecture", True, found, why)
    elif facts.code.compiled_at_start:
        gpus = ", ".join(facts.code.compiled_at_start)
        found = (
            f"libggml-cuda holds no machine code for compute capability {gpus}, but PTX ({held})"
        )
        why = (
            "It works: the driver compiles it at the first start, about a minute, and it is slower"
        )
        yield Finding("architecture", False, found, why)
    elif trial and trial.imported and not trial.offload:
        yield _no_device(facts, trial)


def _no_device(facts: Facts, trial: Trial) -> Finding:
    found = f"{MODULE} has the CUDA backend, and llama.cpp says that it has no GPU to use"
    driver = facts.machine.driver.cuda
    majors = {of[1] for path in trial.libraries if (of := re.search(r"libcudart\.so\.(\d+)", path))}
    newer = [major for major in majors if driver and int(major) > int(driver.split(".")[0])]
    if newer:
        why = f"It was built for CUDA {newer[0]}; the driver runs CUDA up to {driver}"
        return Finding("cuda_version", True, found, why)
    hidden = facts.variables.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        why, cure = f"CUDA_VISIBLE_DEVICES={hidden!r} is set", "unset CUDA_VISIBLE_DEVICES"
        return Finding("no_device", True, found, why, cure)
    return Finding("no_device", True, found, "CUDA can't be initialised by this build")


def _why_cpu(facts: Facts, copy: Copy) -> str:
    """How it came to be one, as far as it can be told."""
    stale = [one for one in facts.cached if one.cuda is False]
    args = facts.variables.get("CMAKE_ARGS", "")
    if args and WANTS_CUDA.search(args):
        words = f"CMAKE_ARGS={args!r} asks for CUDA and had no effect"
        old = [name for name in RENAMED if _sets(args, name)]
        if old:
            return f"{words}: {old[0]} is {RENAMED[old[0]]} since llama.cpp renamed its options"
        if stale:
            return (
                f"{words}: {stale[0].by} takes the wheel of before, {stale[0].path}, from its cache"
            )
        return f"{words}: a wheel that was there already, or another's, was installed"
    set_alone = [name for name in (*RENAMED, "GGML_CUDA") if name in facts.variables]
    if set_alone:
        return f"{set_alone[0]} is set as a variable, which no build of today reads"
    if stale:
        return (
            f"{stale[0].by} keeps such a wheel, {stale[0].path}, and takes it at each installation"
        )
    if copy.generator and "linux_x86_64" not in copy.tag and "manylinux" in copy.tag:
        return f"It is a ready-made wheel ({copy.tag}), and those of the index are for the CPU"
    return "pip builds for the CPU unless CMAKE_ARGS says -DGGML_CUDA=on"


def _sets(args: str, name: str) -> bool:
    """CMAKE_ARGS gives that option."""
    return bool(re.search(rf"-D\s*{name}\b", args))


def _proof(facts: Facts) -> Iterator[Finding]:
    """What the verification says of it."""
    if facts.unproven:
        yield Finding("unproven", True, f"nothing was proven: {facts.unproven}", "")
    result = facts.result
    if result is None or result.good:
        return
    copy = facts.own or facts.imported
    built = facts.plan.build.inputs.llama_version if facts.plan.build else ""
    other = copy is not None and built not in ("", copy.version)
    doubt = (
        f" (the verification was made for {built}, not for {copy.version})"
        if other and copy
        else ""
    )
    for where, check in result.red:
        found = f"{where + ': ' if where else ''}{check.name}: {check.found}"
        yield Finding("verification", True, found, f"Expected: {check.expected}{doubt}", check.next)
    if not result.red:
        found = f"the verification ends with {result.verdict}"
        yield Finding("verification", True, found, "; ".join(result.busy))


def _duplicates(facts: Facts) -> Iterator[Finding]:
    named = [d for d in facts.environment.distributions if d.name == PACKAGE]
    for place in sorted({one.place for one in named}):
        versions = sorted({one.version for one in named if one.place == place})
        if len(versions) > 1:
            found = f"{place} has records of {PACKAGE} {' and '.join(versions)}"
            python = shlex.quote(facts.environment.executable)
            remove = f"{python} -m pip uninstall -y {PACKAGE}"
            if not facts.environment.pip:
                remove = f"uv pip uninstall --python {python} {PACKAGE}"
            again = f"{remove}, until it finds none; then llamafleet fix --python {python} --yes"
            yield Finding("duplicate", True, found, "An installation was cut off there", again)
    rest = [c for c in facts.look.copies if c is not facts.imported and c is not facts.own]
    for copy in rest:
        found = f"another {MODULE} {copy.version} lies in {copy.folder}"
        yield Finding("duplicate", False, found, "It is not the one that is imported")


def _cache(facts: Facts) -> Iterator[Finding]:
    """A cached wheel that a later `pip install` would bring back."""
    for one in facts.cached:
        if facts.gpus and one.cuda is False:
            command = "pip cache remove llama_cpp_python"
            if one.by == "uv":
                command = f"uv cache clean {PACKAGE}"
            found = f"{one.by} keeps a wheel for the CPU alone, {one.path}"
            yield Finding(
                "cache", False, found, f"The next {one.by} install takes it again", command
            )


def _variables(facts: Facts) -> Iterator[Finding]:
    """Variables that somebody set for a build, and that do nothing."""
    for name, now in RENAMED.items():
        args = facts.variables.get("CMAKE_ARGS", "")
        where = name if name in facts.variables else ""
        where = "CMAKE_ARGS" if _sets(args, name) else where
        if where:
            found = f"{where} names {name}, which is of older versions"
            yield Finding("variables", False, found, f"It is -D{now}=on now", f"unset {where}")
    if "GGML_CUDA" in facts.variables:
        found = "GGML_CUDA is set as a variable"
        why = "No build reads it: it is an option of CMake, in CMAKE_ARGS"
        yield Finding("variables", False, found, why, "unset GGML_CUDA")
