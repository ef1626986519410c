"""What a verification found, and the words for it: written by hosts, read by the controller.

Version 2 has a row for each GPU, as a GPU fails, slows down or is hidden by itself. A result of
version 1 spoke of the host as a whole; `upgraded` makes it one of version 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llamafleet.protocol.conditions import Conditions
from llamafleet.protocol.verify import VerifyInputs

VERSION = 2

Verdict = Literal["PASS", "FAIL", "BUSY", "CPU ONLY", "NOT VERIFIED"]
PASS: Verdict = "PASS"
FAIL: Verdict = "FAIL"
"""A check is red."""
BUSY: Verdict = "BUSY"
"""Offload is proven, and the figures are not those of a free and healthy GPU."""
CPU_ONLY: Verdict = "CPU ONLY"
"""No GPU was used, as the settings allow; never a PASS."""
NOT_VERIFIED: Verdict = "NOT VERIFIED"
"""The verification did not end, or did not look."""
GOOD: tuple[Verdict, ...] = (PASS, CPU_ONLY)
"""The job itself gives CPU ONLY only where the settings allow it."""

Backend = Literal["cuda", "cpu"]


def is_good(verdict: Verdict, *, allow_busy: bool) -> bool:
    """Nothing is left to be wished for, by the settings."""
    return verdict in GOOD or (verdict == BUSY and allow_busy)


WANTED: dict[Backend, Verdict] = {"cuda": PASS, "cpu": CPU_ONLY}
"""The verdict after which nothing needs to be verified again."""

Status = Literal["pass", "warn", "busy", "fail", "skip"]


MARKS: dict[Status, str] = {
    "pass": "ok  ",
    "warn": "WARN",
    "busy": "BUSY",
    "fail": "FAIL",
    "skip": "skip",
}
"""How a check's line begins."""


@dataclass(frozen=True)
class Check:
    """One finding. `warn` is a pass with a price that the user should know; `busy` proves offload
    and no figure."""

    name: str
    status: Status
    found: str
    expected: str
    next: str = ""
    """The command to type, or the setting to change."""

    def __str__(self) -> str:
        return f"{self.name}: found {self.found}; expected {self.expected}; next: {self.next}"

    def line(self) -> str:
        """What a person reads: one line, and for a red check two more."""
        mark = MARKS[self.status]
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


def judge(backend: Backend, checks: Iterable[Check], names: Iterable[str]) -> Verdict:
    """PASS, FAIL or CPU ONLY of the checks of one GPU, or of a host; `names`: all there must be.

    On a CUDA build a check that was left out counts as red: what was not looked at is not proven.
    """
    status = {check.name: check.status for check in checks}
    if set(status) != set(names) or "fail" in status.values():
        return FAIL
    if backend == "cpu":
        return CPU_ONLY
    if "skip" in status.values():
        return FAIL
    return BUSY if "busy" in status.values() else PASS


WORST_FIRST: tuple[Verdict, ...] = (FAIL, NOT_VERIFIED, BUSY, CPU_ONLY, PASS)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """A host's verdict is the worst of its GPUs' verdicts and its own; of none: NOT VERIFIED."""
    return min(verdicts, key=WORST_FIRST.index, default=NOT_VERIFIED)


@dataclass(frozen=True)
class Rates:
    """One test of the benchmark, in tokens per second."""

    n: int
    """Tokens."""
    median_ts: float
    stdev_ts: float
    """Of the sample (n - 1)."""
    mean_ts: float = 0.0
    repetitions: int = 0
    samples_ts: tuple[float, ...] = ()
    discarded_ts: tuple[float, ...] = ()
    """Of repetitions before those that count."""


@dataclass(frozen=True)
class Load:
    """What NVML says of the GPUs while they were measured. None: it does not tell."""

    utilisation_mean: float | None = None
    """Per cent."""
    utilisation_max: float | None = None
    sm_clock_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    throttle_reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """llama-bench's two tests."""

    pp: Rates
    tg: Rates
    threads: int = 0
    load_s: float | None = None
    """Seconds to load the model."""
    peak_vram_mib: int | None = None
    gpu: Load | None = None
    busy: tuple[str, ...] = ()
    """Why these are not the figures of a free and healthy GPU, a sentence each; such figures are
    shown in brackets and are no baseline."""
    attempts: int = 1
    """How often it was measured until the GPU was free."""
    conditions: tuple[Conditions, ...] = ()
    """What each of its GPUs was like meanwhile."""


def _busy(checks: Iterable[Check], benchmark: Benchmark | None) -> tuple[str, ...]:
    """Why figures are not those of a free GPU: by the checks, and by what else they say of it."""
    lines = [str(check) for check in checks if check.status == "busy"]
    told = benchmark.busy if benchmark else ()
    rest = [f"benchmark: {one}" for one in told if not any(one in line for line in lines)]
    return (*lines, *rest)


