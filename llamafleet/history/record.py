"""One measured figure of one GPU, with what it depends on: a row of the history.

Names that llama-bench has (tools/llama-bench/llama-bench.cpp, `-o jsonl`) are its own and mean the
same; the others are beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal, NamedTuple, Protocol

from llamafleet.protocol.result import Verdict

Test = Literal["pp", "tg"]
"""Prompt processing, token generation: judged apart."""


class Figure(Protocol):
    """What a comparison takes: a figure, when it was measured, and a record that tells of what."""

    @property
    def of(self) -> Record: ...
    @property
    def test_time(self) -> datetime: ...
    @property
    def median_ts(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Record:
    """None, "" and empty stand for what was not told."""

    id: str
    """Over host, GPU, test and time: the same measurement imported again is the same record."""
    test: Test
    test_time: datetime
    """When it ended, with a zone."""
    avg_ts: float
    """Mean, tokens per second, as llama-bench gives it."""
    median_ts: float
    """What comparisons take: a hiccup moves a mean."""
    stddev_ts: float = 0.0
    samples_ts: tuple[float, ...] = ()

    # -- whose
    host: str = ""
    machine_id: str = ""
    gpu_uuid: str = ""
    """Empty: of the CPU, or of several GPUs together."""
    gpu_info: str = ""
    """The GPU's name."""
    gpus: int = 1
    """How many GPUs worked together; 0: the CPU."""
    compute_capability: str = ""
    vram_mib: int | None = None

    # -- what was measured
    n_prompt: int = 0
    n_gen: int = 0
    n_depth: int = 0
    model_filename: str = ""
    """The model's name, without its folder."""
    model_sha256: str = ""
    model_type: str = ""
    """As llama-bench writes it, where it is from llama-bench."""
    model_size: int | None = None
    """Bytes."""
    model_n_params: int | None = None
    flash_attn: bool | None = None
    n_gpu_layers: int | None = None
    n_batch: int | None = None
    n_ubatch: int | None = None
    type_k: str = ""
    type_v: str = ""
    n_threads: int | None = None
    llama_bench: Mapping[str, Any] = field(default_factory=dict)
    """Of a record of llama-bench the columns that have no field here, by its names."""

    # -- by what
    driver: str = ""
    toolkit: str = ""
    nvcc: str = ""
    """nvcc's own build, as 13.0.88."""
    fingerprint: str = ""
    llama_cpp_python: str = ""
    build_number: int | None = None
    build_commit: str = ""
    flags: tuple[str, ...] = ()
    """CMake options of the build."""

    # -- under which conditions
    verdict: Verdict | None = None
    """Of that GPU; None: from llama-bench, which gives none."""
    busy: tuple[str, ...] = ()
    """Why the figures are not those of a free and healthy GPU; such a record is no baseline."""
    sm_clock_mhz: float | None = None
    sm_clock_max_mhz: float | None = None
    memory_clock_mhz: float | None = None
    power_limit_w: float | None = None
    """In force: the lower one of what is set and enforced."""
    power_default_w: float | None = None
    temperature_c: float | None = None
    utilisation: float | None = None
    """Per cent of the time that the GPU had work, mean over the generation of tokens."""
    throttled_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds by reason."""
    pcie_generation: int | None = None
    pcie_generation_max: int | None = None
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    processes: int | None = None
    """Of others on that GPU meanwhile."""
    persistence: bool | None = None
    peak_vram_mib: int | None = None
    load_s: float | None = None

    # -- where it is from
    run_id: str = ""
    """Of deploy.py, where one is known; "": by a timer, or from a file."""
    source: str = ""
    """The file it was imported from, below the results' folder."""

    @property
    def of(self) -> Record:
        """It is a Figure."""
        return self


class Light(NamedTuple):
    """A Figure that shares its record with all that are alike but for time and figure: of these a
    million fit into memory."""

    of: Record
    """The first one of them; time and figure are its own."""
    test_time: datetime
    median_ts: float


def as_json(record: Record) -> dict[str, Any]:
    """A record in types of JSON: the time as ISO 8601, in UTC."""
    return {**asdict(record), "test_time": record.test_time.astimezone(timezone.utc).isoformat()}
