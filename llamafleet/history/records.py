"""The records that a result holds, and which of them are wanted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from hashlib import sha256
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from llamafleet.history.record import Figure, Record, Test
from llamafleet.protocol.conditions import Conditions
from llamafleet.protocol.decode import LARGEST
from llamafleet.protocol.result import Benchmark, GpuRow, Rates, Result, Verdict
from llamafleet.terminal import printable

if TYPE_CHECKING:
    from llamafleet.history.database_import import Taken

VARIABLE = "LLAMAFLEET_HISTORY"
"""Of the environment: the database's URL, which may hold a password."""

ID_DIGITS = 32
"""Hexadecimal digits of a record's id: 128 bits."""

NAMED = 10
"""How many files that can't be read are named at a time."""

LONGEST_KEY = 500
"""Characters of a host or UUID. An index of PostgreSQL takes 2,704 bytes (a third of a page), and a
character has up to four; names of the DNS have 253, UUIDs of NVIDIA 40."""


@dataclass(frozen=True)
class Filter:
    """Which records are wanted; what is empty or None asks for nothing.

    Of several patterns one must match; * and ? stand for any text and any character, case counts.
    """

    hosts: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    """Patterns of the UUID or of the GPU's name."""
    drivers: tuple[str, ...] = ()
    toolkits: tuple[str, ...] = ()
    builds: tuple[str, ...] = ()
    """Patterns of the fingerprint, of llama-cpp-python's version or of llama.cpp's commit."""
    models: tuple[str, ...] = ()
    """Patterns of the model's name."""
    runs: tuple[str, ...] = ()
    tests: tuple[Test, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    since: datetime | None = None
    """With a zone; this moment is in, that of `until` is not."""
    until: datetime | None = None
    busy: bool | None = None
    """False: figures of free GPUs alone; True: the others alone."""
    together: bool | None = None
    """False: of single GPUs or the CPU; True: of several GPUs together."""
    last: int | None = None
    """Of those that match only so many, the newest ones."""

    def columns(self) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
        """Patterns, and the fields of a record of which one must match one of them."""
        return (
            (self.hosts, ("host",)),
            (self.gpus, ("gpu_uuid", "gpu_info")),
            (self.drivers, ("driver",)),
            (self.toolkits, ("toolkit",)),
            (self.builds, ("fingerprint", "llama_cpp_python", "build_commit")),
            (self.models, ("model_filename",)),
            (self.runs, ("run_id",)),
        )


ALL = Filter()


class HistoryError(Exception):
    """The history can't be used; the text is one printable line."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.split())))


@contextmanager
def _loaded() -> Iterator[None]:
    """A venv of before there was a history lacks its libraries, and maybe a database's driver."""
    try:
        yield
    except ImportError as error:
        raise HistoryError(
            f"history: found no {error.name}; expected what setup.sh brings; next: sh setup.sh"
        ) from error


class History:
    """All records that a folder of results and its database hold.

    Everything here raises HistoryError, where the database can't be used.
    """

    def __init__(self, results: Path, url: str = "") -> None:
        """`url`: of a database as SQLAlchemy takes it; "": a file in the folder of results."""
        self.results = results
        self.url = url

    def take_in(self) -> Taken:
        """Keep what is new below the folder of results; it may be asked for as often as one likes,
        by several processes at a time."""
        with _loaded():
            from llamafleet.history import database, database_import

            with database.opened(self.results, self.url) as engine:
                return database_import.take_in(engine, self.results)

    def add(self, records: Iterable[Record]) -> int:
        """Keep records from elsewhere; returns how many were not there before."""
        with _loaded():
            from llamafleet.history import database, database_import

            with database.opened(self.results, self.url) as engine, database.writing(engine) as to:
                return database_import.put(to, records)

    def records(self, wanted: Filter = ALL) -> Iterator[Record]:
        """Oldest first."""
        with _loaded():
            from llamafleet.history import database, database_read

            with database.opened(self.results, self.url) as engine:
                yield from database_read.read(engine, wanted)

    def figures(self, wanted: Filter = ALL) -> Iterator[Figure]:
        """What comparisons ask of records, oldest first; whatever `wanted.last` is."""
        with _loaded():
            from llamafleet.history import database, database_read

            with database.opened(self.results, self.url) as engine:
                yield from database_read.figures(engine, wanted)

    def by_gpu(self, wanted: Filter = ALL) -> Iterator[list[Figure]]:
        """The same of one GPU after the other, so that no more than one is held at a time. What has
        no UUID, as a host's GPUs together, is one of that host."""
        with _loaded():
            from llamafleet.history import database, database_read

            with database.opened(self.results, self.url) as engine:
                found = database_read.figures(engine, wanted, by_gpu=True)
                for _, some in groupby(found, lambda one: (one.of.host, one.of.gpu_uuid)):
                    yield list(some)

    def count(self, wanted: Filter = ALL) -> int:
        """How many records there are, whatever `wanted.last` is."""
        with _loaded():
            from llamafleet.history import database, database_read

            with database.opened(self.results, self.url) as engine:
                return database_read.count(engine, wanted)


def keep_up(results: Path) -> list[str]:
    """Take in what is new below a folder of results; what there is to say of it, a printable line
    each. Whatever is wrong with the history, a run or a report goes on; who may not write there has
    nothing to keep."""
    url = os.environ.get(VARIABLE, "")
    if not os.access(results, os.W_OK if not url else os.R_OK):
        return []
    try:
        return list(map(printable, some(History(results, url).take_in().aside)))
    except (HistoryError, OSError) as error:
        return [printable(str(error))]


def some(lines: Sequence[str]) -> list[str]:
    """The first ones, and how many more there are: a wrong folder may hold nothing else."""
    more = len(lines) - NAMED
    rest = f"history: found {more} more of that kind; expected none; next: as above, then again"
    return [*lines[:NAMED], *([rest] if more > 0 else [])]


def records_of(result: Result, run_id: str = "", source: str = "") -> tuple[Record, ...]:
    """Of each benchmark of a result two records, pp before tg; none of what was not measured.

    Of several GPUs together a condition is the worst of theirs. Raises ValueError where a figure, a
    name or the time is none.
    """
    common = {**_build(result), "run_id": run_id, "source": source}
    common |= {"host": result.host, "machine_id": result.machine_id}
    common |= {"driver": result.system.driver or "", "test_time": _time(result.finished)}
    found: list[Record] = []
    if result.benchmark:
        # Without its GPUs it tells of the host's own checks alone.
        whole = {**_together(result), **_model(result, result.inputs.model)}
        whole["busy"] = replace(result, gpus=()).busy
        found += _both(result.benchmark, {**common, **whole})
    for gpu in result.gpus:
        if gpu.benchmark:
            own = {**_gpu(gpu), **_model(result, gpu.model or result.inputs.model)}
            found += _both(gpu.benchmark, {**common, **own})
    return tuple(found)


def record_id(record: Record) -> str:
    """Over what was measured, where and when, and the figures; not over where it is read from."""
    told = (
        *(record.host, record.gpu_uuid, record.gpu_info, record.gpus, record.test),
        *(record.test_time.astimezone(timezone.utc).isoformat(), record.model_filename),
        *(record.n_prompt, record.n_gen, record.n_depth, record.median_ts, record.samples_ts),
    )
    return sha256(repr(told).encode()).hexdigest()[:ID_DIGITS]


def with_id(record: Record) -> Record:
    """The record, which each database takes. Raises ValueError: none is to be kept of that."""
    _check(record)
    return replace(record, id=record_id(record))


def _check(record: Record) -> None:
    """What one host sends must not keep those of others out, who are written with it."""
    for name in ("host", "gpu_uuid"):
        text = getattr(record, name)
        if len(text) > LONGEST_KEY:
            raise ValueError(f"{name} of {len(text)} characters; expected at most {LONGEST_KEY}")
    for name in Record.__dataclass_fields__:
        value = getattr(record, name)
        if isinstance(value, int) and abs(value) >= LARGEST:
            raise ValueError(f"{name} of {value.bit_length()} bits; expected less than 64")
    for rate in (record.avg_ts, record.median_ts, *record.samples_ts):
        if not 0 < rate < float("inf"):
            raise ValueError(f"{rate} tokens per second; expected more than 0")
    if record.test_time.tzinfo is None:
        raise ValueError(f"test_time {record.test_time} without a zone; expected one")
    try:
        record.test_time.astimezone(timezone.utc)
    except OverflowError as error:
        raise ValueError(f"test_time {record.test_time}, which no calendar has in UTC") from error


def _time(seconds: float) -> datetime:
    """Raises ValueError."""
    try:
        return datetime.fromtimestamp(seconds, timezone.utc)
    except (OverflowError, OSError) as error:
        raise ValueError(f"{seconds} seconds since 1970: {error}") from error


# -- parts of a record -----------------------------------------------------------------------------

Fields = dict[str, Any]


def _both(benchmark: Benchmark, common: Fields) -> Iterable[Record]:
    common = {
        **common,
        **_conditions(benchmark.conditions),
        "n_threads": benchmark.threads or None,
        "peak_vram_mib": benchmark.peak_vram_mib,
        "load_s": benchmark.load_s,
        "utilisation": benchmark.gpu.utilisation_mean if benchmark.gpu else None,
    }
    yield _record("pp", "n_prompt", benchmark.pp, common)
    yield _record("tg", "n_gen", benchmark.tg, common)


def _record(test: Test, size: str, rates: Rates, common: Fields) -> Record:
    fields: Fields = {**common, size: rates.n}
    return with_id(
        Record(
            id="",
            test=test,
            avg_ts=rates.mean_ts or rates.median_ts,
            median_ts=rates.median_ts,
            stddev_ts=rates.stdev_ts,
            samples_ts=rates.samples_ts,
            **fields,
        )
    )


def _build(result: Result) -> Fields:
    build, inputs = result.build, result.build.inputs or {}
    options = inputs.get("cmake_options")
    return {
        "fingerprint": result.fingerprint,
        "toolkit": str(inputs.get("toolkit") or ""),
        "nvcc": build.nvcc,
        "llama_cpp_python": build.llama_cpp_python or str(inputs.get("llama_version") or ""),
        "flags": tuple(map(str, options)) if isinstance(options, list) else (),
    }


def _model(result: Result, name: str) -> Fields:
    """`name`: of the model that was measured, which need not be that of the settings."""
    file = result.model
    fields: Fields = {"model_filename": PurePosixPath(name).name}
    if file and name in (file.name, file.path):
        fields |= {"model_sha256": file.sha256 or "", "model_size": file.bytes}
    return fields


def _gpu(gpu: GpuRow) -> Fields:
    return {
        "gpu_uuid": gpu.uuid,
        "gpu_info": gpu.name,
        "compute_capability": gpu.compute_capability,
        "vram_mib": gpu.vram_mib,
        "verdict": gpu.verdict,
        "busy": gpu.busy,
    }


def _together(result: Result) -> Fields:
    """Of the CPU, or of several GPUs; their names as llama-bench joins them."""
    gpus = () if (result.build.inputs or {}).get("backend") == "cpu" else result.gpus
    return {
        "gpus": len(gpus),
        "gpu_info": ", ".join(gpu.name for gpu in gpus),
        "compute_capability": ", ".join(dict.fromkeys(gpu.compute_capability for gpu in gpus)),
        "vram_mib": sum(gpu.vram_mib for gpu in gpus) or None,
        "verdict": result.verdict,
    }


def _conditions(all_of_them: Sequence[Conditions]) -> Fields:
    lowest = (
        *("sm_clock_mhz", "sm_clock_max_mhz", "memory_clock_mhz", "power_limit_w"),
        *("power_default_w", "pcie_generation", "pcie_generation_max", "pcie_width"),
        *("pcie_width_max", "persistence"),
    )
    fields: Fields = {name: _worst(min, all_of_them, name) for name in lowest}
    fields["temperature_c"] = _worst(max, all_of_them, "temperature_c")
    if all_of_them:
        fields["processes"] = sum(len(one.others) + one.others_unnamed for one in all_of_them)
    reasons = dict.fromkeys(reason for one in all_of_them for reason in one.throttled_s)
    fields["throttled_s"] = {
        reason: max(one.throttled_s.get(reason, 0.0) for one in all_of_them) for reason in reasons
    }
    return fields


def _worst(choose: Callable[[list[Any]], Any], of: Iterable[Conditions], name: str) -> Any:
    """None: none of them tells."""
    told = [value for one in of if (value := getattr(one, name)) is not None]
    return choose(told) if told else None