@dataclass(frozen=True)
class GpuRow:
    """One GPU, verified by itself."""

    uuid: str
    bus_id: str
    """As 0000:01:00.0; "": not told."""
    name: str
    compute_capability: str
    """As 8.9; "": not told."""
    vram_mib: int
    verdict: Verdict = NOT_VERIFIED
    checks: tuple[Check, ...] = ()
    benchmark: Benchmark | None = None
    model: str = ""
    """The model that it was verified with; "": none was loaded."""
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds: init_s, load_s, context_s, first_decode_s."""

    @property
    def busy(self) -> tuple[str, ...]:
        """Why its figures are not those of a free and healthy GPU, one line each."""
        return _busy(self.checks, self.benchmark)


@dataclass(frozen=True)
class ModelFile:
    """The model of the settings."""

    name: str
    path: str
    bytes: int
    sha256: str | None
    layers: int


@dataclass(frozen=True)
class BuildSummary:
    """What a result repeats of the build's stamp. None: the stamp does not tell."""

    inputs: dict[str, Any] | None = None
    wall_s: float | None = None
    cpu_s: float | None = None
    phases: dict[str, float] | None = None
    """Seconds, in the order they ran."""
    wheel_bytes: int | None = None
    llama_cpp_python: str | None = None
    retried: str | None = None
    """Why it was built in a second attempt, and with what; None: in the first."""
    nvcc: str = ""
    """Build of the nvcc that compiled it, as 13.2.86; "": for the CPU, or not told."""


@dataclass(frozen=True)
class System:
    """The host, beside its GPUs."""

    driver: str | None = None
    """Version that was loaded."""
    cuda: str | None = None
    """Newest CUDA version of the driver."""
    system_info: str | None = None
    """llama.cpp's own line."""
    libraries: dict[str, str] = field(default_factory=dict)
    """sha256 by path of each library of llama.cpp in the process."""


@dataclass(frozen=True)
class Result:
    """One verification of one build on one host."""

    host: str
    verdict: Verdict
    fingerprint: str
    key: str
    """Over `inputs`."""
    inputs: VerifyInputs
    finished: float
    """Seconds since 1970."""
    started: float = 0.0
    build: BuildSummary = BuildSummary()
    system: System = System()
    model: ModelFile | None = None
    checks: tuple[Check, ...] = ()
    """Those that speak of the host: the build, and where there are several GPUs the model spread
    over all of them."""
    benchmark: Benchmark | None = None
    """Of the CPU, or of several GPUs together."""
    gpus: tuple[GpuRow, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)
    machine_id: str = ""
    """Of the machine that was verified; "": not known, or written by older code."""
    left_out: tuple[str, ...] = ()
    """GPUs of the host, name and UUID or bus id, that the setting `gpus` leaves out."""
    allow_busy: bool = False
    """The settings take a BUSY for good."""
    prefix: str = ""
    """Folder of the build that was verified; "": written by older code, which had one for each
    fingerprint."""
    version: int = VERSION

    @property
    def red(self) -> tuple[tuple[str, Check], ...]:
        """(GPU or "", check) of each red check; the GPU is named where there are several."""
        several = len(self.gpus) > 1
        rows = [("", self.checks)]
        rows += [(f"{gpu.name} {gpu.uuid}" if several else "", gpu.checks) for gpu in self.gpus]
        return tuple(
            (where, check) for where, checks in rows for check in checks if check.status == "fail"
        )

    @property
    def busy(self) -> tuple[str, ...]:
        """Why figures are not those of a free and healthy GPU, one line each, as `red` names the
        GPU."""
        several = len(self.gpus) > 1
        found = list(_busy(self.checks, self.benchmark))
        for gpu in self.gpus:
            where = f"{gpu.name} {gpu.uuid}: " if several else ""
            found += [f"{where}{line}" for line in gpu.busy]
        return tuple(found)

    @property
    def measured_busy(self) -> bool:
        """The figures of `measured` are not those of a free and healthy GPU: no baseline."""
        if self.benchmark or len(self.gpus) != 1:
            return bool(_busy(self.checks, self.benchmark))
        return bool(self.gpus[0].busy)

    @property
    def good(self) -> bool:
        """Nothing is left to be wished for, by the settings."""
        return is_good(self.verdict, allow_busy=self.allow_busy)

    @property
    def measured(self) -> Benchmark | None:
        """The benchmark of the whole host: of several GPUs together, or of its only one."""
        if self.benchmark or len(self.gpus) != 1:
            return self.benchmark
        return self.gpus[0].benchmark


@dataclass(frozen=True)
class VerdictOn:
    """As much of a result, of any version, as the driver check reads."""

    inputs: VerifyInputs


HOST_CHECKS_1 = frozenset({"gpus_visible", "library_origin", "library_cuda", "control"})
"""Checks of version 1 that speak of the host; the others are its only GPU's."""


def upgraded(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """A result of version 1 as one of version 2; any other as it is.

    The verdict of version 1 is that of a host's only GPU. Of several it proves none: they were
    looked at together. Raises KeyError, TypeError or AttributeError on what is no result.
    """
    if data.get("version") != 1:
        return data
    gpus, checks = data["system"]["gpus"], list(data["checks"])
    rows = [{"bus_id": "", **gpu} for gpu in gpus]
    rest: dict[str, Any] = {"checks": checks, "benchmark": data["benchmark"]}
    if len(rows) == 1:
        own = [check for check in checks if check["name"] not in HOST_CHECKS_1]
        rows[0] |= {"verdict": data["verdict"], "checks": own, "benchmark": data["benchmark"]}
        rows[0] |= {"model": (data.get("model") or {}).get("name", "")}
        rest = {"checks": [c for c in checks if c["name"] in HOST_CHECKS_1], "benchmark": None}
    return {**data, **rest, "gpus": rows, "version": VERSION}
