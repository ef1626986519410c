"""Files of `llama-bench -o jsonl`, in and out, by the names that llama-bench has.

Checked against tools/llama-bench/llama-bench.cpp of llama-cpp-python 0.3.36 (test::get_fields,
get_field_type and jsonl_printer): 42 columns and two lists of samples.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path, PureWindowsPath
from statistics import median
from typing import Any

from llamafleet.history.record import Record, Test, as_json
from llamafleet.history.records import with_id
from llamafleet.received import Unreadable, plain, received, received_json

COLUMNS = (
    *("build_commit", "build_number", "cpu_info", "gpu_info", "backends", "model_filename"),
    *("model_type", "model_size", "model_n_params", "n_batch", "n_ubatch", "n_threads", "cpu_mask"),
    *("cpu_strict", "poll", "type_k", "type_v", "n_gpu_layers", "n_cpu_moe", "split_mode"),
    *("main_gpu", "no_kv_offload", "flash_attn", "devices", "tensor_split"),
    *("tensor_buft_overrides", "load_mode", "lazy_mode", "embeddings", "no_op_offload", "no_host"),
    *("repack", "fit_target", "fit_min_ctx", "n_prompt", "n_gen", "n_depth", "test_time", "avg_ns"),
    *("stddev_ns", "avg_ts", "stddev_ts", "samples_ns", "samples_ts"),
)
"""In its order."""

OURS = "llamafleet"
"""A column beside them, of records of a verification: the whole record.

Without it the figure of a GPU that was not free would come back as one of a free GPU, and as
another measurement.
"""

AUTO = -1
"""Of flash_attn: as llama.cpp thinks best, which a verification takes, too."""

NS = 1e9

LARGEST = 64 << 20
"""Bytes of a file; a row has some 1,500."""


class BenchFileError(Exception):
    """The file can't be read; one line."""


@dataclass(frozen=True)
class _Row:
    """What is looked at of a row; older versions lack some, newer ones have more."""

    n_prompt: int
    n_gen: int
    test_time: str
    avg_ts: float
    stddev_ts: float = 0.0
    samples_ns: tuple[int, ...] = ()
    samples_ts: tuple[float, ...] = ()
    n_depth: int = 0
    build_commit: str = ""
    build_number: int = 0
    gpu_info: str = ""
    backends: str = ""
    model_filename: str = ""
    model_type: str = ""
    model_size: int | None = None
    model_n_params: int | None = None
    n_batch: int | None = None
    n_ubatch: int | None = None
    n_threads: int | None = None
    type_k: str = ""
    type_v: str = ""
    n_gpu_layers: int | None = None
    split_mode: str = ""
    main_gpu: int = 0
    devices: str = "auto"
    flash_attn: bool | int = AUTO


def read_file(path: Path, host: str) -> Iterator[Record | str]:
    """Its records; a line that can't be taken is named in its record's place.

    Raises BenchFileError.
    """
    try:
        if not path.is_file():
            raise BenchFileError(f"{path}: found no regular file; expected one of llama-bench")
        if path.stat().st_size > LARGEST:
            raise BenchFileError(f"{path}: found more than {LARGEST} bytes; expected fewer")
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    found = record_of(line, host, path.name)
                    yield found if isinstance(found, Record) else f"{path}:{number}: {found.reason}"
    except OSError as error:
        raise BenchFileError(f"{path}: found {error.strerror}; expected to read it") from error


def record_of(line: str, host: str, source: str = "") -> Record | Unreadable:
    """One line of llama-bench."""
    told = received_json(line)
    data = told if isinstance(told, Unreadable) else received(dict[str, Any], told)
    if isinstance(data, Unreadable):
        return Unreadable(f"found no row of llama-bench ({data.reason})")
    if OURS in data:
        return _ours(data[OURS])
    # null is what an export of ours does not know.
    row = received(_Row, {name: value for name, value in data.items() if value is not None})
    if isinstance(row, Unreadable):
        return Unreadable(f"found no row of llama-bench ({row.reason})")
    try:
        record = with_id(_record(row, host, source))
    except ValueError as error:
        return Unreadable(f"found {error}")
    # What comes out again is what came in, be it newer than this code.
    known = row_of(record)
    rest = {name: value for name, value in data.items() if not _same(known.get(name), value)}
    return replace(record, llama_bench=rest)


def _ours(told: object) -> Record | Unreadable:
    """A record as an export of ours keeps it."""
    record = received(Record, told)
    try:
        if isinstance(record, Unreadable):
            raise ValueError(record.reason)
        if with_id(record) != record:
            raise ValueError(f"the id {record.id}, which is not that of its figures")
    except ValueError as error:
        return Unreadable(f"found {error} in the column {OURS}; expected it as it was written")
    return record


def _same(told: object, value: object) -> bool:
    return type(told) is type(value) and told == value


def _record(row: _Row, host: str, source: str) -> Record:
    """Raises ValueError."""
    tokens = row.n_prompt + row.n_gen
    if min(row.n_prompt, row.n_gen) != 0 or tokens <= 0:
        raise ValueError(
            f"n_prompt {row.n_prompt} and n_gen {row.n_gen}; expected one of them, as of "
            "llama-bench -p or -n"
        )
    if min(row.samples_ns, default=1) <= 0:
        raise ValueError("a test that took no time")
    # Those in samples_ts are rounded to six digits.
    samples = tuple(NS * tokens / ns for ns in row.samples_ns) or row.samples_ts
    gpus, names = _gpus(row)
    test: Test = "pp" if row.n_prompt else "tg"
    return Record(
        id="",
        test=test,
        test_time=_time(row.test_time),
        avg_ts=row.avg_ts,
        median_ts=median(samples) if samples else row.avg_ts,
        stddev_ts=row.stddev_ts,
        samples_ts=samples,
        host=plain(host),
        gpu_info=names,
        gpus=gpus,
        n_prompt=row.n_prompt,
        n_gen=row.n_gen,
        n_depth=row.n_depth,
        # A file may come from Windows: it takes both slashes.
        model_filename=PureWindowsPath(row.model_filename).name,
        model_type=row.model_type,
        model_size=row.model_size,
        model_n_params=row.model_n_params,
        flash_attn=None if row.flash_attn == AUTO else bool(row.flash_attn),
        n_gpu_layers=row.n_gpu_layers,
        n_batch=row.n_batch,
        n_ubatch=row.n_ubatch,
        type_k=row.type_k,
        type_v=row.type_v,
        n_threads=row.n_threads,
        # As of a build outside of git.
        build_number=row.build_number or None,
        build_commit="" if row.build_commit == "unknown" else row.build_commit,
        source=plain(source),
    )


def _time(text: str) -> datetime:
    """Raises ValueError."""
    try:
        time = datetime.fromisoformat(re.sub("Z$", "+00:00", text))
    except ValueError as error:
        raise ValueError(f"test_time {text!r}; expected one as 2026-11-26T12:00:00Z") from error
    if time.tzinfo is None:
        raise ValueError(f"test_time {text!r} without a zone; expected a Z behind it")
    return time


def _gpus(row: _Row) -> tuple[int, str]:
    """How many GPUs were at work, and their names; gpu_info names all that the machine has."""
    names = row.gpu_info.split(", ") if row.gpu_info else []
    if not names or row.backends == "CPU" or row.n_gpu_layers == 0 or row.devices == "none":
        return 0, ""
    if row.devices != "auto":
        numbers = [int(n) for n in re.findall(r"([0-9]{1,3})(?:/|$)", row.devices)]
        names = [names[n] for n in numbers if n < len(names)] or names
    if row.split_mode == "none":
        names = names[row.main_gpu : row.main_gpu + 1] or names[:1]
    return len(names), ", ".join(names)


def row_of(record: Record) -> dict[str, Any]:
    """A record as a row of llama-bench; None: it does not tell.

    One that came from llama-bench is what it was.
    """
    tokens = record.n_prompt + record.n_gen
    samples_ns = [round(NS * tokens / ts) for ts in record.samples_ts if ts > 0]
    known = {
        **{name: getattr(record, name, None) for name in COLUMNS},
        "backends": "CUDA" if record.gpus else "CPU",
        "flash_attn": AUTO if record.flash_attn is None else int(record.flash_attn),
        "test_time": f"{record.test_time.astimezone(timezone.utc):%Y-%m-%dT%H:%M:%SZ}",
        "avg_ns": round(sum(samples_ns) / len(samples_ns)) if samples_ns else None,
        "samples_ns": samples_ns,
        "samples_ts": list(record.samples_ts),
    }
    ours = {OURS: as_json(record)} if record.verdict is not None else {}
    return {**known, **record.llama_bench, **ours}


def line_of(record: Record) -> str:
    return json.dumps(row_of(record), ensure_ascii=False)
